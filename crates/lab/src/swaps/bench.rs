//! `cargo xtask bench swap`: how long VMs stand when their VMM changes, beside the floor, on one virtual host.
//!
//! ```text
//!  per size: start a VM and its bare twin ─► (quiet minute) ─► N x { a swap by Fermata, a swap by hand } ─► witnesses
//!  first size: N swaps in a row, with what the host holds counted before and after
//!  many VMs: all at once, then one by one
//! ```
//!
//! The result is written after every part, so a run that is cut short leaves what it has, and says so.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use fermata_probe::report::Report;
use serde_json::{Value, json};

use super::{
    bare::Bare,
    figures::Figures,
    guest::{Guest, pace},
    leaks::Held,
    measure::{self, Update, way},
    plan::Plan,
    summary::{Floor, Measured, Quiet, print, summary},
};
use crate::{
    host::Host,
    image::Image,
    lab::Lab,
    machine::{self, Acceleration},
    paths,
    spec::LabSpec,
};

/// Of a long row of swaps, beside how many the same is done by hand.
const FLOORS: usize = 24;

/// Measures, prints a table and writes `target/bench/swap.json`.
///
/// # Errors
/// The lab does not come up, or something in it does not answer. What was measured until then is written.
pub fn run(plan: &Plan) -> Result<()> {
    let mut spec = LabSpec::new("bench-swap", 1);
    spec.as_shipped = true;
    let largest = plan.sizes.iter().map(|(mib, _)| *mib).max().unwrap_or(256);
    // Twice the largest VM (Fermata's and the one by hand), and the host itself.
    spec.hosts[0].memory_mib = 2048 + 2 * largest;
    let lab = Lab::up(&spec)?;
    let host = lab.host(1);
    let mut bench = Bench { host, plan, began: Instant::now(), head: head(host)?, measured: Measured::default() };
    let outcome = bench.all();
    if let Err(error) = &outcome {
        bench.measured.notes.push(format!("cut short: {error:#}"));
    }
    let file = bench.write()?;
    print(&bench.head, &bench.measured);
    println!("written to {}", file.display());
    lab.down()?;
    outcome
}

struct Bench<'a> {
    host: &'a Host,
    plan: &'a Plan,
    began: Instant,
    head: Value,
    measured: Measured,
}

pub(crate) fn head(host: &Host) -> Result<Value> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let threads = std::thread::available_parallelism().map_or(0, usize::from);
    let accelerator = match Acceleration::detect() {
        Acceleration::Kvm => "KVM; guests by nested KVM",
        Acceleration::Tcg => {
            "TCG (no hardware virtualisation); guests by KVM on emulated SVM, about 20 times slower than hardware"
        }
    };
    let shown: Value = serde_json::from_str(&host.run("fermata --json host show")?)?;
    Ok(json!({
        "machine": format!("{}, {threads} threads; virtual host with {} processors", model.trim_start_matches([' ', '\t', ':']), Acceleration::PROCESSORS),
        "accelerator": accelerator,
        "versions": {
            "host_kernel": host.run("uname -r")?.trim(),
            "qemu_outside": machine::version(&Image::ensure()?.file("outer")),
            "vmms": shown["vmms"].as_array().map(|vmms| vmms.iter().map(|vmm| vmm["version"].clone()).collect::<Vec<_>>()),
            "fermata": host.run("fermata --version")?.trim(),
        },
    }))
}

/// The older and the newer VMM of a lab host.
const VMMS: [&str; 2] = ["10.0", "11.1"];

