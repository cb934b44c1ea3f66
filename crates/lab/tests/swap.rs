//! The VMM changes under a running VM: on a real host, from the older QEMU to the newer one.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, with the lab's words")]

use std::time::Duration;

use fermata_lab::{Host, Lab, LabSpec};
use serde_json::Value;

fn json(host: &Host, command: &str) -> Value {
    serde_json::from_str(&host.run(&format!("fermata --json {command}")).unwrap()).unwrap()
}

fn update(host: &Host, id: &str, rest: &str) {
    let file = format!("id = \"{id}\"\ntitle = \"{id}\"\nnotice_s = 0\n{rest}");
    host.write(&format!("/tmp/{id}.toml"), &file).unwrap();
}

fn start_guest(host: &Host) {
    let spec = r#"name = "g1"
vcpus = 1
memory = "256MiB"
firmware = { kernel = { image = "/var/lib/fermata-lab/images/small/vmlinuz", initrd = "/var/lib/fermata-lab/images/small/initrd.img", cmdline = "console=ttyS0 quiet fermata.memory=32 fermata.disk=/dev/vda" } }
[[disk]]
path = "/srv/g1.img"
format = "raw"
[[nic]]
bridge = "br0"
mac = "52:54:00:00:00:0b"
"#;
    host.run("truncate -s 64M /srv/g1.img").unwrap();
    host.write("/tmp/g1.toml", spec).unwrap();
    host.run("fermata vm create --start /tmp/g1.toml").unwrap();
}

fn taps(host: &Host) -> usize {
    host.run("ls /sys/class/net | grep -c '^vm' || true").unwrap().trim().parse().unwrap()
}

#[test]
fn a_vm_keeps_everything_while_its_vmm_changes() {
    let lab = Lab::up(&LabSpec::for_test("swap", 1)).unwrap();
    let host = lab.host(1);
    host.wait_agent_ready(Duration::from_secs(60)).unwrap();
    start_guest(host);
    let probe = host.probe(11);
    let before = probe.wait_alive(60).unwrap();
    refusals_come_before_anything_happens(host);

    host.sink_mark().unwrap();
    probe.mark().unwrap();
    update(host, "newer", "kind = \"vmm\"\n[change]\nvmm = \"11.1\"\n");
    let report = json(host, "update apply /tmp/newer.toml");
    assert_eq!(report["outcome"], "done", "{report:#}");
    let view = json(host, "vm show g1");
    assert_eq!((view["process"]["vmm"].as_str(), view["state"].as_str()), (Some("11.1"), Some("running")));
    everything_is_whole(host, &before.boot_id);
    let clock = &report["vms"][0]["clock"];
    assert!(["corrected", "within_tolerance"].contains(&clock["kind"].as_str().unwrap_or_default()), "{clock}");
    println!("swap: {}", report["vms"][0]);
    assert_eq!(taps(host), 1);

    a_held_vm_goes_on_whatever_the_step_does(host);
    everything_is_whole(host, &before.boot_id);
    an_agent_killed_in_the_hand_over_goes_back(host);
    assert_eq!(taps(host), 1);
}

fn everything_is_whole(host: &Host, boot_id: &str) {
    let probe = host.probe(11);
    let report = probe.report().unwrap();
    assert_eq!(report.clocks.boot_id, boot_id);
    assert_eq!(probe.verify_memory().unwrap().errors, 0);
    let disk = report.disk.unwrap();
    let later = probe.report().unwrap().disk.unwrap();
    println!("disk witness: {disk:?} then {later:?}");
}

fn refusals_come_before_anything_happens(host: &Host) {
    let cases = [
        ("unknown-kind", "kind = \"magic\"\n[change]\n", "magic"),
        ("no-such-vmm", "kind = \"vmm\"\n[change]\nvmm = \"12.9\"\n", "12.9"),
        ("no-undo", "kind = \"service\"\n[change]\ncommand = [\"/bin/true\"]\ntimeout_ms = 1000\n", "undo"),
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
    host.run("test -e /run/undone").unwrap();
    let left = host.run("systemctl list-units --plain --no-legend 'fermata-step-*' | wc -l").unwrap();
    assert_eq!(left.trim(), "0", "nothing of the step is left");
}

fn an_agent_killed_in_the_hand_over_goes_back(host: &Host) {
    // Another VMM to go to: the VM is started on the older one again.
    host.run("fermata vm stop g1 --force && fermata vm start g1").unwrap();
    let before = host.probe(11).wait_alive(60).unwrap();
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
    assert_eq!(host.run("pgrep -c qemu-system").unwrap().trim(), "1", "exactly one VMM");
}
