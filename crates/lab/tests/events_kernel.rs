//! Guests that poll once a second are told of a change of the host's kernel, answer, and live through it: on a real host, by
//! a real kexec. What the metadata service knows goes along.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, with the lab's words")]
#![expect(clippy::disallowed_methods, reason = "what a guest sees can only be asked for")]

mod told_guests;

use std::time::{Duration, Instant};

use fermata_lab::{Host, Kernel, Lab, LabSpec, kexecs::change};
use fermata_probe::metadata::{Answer, Sighting};
use serde_json::{Value, json};
use told_guests::{Guest, json, statuses, wait};

/// How long the service may be away after a change of the kernel, on an emulated host of one processor: the other VM of the set may still
/// stand, and then a program starts.
const AWAY: Duration = Duration::from_secs(30);
const EVENTS: &str = "/metadata/scheduledevents?api-version=2020-07-01";

#[test]
fn guests_are_told_of_a_change_of_the_hosts_kernel_and_the_service_forgets_nothing() {
    let began = Instant::now();
    let at = |what: &str| println!("{:6.1} s: {what}", began.elapsed().as_secs_f64());
    let mut spec = LabSpec::for_test("events-kernel", 1);
    spec.hosts[0] = spec.hosts[0].clone().with_vault(1024);
    spec.hosts[0].imds = true;
    let lab = Lab::up(&spec).unwrap();
    let host = lab.host(1);
    host.wait_agent_ready(Duration::from_secs(60)).unwrap();
    let set = "availability_set = { name = \"web\", update_domain = 1 }\n";
    // One after the other: three boots at a time take an emulated host longer than three in turn.
    let start = |name, last, more| Guest::start(host, name, last, more).wait_alive();
    let [web0, web1, asked] = [start("web0", 11, set), start("web1", 12, set), start("asked", 13, "")];
    never_asked(host, "mute");
    at("the guests are up");
    // All VMs of the set poll; the third one asks once, in this kernel.
    for guest in [web0, web1] {
        guest.watch();
        wait("the first poll", Duration::from_secs(10), || (!guest.seen().is_empty()).then_some(()));
    }
    assert!(asked.events().is_empty());

    let boot = host.boot_id().unwrap();
    let image = change::image(host, Kernel::Backports).unwrap();
    let file = format!(
        "id = \"kernel\"\ntitle = \"a newer kernel\"\nkind = \"kernel\"\nnotice_s = 600\n[change]\nimage = \"{image}\"\n"
    );
    host.write("/tmp/kernel.toml", &file).unwrap();
    host.run("fermata update apply --detach /tmp/kernel.toml").unwrap();
    let id = approve(host, web0, web1);
    at("approved");
    if let Err(error) = host.wait_boot_after(&boot, change::UP) {
        panic!("{error:#}\n{}", journal(host));
    }
    at("the other kernel is up");
    host.wait_agent_ready(Duration::from_secs(120)).unwrap();
    ended(host, "kernel", 120);
    at("over");
    assert!(host.run("uname -r").unwrap().starts_with("7."));

    let record = history_of(host, &id);
    assert_eq!(record["approvedBy"], json!(["web1"]), "approvals survive the kernel");
    for guest in [web0, web1] {
        saw_it_in_order_from(guest, &record, 0, AWAY);
    }
    // Who asked in the former kernel is owed a notice in this one; who never did is not.
    let told = |name: &str| {
        let played = json(host, &format!("event simulate {name} --notice 600 --pause-ms 20000"));
        let id = played["events"][0].as_str().unwrap().to_owned();
        let status = json(host, &format!("event show {id}"))["status"].as_str().unwrap().to_owned();
        (id, status)
    };
    let (simulated, status) = told("asked");
    assert_eq!((status.as_str(), told("mute").1.as_str()), ("Scheduled", "Started"));
    host.run(&format!("fermata event cancel {simulated}")).unwrap();
    // Rule 22: what is over is known as such in the other kernel, too.
    web0.approve(&id);
    let unknown = "{\"StartRequests\":[{\"EventId\":\"11111111-2222-5333-8444-555555555555\"}]}";
    assert_eq!(web0.ask("POST", EVENTS, unknown).status, 400);
    at("approvals, enablement and incarnation are as before");

    a_hold_is_announced_too(host, web0, web1);
    at("end");
    lab.down().unwrap();
}

/// A VM that was never started, so never asked.
fn never_asked(host: &Host, name: &str) {
    host.write("/tmp/mute.toml", &fermata_lab::guests::small_spec(name, 14, 128, "", "")).unwrap();
    host.run("fermata vm create /tmp/mute.toml").unwrap();
}

