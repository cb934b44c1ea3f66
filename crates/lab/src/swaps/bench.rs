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
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use fermata_probe::report::Report;
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    bare::Bare,
    figures::Figures,
    guest::Guest,
    leaks::Held,
    measure::{self, Swap, Update, way},
};
use crate::{
    host::Host,
    image::Image,
    lab::Lab,
    machine::{self, Acceleration},
    paths,
    spec::LabSpec,
};

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Memory in MiB and processors of each VM, measured one after the other.
    pub sizes: Vec<(u64, u32)>,
    /// Swaps of each size but the first.
    pub swaps: usize,
    /// Swaps of the first size, in a row.
    pub in_a_row: usize,
    /// How long nothing is done, for comparison.
    pub quiet: Duration,
    /// How many VMs for the comparison of one and many; 0 for none.
    pub many: usize,
    /// No swap begins after this long.
    pub limit: Duration,
}

impl Plan {
    /// Everything: about an hour and a half on two emulated processors.
    #[must_use]
    pub fn full() -> Self {
        Self {
            sizes: [256, 1024, 2048].into_iter().flat_map(|mib| [(mib, 1), (mib, 2)]).collect(),
            swaps: 40,
            in_a_row: 100,
            quiet: Duration::from_secs(60),
            many: 8,
            limit: Duration::from_secs(100 * 60),
        }
    }

    /// A look: about ten minutes on two emulated processors.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            sizes: vec![(256, 1), (2048, 1)],
            swaps: 6,
            in_a_row: 10,
            quiet: Duration::from_secs(15),
            many: 3,
            limit: Duration::from_secs(20 * 60),
        }
    }

    /// With this many swaps of every size.
    #[must_use]
    pub fn with_swaps(self, swaps: usize) -> Self {
        Self { swaps, in_a_row: swaps, ..self }
    }
}

/// Of a long row of swaps, beside how many the same is done by hand.
const FLOORS: usize = 40;

/// All that was measured.
#[derive(Debug, Default)]
struct Measured {
    swaps: Vec<Swap>,
    floors: Vec<Floor>,
    quiet: Vec<Quiet>,
    broken_memory: u64,
    broken_disk: u64,
    leaked: Option<Value>,
    down: Option<String>,
    notes: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
struct Floor {
    vcpus: u32,
    memory_mib: u64,
    from: String,
    to: String,
    way: &'static str,
    host_blackout_ms: f64,
    guest_blackout_ms: f64,
}

#[derive(Debug, Clone, Serialize)]
struct Quiet {
    seconds: f64,
    sample_gap_ms: f64,
    tcp_gap_ms: f64,
    udp_gap_ms: f64,
}

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
    bench.print();
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
        "machine": format!("{}, {threads} threads; virtual host with {} processors", model.trim_start_matches([' ', '\t', ':']), Acceleration::detect().processors()),
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
        guest.cmdline = format!("fermata.memory=32 {}", Self::pace());
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

