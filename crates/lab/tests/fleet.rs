//! A fleet on real hosts: rollouts one update domain at a time, whatever is killed on the way.
//!
//! ```text
//!   host1: controller, agent, VMs a1 (set web, UD 0)  c1 (set db, UD 0)
//!   host2:             agent, VMs a2 (set web, UD 1)  c2 (set db, UD 1)
//! ```
//!
//! The controller lives on a host that it updates, which is the harder case. `FERMATA_FLEET_HOSTS=3` brings a third host with one VM of each
//! set; two are the default, because each takes a core where the CPU has no virtualisation to lend.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, with the lab's words")]

use std::time::{Duration, Instant};

use fermata_lab::{Host, Lab, LabSpec, guests};
use serde_json::Value;

const BUSY: Duration = Duration::from_secs(420);

struct Fleet {
    fleet: fermata_lab::fleet::Fleet,
}

impl Fleet {
    fn up(name: &str, vault: bool) -> Self {
        let count = std::env::var("FERMATA_FLEET_HOSTS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
        let mut spec = LabSpec::for_test(name, count);
        for host in &mut spec.hosts {
            host.memory_mib = 2560;
            if vault {
                host.memory_mib = 2048;
                *host = host.clone().with_vault(1024);
            }
        }
        Self { fleet: fermata_lab::fleet::Fleet::form(Lab::up(&spec).unwrap(), count).unwrap() }
    }

    fn hosts(&self) -> &[Host] {
        self.fleet.hosts()
    }

    fn controller(&self) -> &Host {
        self.fleet.controller()
    }

    fn json(&self, command: &str) -> Value {
        self.fleet.json(command).unwrap()
    }

    fn await_json(&self, command: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.fleet.await_json(command, what, wanted).unwrap()
    }

    fn start_vms(&self) {
        for set in ["web", "db"] {
            self.json(&format!("set create {set} --update-domains 3 --recovery 0"));
        }
        for (index, host) in self.hosts().iter().enumerate() {
            for (set, letter) in [("web", 'a'), ("db", 'c')] {
                let last = 11 + 2 * index + usize::from(letter == 'c');
                start_vm(host, &format!("{letter}{}", index + 1), set, index, last);
            }
        }
        let count = 2 * self.hosts().len();
        self.await_json("fleet list", "all VMs are reported in their sets", |all| {
            let vms = all.as_object().unwrap().values().flat_map(|host| host["report"]["vms"].as_array().unwrap());
            vms.filter(|vm| vm["set"].is_string() && vm["vmm"].is_string()).count() == count
        });
    }

    fn plan(&self, name: &str, file: &str, rest: &str) -> Value {
        self.fleet.plan(name, &format!("notice_s = 0\n{file}"), rest).unwrap()
    }

    fn phase(&self, name: &str, wanted: &str) -> Value {
        self.fleet.phase(name, wanted).unwrap()
    }

    /// The proof that no two update domains were touched together: by a program that shares nothing with what decided.
    fn check(&self, name: &str) {
        let found = self.json(&format!("rollout check {name}"));
        assert_eq!(found["clean"], true, "{found:#}");
    }

    fn states(&self) -> Vec<(String, String, String)> {
        let all = self.hosts().iter().flat_map(|host| {
            let views: Value = serde_json::from_str(&host.run("fermata --json vm list").unwrap()).unwrap();
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let line = |vm: &Value| (text(&vm["name"]), text(&vm["state"]), text(&vm["process"]["vmm"]));
            views.as_array().unwrap().iter().map(line).collect::<Vec<_>>()
        });
        all.collect()
    }

    fn boots(&self) -> Vec<String> {
        let guests = self.hosts().iter().enumerate().flat_map(|(index, host)| {
            [0, 1].map(|second| {
                let last = u8::try_from(11 + 2 * index + second).unwrap();
                host.probe(last).wait_alive(120).unwrap().boot_id
            })
        });
        guests.collect()
    }
}

fn start_vm(host: &Host, name: &str, set: &str, domain: usize, last: usize) {
    let domain = format!("guest_agent = false\navailability_set = {{ name = \"{set}\", update_domain = {domain} }}");
    let last = u8::try_from(last).unwrap();
    // Six probes at their usual pace would take all that three emulated hosts have of two cores.
    let words = "fermata.memory=16 fermata.sample_us=20000 fermata.beat_us=100000";
    let spec = guests::small_spec(name, last, 192, words, &domain);
    host.write(&format!("/tmp/{name}.toml"), &spec).unwrap();
    host.run(&format!("fermata vm create --start /tmp/{name}.toml")).unwrap();
}

#[test]
fn a_fleet_is_updated_one_update_domain_at_a_time() {
    let fleet = Fleet::up("fleet", false);
    fleet.start_vms();
    let before = fleet.boots();
    a_gate_that_nobody_passes_keeps_everybody_untouched(&fleet);
    the_controller_and_an_agent_are_killed_and_it_goes_on(&fleet);
    assert_eq!(fleet.boots(), before, "every guest lives on");
    two_rollouts_on_the_same_sets_are_serialised(&fleet);
    a_host_that_does_not_come_back_stops_the_rollout(&fleet);
}

#[test]
fn a_fleet_changes_its_kernels_one_update_domain_at_a_time() {
    let fleet = Fleet::up("fleet-kernel", true);
    fleet.start_vms();
    let before = fleet.boots();
    let hosts_before: Vec<String> = fleet.hosts().iter().map(|host| host.boot_id().unwrap()).collect();
    let image = fleet.controller().run("ls /boot/vmlinuz-7*").unwrap();
    let change = format!("kind = \"kernel\"\n[change]\nimage = \"{}\"\n", image.trim());
    fleet.plan("kernel", &change, "--gate tcp:7072");
    fleet.json("rollout start kernel --reason test");
    fleet.phase("kernel", "completed");
    fleet.check("kernel");
    println!("{}", fleet.controller().run("fermata rollout report kernel").unwrap());
    for (host, before) in fleet.hosts().iter().zip(&hosts_before) {
        // VMs run before the rest of their host does, its shell among it.
        host.wait_boot_after(before, Duration::from_secs(180)).unwrap();
        assert!(host.run("uname -r").unwrap().starts_with("7."), "{}", host.name);
    }
    assert_eq!(fleet.boots(), before, "every guest lives on");
    for (name, state, _) in fleet.states() {
        assert_eq!(state, "running", "{name}");
    }
}

fn a_gate_that_nobody_passes_keeps_everybody_untouched(fleet: &Fleet) {
    fleet.plan(
        "gated",
        "kind = \"package\"\n[change]\ncommand = [\"/bin/true\"]\ntimeout_ms = 10000\n",
        "--gate tcp:9",
    );
    fleet.json("rollout start gated");
    let explained = fleet.await_json("rollout explain gated", "the gate is named", |all| {
        all.as_array().unwrap().iter().any(|host| host["wait"].to_string().contains("tcp:9"))
    });
    println!("gate: {}", explained[0]["wait"]);
    fleet.json("rollout abort gated --reason test");
    fleet.phase("gated", "aborted");
}

/// One rollout; the controller is killed at every state of a host that the log can tell, the agent of the other host once.
fn the_controller_and_an_agent_are_killed_and_it_goes_on(fleet: &Fleet) {
    let planned = fleet.plan("newer", "kind = \"vmm\"\n[change]\nvmm = \"11.1\"\n", "--notice 4 --gate tcp:7072");
    println!("plan: {planned}");
    fleet.json("rollout start newer --reason test");
    let mut seen = std::collections::BTreeSet::new();
    let mut agent_killed = false;
    let end = Instant::now() + BUSY;
    loop {
        assert!(Instant::now() < end, "the rollout does not end: {:#}", fleet.json("rollout explain newer"));
        let output = fleet.controller().exec("fermata --json rollout explain newer").unwrap();
        let Ok(all) = serde_json::from_str::<Value>(&output.stdout) else { continue };
        let Some(hosts) = all.as_array() else { continue };
        let phases: Vec<String> =
            hosts.iter().map(|host| host["phase"]["is"].as_str().unwrap_or_default().to_owned()).collect();
        if phases.iter().all(|phase| phase == "done") {
            break;
        }
        for (host, phase) in hosts.iter().zip(&phases) {
            if phase == "in_work" && !agent_killed && host["host"] != "host1" {
                let name = host["host"].as_str().unwrap();
                fleet
                    .hosts()
                    .iter()
                    .find(|host| host.name == name)
                    .unwrap()
                    .run("systemctl kill -s KILL fermata-agent")
                    .unwrap();
                agent_killed = true;
            }
            if phase != "waiting" && seen.insert(phase.clone()) {
                fleet.controller().run("systemctl kill -s KILL fermata-controller").unwrap();
                println!("controller killed while a host is {phase}");
            }
        }
    }
    fleet.phase("newer", "completed");
    println!("controller killed in {seen:?}, an agent killed in its work: {agent_killed}");
    assert!(seen.len() >= 3, "{seen:?}");
    fleet.check("newer");
    for (name, state, vmm) in fleet.states() {
        assert_eq!(state, "running", "{name}");
        println!("{name} runs on {vmm}");
    }
    let report = fleet.controller().run("fermata rollout report newer").unwrap();
    println!("{report}");
    assert!(report.contains("blackout"), "{report}");
}

fn two_rollouts_on_the_same_sets_are_serialised(fleet: &Fleet) {
    let step = "kind = \"package\"\n[change]\ncommand = [\"/bin/sleep\", \"3\"]\ntimeout_ms = 20000\n";
    fleet.plan("first", step, "");
    fleet.plan("second", step, "");
    fleet.json("rollout start first");
    fleet.json("rollout start second");
    fleet.phase("first", "completed");
    fleet.phase("second", "completed");
    let mut visits = Vec::new();
    for name in ["first", "second"] {
        fleet.check(name);
        let report = fleet.json(&format!("rollout report {name}"));
        for (host, made) in report["hosts"].as_object().unwrap() {
            for visit in made.as_array().unwrap().iter().filter(|visit| visit["outcome"].is_string()) {
                let time = |key: &str| visit[key].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
                visits.push((time("ordered"), time("healthy"), format!("{name} on {host}")));
            }
        }
    }
    visits.sort();
    println!("visits: {visits:#?}");
    assert_eq!(visits.len(), 2 * fleet.hosts().len());
    // Every host carries a part of both sets of its own, so no two visits may overlap at all.
    for pair in visits.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "{} and {} overlap", pair[0].2, pair[1].2);
    }
}

