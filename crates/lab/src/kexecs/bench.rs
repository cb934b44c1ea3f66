//! `cargo xtask bench kexec`: how long VMs stand when their host's kernel changes, beside the floor and beside a restart by hand, on one
//! virtual host.
//!
//! ```text
//!  the host without VMs: N x floor per kernel
//!  per number and size of VMs: start them ─► M x { to the other kernel and back } ─► the same by hand, once ─► N x floor per kernel
//! ```
//!
//! Floors are taken before and after: an emulator that has run for a while writes to memory more slowly, which held code before and is
//! watched for that.
//!
//! The result is written after every part, so a run that is cut short leaves what it has, and says so.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    change,
    floor::{self, Entry},
    measure::{self, Felt},
    naive,
};
use crate::{
    host::Host,
    lab::Lab,
    paths,
    spec::{Kernel, LabSpec},
    swaps::{
        bench::head,
        figures::Figures,
        guest::{Guest, pace},
        leaks::Held,
    },
};

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How many VMs, of how many MiB each, one after the other.
    pub companies: Vec<(usize, u64)>,
    /// Changes of the kernel with each of them.
    pub changes: usize,
    /// Floors of each kernel, before the first company and after each.
    pub floors: usize,
    /// No change begins after this long.
    pub limit: Duration,
}

impl Plan {
    /// Everything: two and a half hours and more on two emulated processors.
    #[must_use]
    pub fn full() -> Self {
        Self {
            companies: [256, 1024].into_iter().flat_map(|mib| [(1, mib), (4, mib), (8, mib)]).collect(),
            changes: 10,
            floors: 3,
            limit: Duration::from_secs(150 * 60),
        }
    }

    /// A look: about half an hour on two emulated processors.
    #[must_use]
    pub fn quick() -> Self {
        Self { companies: vec![(1, 256), (4, 256)], changes: 2, floors: 2, limit: Duration::from_secs(40 * 60) }
    }

    /// With other companies, such as `8x256`: so many VMs of so many MiB; so many changes of the kernel with each, and so many floors.
    ///
    /// # Errors
    /// A company that is none; no change at all.
    pub fn wished(self, companies: &[String], changes: Option<usize>, floors: Option<usize>) -> Result<Self> {
        let companies = companies.iter().map(|text| company(text)).collect::<Result<Vec<_>>>()?;
        if changes == Some(0) {
            bail!("--changes 0: use 1 or more");
        }
        Ok(Self {
            companies: if companies.is_empty() { self.companies } else { companies },
            changes: changes.unwrap_or(self.changes),
            floors: floors.unwrap_or(self.floors),
            ..self
        })
    }
}

fn company(text: &str) -> Result<(usize, u64)> {
    let parsed = text.split_once('x').and_then(|(vms, mib)| Some((vms.parse().ok()?, mib.parse().ok()?)));
    match parsed {
        Some((vms, mib)) if (1..=16).contains(&vms) && mib >= 128 => Ok((vms, mib)),
        _ => bail!(
            "--companies {text}: write how many VMs (1 to 16), an x, and MiB of each (128 or more), such as 8x256"
        ),
    }
}

/// One change of the kernel under one VM.
#[derive(Debug, Clone, Serialize)]
struct Jump {
    vms: usize,
    memory_mib: u64,
    to: String,
    outcome: String,
    host_blackout_ms: Option<f64>,
    /// Guest blackout to the median floor of the same kernel.
    ratio: Option<f64>,
    #[serde(flatten)]
    felt: Felt,
    /// From and to, in milliseconds from the pause.
    acts_ms: Vec<(String, f64, f64)>,
}

#[derive(Debug, Clone, Serialize)]
struct ByHand {
    vms: usize,
    memory_mib: u64,
    #[serde(flatten)]
    felt: Felt,
}

/// What a host held after a change, with its VMs still on it.
#[derive(Debug, Clone, Serialize)]
struct Holding {
    vms: usize,
    memory_mib: u64,
    /// The kernel that runs now.
    on: String,
    #[serde(flatten)]
    held: Held,
}

