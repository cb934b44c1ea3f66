//! `cargo xtask faults swap`: at every step of a swap, the worst.
//!
//! ```text
//!  per case: agent told where to halt ─► update applied ─► halted ─► the fault ─► agent goes on, or a new one comes
//!            ─► the maintenance ends ─► exactly one VMM? memory, disk, network whole? pause within the budget? report true?
//! ```
//!
//! The agent halts by itself at a step it has just written down (`FERMATA_HALT_AT`). A case whose fault has nothing to hit at
//! its step, such as a new VMM that is not there yet, is told as such and not counted as passed.

use std::{
    fmt,
    fs::{self, File},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{guest::Guest, measure};
use crate::{
    cases::{self, Book},
    command,
    host::Host,
    lab::Lab,
    paths,
    spec::LabSpec,
};

/// The steps at which faults come; `after` is when the act is done and that is not written yet.
pub const STEPS: [&str; 15] = [
    "preflight",
    "rehearse",
    "publish started",
    "start new VMM",
    "after start new VMM",
    "arm dead-man",
    "after arm dead-man",
    "hand over",
    "after hand over",
    "resume",
    "after resume",
    "retire old VMM",
    "disarm dead-man",
    "set clock",
    "end events",
];

/// The steps of the shorter set.
pub const SHORT: [&str; 3] = ["hand over", "after hand over", "retire old VMM"];

/// How long a VM may be paused in these tests: long enough for an emulated host, short enough to wait for.
const BUDGET: Duration = Duration::from_secs(15);
/// How long a VM that runs may be silent on a busy emulated host.
const UNHEARD: Duration = Duration::from_secs(5);
/// How long a passing trouble lasts.
const WHILE: u64 = 5;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// `kill -9` of the agent.
    AgentKilled,
    /// `kill -9` of the VMM that shall take over.
    NewVmmKilled,
    /// The VMM that runs the VM stops doing anything for a while, its monitor included.
    OldVmmHangs,
    /// The new VMM finds a device in the state that no rehearsal knew of.
    NewVmmRefuses,
    /// No room for the journal, for a while.
    DiskFull,
    /// The state folder's file system turns read-only; it is mounted anew and the agent started again.
    ReadOnly,
    /// The agent does nothing until the pause budget is over.
    DeadlinePassed,
    /// The host's power is cut.
    PowerCut,
}

impl Fault {
    /// All of them. The power cuts come before what needs a small disk: they need the host as it boots.
    pub const ALL: [Self; 8] = [
        Self::NewVmmRefuses,
        Self::NewVmmKilled,
        Self::DeadlinePassed,
        Self::AgentKilled,
        Self::OldVmmHangs,
        Self::PowerCut,
        Self::DiskFull,
        Self::ReadOnly,
    ];
    /// Those of the shorter set.
    pub const SHORT: [Self; 4] = [Self::AgentKilled, Self::NewVmmKilled, Self::DeadlinePassed, Self::NewVmmRefuses];

    /// Whether it is one at this step. Once the VM is the new VMM's, killing that is killing the VM, as at any other time.
    fn fits(self, step: &str) -> bool {
        let at = |step: &str| STEPS.iter().position(|known| *known == step);
        match self {
            // It comes with the state, whatever came before.
            Self::NewVmmRefuses => step == "hand over",
            Self::NewVmmKilled => (at("after start new VMM")..at("resume")).contains(&at(step)),
            _ => true,
        }
    }

    const fn needs_small_disk(self) -> bool {
        matches!(self, Self::DiskFull | Self::ReadOnly)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::AgentKilled => "agent killed",
            Self::NewVmmKilled => "new VMM killed",
            Self::OldVmmHangs => "old VMM hangs",
            Self::NewVmmRefuses => "new VMM refuses",
            Self::DiskFull => "journal disk full",
            Self::ReadOnly => "state folder read-only",
            Self::DeadlinePassed => "deadline passed",
            Self::PowerCut => "power cut",
        })
    }
}

/// What came of one case.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Case {
    /// Where.
    pub step: String,
    /// What.
    pub fault: Fault,
    /// The fault had something to hit.
    pub applied: bool,
    /// How the maintenance ended.
    pub outcome: String,
    /// What its report says of the VM.
    pub end: String,
    /// What its report says of the trouble.
    pub trouble: String,
    /// The pause by the report, in milliseconds.
    pub pause_ms: Option<f64>,
    /// What is not as it must be; empty for a case that passed.
    pub broken: Vec<String>,
    /// How long the case took, in seconds.
    pub took_s: f64,
}

