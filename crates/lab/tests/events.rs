//! Guests are told what is coming, answer, and are told when it is over: on a real host, through a real change of VMM.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, with the lab's words")]
#![expect(clippy::disallowed_methods, reason = "what a guest sees can only be asked for")]

mod told_guests;

use std::time::{Duration, Instant};

use fermata_lab::{Host, Lab, LabSpec};
use fermata_probe::metadata::Answer;
use serde_json::Value;
use told_guests::{Guest, json, statuses, wait};

fn update(host: &Host, id: &str, notice: u32, vmm: &str) {
    let file =
        format!("id = \"{id}\"\ntitle = \"{id}\"\nnotice_s = {notice}\nkind = \"vmm\"\n[change]\nvmm = \"{vmm}\"\n");
    host.write(&format!("/tmp/{id}.toml"), &file).unwrap();
}

fn evidence(host: &Host) -> String {
    host.run("journalctl -u fermata-agent -u fermata-imds --no-pager -o short-precise | tail -n 40; fermata maintenance list; fermata event list").unwrap()
}

#[test]
fn guests_see_answer_and_outlive_a_change_of_vmm() {
    let mut spec = LabSpec::for_test("events", 1);
    spec.hosts[0].imds = true;
    let lab = Lab::up(&spec).unwrap();
    let host = lab.host(1);
    host.wait_agent_ready(Duration::from_secs(60)).unwrap();
    let set = "availability_set = { name = \"web\", update_domain = 1 }\n";
    let guests = [
        Guest::start(host, "web0", 11, set),
        Guest::start(host, "web1", 12, set),
        Guest::start(host, "alone", 13, "min_notice_s = 700\n"),
    ];
    let [web0, web1, alone] = guests.map(Guest::wait_alive);
    for guest in [web0, web1, alone] {
        assert_eq!(guest.knows_itself_as(), guest.name);
    }
    a_neighbour_is_told_from_its_wire(web0, alone);
    nothing_else_of_the_host_is_reached(alone);

    for guest in [web0, web1, alone] {
        guest.watch();
        wait("the first poll", Duration::from_secs(10), || (!guest.seen().is_empty()).then_some(()));
    }
    update(host, "newer", 600, "11.1");
    host.run("fermata update apply --detach /tmp/newer.toml").unwrap();
    let set_event = wait("the set's event", Duration::from_secs(20), || web1.events().into_iter().next());
    assert_eq!(set_event["EventStatus"], "Scheduled");
    assert_eq!(set_event["Resources"], serde_json::json!(["web0", "web1"]), "rules 16, 39 and 40: one event per scope");
    let own_event = alone.events().remove(0);
    assert_eq!(own_event["Resources"], serde_json::json!(["alone"]), "rule 43");
    assert!(
        own_event["DurationInSeconds"].as_i64().is_some_and(|seconds| (1..30).contains(&seconds)),
        "rule 17: {own_event}"
    );

    an_agent_that_dies_is_not_noticed(web0, set_event["EventId"].as_str().unwrap());
    operators_see_the_same(host, &set_event);

    // One scope alone opens nothing (rule 40); with the second approval it begins at once (rule 24: by any VM of the scope).
    web1.approve(set_event["EventId"].as_str().unwrap());
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(web0.events()[0]["EventStatus"], "Scheduled");
    alone.approve(own_event["EventId"].as_str().unwrap());
    let approved = Instant::now();
    // Twins of all three are rehearsed first.
    let started = || {
        let report = json(host, "maintenance list");
        assert!(report[0]["outcome"].is_null() || web0.events().is_empty(), "{}", evidence(host));
        (web0.events().first()?["EventStatus"] == "Started").then_some(())
    };
    wait("Started", Duration::from_secs(300), started);
    println!("Started {:.1} s after the last approval", approved.elapsed().as_secs_f64());
    println!("{}", evidence(host));
    let over = || {
        let report = json(host, "maintenance list");
        let outcome = report[0]["outcome"].as_str()?.to_owned();
        Some(outcome)
    };
    assert_eq!(wait("the end", Duration::from_secs(180), over), "done");
    println!("done {:.1} s after the last approval", approved.elapsed().as_secs_f64());
    everybody_saw_it_in_order(host, &[web0, web1, alone]);
    a_restart_is_announced_and_cancelled(host, alone);
}

fn a_neighbour_is_told_from_its_wire(neighbour: Guest<'_>, spoofer: Guest<'_>) {
    let name = "fermata-probe metadata GET \"/metadata/instance/compute/name?api-version=2021-08-01&format=text\"";
    let address = format!(
        "ip addr add 10.77.0.{}/32 dev eth0; ip route replace 169.254.169.254/32 dev eth0 src 10.77.0.{}",
        neighbour.last, neighbour.last
    );
    let as_ip = spoofer.run(&format!(
        "{address}; {name}; ip route del 169.254.169.254/32; ip addr del 10.77.0.{}/32 dev eth0",
        neighbour.last
    ));
    assert!(
        as_ip.contains("\"alone\"") && !as_ip.contains(neighbour.name),
        "a borrowed address changes nothing: {as_ip}"
    );
    let mac = |last: u8| {
        format!(
            "ip link set eth0 down; ip link set eth0 address 52:54:00:00:00:{last:02x}; ip link set eth0 up; ip route replace default via 10.77.0.1"
        )
    };
    let as_mac = spoofer.run(&format!("{}; {name}; echo end $?; {}", mac(neighbour.last), mac(spoofer.last)));
    assert!(!as_mac.contains(neighbour.name) && as_mac.contains("end 1"), "a borrowed MAC sees nothing: {as_mac}");
    assert_eq!((neighbour.knows_itself_as().as_str(), spoofer.knows_itself_as().as_str()), (neighbour.name, "alone"));
}

