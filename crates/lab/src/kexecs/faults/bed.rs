//! The VMs that a case is tried on: halted at a step, hit, and looked at from outside.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fermata_probe::clock::Clocks;
use serde_json::Value;

use super::{
    case::Case,
    fault::{Fault, STEPS},
};
use crate::{command::await_some, host::Host, kexecs::change, spec::Kernel, swaps::guest::Guest};

/// Where the agent is told to halt: on the disk, because some steps are in the next kernel.
pub(super) const UNITS: &str = "/etc/systemd/system";

/// Two VMs on a host, which come through one case after the other.
pub(super) struct Bed<'a> {
    host: &'a Host,
    guests: Vec<Guest>,
}

impl<'a> Bed<'a> {
    pub(super) fn make(host: &'a Host) -> Result<Self> {
        host.wait_agent_ready(Duration::from_secs(90))?;
        let guests = vec![Guest::new("g1", 11), Guest::new("g2", 12).sized(192, 1)];
        for guest in &guests {
            guest.create(host)?;
            guest.start(host)?;
        }
        Ok(Self { host, guests })
    }

    pub(super) fn case(&mut self, step: &str, fault: Fault) -> Result<Case> {
        let began = Instant::now();
        self.heal()?;
        self.host.halt_agent_at(Some(step), UNITS)?;
        let mut born = Vec::new();
        for guest in &self.guests {
            born.push(guest.probe(self.host).wait_alive(120)?);
        }
        let from = self.release()?;
        let kernel = if from.starts_with('6') { Kernel::Backports } else { Kernel::Stable };
        let mut update = change::update(self.host, kernel)?;
        if fault == Fault::Panic {
            let running = self.host.run("cat /proc/cmdline")?;
            update = update.replace("id = \"", "id = \"panic-")
                + &format!("cmdline = \"{} rdinit=/nowhere root=/dev/nowhere\"\n", running.trim());
        }
        if fault == Fault::NoVaultModules {
            // Fermata's own has the modules with it, and nothing would be missing.
            let image = change::image(self.host, kernel)?;
            update = update.replace("id = \"", "id = \"usual-")
                + &format!("initrd = \"{}\"\n", image.replace("/vmlinuz-", "/initrd.img-"));
        }
        self.host.write("/root/kernel.toml", &update)?;
        let begun = self.host.run("fermata --json update apply --detach /root/kernel.toml")?;
        let begun: Value = serde_json::from_str(&begun).with_context(|| format!("read {begun}"))?;
        let id = begun["maintenance"].as_str().context("a maintenance has a name")?.to_owned();
        let boot = self.host.boot_id()?;
        let after = STEPS.iter().position(|known| *known == step) > STEPS.iter().position(|known| *known == "jump");
        if after {
            self.host.wait_boot_after(&boot, change::UP)?;
        }
        let waited = "timeout 200 sh -c 'until test -e /run/fermata/halted; do sleep 0.1; done'";
        if self.host.exec_within(waited, Duration::from_secs(240))?.status != 0 {
            bail!("the maintenance never came to this step: {}", self.host.run("fermata maintenance list")?);
        }
        self.inject(fault, &boot)?;
        let report = change::report(self.host, &id)?;
        self.host.halt_agent_at(None, UNITS)?;
        let broken = self.broken(fault, &born, &report, &from)?;
        let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        let vms = report["vms"].as_array().cloned().unwrap_or_default();
        let pauses = vms.iter().filter_map(|vm| vm["host_blackouts"].as_array()).flatten();
        Ok(Case {
            step: step.to_owned(),
            fault,
            outcome: word(&report["outcome"]),
            ends: vms.iter().map(|vm| word(&vm["end"]["kind"])).collect(),
            trouble: word(&report["trouble"]["text"]),
            pause_ms: pauses.filter_map(Value::as_f64).reduce(f64::max).map(|us| us / 1e3),
            kernel: self.release()?,
            broken,
            took_s: began.elapsed().as_secs_f64(),
        })
    }

    fn release(&self) -> Result<String> {
        Ok(self.host.run("uname -r")?.trim().to_owned())
    }