impl Case {
    fn that_did_not_end(step: &str, fault: Fault, error: &anyhow::Error) -> Self {
        let unknown = || "-".to_owned();
        let broken = vec![format!("{error:#}")];
        let step = step.to_owned();
        Self {
            step,
            fault,
            applied: true,
            outcome: unknown(),
            end: unknown(),
            trouble: unknown(),
            pause_ms: None,
            broken,
            took_s: 0.0,
        }
    }

    /// One word.
    #[must_use]
    pub fn verdict(&self) -> &'static str {
        match (self.broken.is_empty(), self.applied) {
            (false, _) => "BROKEN",
            (true, true) => "whole",
            (true, false) => "nothing to hit",
        }
    }
}

impl cases::Case for Case {
    fn key(&self) -> (String, String) {
        (self.step.clone(), self.fault.to_string())
    }

    fn broken(&self) -> &[String] {
        &self.broken
    }

    fn applied(&self) -> bool {
        self.applied
    }
}

/// Runs cases on a host of its own, prints a table and writes `target/bench/faults-swap.json`. With `go_on` those that an earlier run
/// found whole are not tried again.
///
/// # Errors
/// The lab does not come up, or a case was broken: the table says which.
pub fn run(steps: &[&str], faults: &[Fault], go_on: bool, limit: Duration) -> Result<()> {
    let mut book = Book::open("swap", go_on)?;
    let lab = Lab::up(&LabSpec::new("faults-swap", 1))?;
    let cut = all(lab.host(1), steps, faults, limit, &mut book).err().map(|error| format!("{error:#}"));
    lab.down()?;
    book.close(table, cut)
}

/// The cases as a table in Markdown.
#[must_use]
pub fn table(cases: &[Case]) -> String {
    let mut text = "| step | fault | verdict | maintenance | VM | pause, ms |\n|---|---|---|---|---|---|".to_owned();
    for case in cases {
        let pause = case.pause_ms.map_or("-".to_owned(), |ms| format!("{ms:.0}"));
        let verdict = if case.broken.is_empty() {
            case.verdict().to_owned()
        } else {
            format!("BROKEN: {}", case.broken.join("; "))
        };
        text +=
            &format!("\n| {} | {} | {verdict} | {} | {} | {pause} |", case.step, case.fault, case.outcome, case.end);
    }
    text
}

/// Runs cases on a host and returns them.
///
/// # Errors
/// It ended early: time was up, or the host is no use any more.
pub fn cases(host: &Host, steps: &[&str], faults: &[Fault], limit: Duration) -> Result<Vec<Case>> {
    let mut book = Book::open("swap-test", false)?;
    all(host, steps, faults, limit, &mut book)?;
    Ok(book.into_cases())
}

fn all(host: &Host, steps: &[&str], faults: &[Fault], limit: Duration, book: &mut Book<Case>) -> Result<()> {
    let began = Instant::now();
    let mut bed = Bed::make(host)?;
    for fault in faults {
        for step in steps.iter().filter(|step| fault.fits(step)) {
            if book.has(step, &fault.to_string()) {
                continue;
            }
            if began.elapsed() > limit {
                bail!("time was up after {} min", limit.as_secs() / 60);
            }
            let tried = bed.case(step, *fault);
            let ended = tried.is_ok();
            let case = tried.unwrap_or_else(|error| Case::that_did_not_end(step, *fault, &error));
            book.add(host, began.elapsed(), case)?;
            if !ended {
                bed.renew().with_context(|| format!("after {fault} at {step}"))?;
            }
        }
    }
    Ok(())
}

/// Where the agent is told to halt: forgotten with the kernel, so that after a power cut it does not.
const UNITS: &str = "/run/systemd/system";

struct Bed<'a> {
    host: &'a Host,
    guest: Guest,
    small_disk: bool,
}

/// The VM as it is known from outside.
struct Known {
    boot_id: String,
    pid: u64,
    vmm: String,
    acknowledged: u64,
    reconnects: u64,
}

