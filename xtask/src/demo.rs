//! `cargo xtask demo`: a fleet of real hosts under real VMs, updated twice, and what each VM felt.
//!
//! ```text
//!   host1: controller, agent, web-1 (set web, update domain 0)        its client approves events
//!   host2:             agent, web-2 (set web, update domain 1)        its client only watches
//!                             alone (no set, profile of Windows)      its client lets the notice run out
//!   last host: not updated; the other end of all connections, and the clock that VMs are compared with
//! ```
//!
//! First every host's QEMU is replaced under its VMs, then every host's kernel; one update domain at a time, because the
//! rollout's plan says so and not because this program does.

mod guests;
mod story;

use std::{fs, time::Instant};

use anyhow::{Context, Result, ensure};
use fermata_lab::{Host, Lab, LabSpec, fleet::Fleet, kexecs::change, kexecs::measure::Felt, paths, spec::Kernel};
use serde::Serialize;
use serde_json::json;

use guests::Member;
use story::{Part, Story};

/// How long guests are warned, in seconds: long enough to be seen to run out, short enough to be waited for.
const NOTICE: u32 = 15;

/// The rollout that changes kernels.
const KERNEL: &str = "kernel";

/// What one VM felt in one rollout.
#[derive(Debug, Serialize)]
struct Line {
    rollout: &'static str,
    host: String,
    /// STOP to RESUME as its host measured it, in milliseconds.
    host_blackout_ms: Option<f64>,
    #[serde(flatten)]
    felt: Felt,
}

/// Shows it. With `keep` the hosts go on running.
pub(crate) fn run(hosts: usize, keep: bool) -> Result<()> {
    ensure!((2..=4).contains(&hosts), "{hosts} hosts: use 2 to 4, each has an update domain of its own");
    let story = Story::begin();
    let what =
        format!("{hosts} virtual hosts and one beside them: real Debian, two QEMU versions, two kernels, KVM inside");
    story.part(Part::Hosts, &what);
    let lab = Lab::up(&spec(hosts)).context("bring the hosts up")?;
    story.part(Part::Join, "a controller on host1; the hosts join it");
    let mut fleet = Fleet::form(lab, hosts)?;
    let peer_number = hosts + 1;
    story.part(Part::Vms, "VMs: one of the set `web` on each host, and one alone with the profile of Windows");
    fleet.json(&format!("set create web --update-domains {hosts} --recovery 0"))?;
    let members = guests::start(&fleet, hosts, peer_number)?;
    println!("{}", fleet.controller().run("fermata fleet list")?);

    let image = change::image(fleet.controller(), Kernel::Backports)?;
    let updates = [
        ("qemu", "another QEMU", "kind = \"vmm\"\n[change]\nvmm = \"11.1\"\n".to_owned()),
        (KERNEL, "another host kernel", format!("kind = \"kernel\"\n[change]\nimage = \"{image}\"\n")),
    ];
    let kernels = kernels(&fleet)?;
    let mut lines = Vec::new();
    for (number, (name, title, file)) in updates.into_iter().enumerate() {
        let what = format!("rollout `{name}`: {title} under every VM, one update domain at a time");
        story.part(Part::Rollout(number), &what);
        lines.extend(rollout(&story, &fleet, &members, name, &file)?);
    }
    story.part(Part::Felt, "what each VM felt");
    for (host, before) in fleet.hosts().iter().zip(&kernels) {
        println!("kernel of {}: {before} -> {}", host.name, host.run("uname -r")?.trim());
    }
    table(&lines);
    for member in &members {
        println!("{} saw: {}", member.guest.name, member.saw(&fleet, &story)?);
    }
    let kept = |line: &Line| line.felt.boot_id_kept && line.felt.memory_errors == 0 && line.felt.reconnects == 0;
    let broken: Vec<&str> = lines.iter().filter(|line| !kept(line)).map(|line| line.felt.vm.as_str()).collect();
    let file = paths::workspace().join("target/demo.json");
    let took = story.elapsed().as_secs_f64();
    fs::write(&file, serde_json::to_vec_pretty(&json!({"vms": lines, "took_s": took, "broken": broken}))?)?;
    println!("the same for programs: {}", file.display());
    if keep {
        fleet.lab.keep()?;
        println!(
            "try it yourself:\n  cargo xtask lab exec --name demo host1\n    fermata rollout report kernel\n    \
             fermata maintenance list\n    fermata vm list\n  cargo xtask lab down --name demo"
        );
    } else {
        fleet.lab.down()?;
        story.say("all taken down; `cargo xtask demo --keep` leaves the hosts running");
    }
    ensure!(broken.is_empty(), "not every VM kept what it had: {broken:?}");
    Ok(())
}