    /// How often probes sample and beat: their usual pace is more than one emulated processor has time for beside a second VM, and
    /// they would measure each other.
    fn pace() -> &'static str {
        match Acceleration::detect() {
            Acceleration::Kvm => "",
            Acceleration::Tcg => "fermata.sample_us=4000 fermata.beat_us=40000",
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
            guest.cmdline = format!("fermata.memory=8 {}", Self::pace());
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

    fn print(&self) {
        let summary = summary(&self.measured);
        println!(
            "machine      {}\naccelerator  {}\nversions     {}",
            self.head["machine"], self.head["accelerator"], self.head["versions"]
        );
        println!("{:<34} {:>5}  median / p99 / max, ms", "", "count");
        let line = |name: &str, figures: &Value| {
            let one = |key: &str| figures[key].as_f64().map_or("-".to_owned(), |value| format!("{value:.1}"));
            println!("{name:<34} {:>5}  {} / {} / {}", figures["count"], one("median"), one("p99"), one("max"));
        };
        for key in [
            "host_blackout_ms",
            "guest_blackout_ms",
            "floor_ms",
            "floor_guest_blackout_ms",
            "tcp_gap_ms",
            "udp_gap_ms",
            "clock_error_ms",
            "undisturbed_gap_ms",
        ] {
            line(key, &summary[key]);
        }
        for part in ["by_memory", "by_vms", "by_way"] {
            for (name, figures) in summary[part].as_object().into_iter().flatten() {
                line(&format!("{part} {name}, host blackout"), &figures["host_blackout_ms"]);
                if figures["floor_ms"]["count"].as_u64().unwrap_or(0) > 0 {
                    line(&format!("{part} {name}, floor"), &figures["floor_ms"]);
                }
            }
        }
        for key in [
            "retransmission_timeouts",
            "packets_lost",
            "reconnects",
            "memory_broken",
            "disk_broken",
            "boot_id_changed",
            "failed",
            "leaked",
            "promises",
            "notes",
        ] {
            println!("{key:<34} {}", summary[key]);
        }
    }
}

/// The numbers of the promises. Those of the transfer stand for the whole: a step down by file is longer by its nature and is
/// told apart under `by_way`.
fn summary(measured: &Measured) -> Value {
    let ended = |swap: &&Swap| swap.host_blackout_ms.is_some();
    let alone: Vec<&Swap> = measured.swaps.iter().filter(ended).filter(|swap| swap.company.0 == 1).collect();
    let transfer: Vec<&Swap> = alone.iter().copied().filter(|swap| swap.way == "transfer").collect();
    let of = |swaps: &[&Swap], what: fn(&Swap) -> f64| Figures::of(swaps.iter().map(|swap| what(swap)));
    let host = |swap: &Swap| swap.host_blackout_ms.unwrap_or(0.0);
    let floor = |fits: &dyn Fn(&Floor) -> bool| {
        Figures::of(measured.floors.iter().filter(|floor| fits(floor)).map(|floor| floor.host_blackout_ms))
    };
    let floor_guest = Figures::of(
        measured.floors.iter().filter(|floor| floor.way == "transfer").map(|floor| floor.guest_blackout_ms),
    );
    let part = |swaps: &[&Swap], floor: Figures| {
        json!({
            "host_blackout_ms": of(swaps, host), "guest_blackout_ms": of(swaps, |swap| swap.guest_blackout_ms),
            "tcp_gap_ms": of(swaps, |swap| swap.tcp_gap_ms), "floor_ms": floor,
        })
    };
    let mut by_memory = BTreeMap::new();
    for memory in alone.iter().map(|swap| swap.memory_mib) {
        let these: Vec<&Swap> = transfer.iter().copied().filter(|swap| swap.memory_mib == memory).collect();
        let floor = floor(&|floor| floor.memory_mib == memory && floor.way == "transfer");
        by_memory.insert(format!("{memory:>4} MiB"), part(&these, floor));
    }
    let mut by_way = BTreeMap::new();
    for way in ["transfer", "file"] {
        let these: Vec<&Swap> = alone.iter().copied().filter(|swap| swap.way == way).collect();
        by_way.insert(way, part(&these, floor(&|floor| floor.way == way)));
    }
    let mut by_vms = BTreeMap::new();
    for company in measured.swaps.iter().map(|swap| swap.company) {
        let these: Vec<&Swap> = measured
            .swaps
            .iter()
            .filter(ended)
            .filter(|swap| swap.company == company && swap.way == "transfer")
            .collect();
        by_vms.insert(format!("{} VMs, {} at once", company.0, company.1), part(&these, Figures::default()));
    }
    let sum = |what: fn(&Swap) -> u64| measured.swaps.iter().map(what).sum::<u64>();
    let failed = measured.swaps.iter().filter(|swap| swap.host_blackout_ms.is_none()).map(|swap| &swap.outcome);
    let (host_all, floor_all) = (of(&transfer, host), floor(&|floor| floor.way == "transfer"));
    json!({
        "host_blackout_ms": host_all,
        "guest_blackout_ms": of(&transfer, |swap| swap.guest_blackout_ms),
        "floor_ms": floor_all,
        "floor_guest_blackout_ms": floor_guest,
        "tcp_gap_ms": of(&transfer, |swap| swap.tcp_gap_ms),
        "udp_gap_ms": of(&transfer, |swap| swap.udp_gap_ms),
        "undisturbed_gap_ms": Figures::of(measured.quiet.iter().map(|quiet| quiet.tcp_gap_ms)),
        "undisturbed_sample_gap_ms": Figures::of(measured.quiet.iter().map(|quiet| quiet.sample_gap_ms)),
        "clock_error_ms": Figures::of(measured.swaps.iter().filter(ended).map(|swap| swap.clock_error_ms.abs())),
        "clock_known_to_ms": Figures::of(measured.swaps.iter().filter(ended).map(|swap| swap.clock_known_to_ms)),
        "retransmission_timeouts": sum(|swap| swap.guest_timeouts + swap.host_timeouts),
        "retransmission_timeouts_of_guests": sum(|swap| swap.guest_timeouts),
        "packets_lost": sum(|swap| swap.packets_lost),
        "reconnects": sum(|swap| swap.reconnects),
        "memory_broken": measured.broken_memory,
        "disk_broken": measured.broken_disk + measured.swaps.iter().map(|swap| swap.disk_errors).max().unwrap_or(0),
        "boot_id_changed": measured.swaps.iter().filter(|swap| !swap.boot_id_kept).count(),
        "leaked": measured.leaked,
        "failed": failed.collect::<Vec<_>>(),
        "downgrade_refused": measured.down,
        "by_memory": by_memory,
        "by_vms": by_vms,
        "by_way": by_way,
        "promises": promises(measured, &transfer, host_all, floor_all),
        "notes": measured.notes,
    })
}

/// Each promise with what was found; `null` where the run does not tell.
fn promises(measured: &Measured, transfer: &[&Swap], host: Figures, floor: Figures) -> Value {
    let ratio = |a: Option<f64>, b: Option<f64>| Some((a? / b? * 100.0).round() / 100.0);
    let median = |fits: &dyn Fn(&Swap) -> bool| {
        Figures::of(transfer.iter().filter(|swap| fits(swap)).filter_map(|swap| swap.host_blackout_ms)).median
    };
    let company = |together: bool| {
        let these =
            measured.swaps.iter().filter(|s| s.company.0 > 1 && (s.company.1 > 1) == together && s.way == "transfer");
        Figures::of(these.filter_map(|swap| swap.host_blackout_ms))
    };
    let guest_over_host = transfer.iter().filter_map(|swap| Some(swap.guest_blackout_ms - swap.host_blackout_ms?));
    let quiet = measured.quiet.iter().map(|quiet| quiet.tcp_gap_ms).fold(0.0, f64::max);
    let tcp_over_guest = transfer.iter().map(|swap| swap.tcp_gap_ms - swap.guest_blackout_ms - quiet);
    json!({
        "host_blackout_to_floor": ratio(host.median, floor.median),
        "host_blackout_to_floor_allowed": 1.2,
        "guest_less_host_blackout_ms": Figures::of(guest_over_host),
        "guest_less_host_blackout_allowed_ms": 5.0,
        // What the same costs the guest where nobody looks after it: cold shadows of its memory, and one processor for all.
        "guest_less_host_blackout_by_hand_ms": Figures::of(
            measured.floors.iter().filter(|floor| floor.way == "transfer").map(|floor| floor.guest_blackout_ms - floor.host_blackout_ms)
        ),
        "tcp_gap_less_guest_blackout_and_quiet_ms": Figures::of(tcp_over_guest),
        "tcp_gap_less_guest_blackout_and_quiet_allowed_ms": 0.0,
        "large_memory_to_small": ratio(median(&|swap| swap.memory_mib == 2048), median(&|swap| swap.memory_mib == 256)),
        "large_memory_to_small_allowed": 1.3,
        "together_to_one_by_one": ratio(company(true).max, company(false).max),
        "together_to_one_by_one_allowed": 1.5,
    })
}

/// What of a plan somebody wants otherwise.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// Swaps of each size.
    pub swaps: Option<usize>,
    /// Swaps of the first size, in a row.
    pub in_a_row: Option<usize>,
    /// How many VMs for the comparison of one and many; 0 for none.
    pub many: Option<usize>,
    /// Sizes such as `256x1`: memory in MiB and processors.
    pub sizes: Vec<String>,
}