#[derive(Debug, Default)]
struct Measured {
    floors: BTreeMap<String, Vec<f64>>,
    /// The same with a kernel that was unpacked before the jump, as Fermata enters it.
    unpacked: BTreeMap<String, Vec<f64>>,
    jumps: Vec<Jump>,
    by_hand: Vec<ByHand>,
    held: Vec<Holding>,
    notes: Vec<String>,
}

impl Measured {
    /// The median of a kernel's floors so far.
    fn floor(&self, kernel: &str) -> Option<f64> {
        self.floors.get(kernel).and_then(|all| Figures::of(all.iter().copied()).median)
    }

    /// Puts each change beside the median of all floors so far.
    fn relate(&mut self) {
        let ratio = |jump: &Jump| Some(round(jump.felt.guest_blackout_ms / self.floor(&jump.to)?));
        let ratios: Vec<Option<f64>> = self.jumps.iter().map(ratio).collect();
        self.jumps.iter_mut().zip(ratios).for_each(|(jump, ratio)| jump.ratio = ratio);
    }
}

/// Measures, prints a table and writes `target/bench/kexec.json`.
///
/// # Errors
/// The lab does not come up, or something in it does not answer. What was measured until then is written.
pub fn run(plan: &Plan) -> Result<()> {
    let vault = plan.companies.iter().map(|(vms, mib)| u64::try_from(*vms).unwrap_or(1) * mib).max().unwrap_or(256);
    let mut spec = LabSpec::new("bench-kexec", 2);
    spec.as_shipped = true;
    // For the VMs by hand as much again; and one GiB for the agent's own part of the vault.
    spec.hosts[0].memory_mib = 2560 + vault;
    spec.hosts[0] = spec.hosts[0].clone().with_vault(vault + 1024);
    spec.hosts[0].files = vec![("/etc/sysctl.d/guests.conf".to_owned(), "net.ipv4.ip_forward = 1\n".to_owned())];
    spec.hosts[1].memory_mib = 768;
    spec.hosts[1].cpus = 1;
    let lab = Lab::up(&spec)?;
    let (host, peer) = (lab.host(1), lab.host(2));
    peer.run("systemctl disable --now fermata-agent; ip route replace 10.77.0.0/24 via 10.88.0.1")?;
    let measured = Measured::default();
    let mut bench = Bench { host, peer, plan, began: Instant::now(), head: head(host)?, measured };
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
    peer: &'a Host,
    plan: &'a Plan,
    began: Instant,
    head: Value,
    measured: Measured,
}

