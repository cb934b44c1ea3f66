//! A set whose guests are on several hosts: one of them approves for all, a canary goes first, and a host whose power is cut in its visit
//! stops the rest.
//!
//! ```text
//!   host1: controller, agent, a1 (set web, UD 0), which watches and approves nothing
//!   host2:             agent, a2 (set web, UD 1), which approves all that it sees
//! ```

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, with the lab's words")]
#![expect(clippy::disallowed_methods, reason = "what a guest sees can only be asked for")]

mod told_guests;

use std::time::Duration;

use fermata_lab::fleet::Fleet;
use fermata_lab::{Lab, LabSpec};
use serde_json::Value;
use told_guests::{Guest, statuses};

/// Far more than an approval needs, far less than a test may take.
const NOTICE: u64 = 240;

#[test]
fn guests_on_other_hosts_are_asked_a_canary_goes_first_and_a_power_cut_stops_the_rest() {
    let mut spec = LabSpec::for_test("fleet-told", 2);
    for host in &mut spec.hosts {
        host.imds = true;
    }
    let fleet = Fleet::form(Lab::up(&spec).unwrap(), 2).unwrap();
    fleet.json("set create web --update-domains 2 --recovery 0").unwrap();
    let member = |domain| format!("availability_set = {{ name = \"web\", update_domain = {domain} }}\n");
    let a1 = Guest::start(&fleet.hosts()[0], "a1", 11, &member(0)).wait_alive();
    let a2 = Guest::start(&fleet.hosts()[1], "a2", 12, &member(1)).wait_alive();
    fleet
        .await_json("fleet list", "both VMs are reported in their set", |all| {
            let vms = all.as_object().unwrap().values().flat_map(|host| host["report"]["vms"].as_array().unwrap());
            vms.filter(|vm| vm["set"].is_string() && vm["vmm"].is_string()).count() == 2
        })
        .unwrap();
    let boots = [a1, a2].map(|guest| guest.host.probe(guest.last).clocks().unwrap().boot_id);

    one_approves_for_all(&fleet, a1, a2);
    the_canary_proves_itself_before_the_next(&fleet);
    assert_eq!([a1, a2].map(|guest| guest.host.probe(guest.last).clocks().unwrap().boot_id), boots);
    a_power_cut_stops_the_rest(&fleet, a1, &boots[0]);
}

/// Whichever host is visited, the approval comes from the guest on host2: for host1 that is another host.
fn one_approves_for_all(fleet: &Fleet, a1: Guest<'_>, a2: Guest<'_>) {
    a1.watch();
    a2.run("rm -f /run/seen; fermata-probe watch-events /run/seen 1000 approve >/dev/null 2>&1 &");
    fleet.plan("asked", "kind = \"vmm\"\n[change]\nvmm = \"11.1\"\n", &format!("--notice {NOTICE}")).unwrap();
    fleet.json("rollout start asked --reason test").unwrap();
    fleet.phase("asked", "completed").unwrap();
    let checked = fleet.json("rollout check asked").unwrap();
    assert_eq!(checked["clean"], true, "{checked:#}");
    fleet.controller().run("fermata rollout report asked --html /root/asked.html").unwrap();
    let page = fleet.controller().run("cat /root/asked.html").unwrap();
    for word in ["<svg", "a1", "a2", "host1", "host2", "updated"] {
        assert!(page.contains(word), "the report as a page does not show {word}");
    }
    // Told on the visited host too, by whom, and not after the notice: what was approved elsewhere is approved there.
    for (host, vm) in [(a1.host, "a1"), (a2.host, "a2")] {
        let history = told_guests::json(host, "event history");
        let record = history.as_array().unwrap().iter().rev().find(|one| !one["vms"][vm].is_null()).unwrap();
        println!("{vm}: {record}");
        assert_eq!(record["approvedBy"], serde_json::json!(["a2"]), "{record}");
        let at = |what: &str| record[what].as_u64().unwrap();
        assert!(at("startedUnixMs") - at("announcedUnixMs") < NOTICE * 1_000 / 2, "{record}");
    }
    for (watcher, vm) in [(a1, "a1"), (a2, "a1"), (a1, "a2"), (a2, "a2")] {
        let seen = statuses(&watcher.seen(), vm);
        println!("{} saw of {vm}: {seen:?}", watcher.name);
        let when = |status: &str| seen.iter().find(|(is, _)| is == status).map(|(_, at)| *at);
        let begun = when("Started").unwrap();
        // The one that does not approve may ask too seldom to see what the other has approved at once.
        let told = when("Scheduled").filter(|_| watcher.name == "a2");
        assert_eq!(told.is_some(), watcher.name == "a2", "{seen:?}");
        let waited = told.map_or(0, |told| begun - told);
        assert!(waited < NOTICE * 1_000 / 2, "not begun by the approval: {seen:?}");
        assert_eq!(seen.last().unwrap().0, "none", "removed in the end: {seen:?}");
    }
}

