//! The VMM changes under a running VM: on a real host, from the older QEMU to the newer one.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, with the lab's words")]

use std::time::Duration;

use fermata_lab::payload::vmm_binary;
use fermata_lab::swaps::guest::{Format, Guest};
use fermata_lab::swaps::measure::{self, Update};
use fermata_lab::{Host, Lab, LabSpec};
use serde_json::Value;

fn json(host: &Host, command: &str) -> Value {
    serde_json::from_str(&host.run(&format!("fermata --json {command}")).unwrap()).unwrap()
}

fn update(host: &Host, id: &str, rest: &str) {
    let file = format!("id = \"{id}\"\ntitle = \"{id}\"\nnotice_s = 0\n{rest}");
    host.write(&format!("/tmp/{id}.toml"), &file).unwrap();
}

/// Linux on a qcow2 image that it writes to all the time.
fn linux() -> Guest {
    let extra = "pause_budget_ms = 20000".to_owned();
    Guest { format: Format::Qcow2, extra, ..Guest::new("g1", 11) }
}

/// Linux as well, with the hardware of the Windows profile: its clock is Hyper-V's reference time.
fn windows_profile() -> Guest {
    Guest { extra: "os = \"windows\"".to_owned(), ..Guest::new("w1", 13) }
}

fn taps(host: &Host) -> usize {
    host.run("ls /sys/class/net | grep -c '^vm' || true").unwrap().trim().parse().unwrap()
}

/// VMMs that a host is told of and cannot use.
const USELESS: &str = "[vmm.\"9.0\"]\nbinary = \"/nowhere/qemu\"\n[vmm.\"9.1\"]\nbinary = \"/etc/hostname\"\n\
                       [vmm.\"9.2\"]\nbinary = \"/bin/true\"\n";

#[test]
fn a_vm_keeps_everything_while_its_vmm_changes() {
    let lab = Lab::up(&LabSpec::for_test("swap", 1)).unwrap();
    let host = lab.host(1);
    // The update brings 11.1, so the configuration does not name it.
    let configure = format!(
        "sed -i '/^.vmm.\"11.1\"/,/^binary/d' /etc/fermata/agent.toml && cat >>/etc/fermata/agent.toml <<'E'\n{USELESS}E\n\
         systemctl restart fermata-agent"
    );
    host.run(&configure).unwrap();
    host.wait_agent_ready(Duration::from_secs(60)).unwrap();
    let guests = [linux(), windows_profile()];
    for guest in &guests {
        guest.create(host).unwrap();
        guest.start(host).unwrap();
    }
    refusals_come_before_anything_happens(host);
    to_the_newer_and_back_with_everything_kept(host, &guests);
    guests[1].remove(host).unwrap();

    a_held_vm_goes_on_whatever_the_step_does(host);
    a_guest_that_restarts_after_its_pause_is_not_told_as_kept(host);
    an_agent_killed_in_the_hand_over_goes_back(host);
    assert_eq!(taps(host), 1);
    assert_eq!(guests[0].probe(host).verify_memory().unwrap().errors, 0);
    let disk = guests[0].end(host).unwrap();
    assert!(disk.is_whole(), "acknowledged and not there: {:?}", disk.missing);
}

/// Up by `cpr-transfer`, down by a file, because the older one does not read what the newer one sends.
fn to_the_newer_and_back_with_everything_kept(host: &Host, guests: &[Guest]) {
    let up = Update::to("11.1").bringing(&vmm_binary("11.1"));
    for (update, way) in [(up, "transfer"), (Update::to("10.0"), "file")] {
        let to = update.to.as_str();
        for swap in measure::swap(host, guests, &update).unwrap() {
            println!("{}", serde_json::to_string(&swap).unwrap());
            assert_eq!((swap.outcome.as_str(), swap.to.as_str(), swap.way), ("done: updated", to, way), "{swap:?}");
            assert!(swap.boot_id_kept, "{swap:?}");
            assert_eq!((swap.reconnects, swap.guest_timeouts, swap.packets_lost), (0, 0, 0), "{swap:?}");
            assert_eq!((swap.memory_errors, swap.disk_errors), (0, 0), "{swap:?}");
            assert!(swap.clock_error_ms.abs() <= 50.0 + swap.clock_known_to_ms, "{swap:?}");
            let said = swap.clock_report["kind"].as_str().unwrap_or_default();
            assert!(["corrected", "within_tolerance"].contains(&said), "{swap:?}");
        }
        assert_eq!(taps(host), guests.len(), "one tap per VM");
        for guest in guests {
            assert_eq!(guest.probe(host).verify_memory().unwrap().errors, 0);
        }
        let clocks = guests[1].probe(host).clocks().unwrap();
        assert_eq!(clocks.clocksource, "hyperv_clocksource_tsc_page");
    }
}