impl Bench<'_> {
    fn say(&self, text: &str) {
        eprintln!("[{:>5.0} s] {text}", self.began.elapsed().as_secs_f64());
    }

    fn floors(&mut self) -> Result<()> {
        for _ in 0..self.plan.floors {
            for kernel in [Kernel::Backports, Kernel::Stable] {
                let ms = floor::measure(self.host, kernel, Entry::AsIs)?;
                let unpacked = floor::measure(self.host, kernel, Entry::Unpacked)?;
                self.say(&format!("floor, into the {kernel} kernel: {ms:.0} ms; unpacked before: {unpacked:.0} ms"));
                self.measured.floors.entry(kernel.to_string()).or_default().push(ms);
                self.measured.unpacked.entry(kernel.to_string()).or_default().push(unpacked);
            }
        }
        self.measured.relate();
        Ok(())
    }

    fn all(&mut self) -> Result<()> {
        self.floors()?;
        for (vms, mib) in self.plan.companies.clone() {
            if self.began.elapsed() > self.plan.limit {
                let minutes = self.plan.limit.as_secs() / 60;
                self.measured.notes.push(format!(
                    "time was up after {minutes} min; {vms} VMs of {mib} MiB and what follows were left out"
                ));
                break;
            }
            self.company(vms, mib)?;
            self.write()?;
            self.floors()?;
            self.write()?;
        }
        Ok(())
    }

    fn company(&mut self, vms: usize, memory_mib: u64) -> Result<()> {
        let mut guests = Vec::new();
        for (number, last) in (1..=vms).zip(11..) {
            let mut guest = Guest::new(&format!("g{number}"), last).sized(memory_mib, 1);
            let sample_us = if vms > 1 { 10_000 * vms } else { 4_000 };
            guest.cmdline = format!("fermata.memory=32 fermata.target=10.88.0.2:7070 {}", pace(vms, sample_us));
            guest.create(self.host)?;
            guest.start(self.host)?;
            guests.push(guest);
        }
        self.say(&format!("{vms} VMs of {memory_mib} MiB run"));
        for number in 0..self.plan.changes {
            let release = self.host.run("uname -r")?;
            let kernel = if release.starts_with('6') { Kernel::Backports } else { Kernel::Stable };
            self.change(&guests, kernel, number)?;
        }
        // The command lines of VMs that were never carried over.
        for guest in &guests {
            self.host.run(&format!("fermata vm stop --force {}", guest.name))?;
        }
        for guest in &guests {
            guest.start(self.host)?;
        }
        let felt = naive::restart(self.host, self.peer, &guests)?;
        for felt in felt {
            self.say(&format!("{}, by hand: guest {:.0} ms", felt.vm, felt.guest_blackout_ms));
            self.measured.by_hand.push(ByHand { vms, memory_mib, felt });
        }
        for guest in &guests {
            guest.remove(self.host)?;
        }
        Ok(())
    }

    fn change(&mut self, guests: &[Guest], kernel: Kernel, number: usize) -> Result<()> {
        // What a change took is the forecast of the next, and an emulated host would rightly refuse one of more than 30 s.
        self.host.run(
            "systemctl stop fermata-agent && rm -f /var/lib/fermata/journal.db* && systemctl start fermata-agent",
        )?;
        self.host.wait_agent_ready(Duration::from_secs(60))?;
        let before = measure::before(self.host, self.peer, guests)?;
        let report = change::apply(self.host, &change::update(self.host, kernel)?)?;
        let floor = self.measured.floor(&kernel.to_string());
        for (felt, guest) in measure::since(&before, self.peer, guests, Some(&report))?.into_iter().zip(guests) {
            let jump = Jump {
                vms: guests.len(),
                memory_mib: guest.memory_mib,
                to: kernel.to_string(),
                outcome: report["outcome"].as_str().unwrap_or("?").to_owned(),
                host_blackout_ms: measure::host_blackout_ms(&report, &guest.name),
                ratio: floor.map(|floor| round(felt.guest_blackout_ms / floor)),
                acts_ms: measure::acts_ms(&report, &guest.name),
                felt,
            };
            let of_floor = jump.ratio.map(|ratio| format!("{ratio:.2} of the floor, ")).unwrap_or_default();
            self.say(&format!(
                "change {} of {}, to {kernel}, {}: {}, host {:.0} ms, guest {:.0} ms, {of_floor}UDP {:.0} ms, clock {:.0} ms, {} broken",
                number + 1,
                self.plan.changes,
                guest.name,
                jump.outcome,
                jump.host_blackout_ms.unwrap_or(f64::NAN),
                jump.felt.guest_blackout_ms,
                jump.felt.udp_gap_ms,
                jump.felt.clock_error_ms,
                jump.felt.reconnects + jump.felt.memory_errors + jump.felt.disk_errors
            ));
            self.measured.jumps.push(jump);
        }
        let (vms, memory_mib) = (guests.len(), guests.first().map_or(0, |guest| guest.memory_mib));
        let held = Held::by(self.host)?;
        self.measured.held.push(Holding { vms, memory_mib, on: kernel.to_string(), held });
        if report["outcome"] != "done" {
            self.measured.notes.push(format!("change to {kernel}: {}", report["trouble"]));
        }
        Ok(())
    }

    fn write(&self) -> Result<PathBuf> {
        let folder = paths::workspace().join("target/bench");
        fs::create_dir_all(&folder)?;
        let file = folder.join("kexec.json");
        let mut all = self.head.clone();
        let measured = &self.measured;
        all["runs"] = json!({"floor_ms": measured.floors, "floor_unpacked_ms": measured.unpacked, "kexec": measured.jumps, "by_hand": measured.by_hand, "held": measured.held});
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
        for (name, part) in summary["by_company"].as_object().into_iter().flatten() {
            println!("{name}");
            for (key, value) in part.as_object().into_iter().flatten() {
                println!("  {key:<28} {value}");
            }
        }
        println!("floor_ms {}\nfloor_unpacked_ms {}", summary["floor_ms"], summary["floor_unpacked_ms"]);
        println!("notes {}", summary["notes"]);
    }
}