fn a_host_that_does_not_come_back_stops_the_rollout(fleet: &Fleet) {
    let rules = r#"{"notice":{"secs":0,"nanos":0},"stop_after":{"secs":20,"nanos":0}}"#;
    fleet.controller().write("/tmp/rules.json", rules).unwrap();
    let step = "kind = \"package\"\n[change]\ncommand = [\"/bin/sleep\", \"8\"]\ntimeout_ms = 60000\n";
    // One without the controller is in work first, and its agent goes away.
    let last = fleet.hosts().len();
    let gone = &fleet.hosts()[last - 1];
    fleet.plan("fatal", step, "--rules /tmp/rules.json");
    for host in &fleet.hosts()[..last - 1] {
        fleet.json(&format!("rollout pause fatal --host {}", host.name));
    }
    fleet.json("rollout start fatal");
    fleet.await_json("rollout explain fatal", "a host is in work", |all| {
        all.as_array().unwrap().iter().any(|host| host["phase"]["is"] == "in_work")
    });
    gone.run("systemctl stop fermata-agent").unwrap();
    fleet.phase("fatal", "failing");
    let explained = fleet.json("rollout explain fatal");
    println!("stopped: {explained}");
    let touched = explained.as_array().unwrap().iter().filter(|host| host["phase"]["is"] != "waiting").count();
    assert!(touched < fleet.hosts().len(), "the others were not begun: {explained}");
    for vm in ["a1", "c1"] {
        assert!(fleet.states_of(1).iter().any(|(name, state)| name == vm && state == "running"));
    }
    // The host is repaired: its agent says how the visit ended, and the rollout can end.
    gone.run("systemctl start fermata-agent").unwrap();
    fleet.phase("fatal", "failed");
    fleet.check("fatal");
}

impl Fleet {
    fn states_of(&self, host: usize) -> Vec<(String, String)> {
        let views: Value =
            serde_json::from_str(&self.hosts()[host - 1].run("fermata --json vm list").unwrap()).unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        views.as_array().unwrap().iter().map(|vm| (text(&vm["name"]), text(&vm["state"]))).collect()
    }
}
