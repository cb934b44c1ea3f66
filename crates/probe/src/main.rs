//! The probe as a program: `guest`, `sink`, `ask ADDRESS WHAT`, `offset ADDRESS`, `check-disk PATH ACKNOWLEDGED`,
//! `bare-swap OLD NEW WAY`,
//! `bare-suspend FOLDER FILE`, `bare-wake FOLDER FILE`, `jump KERNEL INITRD CMDLINE`, `unload`,
//! `flip DEVICE table|states`, `hold-kvm`, `metadata METHOD PATH [BODY]`, `watch-events FILE EVERY_MS [approve]`,
//! `inside SOCKET SECONDS SCRIPT`.

use std::{error::Error, path::Path, process::ExitCode, time::Duration};

use fermata_probe::{
    BEAT_PORT, SINK_CONTROL_PORT, bare, control, disk, floor, guest, inside, metadata, offset, report::Request, sink,
};

use fermata_vault::memory::devdax::{Devdax, Part};

const USAGE: &str = "usage: fermata-probe guest [--network]
       fermata-probe sink
       fermata-probe ask ADDRESS:PORT report|clock|mark|verify
       fermata-probe offset ADDRESS:PORT
       fermata-probe check-disk PATH ACKNOWLEDGED
       fermata-probe bare-swap OLD-FOLDER NEW-FOLDER transfer|file
       fermata-probe bare-suspend FOLDER FILE
       fermata-probe bare-wake FOLDER FILE
       fermata-probe jump KERNEL INITRD CMDLINE
       fermata-probe unload
       fermata-probe flip DEVICE table|states
       fermata-probe hold-kvm
       fermata-probe metadata METHOD PATH [BODY]
       fermata-probe watch-events FILE EVERY_MS [approve]
       fermata-probe inside SOCKET SECONDS SCRIPT";

fn main() -> ExitCode {
    if std::env::args().next().as_deref() == Some(floor::INIT) {
        return floor::arrive();
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fermata-probe: {error}");
            let mut cause = error.source();
            while let Some(inner) = cause {
                eprintln!("  because: {inner}");
                cause = inner.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<(), Box<dyn Error>> {
    match words {
        ["guest"] => guest::run(false)?,
        ["guest", "--network"] => guest::run(true)?,
        ["sink"] => sink::run(BEAT_PORT, SINK_CONTROL_PORT)?,
        ["ask", address, what] => {
            let (request, limit) = match *what {
                "report" => (Request::Report, 10),
                "clock" => (Request::Clock, 10),
                "mark" => (Request::Mark, 10),
                "verify" => (Request::VerifyMemory, 120),
                _ => return Err(USAGE.into()),
            };
            let answer = control::ask(address.parse()?, request, Duration::from_secs(limit))?;
            println!("{}", serde_json::to_string(&answer)?);
        }
        ["offset", address] => {
            println!("{}", serde_json::to_string(&offset::measure(address.parse()?)?)?);
        }
        ["bare-swap", old, new, way] => {
            let way = match *way {
                "transfer" => bare::Way::Transfer,
                "file" => bare::Way::File,
                _ => return Err(USAGE.into()),
            };
            println!("{}", serde_json::to_string(&bare::swap(Path::new(old), Path::new(new), way)?)?);
        }
        ["bare-suspend", folder, file] => println!("{}", bare::suspend(Path::new(folder), Path::new(file))?),
        ["bare-wake", folder, file] => println!("{}", bare::wake(Path::new(folder), Path::new(file))?),
        ["jump", kernel, initrd, cmdline] => floor::jump(Path::new(kernel), Path::new(initrd), cmdline, false)?,
        ["jump-unpacked", kernel, initrd, cmdline] => {
            floor::jump(Path::new(kernel), Path::new(initrd), cmdline, true)?;
        }
        ["unload"] => fermata_vault::kexec::unload()?,
        ["flip", device, part] => {
            let part = match *part {
                "table" => Part::Table,
                "states" => Part::States,
                _ => return Err(USAGE.into()),
            };
            println!("{} flipped", Devdax::flip(Path::new(device), part)?);
        }
        ["check-disk", path, acknowledged] => {
            println!("{}", serde_json::to_string(&disk::check(Path::new(path), acknowledged.parse()?)?)?);
        }
        ["hold-kvm"] => {
            let _held = fermata_vault::kvm::hold()?;
            loop {
                std::thread::park();
            }
        }
        ["metadata", method, path, body @ ..] if body.len() < 2 => {
            let answer = metadata::ask(method, path, body.first().unwrap_or(&""))?;
            println!("{}", serde_json::to_string(&answer)?);
        }
        ["watch-events", file, every, more @ ..] if matches!(more, [] | ["approve"]) => {
            metadata::watch(Path::new(file), Duration::from_millis(every.parse()?), !more.is_empty())?;
        }
        ["inside", socket, seconds, script] => {
            let ran = inside::run(Path::new(socket), script, Duration::from_secs(seconds.parse()?))?;
            print!("{}", ran.out);
            eprint!("{}", ran.err);
            if ran.status != 0 {
                return Err(format!("the script ended with status {} in the guest", ran.status).into());
            }
        }
        _ => return Err(USAGE.into()),
    }
    Ok(())
}