fn round(ratio: f64) -> f64 {
    (ratio * 100.0).round() / 100.0
}

/// What the host holds more after the last change than after the second one to the same kernel, and over how many changes: each kernel's
/// first modules and forecasts are not a leak. None before there is a third change to one kernel.
fn leaked(held: &[&Holding]) -> Option<Value> {
    let last = held.last()?;
    let same: Vec<usize> = (0..held.len()).filter(|at| held.get(*at).is_some_and(|one| one.on == last.on)).collect();
    let [_, base, .., end] = same[..] else { return None };
    let mut leaked = json!(last.held.since(&held.get(base)?.held));
    leaked["changes"] = json!(end - base);
    Some(leaked)
}

fn summary(measured: &Measured) -> Value {
    let mut by_company = BTreeMap::new();
    for key in measured.jumps.iter().map(|jump| (jump.vms, jump.memory_mib)) {
        let these: Vec<&Jump> = measured.jumps.iter().filter(|jump| (jump.vms, jump.memory_mib) == key).collect();
        let by_hand = measured.by_hand.iter().filter(|one| (one.vms, one.memory_mib) == key);
        let of = |what: fn(&Jump) -> f64| Figures::of(these.iter().map(|jump| what(jump)));
        let sum = |what: fn(&Jump) -> u64| these.iter().map(|jump| what(jump)).sum::<u64>();
        let held: Vec<&Holding> = measured.held.iter().filter(|one| (one.vms, one.memory_mib) == key).collect();
        let used = these.iter().flat_map(|jump| measured.floors.get(&jump.to).into_iter().flatten().copied());
        let mut phases: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for (what, from, to) in these.iter().flat_map(|jump| &jump.acts_ms) {
            phases.entry(what.as_str()).or_default().push(to - from);
        }
        let phases: BTreeMap<&str, Figures> = phases.into_iter().map(|(what, all)| (what, Figures::of(all))).collect();
        by_company.insert(
            format!("devdax, kexec, {} VMs of {} MiB", key.0, key.1),
            json!({
                "changes": these.len() / key.0.max(1),
                "guest_blackout_ms": of(|jump| jump.felt.guest_blackout_ms),
                "host_blackout_ms": Figures::of(these.iter().filter_map(|jump| jump.host_blackout_ms)),
                "floor_ms": Figures::of(used),
                "ratio": Figures::of(these.iter().filter_map(|jump| jump.ratio)),
                "ratio_allowed": if key.0 > 1 { 1.8 } else { 1.6 },
                "naive_ms": Figures::of(by_hand.map(|one| one.felt.guest_blackout_ms)),
                "udp_gap_ms": of(|jump| jump.felt.udp_gap_ms),
                "udp_gap_less_guest_blackout_ms": of(|jump| jump.felt.udp_gap_ms - jump.felt.guest_blackout_ms),
                "clock_error_ms": of(|jump| jump.felt.clock_error_ms.abs()),
                "clock_known_to_ms": of(|jump| jump.felt.clock_known_to_ms),
                "memory_broken": sum(|jump| jump.felt.memory_errors),
                "disk_broken": sum(|jump| jump.felt.disk_errors),
                "tcp_broken": sum(|jump| jump.felt.reconnects),
                "boot_id_changed": sum(|jump| u64::from(!jump.felt.boot_id_kept)),
                "not_done": sum(|jump| u64::from(jump.outcome != "done")),
                "leaked": leaked(&held),
                "phases_ms": phases,
            }),
        );
    }
    let figures = |all: &BTreeMap<String, Vec<f64>>| -> BTreeMap<String, Figures> {
        all.iter().map(|(kernel, all)| (kernel.clone(), Figures::of(all.iter().copied()))).collect()
    };
    let (floors, unpacked) = (figures(&measured.floors), figures(&measured.unpacked));
    json!({ "floor_ms": floors, "floor_unpacked_ms": unpacked, "by_company": by_company, "notes": measured.notes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jump(vm: &str, ratio: f64) -> Jump {
        let felt = Felt {
            vm: vm.to_owned(),
            guest_blackout_ms: 20_000.0,
            sample_gap_ms: 0.0,
            udp_gap_ms: 20_050.0,
            tcp_gap_ms: 21_000.0,
            reconnects: 0,
            packets_lost: 0,
            clock_error_ms: -12.0,
            clock_known_to_ms: 2.0,
            memory_errors: 0,
            disk_errors: 0,
            boot_id_kept: true,
        };
        let acts_ms = vec![("restore".to_owned(), 15_000.0, 19_000.0)];
        let (host_blackout_ms, ratio) = (Some(19_900.0), Some(ratio));
        let (to, outcome) = ("backports".to_owned(), "done".to_owned());
        Jump { vms: 2, memory_mib: 256, to, outcome, host_blackout_ms, ratio, felt, acts_ms }
    }

    #[test]
    fn wishes_change_what_they_name_only() {
        let plan = Plan::quick().wished(&["8x256".to_owned()], None, None).unwrap();
        assert_eq!((plan.companies, plan.changes), (vec![(8, 256)], Plan::quick().changes));
        assert_eq!(Plan::full().wished(&[], Some(3), None).unwrap().companies, Plan::full().companies);
        for company in ["8", "0x256", "17x256", "1x64", "x"] {
            assert!(Plan::quick().wished(&[company.to_owned()], None, None).is_err(), "{company}");
        }
        assert!(Plan::quick().wished(&[], Some(0), None).is_err());
    }

    #[test]
    fn a_leak_is_what_became_more_under_the_same_kernel() {
        let holding = |on: &str, files| {
            let held = Held { descriptors: 20, processes: 9, files, agent_kib: 20_000, shared_kib: 100 };
            Holding { vms: 1, memory_mib: 256, on: on.to_owned(), held }
        };
        let all = [("7", 40), ("6", 60), ("7", 50), ("6", 61), ("7", 50), ("6", 61), ("7", 52)];
        let all: Vec<Holding> = all.into_iter().map(|(on, files)| holding(on, files)).collect();
        let until = |count| leaked(&all.iter().take(count).collect::<Vec<_>>());
        assert!((0..5).all(|count| until(count).is_none()));
        assert_eq!(until(5).unwrap()["files"], 0);
        let last = until(7).unwrap();
        assert_eq!((&last["files"], &last["descriptors"], &last["changes"]), (&json!(2), &json!(0), &json!(4)));
    }

    #[test]
    fn a_summary_is_by_number_and_size_of_vms() {
        let mut measured = Measured { jumps: vec![jump("g1", 1.2), jump("g2", 1.3)], ..Measured::default() };
        measured.floors.insert("backports".to_owned(), vec![16_000.0, 15_000.0, 17_000.0]);
        let summary = summary(&measured);
        let part = &summary["by_company"]["devdax, kexec, 2 VMs of 256 MiB"];
        assert_eq!((&part["changes"], &part["ratio"]["max"]), (&json!(1), &json!(1.3)));
        assert_eq!(part["clock_error_ms"]["max"], 12.0);
        assert_eq!(part["phases_ms"]["restore"]["median"], 4_000.0);
        assert_eq!(part["udp_gap_less_guest_blackout_ms"]["max"], 50.0);
        assert_eq!(part["naive_ms"]["median"], Value::Null);
        assert_eq!(summary["floor_ms"]["backports"]["median"], 16_000.0);
    }

    #[test]
    fn changes_are_put_beside_floors_that_came_later() {
        let mut measured = Measured { jumps: vec![jump("g1", 2.0)], ..Measured::default() };
        measured.floors.insert("backports".to_owned(), vec![10_000.0, 16_000.0, 17_000.0]);
        measured.relate();
        assert_eq!(measured.jumps[0].ratio, Some(1.25));
    }
}