    /// Everything as it was at first, whatever the case before left: both VMs run, and what was measured is forgotten (an emulated host
    /// takes longer than any VM allows, and would rightly refuse the next change).
    pub(super) fn heal(&self) -> Result<()> {
        self.host.run(
            "systemctl stop fermata-agent && rm -f /var/lib/fermata/journal.db* && systemctl start fermata-agent",
        )?;
        self.host.wait_agent_ready(Duration::from_secs(90))?;
        for guest in &self.guests {
            let view: Value = serde_json::from_str(&self.host.run(&format!("fermata --json vm show {}", guest.name))?)?;
            if view["state"] != "running" {
                self.host.exec(&format!("fermata vm stop --force {}", guest.name))?;
                guest.start(self.host)?;
            }
        }
        Ok(())
    }

    /// Does the worst, then lets the agent go on where it is still there.
    fn inject(&self, fault: Fault, boot: &str) -> Result<()> {
        const AGENT: &str = "agent=$(systemctl show -p MainPID --value fermata-agent);";
        const VAULT: &str = "/dev/dax0.0";
        let next = "$(ls -d /lib/modules/* | grep -v \"$(uname -r)\" | head -n 1)";
        let before = match fault {
            Fault::AgentKilled => {
                self.host.run(&format!("{AGENT} kill -9 $agent"))?;
                return self.settle();
            }
            Fault::PowerCut => {
                self.host.reset()?;
                self.host.wait_boot_after(boot, change::UP)?;
                return self.settle();
            }
            Fault::VmmKilled => "kill -9 $(pgrep -f '^/[^ ]*qemu-system[^ ]* -name guest=g1,')".to_owned(),
            Fault::JumpRefused => "fermata-probe unload".to_owned(),
            // Without `depmod`, which takes longer than a VM that stands may wait for the jump.
            Fault::NoVaultModules => {
                format!("mkdir -p /root/aside && mv {next}/kernel/drivers/dax /root/aside/ && sync")
            }
            Fault::Panic => "true".to_owned(),
            Fault::DiskMissing => "mv /srv/g1.img /srv/g1.aside && sync".to_owned(),
            Fault::StateFlipped => format!("fermata-probe flip {VAULT} states"),
            Fault::TableFlipped => format!("fermata-probe flip {VAULT} table"),
            Fault::DeadlinePassed => "sleep 33".to_owned(),
        };
        // The connection may end with the kernel before the answer, so the agent goes on a moment later.
        self.host.run(&format!("{AGENT} {before} && systemd-run --quiet --collect --on-active=1 --timer-property=AccuracySec=100ms kill -CONT $agent"))?;
        if matches!(
            fault,
            Fault::Panic | Fault::DiskMissing | Fault::StateFlipped | Fault::TableFlipped | Fault::NoVaultModules
        ) {
            self.host.wait_boot_after(boot, change::UP)?;
        }
        self.settle()
    }

    /// Waits until the maintenance has ended, in this kernel or in another: whether there is a jump is the agent's to decide.
    fn settle(&self) -> Result<()> {
        let over = "timeout 100 sh -c 'until fermata --json maintenance list | grep -Eq \"\\\"outcome\\\": *\\\"\"; do sleep 0.5; done'";
        let ended = await_some(change::UP, Duration::from_secs(1), || {
            let ready = self.host.wait_agent_ready(Duration::from_secs(60));
            if ready
                .and_then(|()| self.host.exec_within(over, Duration::from_secs(130)))
                .is_ok_and(|output| output.status == 0)
            {
                return Ok(Some(()));
            }
            // It may lead into a kernel that is gone.
            self.host.forget_connections();
            Ok(None)
        })?;
        ended.with_context(|| format!("the maintenance does not end\n{}", self.host.console_tail(15)))
    }