/// A plan from the words of a command.
///
/// # Errors
/// Too few swaps to count leaks; a size that is none.
pub fn plan(quick: bool, wishes: &Wishes) -> Result<Plan> {
    let plan = if quick { Plan::quick() } else { Plan::full() };
    for (option, count) in [("--swaps", wishes.swaps), ("--in-a-row", wishes.in_a_row)] {
        if let Some(count) = count.filter(|count| *count < 4) {
            bail!("{option} {count}: use 4 or more; two warm up and the rest is measured");
        }
    }
    let plan = wishes.swaps.map_or(plan.clone(), |swaps| plan.with_swaps(swaps));
    let sizes = wishes.sizes.iter().map(|text| size(text)).collect::<Result<Vec<_>>>()?;
    Ok(Plan {
        sizes: if sizes.is_empty() { plan.sizes } else { sizes },
        in_a_row: wishes.in_a_row.unwrap_or(plan.in_a_row),
        many: wishes.many.unwrap_or(plan.many),
        ..plan
    })
}

fn size(text: &str) -> Result<(u64, u32)> {
    let parsed = text.split_once('x').and_then(|(mib, cpus)| Some((mib.parse().ok()?, cpus.parse().ok()?)));
    match parsed {
        Some((mib, cpus)) if mib >= 128 && cpus >= 1 => Ok((mib, cpus)),
        _ => bail!("--sizes {text}: write memory in MiB (128 or more), an x, and processors, such as 256x1"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_change_what_they_name_only() {
        let wishes = Wishes { in_a_row: Some(100), sizes: vec!["512x2".to_owned()], ..Wishes::default() };
        let plan = super::plan(true, &wishes).unwrap();
        assert_eq!((plan.sizes, plan.in_a_row, plan.many, plan.swaps), (vec![(512, 2)], 100, 3, 6));
        for size in ["512", "x1", "64x1", "512x0"] {
            let wishes = Wishes { sizes: vec![size.to_owned()], ..Wishes::default() };
            assert!(super::plan(true, &wishes).is_err(), "{size}");
        }
    }

    #[test]
    fn a_run_without_any_swap_has_every_key_and_no_number() {
        let summary = summary(&Measured::default());
        for key in
            ["host_blackout_ms", "guest_blackout_ms", "floor_ms", "tcp_gap_ms", "undisturbed_gap_ms", "clock_error_ms"]
        {
            assert_eq!(summary[key]["median"], Value::Null, "{key}");
        }
        for key in ["retransmission_timeouts", "packets_lost", "memory_broken", "disk_broken", "boot_id_changed"] {
            assert_eq!(summary[key], 0, "{key}");
        }
        assert!(summary["by_memory"].is_object() && summary["by_vms"].is_object());
    }

    #[test]
    fn too_few_swaps_are_refused() {
        let swaps = |count| Wishes { swaps: Some(count), ..Wishes::default() };
        assert!(plan(true, &swaps(3)).is_err());
        assert_eq!(plan(true, &swaps(4)).unwrap().in_a_row, 4);
        assert_eq!(plan(false, &Wishes::default()).unwrap().in_a_row, 100);
    }
}