/// Hosts whose VMs' memory outlives their kernel, and one for the other end of connections.
fn spec(hosts: usize) -> LabSpec {
    let mut spec = LabSpec::new("demo", hosts + 1);
    spec.as_shipped = true;
    for host in &mut spec.hosts[..hosts] {
        host.memory_mib = 2048;
        *host = host.clone().with_vault(1024);
        host.imds = true;
        host.files = vec![("/etc/sysctl.d/guests.conf".to_owned(), "net.ipv4.ip_forward = 1\n".to_owned())];
    }
    spec.hosts[hosts].memory_mib = 768;
    spec.hosts[hosts].cpus = 1;
    spec
}

fn kernels(fleet: &Fleet) -> Result<Vec<String>> {
    let kernel = |host: &Host| host.run("uname -r").map(|text| text.trim().to_owned());
    fleet.hosts().iter().map(kernel).collect()
}

/// Plans it, starts it, shows what happens, and asks the VMs.
fn rollout(story: &Story, fleet: &Fleet, members: &[Member], name: &'static str, file: &str) -> Result<Vec<Line>> {
    let began = Instant::now();
    fleet.plan(name, &format!("notice_s = {NOTICE}\n{file}"), &format!("--gate tcp:7072 --notice {NOTICE}"))?;
    let before = guests::before(fleet, members)?;
    let boots = fleet.hosts().iter().map(Host::boot_id).collect::<Result<Vec<_>>>()?;
    fleet.json(&format!("rollout start {name} --reason demo"))?;
    story.follow(fleet, name, members)?;
    if name == KERNEL {
        // VMs come first: a rollout is over before the rest of the last host is up.
        for (host, boot) in fleet.hosts().iter().zip(&boots) {
            host.wait_boot_after(boot, change::UP)?;
        }
    }
    println!("{}", fleet.controller().run(&format!("fermata rollout report {name}"))?);
    let page = paths::workspace().join(format!("target/demo-{name}.html"));
    fleet.controller().run(&format!("fermata rollout report {name} --html /root/{name}.html"))?;
    fleet.controller().copy_from(&format!("/root/{name}.html"), &page)?;
    println!("the same with pictures: {}", page.display());
    let clean = fleet.json(&format!("rollout check {name}"))?;
    ensure!(
        clean["clean"] == true,
        "an independent look at the log found two update domains touched together: {clean:#}"
    );
    story.say(&format!(
        "`{name}` took {:.0} s; no two update domains were touched together",
        began.elapsed().as_secs_f64()
    ));
    guests::since(fleet, members, &before, name)
}

fn table(lines: &[Line]) {
    println!("rollout  VM      host   stood (host) stood (guest) memory   connections clock    boot");
    for line in lines {
        let Felt { vm, guest_blackout_ms, memory_errors, reconnects, clock_error_ms, boot_id_kept, .. } = &line.felt;
        let stood = line.host_blackout_ms.map_or("not told".to_owned(), |ms| format!("{ms:.0} ms"));
        let memory = if *memory_errors == 0 { "whole".to_owned() } else { format!("{memory_errors} bad") };
        let connections = if *reconnects == 0 { "kept".to_owned() } else { format!("{reconnects} broke") };
        let boot = if *boot_id_kept { "same" } else { "ANOTHER" };
        println!(
            "{:<8} {vm:<7} {:<6} {stood:>12} {:>13} {memory:<8} {connections:<11} {:<8} {boot}",
            line.rollout,
            line.host,
            format!("{guest_blackout_ms:.0} ms"),
            format!("{clock_error_ms:+.0} ms"),
        );
    }
}