impl<'a> Bed<'a> {
    fn make(host: &'a Host) -> Result<Self> {
        host.wait_agent_ready(Duration::from_secs(90))?;
        let mut guest = Guest::new("g1", 11);
        guest.extra = format!("pause_budget_ms = {}", BUDGET.as_millis());
        guest.create(host)?;
        guest.start(host)?;
        Ok(Self { host, guest, small_disk: false })
    }

    /// A disk for the agent's state alone, made here: hosts have no program for that.
    fn give_small_disk(&self) -> Result<()> {
        let folder = paths::workspace().join("target/bench");
        fs::create_dir_all(&folder)?;
        let image = folder.join("state.img");
        File::create(&image)?.set_len(SMALL)?;
        let mut mkfs = Command::new("/sbin/mkfs.ext4");
        command::succeed(mkfs.args(["-q", "-F"]).arg(&image), Duration::from_secs(30))?;
        self.host.copy_to(&image, "/srv/state.img")?;
        fs::remove_file(&image)?;
        self.host.run(SMALL_DISK).map(drop)
    }

    /// A VM as at first, whatever the case before left.
    fn renew(&self) -> Result<()> {
        self.host.halt_agent_at(None, UNITS)?;
        self.host.exec("fermata vm stop --force g1")?;
        self.guest.start(self.host).map(drop)
    }

    fn known(&self) -> Result<Known> {
        let view: Value = serde_json::from_str(&self.host.run("fermata --json vm show g1")?)?;
        let report = self.guest.probe(self.host).report()?;
        Ok(Known {
            pid: view["process"]["pid"].as_u64().context("g1 does not run")?,
            vmm: view["process"]["vmm"].as_str().unwrap_or_default().to_owned(),
            boot_id: report.clocks.boot_id.clone(),
            acknowledged: report.disk.map_or(0, |disk| disk.acknowledged),
            reconnects: report.net.map_or(0, |net| net.tcp_reconnects),
        })
    }

    fn case(&mut self, step: &str, fault: Fault) -> Result<Case> {
        let began = Instant::now();
        if fault.needs_small_disk() && !self.small_disk {
            self.give_small_disk()?;
            self.small_disk = true;
        }
        // What was measured is forgotten: a busy emulated host takes longer than the VM allows, and would rightly refuse the next change.
        self.host.run("systemctl stop fermata-agent && rm -f /var/lib/fermata/journal.db*")?;
        self.host.halt_agent_at(Some(step), UNITS)?;
        let before = self.known()?;
        self.host.sink_mark()?;
        if fault == Fault::NewVmmRefuses {
            self.add_device()?;
        }
        let update = measure::Update::to("11.1");
        self.host.write("/tmp/fault.toml", &update.toml())?;
        let begun: Value =
            serde_json::from_str(&self.host.run("fermata --json update apply --detach /tmp/fault.toml")?)?;
        let id = begun["maintenance"].as_str().context("a maintenance has a name")?.to_owned();
        let halted = self.host.exec_within(
            "timeout 150 sh -c 'until test -e /run/fermata/halted; do sleep 0.1; done'",
            Duration::from_secs(180),
        )?;
        if halted.status != 0 {
            bail!("the maintenance never came to this step: {}", self.host.run("fermata maintenance list")?);
        }
        let applied = self.inject(fault)?;
        let report = self.wait_for_end(&id)?;
        let broken = self.broken(fault, applied, &before, &report)?;
        self.host.halt_agent_at(None, UNITS)?;
        if fault == Fault::NewVmmRefuses {
            // Without the device that no specification has.
            self.host.run("fermata vm stop --force g1")?;
            self.guest.start(self.host)?;
        }
        let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let vm = &report["vms"][0];
        Ok(Case {
            step: step.to_owned(),
            fault,
            applied,
            outcome: word(&report["outcome"]),
            end: word(&vm["end"]["kind"]),
            trouble: word(&report["trouble"]["text"]),
            pause_ms: vm["host_blackouts"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_f64)
                .reduce(f64::max)
                .map(|us| us / 1e3),
            broken,
            took_s: began.elapsed().as_secs_f64(),
        })
    }