    /// What is not as it must be.
    fn broken(&self, fault: Fault, born: &[Clocks], report: &Value, from: &str) -> Result<Vec<String>> {
        let mut broken = Vec::new();
        let none = Vec::new();
        let told = report["vms"].as_array().unwrap_or(&none);
        if told.len() != self.guests.len() {
            broken.push(format!("the report tells of {} VMs", told.len()));
        }
        self.mend(fault)?;
        for (guest, born) in self.guests.iter().zip(born) {
            let name = &guest.name;
            let end = told
                .iter()
                .find(|vm| vm["vm"] == name.as_str())
                .map_or("-", |vm| vm["end"]["kind"].as_str().unwrap_or("-"));
            let view: Value = serde_json::from_str(&self.host.run(&format!("fermata --json vm show {name}"))?)?;
            let state = view["state"].as_str().unwrap_or("-");
            let vmms = format!("pgrep -fc '^/[^ ]*qemu-system[^ ]* -name guest={name},'");
            // The twin of a rehearsal that was cut short ends a moment after its maintenance.
            let count = format!("for _ in $(seq 20); do [ $({vmms}) -gt 1 ] || break; sleep 0.5; done; {vmms}");
            let count = self.host.exec(&count)?.stdout;
            let count = count.trim().to_owned();
            let mut must = |holds: bool, what: String| {
                if !holds {
                    broken.push(format!("{name}: {what}"));
                }
            };
            match end {
                "updated" | "as_before" | "untouched" => {
                    must(state == "running" && count == "1", format!("told {end}, but is {state} with {count} VMMs"));
                    let now = guest.probe(self.host).wait_alive(90)?;
                    must(now.boot_id == born.boot_id, format!("told {end}, but booted anew"));
                    let kernel = self.release()?;
                    must((end == "updated") == (kernel != from), format!("told {end} on kernel {kernel}, from {from}"));
                }
                "restarted" => {
                    must(
                        state == "running" && count == "1",
                        format!("told restarted, but is {state} with {count} VMMs"),
                    );
                    let now = guest.probe(self.host).wait_alive(120)?;
                    must(now.boot_id != born.boot_id, "told restarted, but runs on".to_owned());
                }
                "preserved" => {
                    must(count == "0", format!("told preserved, with {count} VMMs"));
                    let restored =
                        self.host.exec_within(&format!("fermata vm restore {name}"), Duration::from_secs(180))?;
                    // What a damaged table of contents or a foreign boot leaves cannot be trusted, and must be refused in words.
                    if restored.status == 0 {
                        let now = guest.probe(self.host).wait_alive(120)?;
                        must(now.boot_id == born.boot_id, "restored, but booted anew".to_owned());
                    } else {
                        must(
                            fault == Fault::Panic || fault == Fault::PowerCut,
                            format!("kept, but not restored: {}", restored.stderr.trim()),
                        );
                    }
                }
                "lost" | "gone" => {
                    must(fault == Fault::VmmKilled || fault == Fault::PowerCut, format!("told {end}"));
                    must(count == "0", format!("told {end}, with {count} VMMs"));
                }
                other => must(false, format!("told {other}")),
            }
            if guest.probe(self.host).clocks().is_ok() {
                let memory = guest.probe(self.host).verify_memory()?;
                if memory.errors > 0 {
                    broken.push(format!("{name}: {} wrong pages", memory.errors));
                }
            }
        }
        if matches!(fault, Fault::Panic | Fault::NoVaultModules) && self.release()? != from {
            broken.push("the kernel that cannot be used is in use".to_owned());
        }
        if report["outcome"] != "done" && !report["trouble"]["text"].is_string() {
            broken.push("failed without a reason".to_owned());
        }
        Ok(broken)
    }

    /// Takes the cause away, so that what was kept can be taken up again.
    fn mend(&self, fault: Fault) -> Result<()> {
        let restart = "systemctl restart fermata-agent";
        let script = match fault {
            Fault::NoVaultModules => {
                "for modules in /lib/modules/*; do test -e $modules/kernel/drivers/dax || { mv /root/aside/dax $modules/kernel/drivers/; }; done; sync".to_owned()
            }
            Fault::DiskMissing => "mv /srv/g1.aside /srv/g1.img".to_owned(),
            Fault::StateFlipped => "fermata-probe flip /dev/dax0.0 states".to_owned(),
            Fault::TableFlipped => format!("systemctl stop fermata-agent; fermata-probe flip /dev/dax0.0 table; {restart}"),
            _ => return Ok(()),
        };
        self.host.run(&script)?;
        self.host.wait_agent_ready(Duration::from_secs(90))
    }
}