fn refusals_come_before_anything_happens(host: &Host) {
    let cases = [
        ("unknown-kind", "kind = \"magic\"\n[change]\n", "magic"),
        ("missing-binary", "kind = \"vmm\"\n[change]\nvmm = \"9.0\"\n", "/nowhere/qemu"),
        ("not-executable", "kind = \"vmm\"\n[change]\nvmm = \"9.1\"\n", "/etc/hostname"),
        ("not-qemu", "kind = \"vmm\"\n[change]\nvmm = \"9.2\"\n", "/bin/true"),
        ("no-such-vmm", "kind = \"vmm\"\n[change]\nvmm = \"12.9\"\n", "12.9"),
        ("no-undo", "kind = \"service\"\n[change]\ncommand = [\"/bin/true\"]\ntimeout_ms = 1000\n", "undo"),
        ("not-brought", "kind = \"vmm\"\n[change]\nvmm = \"11.1\"\n", "name its `binary` in the update"),
        ("brings-nothing", "kind = \"vmm\"\n[change]\nvmm = \"11.1\"\nbinary = \"/nowhere/qemu\"\n", "/nowhere/qemu"),
        ("brings-no-qemu", "kind = \"vmm\"\n[change]\nvmm = \"11.1\"\nbinary = \"/bin/true\"\n", "/bin/true"),
        (
            "brings-another",
            "kind = \"vmm\"\n[change]\nvmm = \"12.0\"\nbinary = \"/usr/lib/fermata-lab/vmm/11.1/bin/qemu-system-x86_64\"\n",
            "is QEMU 11.1, not 12.0",
        ),
        (
            "known-elsewhere",
            "kind = \"vmm\"\n[change]\nvmm = \"10.0\"\nbinary = \"/bin/true\"\n",
            "has VMM 10.0 already",
        ),
        (
            "relative",
            "kind = \"service\"\n[change]\ncommand = [\"true\"]\ntimeout_ms = 1000\nundo_needed = false\n",
            "absolute",
        ),
    ];
    for (id, rest, way_out) in cases {
        update(host, id, rest);
        let refused = host.exec(&format!("fermata update apply /tmp/{id}.toml")).unwrap();
        assert_ne!(refused.status, 0, "{id} was accepted");
        assert!(refused.stderr.contains(way_out), "{id}: {}", refused.stderr);
    }
    assert_eq!(json(host, "maintenance list"), Value::Array(vec![]));
    assert!(!host.run("fermata host show").unwrap().contains("11.1"), "a refused update brings nothing");
}

fn a_held_vm_goes_on_whatever_the_step_does(host: &Host) {
    // Ignores signals, forks, and never ends by itself.
    let stubborn = "kind = \"service\"\n[change]\nshell = \"trap '' TERM INT HUP; (while :; do sleep 1; done) & while :; do sleep 1; done\"\n\
                    timeout_ms = 2000\n[[undo]]\ncommand = [\"/bin/touch\", \"/run/undone\"]\n";
    update(host, "stubborn", stubborn);
    let report = host.exec("fermata --json update apply /tmp/stubborn.toml").unwrap();
    let report: Value = serde_json::from_str(&report.stdout).unwrap();
    assert_eq!(report["outcome"], "failed", "{report:#}");
    assert_eq!(json(host, "vm show g1")["state"], "running");
    let paused = report["vms"][0]["host_blackouts"][0].as_f64().unwrap() / 1e3;
    println!("held by a step of 2 s that does not end: {paused:.0} ms");
    assert!(paused <= 20_000.0, "within the budget: {paused} ms");
    host.run("test -e /run/undone").unwrap();
    let left = host.run("systemctl list-units --plain --no-legend 'fermata-step-*' | wc -l").unwrap();
    assert_eq!(left.trim(), "0", "nothing of the step is left");
}

/// As one with a watchdog might.
fn a_guest_that_restarts_after_its_pause_is_not_told_as_kept(host: &Host) {
    let guest = Guest {
        cmdline: "fermata.restart_after_ms=3000".to_owned(),
        extra: "pause_budget_ms = 20000".to_owned(),
        ..Guest::new("r1", 14)
    };
    guest.create(host).unwrap();
    let before = guest.start(host).unwrap();
    let step =
        "kind = \"service\"\n[change]\ncommand = [\"/bin/sleep\", \"5\"]\ntimeout_ms = 8000\nundo_needed = false\n";
    update(host, "pause", step);
    let report = host.exec_within("fermata --json update apply /tmp/pause.toml", Duration::from_secs(240)).unwrap();
    let report: Value = serde_json::from_str(&report.stdout).unwrap();
    let end = |vm: &str| report["vms"].as_array().unwrap().iter().find(|told| told["vm"] == vm).unwrap()["end"].clone();
    assert_eq!(end("r1")["kind"], "gone", "{report:#}");
    assert!(end("r1")["reason"].as_str().unwrap().contains("restarted right after the pause"), "{report:#}");
    assert_ne!(end("g1")["kind"], "gone", "{report:#}");
    let after = guest.probe(host).wait_alive(60).unwrap();
    assert_ne!(after.boot_id, before.boot_id, "it did restart");
    guest.remove(host).unwrap();
}

fn an_agent_killed_in_the_hand_over_goes_back(host: &Host) {
    let before = host.probe(11).clocks().unwrap();
    update(host, "again", "kind = \"vmm\"\n[change]\nvmm = \"11.1\"\n");
    let kill = "fermata update apply --detach /tmp/again.toml >/dev/null; \
                timeout 90 sh -c 'until ls /run/fermata/vm/g1/*/relay >/dev/null 2>&1; do sleep 0.01; done'; \
                systemctl kill -s KILL fermata-agent";
    host.exec_within(kill, Duration::from_secs(120)).unwrap();
    let over = "timeout 90 sh -c 'until fermata maintenance list 2>/dev/null | grep \"^again\" | grep -qv \"under way\"; do sleep 0.3; done'";
    host.exec_within(over, Duration::from_secs(120)).unwrap();
    let view = json(host, "vm show g1");
    assert_eq!(view["state"], "running", "{view:#}");
    assert_eq!(host.probe(11).clocks().unwrap().boot_id, before.boot_id);
    let vmms = host.run("pgrep -fc '^/[^ ]*qemu-system[^ ]* -name guest=g1,'").unwrap();
    assert_eq!(vmms.trim(), "1", "exactly one VMM");
}
