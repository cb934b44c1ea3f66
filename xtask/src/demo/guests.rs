//! The VMs of the demo, and the programs in them.

use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use fermata_lab::{
    Host,
    fleet::Fleet,
    kexecs::measure::{self, Before},
    swaps::guest::Guest,
};
use fermata_probe::metadata::Sighting;
use serde_json::Value;

use super::{Line, story::Story};

/// A VM and where it is.
pub(super) struct Member {
    pub(super) guest: Guest,
    /// Its host's place in the lab, from 0.
    at: usize,
}

impl Member {
    pub(super) fn host<'a>(&self, fleet: &'a Fleet) -> &'a Host {
        &fleet.lab.hosts()[self.at]
    }

    /// Brings it to life.
    fn start(&self, fleet: &Fleet, peer: usize) -> Result<()> {
        let (host, last) = (self.host(fleet), self.guest.last);
        // The other end of its connections knows the way back.
        fleet.lab.host(peer).run(&format!("ip route replace 10.77.0.{last}/32 via 10.88.0.{}", self.at + 1))?;
        self.guest.create(host)?;
        self.guest.start(host)?;
        let approve = if self.guest.name == "web-1" { "approve" } else { "" };
        self.run(fleet, &format!("fermata-probe watch-events /run/seen 1000 {approve} >/dev/null 2>&1 &"))?;
        Ok(())
    }

    /// Runs a script in it, through the guest agent: nothing that could be lost with its network.
    fn run(&self, fleet: &Fleet, script: &str) -> Result<String> {
        let socket = format!("$(ls -d /run/fermata/vm/{}/*/qga | tail -n 1)", self.guest.name);
        self.host(fleet).run(&format!("fermata-probe inside {socket} 30 '{script}'"))
    }

    /// Where it belongs, as an operator would say it.
    pub(super) fn domain(&self) -> String {
        match self.guest.name.strip_prefix("web-") {
            Some(_) => format!("set web, update domain {}", self.at),
            None => "no set".to_owned(),
        }
    }

    /// What its program saw of Scheduled Events, in order, and when by the guest's clock.
    pub(super) fn saw(&self, fleet: &Fleet, story: &Story) -> Result<String> {
        let text = self.run(fleet, "cat /run/seen")?;
        let (mut last, mut saw) = (String::new(), Vec::new());
        for line in text.lines() {
            let sighting: Sighting = serde_json::from_str(line).with_context(|| format!("read {line}"))?;
            let Ok(answer) = sighting.seen else { continue };
            let document: Value = serde_json::from_str(&answer.body).unwrap_or_default();
            let word = |event: &Value, key: &str| event[key].as_str().unwrap_or("-").to_owned();
            let one = |event: &Value| format!("{} {}", word(event, "EventType"), word(event, "EventStatus"));
            let words: Vec<String> = document["Events"].as_array().into_iter().flatten().map(one).collect();
            let now = if words.is_empty() { "nothing".to_owned() } else { words.join(" and ") };
            if last != now {
                saw.push(format!("{now} at {:.0} s", story.since_begin(sighting.wall_ms)));
                last = now;
            }
        }
        Ok(saw.join(", "))
    }
}

/// How often a probe looks at its clock and sends: an emulated processor has others to serve, and pauses last longer than this.
const PACE: &str = "fermata.sample_us=20000 fermata.beat_us=20000";

/// Starts all VMs side by side, with a program in each that watches for events.
pub(super) fn start(fleet: &Fleet, hosts: usize, peer: usize) -> Result<Vec<Member>> {
    let members: Vec<Member> = (0..=hosts)
        .map(|number| {
            let alone = number == hosts;
            let (name, at) =
                if alone { ("alone".to_owned(), hosts - 1) } else { (format!("web-{}", number + 1), number) };
            let mut guest = Guest::new(&name, u8::try_from(11 + number)?).sized(192, 1);
            guest.cmdline = format!("fermata.memory=32 {PACE} fermata.target=10.88.0.{peer}:7070");
            guest.extra = if alone {
                "os = \"windows\"\n".to_owned()
            } else {
                format!("availability_set = {{ name = \"web\", update_domain = {at} }}\n")
            };
            Ok(Member { guest, at })
        })
        .collect::<Result<_>>()?;
    thread::scope(|scope| {
        let starting: Vec<_> = members.iter().map(|member| scope.spawn(|| member.start(fleet, peer))).collect();
        starting.into_iter().try_for_each(|one| one.join().map_err(|_| anyhow!("a VM's start panicked"))?)
    })?;
    let count = members.len();
    fleet.await_json("fleet list", "all VMs are reported", |all| {
        let hosts = all.as_object().into_iter().flat_map(|all| all.values());
        let vms = hosts.flat_map(|host| host["report"]["vms"].as_array().into_iter().flatten());
        vms.filter(|vm| vm["vmm"].is_string()).count() == count
    })?;
    Ok(members)
}

/// What is known of each VM before a rollout.
pub(super) fn before(fleet: &Fleet, members: &[Member]) -> Result<Vec<Before>> {
    let peer = peer(fleet)?;
    members
        .iter()
        .map(|member| measure::before(member.host(fleet), peer, std::slice::from_ref(&member.guest)))
        .collect()
}

/// What each VM felt in it.
pub(super) fn since(fleet: &Fleet, members: &[Member], before: &[Before], rollout: &'static str) -> Result<Vec<Line>> {
    let peer = peer(fleet)?;
    let report = fleet.json(&format!("rollout report {rollout}"))?;
    let mut lines = Vec::new();
    for (member, before) in members.iter().zip(before) {
        let last = "fermata --json maintenance show $(fermata maintenance list | tail -n 1 | cut -d ' ' -f 1)";
        let maintenance: Value = serde_json::from_str(&member.host(fleet).run(last)?)?;
        let felt = measure::since(before, peer, std::slice::from_ref(&member.guest), Some(&maintenance))?;
        let Some(felt) = felt.into_iter().next() else { bail!("{} tells nothing", member.guest.name) };
        let host = member.host(fleet).name.clone();
        lines.push(Line { rollout, host_blackout_ms: told(&report, &host, &member.guest.name), host, felt });
    }
    Ok(lines)
}

/// The longest pause of a VM by the rollout's report, in milliseconds.
pub(super) fn told(report: &Value, host: &str, vm: &str) -> Option<f64> {
    let visits = report["measured"][host].as_array()?;
    let maintenances = visits.iter().filter_map(|visit| visit["maintenances"].as_array()).flatten();
    let vms = maintenances.filter_map(|one| one["vms"].as_array()).flatten().filter(|told| told["vm"] == vm);
    let pauses = vms.filter_map(|told| told["host_blackouts_us"].as_array()).flatten().filter_map(Value::as_f64);
    pauses.reduce(f64::max).map(|us| us / 1e3)
}

fn peer(fleet: &Fleet) -> Result<&Host> {
    fleet.lab.hosts().last().context("a lab has hosts")
}