impl Bench<'_> {
    fn all(&mut self) -> Result<()> {
        for (index, (memory, vcpus)) in self.plan.sizes.clone().into_iter().enumerate() {
            self.size(memory, vcpus, index == 0)?;
            self.write()?;
        }
        if self.plan.many > 1 && !self.late() {
            self.many()?;
            self.write()?;
        }
        Ok(())
    }

    fn late(&mut self) -> bool {
        let late = self.began.elapsed() > self.plan.limit;
        if late && !self.measured.notes.iter().any(|note| note.starts_with("time")) {
            self.measured
                .notes
                .push(format!("time was up after {} min; the rest was left out", self.plan.limit.as_secs() / 60));
        }
        late
    }

    fn say(&self, text: &str) {
        eprintln!("[{:>5.0} s] {text}", self.began.elapsed().as_secs_f64());
    }

    fn size(&mut self, memory: u64, vcpus: u32, first: bool) -> Result<()> {
        if self.late() {
            return Ok(());
        }
        let mut guest = Guest::new("g1", 11).sized(memory, vcpus);
        guest.cmdline = format!("fermata.memory=32 {}", Self::pace(1, 4_000));
        guest.create(self.host)?;
        guest.start(self.host)?;
        let mut bare = Bare::start(self.host, &guest, 12)?;
        if first {
            self.say("nothing is done, for comparison");
            let quiet = self.quiet(&guest)?;
            self.measured.quiet.push(quiet);
        }
        let count = if first { self.plan.in_a_row } else { self.plan.swaps };
        let mut held = None;
        let mut done = 0;
        for number in 1..=count {
            // Two swaps warm up what is only made once: caches, data bases, connections.
            if first && number == 3 {
                held = Some(Held::by(self.host)?);
            }
            if self.late() {
                break;
            }
            self.pair(&guest, &mut bare, number, count)?;
            done = number;
        }
        if let Some(held) = held {
            let now = Held::by(self.host)?;
            let mut leaked = json!(now.since(&held));
            leaked["swaps"] = json!(done.saturating_sub(2));
            leaked["before"] = json!(held);
            leaked["after"] = json!(now);
            self.measured.leaked = Some(leaked);
        }
        bare.end();
        self.witnesses(&guest)?;
        guest.remove(self.host)
    }

    /// The usual pace of probes is more than one emulated processor has time for beside a second VM.
    fn pace(vms: usize, sample_us: usize) -> String {
        match Acceleration::detect() {
            Acceleration::Kvm => String::new(),
            Acceleration::Tcg => pace(vms, sample_us),
        }
    }

    fn quiet(&self, guest: &Guest) -> Result<Quiet> {
        let probe = guest.probe(self.host);
        self.host.run("sleep 5")?;
        probe.mark()?;
        self.host.sink_mark()?;
        self.host.run(&format!("sleep {}", self.plan.quiet.as_secs()))?;
        let report: Report = probe.report()?;
        let sink = self.host.sink_report()?;
        let sender =
            sink.senders.iter().find(|sender| sender.address.to_string().ends_with(&format!(".{}", guest.last)));
        let sender = sender.context("the sink hears the guest")?;
        let ms = |ns: u64| Duration::from_nanos(ns).as_secs_f64() * 1e3;
        Ok(Quiet {
            seconds: self.plan.quiet.as_secs_f64(),
            sample_gap_ms: ms(report.gaps.max_ns()),
            tcp_gap_ms: ms(sender.tcp.gap_ns),
            udp_gap_ms: ms(sender.udp.gap_ns),
        })
    }

    /// A swap by Fermata, and the same by hand beside the first of them.
    fn pair(&mut self, guest: &Guest, bare: &mut Bare<'_>, number: usize, count: usize) -> Result<()> {
        let from = measure::vmm_of(self.host, &guest.name)?;
        let to = self.next(&from);
        let swaps = measure::swap(self.host, std::slice::from_ref(guest), &Update::to(to))?;
        let mut swap = swaps.into_iter().next().context("one VM is one swap")?;
        if swap.host_blackout_ms.is_none() || !swap.outcome.starts_with("done") {
            if swap.way == "file" || way(&from, to) == "file" {
                self.say(&format!("from {from} back to {to} is refused: {}", swap.outcome));
                self.measured.down = Some(swap.outcome);
                return Ok(());
            }
            swap.host_blackout_ms = None;
        }
        let mut text = format!(
            "{} MiB, {} vCPU: swap {number} of {count}, {from} to {to}: {}, host {:.1} ms, guest {:.1} ms, TCP {:.1} ms, lost {}",
            guest.memory_mib,
            guest.vcpus,
            swap.outcome,
            swap.host_blackout_ms.unwrap_or(f64::NAN),
            swap.guest_blackout_ms,
            swap.tcp_gap_ms,
            swap.packets_lost
        );
        self.measured.swaps.push(swap);
        if number > FLOORS {
            self.say(&text);
            return Ok(());
        }
        let by_hand = way(&bare.vmm, to);
        let from = bare.vmm.clone();
        let floor = bare.swap(to, by_hand)?;
        let (host_blackout_ms, guest_blackout_ms) = (floor.host_blackout_ms, floor.guest_blackout_ms);
        text += &format!("; by hand host {host_blackout_ms:.1} ms, guest {guest_blackout_ms:.1} ms");
        self.say(&text);
        let (vcpus, memory_mib) = (guest.vcpus, guest.memory_mib);
        let (to, way) = (to.to_owned(), by_hand);
        self.measured.floors.push(Floor { vcpus, memory_mib, from, to, way, host_blackout_ms, guest_blackout_ms });
        Ok(())
    }

    /// To the other version where that is possible, else to the same once more.
    fn next(&self, from: &str) -> &'static str {
        match (from == VMMS[0], &self.measured.down) {
            (true, _) | (false, Some(_)) => VMMS[1],
            (false, None) => VMMS[0],
        }
    }

    fn witnesses(&mut self, guest: &Guest) -> Result<()> {
        self.measured.broken_memory += guest.probe(self.host).verify_memory()?.errors;
        let disk = guest.end(self.host)?;
        self.measured.broken_disk += u64::from(!disk.is_whole());
        if !disk.is_whole() {
            self.measured.notes.push(format!("{}: acknowledged and not there: {:?}", guest.name, disk.missing));
        }
        Ok(())
    }

    fn many(&mut self) -> Result<()> {
        let number = |index: usize| u8::try_from(20 + index).context("a handful of VMs");
        let mut guests = Vec::new();
        for index in 0..self.plan.many {
            let mut guest = Guest::new(&format!("m{index}"), number(index)?).sized(128, 1);
            // Eight at the pace of `pace(8, 20_000)` leave an emulated processor nothing: what is measured then is who waits for whom.
            guest.cmdline = format!("fermata.memory=8 {}", Self::pace(2 * self.plan.many, 80_000));
            guest.create(self.host)?;
            guest.start(self.host)?;
            self.say(&format!("{} of {} VMs run", index + 1, self.plan.many));
            guests.push(guest);
        }
        // Up and down are told apart, and each takes part in both.
        for parallelism in [1, self.plan.many, self.plan.many, 1] {
            let from = measure::vmm_of(self.host, &guests[0].name)?;
            let update = Update { parallelism, ..Update::to(self.next(&from)) };
            let swaps = measure::swap(self.host, &guests, &update)?;
            let figures = Figures::of(swaps.iter().filter_map(|swap| swap.host_blackout_ms));
            self.say(&format!("{} VMs, {parallelism} at once: host blackout {} ms", guests.len(), figures.text()));
            self.measured.swaps.extend(swaps);
        }
        for guest in &guests {
            self.witnesses(guest)?;
            guest.remove(self.host)?;
        }
        Ok(())
    }

    fn write(&self) -> Result<PathBuf> {
        let folder = paths::workspace().join("target/bench");
        fs::create_dir_all(&folder)?;
        let file = folder.join("swap.json");
        let mut all = self.head.clone();
        let measured = &self.measured;
        all["runs"] = json!(
            measured
                .swaps
                .iter()
                .map(|swap| json!({"kind": "swap", "swap": swap}))
                .chain(measured.floors.iter().map(|floor| json!({"kind": "floor", "floor": floor})))
                .chain(measured.quiet.iter().map(|quiet| json!({"kind": "quiet", "quiet": quiet})))
                .collect::<Vec<_>>()
        );
        all["summary"] = summary(measured);
        all["took_s"] = json!(self.began.elapsed().as_secs());
        fs::write(&file, serde_json::to_vec_pretty(&all)?).with_context(|| format!("write {}", file.display()))?;
        Ok(file)
    }
}