/// The first stage is one host, watched for a while, and an operator says go.
fn the_canary_proves_itself_before_the_next(fleet: &Fleet) {
    let policy = r#"{"stages":[{"name":"canary","size":{"hosts":1},"soak_s":5,"approval":true}]}"#;
    fleet.controller().write("/tmp/policy.json", policy).unwrap();
    let step = "kind = \"package\"\n[change]\ncommand = [\"/bin/true\"]\ntimeout_ms = 20000\n";
    fleet.plan("staged", step, "--notice 0 --policy /tmp/policy.json").unwrap();
    fleet.json("rollout start staged --reason test").unwrap();
    let count =
        |all: &Value, phase: &str| all.as_array().unwrap().iter().filter(|host| host["phase"]["is"] == phase).count();
    let waits = fleet
        .await_json("rollout explain staged", "the rest waits for the operator", |all| {
            count(all, "done") == 1 && all.to_string().contains("approval")
        })
        .unwrap();
    println!("after the canary: {waits}");
    assert_eq!(count(&waits, "waiting"), 1, "{waits}");
    fleet.json("rollout approve staged").unwrap();
    fleet.phase("staged", "completed").unwrap();
}

/// The host is in work when its power goes. Its VM starts with it again; the other host is never begun.
fn a_power_cut_stops_the_rest(fleet: &Fleet, a1: Guest<'_>, boot: &str) {
    let rules = r#"{"notice":{"secs":0,"nanos":0}}"#;
    fleet.controller().write("/tmp/rules.json", rules).unwrap();
    let step = "kind = \"package\"\n[change]\ncommand = [\"/bin/sleep\", \"60\"]\ntimeout_ms = 120000\n";
    fleet.plan("cut", step, "--rules /tmp/rules.json").unwrap();
    fleet.json("rollout pause cut --host host1").unwrap();
    fleet.json("rollout start cut --reason test").unwrap();
    fleet
        .await_json("rollout explain cut", "host2 is in work", |all| {
            all.as_array().unwrap().iter().any(|host| host["host"] == "host2" && host["phase"]["is"] == "in_work")
        })
        .unwrap();
    let host2 = &fleet.hosts()[1];
    let before = host2.boot_id().unwrap();
    host2.reset().unwrap();
    host2.wait_boot_after(&before, Duration::from_secs(300)).unwrap();
    fleet.phase("cut", "failed").unwrap();
    let explained = fleet.json("rollout explain cut").unwrap();
    println!("after the power cut: {explained}");
    let touched = |host: &&Value| host["phase"]["is"] != "waiting";
    let touched: Vec<_> = explained.as_array().unwrap().iter().filter(touched).map(|host| &host["host"]).collect();
    assert_eq!(touched, ["host2"], "{explained}");
    assert_eq!(a1.host.probe(a1.last).clocks().unwrap().boot_id, boot, "the other host's VM is untouched");
    println!("{}", fleet.controller().run("fermata rollout report cut").unwrap());
}