    /// A device that the definition, and so the twin, does not have.
    fn add_device(&self) -> Result<()> {
        let add = "{\"execute\":\"qmp_capabilities\"}\\n{\"execute\":\"device_add\",\"arguments\":{\"driver\":\"virtio-rng-pci\",\"rng\":\"rng0\",\"bus\":\"port2\",\"id\":\"extra\"}}\\n";
        let said = self.host.run(&format!(
            "printf '{add}' | socat -t 3 - UNIX-CONNECT:$(ls -d /run/fermata/vm/g1/*/rescue | head -n 1)"
        ))?;
        if said.contains("error") {
            bail!("the device was not added: {said}");
        }
        Ok(())
    }

    /// Does the worst, then lets the agent go on where it is still there. Whether there was something to hit.
    fn inject(&self, fault: Fault) -> Result<bool> {
        const AGENT: &str =
            "agent=$(systemctl show -p MainPID --value fermata-agent); go() { kill -CONT $agent 2>/dev/null; true; };";
        const VMMS: &str = "vmms=$(pgrep -f '^/[^ ]*qemu-system[^ ]* -name guest=g1,'); old=$(echo $vmms | cut -d' ' -f1); new=$(echo $vmms | cut -s -d' ' -f2);";
        let script = match fault {
            Fault::AgentKilled => "kill -9 $agent; echo hit".to_owned(),
            Fault::NewVmmKilled => "test -n \"$new\" && kill -9 $new && echo hit; go".to_owned(),
            Fault::OldVmmHangs => {
                format!("kill -STOP $old && echo hit; go; sleep {WHILE}; kill -CONT $old 2>/dev/null; true")
            }
            Fault::NewVmmRefuses => "echo hit; go".to_owned(),
            Fault::DiskFull => format!(
                "dd if=/dev/zero of=/var/lib/fermata/filler bs=4k status=none 2>/dev/null; echo hit; go; sleep {WHILE}; rm -f /var/lib/fermata/filler"
            ),
            // On a copy: VMs' own views of the former file system keep that alive, and it stays read-only.
            Fault::ReadOnly => format!(
                "mount -o remount,abort /var/lib/fermata; touch /var/lib/fermata/x 2>/dev/null || echo hit; go; sleep {WHILE}; \
                 systemctl stop fermata-agent; umount -l /var/lib/fermata; sync; \
                 cp /srv/state.img /srv/state.new && mv /srv/state.new /srv/state.img && \
                 mount /srv/state.img /var/lib/fermata && systemctl start fermata-agent"
            ),
            Fault::DeadlinePassed => format!("echo hit; sleep {}; go", BUDGET.as_secs() + 2),
            Fault::PowerCut => {
                let boot = self.host.boot_id()?;
                self.host.reset()?;
                self.host.wait_boot_after(&boot, Duration::from_secs(240))?;
                self.host.wait_agent_ready(Duration::from_secs(120))?;
                return Ok(true);
            }
        };
        Ok(self.host.run(&format!("{AGENT} {VMMS} {script}"))?.contains("hit"))
    }

    fn wait_for_end(&self, id: &str) -> Result<Value> {
        let script = format!(
            "timeout 200 sh -c 'until fermata --json maintenance show {id} 2>/dev/null >/tmp/report && grep -Eq \"\\\"outcome\\\": *\\\"\" /tmp/report; do sleep 0.5; done'; cat /tmp/report"
        );
        let text = self.host.exec_within(&script, Duration::from_secs(240))?.stdout;
        let report: Value = serde_json::from_str(&text).with_context(|| format!("the report of {id}: {text}"))?;
        if report["outcome"].is_null() {
            bail!("{id} did not end: {report:#}");
        }
        Ok(report)
    }

