//! A real Debian in a VM: it boots, its services find what they need, and it shuts down when asked.

use std::time::{Duration, Instant};

use fermata_lab::{Lab, LabSpec};
use serde_json::Value;

const SPEC: &str = r#"name = "debian"
vcpus = 1
memory = "512MiB"
firmware = "bios"
[[disk]]
path = "/srv/debian.qcow2"
format = "qcow2"
[[nic]]
bridge = "br0"
mac = "52:54:00:00:00:0e"
"#;

#[test]
fn debian_boots_by_bios_and_shuts_down_when_asked() {
    let mut lab = LabSpec::for_test("debian", 1);
    lab.debian_guest = true;
    let lab = Lab::up(&lab).unwrap();
    let host = lab.host(1);
    host.wait_agent_ready(Duration::from_secs(60)).unwrap();
    // UEFI is tried by `vmm/tests/real` under plain emulation: its interrupt handlers write CR8, which takes an emulator of
    // SVM down (QEMU 7.2, 10.0 and 11.1: `tcg_handle_interrupt: assertion failed: (bql_locked())`).
    let began = Instant::now();
    let overlay = "qemu-img create -q -f qcow2 -F qcow2 -b /var/lib/fermata-lab/images/debian/disk.qcow2";
    host.run(&format!("{overlay} /srv/debian.qcow2")).unwrap();
    host.write("/tmp/vm.toml", SPEC).unwrap();
    host.run("fermata vm create --start /tmp/vm.toml").unwrap();
    let alive = host.probe(14).wait_alive(400);
    let console = host.run("tail -c 4000 /run/fermata/vm/debian/console.log").unwrap();
    let clocks = alive.unwrap_or_else(|error| panic!("{error:#}\n{console}"));
    println!("Debian by BIOS: probe alive within {:.1} s", began.elapsed().as_secs_f64());
    assert_eq!(clocks.clocksource, "kvm-clock");
    // It shuts down when asked: ACPI reaches its init system.
    let stop = "fermata --json vm stop debian --timeout 150";
    let stopped = host.exec_within(stop, Duration::from_secs(200)).unwrap();
    let stopped: Value = serde_json::from_str(&stopped.stdout).unwrap();
    assert_eq!(stopped["state"], "stopped", "{stopped}");
    host.run("fermata vm delete debian").unwrap();
}
