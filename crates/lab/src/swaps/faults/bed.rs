//! The VM that a case is tried on: halted at a step, hit, and looked at from outside.

use std::{
    fs::{self, File},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{case::Case, fault::Fault};
use crate::{
    command,
    host::Host,
    paths,
    swaps::{guest::Guest, measure},
};

/// How long a VM may be paused in these tests: long enough for an emulated host, short enough to wait for.
const BUDGET: Duration = Duration::from_secs(15);
/// How long a VM that runs may be silent on a busy emulated host.
const UNHEARD: Duration = Duration::from_secs(5);
/// How long a passing trouble lasts.
const WHILE: u64 = 5;

/// Where the agent is told to halt: forgotten with the kernel, so that after a power cut it does not.
const UNITS: &str = "/run/systemd/system";

/// A VM on a host, which comes through one case after the other.
pub(super) struct Bed<'a> {
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
    pub(super) fn make(host: &'a Host) -> Result<Self> {
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
    pub(super) fn renew(&self) -> Result<()> {
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

    pub(super) fn case(&mut self, step: &str, fault: Fault) -> Result<Case> {
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