fn nothing_else_of_the_host_is_reached(guest: Guest<'_>) {
    guest.host.run("exec 3<>/dev/tcp/10.77.0.1/22").unwrap();
    for address in ["10.77.0.1", "169.254.169.254", "10.0.2.15"] {
        let (_, text) = guest.try_run(&format!("nc -w 3 {address} 22 </dev/null; echo end $?"));
        assert!(!text.contains("SSH") && !text.contains("end 0"), "{address}: {text}");
    }
}

fn an_agent_that_dies_is_not_noticed(guest: Guest<'_>, event: &str) {
    let answer = || guest.seen().into_iter().rev().find_map(|sighting| sighting.seen.ok());
    let before = wait("the next poll", Duration::from_secs(10), || answer().filter(|seen| seen.body.contains(event)));
    guest.host.run("systemctl kill -s KILL fermata-agent").unwrap();
    guest.host.wait_agent_ready(Duration::from_secs(60)).unwrap();
    assert_eq!(answer().as_ref(), Some(&before), "no new document");
    // The service itself: its socket stays, so requests wait; its state is on disk.
    guest.host.run("systemctl kill -s KILL fermata-imds.service").unwrap();
    let back = wait("the service", Duration::from_secs(20), || {
        let answer: Answer = serde_json::from_str(
            &guest.try_run("fermata-probe metadata GET \"/metadata/scheduledevents?api-version=2020-07-01\"").1,
        )
        .ok()?;
        (answer.status == 200).then_some(answer)
    });
    assert_eq!(back, before, "the same incarnation, the same bytes (rule 18)");
}

fn operators_see_the_same(host: &Host, event: &Value) {
    let id = event["EventId"].as_str().unwrap();
    let listed = json(host, "event list");
    assert!(listed.as_array().unwrap().iter().any(|event| event["eventId"] == id), "{listed:#}");
    let shown = json(host, &format!("event show {id}"));
    assert_eq!((&shown["status"], &shown["gate"]["state"]), (&"Scheduled".into(), &"waiting".into()), "{shown:#}");
}

fn everybody_saw_it_in_order(host: &Host, guests: &[Guest<'_>]) {
    let history = json(host, "event history");
    println!("history: {history}");
    let mut verified = 0;
    for guest in guests {
        let over = wait("removal seen", Duration::from_secs(10), || {
            let seen = guest.seen();
            (statuses(&seen, guest.name).last()?.0 == "none").then_some(seen)
        });
        let saw = statuses(&over, guest.name);
        println!("{}: {saw:?}", guest.name);
        let order: Vec<&str> = saw.iter().map(|(status, _)| status.as_str()).collect();
        assert_eq!(order, ["none", "Scheduled", "Started", "none"], "{}", guest.name);
        let record = history.as_array().unwrap().iter().rfind(|record| !record["vms"][guest.name].is_null()).unwrap();
        let (felt, advertised) = (&record["vms"][guest.name], record["durationInSeconds"].as_u64().unwrap());
        // A pause that an overloaded emulator made longer than forecast is told as a broken promise.
        let honest = felt["pauseMs"].as_u64().is_none_or(|pause| pause <= advertised * 1_000);
        assert!(honest || overruns(host) > 0, "rule 17: {record}");
        // How late a guest of an emulated host polls is the emulator's affair; that it saw Started before its pause is not.
        let late = i128::from(saw[2].1) - i128::from(record["startedUnixMs"].as_u64().unwrap());
        println!("{}: Started seen {late} ms after it was published (rule 32)", guest.name);
        verified += usize::from(!felt["clockStepMs"].is_null());
    }
    assert!(verified > 0, "rule 33: clocks are verified before the removal, where the guest's agent answers in time");
}

fn overruns(host: &Host) -> u64 {
    let metrics = host.run("fermata event metrics").unwrap();
    let counter = metrics.lines().find_map(|line| line.strip_prefix("fermata_events_steps_total{step=\"overrun\"} "));
    counter.map_or(0, |count| count.parse().unwrap())
}

fn a_restart_is_announced_and_cancelled(host: &Host, guest: Guest<'_>) {
    host.run(&format!(
        "(fermata vm restart {} --notice 600 >/tmp/restart 2>&1; echo end >>/tmp/restart) </dev/null >/dev/null 2>&1 &",
        guest.name
    ))
    .unwrap();
    let event = wait("the restart's event", Duration::from_secs(20), || guest.events().into_iter().next());
    let told = [&event["EventType"], &event["EventSource"], &event["DurationInSeconds"]].map(Value::to_string);
    assert_eq!(told, ["\"Reboot\"", "\"User\"", "-1"], "rule 37: {event}");
    host.run(&format!("fermata event cancel {}", event["EventId"].as_str().unwrap())).unwrap();
    let text = wait("the answer", Duration::from_secs(20), || {
        let text = host.run("cat /tmp/restart").unwrap();
        text.contains("end").then_some(text)
    });
    assert!(text.contains("cancelled"), "{text}");
    assert!(guest.events().is_empty(), "rule 38");
}