/// Waits for the event of the set, and lets `by` approve it; the operator approves for all others. Gives its id.
fn approve(host: &Host, shown: Guest<'_>, by: Guest<'_>) -> String {
    let event = wait("the set's event", Duration::from_secs(60), || shown.events().into_iter().next());
    assert_eq!((&event["EventStatus"], &event["EventType"]), (&"Scheduled".into(), &"Freeze".into()));
    assert_eq!(event["Resources"], json!(["web0", "web1"]));
    let id = event["EventId"].as_str().unwrap().to_owned();
    for other in json(host, "event list").as_array().unwrap().iter().filter(|event| event["eventId"] != id.as_str()) {
        host.run(&format!("fermata event approve {} --name ops", other["eventId"].as_str().unwrap())).unwrap();
    }
    by.approve(&id);
    id
}

fn history_of(host: &Host, id: &str) -> Value {
    let history = json(host, "event history");
    println!("history: {history}");
    history.as_array().unwrap().iter().find(|record| record["eventId"] == id).unwrap().clone()
}

fn ended(host: &Host, update: &str, seconds: u64) {
    let report = wait("the end", Duration::from_secs(seconds), || {
        let listed = json(host, "maintenance list");
        let one = listed.as_array()?.iter().find(|one| one["update"] == update)?.clone();
        (!one["outcome"].is_null()).then_some(one)
    });
    assert_eq!(report["outcome"], "done", "{report:#}\n{}", journal(host));
}

fn journal(host: &Host) -> String {
    let look =
        "fermata maintenance list; journalctl -b -u fermata-agent -u fermata-imds --no-pager -o cat | tail -n 60";
    host.exec(look).map_or_else(|error| format!("{error:#}"), |output| output.stdout)
}

/// Scheduled, Started, the pause, the removal; and a number that only grows.
///
/// The poller may be without an answer for `limit` in all.
fn saw_it_in_order_from(guest: Guest<'_>, record: &Value, first: usize, limit: Duration) {
    let seen = wait("removal seen", Duration::from_secs(20), || {
        let seen = guest.seen().split_off(first);
        let statuses = statuses(&seen, guest.name);
        (statuses.len() > 1 && statuses.last()?.0 == "none").then_some(seen)
    });
    let saw = statuses(&seen, guest.name);
    println!("{}: {saw:?}", guest.name);
    let order: Vec<&str> = saw.iter().map(|(status, _)| status.as_str()).collect();
    assert_eq!(order, ["none", "Scheduled", "Started", "none"], "{}", guest.name);
    let felt = &record["vms"][guest.name];
    let pause = felt["pauseMs"].as_u64().unwrap_or_else(|| panic!("{}: no pause was measured: {record}", guest.name));
    // The whole pause lies between its sight of Started and its sight of the removal.
    assert!(saw[3].1 - saw[2].1 >= pause, "{}: {saw:?}, paused for {pause} ms", guest.name);
    let numbers: Vec<i64> = seen
        .iter()
        .filter_map(|sighting| serde_json::from_str::<Value>(&sighting.seen.as_ref().ok()?.body).ok())
        .map(|document| document["DocumentIncarnation"].as_i64().unwrap())
        .collect();
    assert!(numbers.windows(2).all(|pair| pair[0] <= pair[1]), "rule 18: {}: {numbers:?}", guest.name);
    let unanswered_ms: u64 = unanswered(&seen).map(|(lasted, _)| lasted).sum();
    for (lasted, answer) in unanswered(&seen) {
        println!("{}: {lasted} ms of {answer:?}", guest.name);
    }
    println!(
        "{}: pause {pause} ms, clock step {}, incarnations {numbers:?}, {unanswered_ms} ms without an answer",
        guest.name, felt["clockStepMs"]
    );
    assert!(unanswered_ms <= limit.as_millis().try_into().unwrap(), "{}: {seen:?}", guest.name);
}

/// When a poller had no answer: for how long by the guest's own clock, which does not count the pause, and what it had instead.
fn unanswered(seen: &[Sighting]) -> impl Iterator<Item = (u64, &Result<Answer, String>)> {
    let gaps = seen.windows(2).filter(|pair| !pair[0].seen.as_ref().is_ok_and(|answer| answer.status == 200));
    gaps.map(|pair| (pair[1].monotonic_ms - pair[0].monotonic_ms, &pair[0].seen))
}

/// A service of the host is replaced while VMs stand for a moment.
fn a_hold_is_announced_too(host: &Host, web0: Guest<'_>, web1: Guest<'_>) {
    let seen = [web0, web1].map(|guest| guest.seen().len());
    let file = "id = \"driver\"\ntitle = \"a driver\"\nkind = \"service\"\nnotice_s = 600\n\
                [change]\ncommand = [\"/usr/bin/true\"]\ntimeout_ms = 2000\nundo_needed = false\n";
    host.write("/tmp/driver.toml", file).unwrap();
    host.run("fermata update apply --detach /tmp/driver.toml").unwrap();
    let id = approve(host, web1, web0);
    ended(host, "driver", 120);
    let record = history_of(host, &id);
    for (guest, before) in [web0, web1].into_iter().zip(seen) {
        // From the last document before the hold on.
        saw_it_in_order_from(guest, &record, before - 1, Duration::from_secs(15));
    }
}