    /// What is not as it must be.
    fn broken(&self, fault: Fault, applied: bool, before: &Known, report: &Value) -> Result<Vec<String>> {
        let mut broken = Vec::new();
        let mut must = |holds: bool, what: String| {
            if !holds {
                broken.push(what);
            }
        };
        self.guest.probe(self.host).wait_alive(90)?;
        let after = self.known()?;
        let vmms = self.host.run("pgrep -fc '^/[^ ]*qemu-system[^ ]* -name guest=g1,'")?;
        must(vmms.trim() == "1", format!("{} VMMs", vmms.trim()));
        let memory = self.guest.probe(self.host).verify_memory()?;
        must(memory.errors == 0, format!("{} wrong pages", memory.errors));
        let end = report["vms"][0]["end"]["kind"].as_str().unwrap_or("-");
        let outcome = report["outcome"].as_str().unwrap_or("-");
        let restarted = after.boot_id != before.boot_id;
        must(restarted == (fault == Fault::PowerCut), "the guest booted anew, or not although its host did".to_owned());
        must(
            after.acknowledged >= before.acknowledged,
            format!("disk records: {} then {}", before.acknowledged, after.acknowledged),
        );
        if !restarted {
            must(after.reconnects == before.reconnects, "a TCP connection broke".to_owned());
        }
        // The truth: what the report says is what is seen from outside.
        let seen = match (restarted, after.pid == before.pid) {
            (true, _) => &["restarted"][..],
            (false, true) => &["as_before", "untouched"],
            (false, false) => &["updated"],
        };
        must(seen.contains(&end), format!("the report says {end}, seen from outside it is {}", seen.join(" or ")));
        must(outcome != "done" || after.vmm == "11.1", format!("done, but on VMM {}", after.vmm));
        must(outcome == "done" || report["trouble"]["text"].is_string(), "failed without a reason".to_owned());
        let pauses = report["vms"][0]["host_blackouts"].as_array().cloned().unwrap_or_default();
        // A VMM that is stopped from outside cannot be helped by anybody, and a power cut is no pause.
        let counted = !matches!(fault, Fault::OldVmmHangs | Fault::PowerCut) && applied;
        let longest = pauses.iter().filter_map(Value::as_f64).fold(0.0, f64::max) / 1e6;
        must(
            !counted || longest <= BUDGET.as_secs_f64(),
            format!("paused for {longest:.1} s of {} s", BUDGET.as_secs()),
        );
        // What a program on the other end felt is told (P10). Power cuts and VMMs stopped from outside are no pauses.
        let heard = self.host.sink_report()?.senders;
        let heard = heard.iter().find(|sender| sender.address == measure::address(&self.guest));
        let gap = heard.map_or(0.0, |sender| measure::ms(sender.udp.gap_ns) / 1e3);
        let may_have = report["vms"][0]["may_have_stood_us"].as_f64().unwrap_or(0.0) / 1e6;
        must(
            !counted || gap <= longest.max(may_have) + UNHEARD.as_secs_f64(),
            format!("silent for {gap:.1} s, told {longest:.1} s and {may_have:.1} s at most"),
        );
        Ok(broken)
    }
}

/// Moves the state folder to a file system of its own, small enough to fill.
const SMALL_DISK: &str = "\
    set -e
    systemctl stop fermata-agent
    mkdir -p /mnt/state && mount /srv/state.img /mnt/state
    cp -a /var/lib/fermata/. /mnt/state/ && umount /mnt/state && mount /srv/state.img /var/lib/fermata
    systemctl start fermata-agent";

/// Its size, in bytes.
const SMALL: u64 = 24 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_tells_what_is_broken_and_what_had_nothing_to_hit() {
        let case = |applied, broken: &[&str]| Case {
            step: "hand over".to_owned(),
            fault: Fault::NewVmmKilled,
            applied,
            outcome: "failed".to_owned(),
            end: "as_before".to_owned(),
            trouble: String::new(),
            pause_ms: Some(12.4),
            broken: broken.iter().map(|&text| text.to_owned()).collect(),
            took_s: 1.0,
        };
        let text = table(&[case(true, &[]), case(false, &[]), case(true, &["2 VMMs"])]);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(lines[0], "| hand over | new VMM killed | whole | failed | as_before | 12 |");
        assert!(lines[1].contains("nothing to hit") && lines[2].contains("BROKEN: 2 VMMs"));
    }

    #[test]
    fn a_vmm_that_has_the_vm_is_not_killed_as_a_new_one() {
        assert!(Fault::NewVmmKilled.fits("after hand over") && !Fault::NewVmmKilled.fits("resume"));
        assert!(Fault::NewVmmRefuses.fits("hand over") && !Fault::NewVmmRefuses.fits("rehearse"));
    }

    #[test]
    fn the_shorter_set_is_part_of_the_whole() {
        assert!(SHORT.iter().all(|step| STEPS.contains(step)));
        assert!(Fault::SHORT.iter().all(|fault| Fault::ALL.contains(fault)));
    }
}
