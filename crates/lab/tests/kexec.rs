//! The host's kernel changes under running VMs: on a real host, by a real kexec, from 6.12 to 7.2.
//!
//! The guests' connections go to a second host, so that their other end lives through the jump.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, with the lab's words")]

use std::time::Duration;

use fermata_lab::{Host, Kernel, Lab, LabSpec, guests, kexecs::change};
use serde_json::Value;

fn json(host: &Host, command: &str) -> Value {
    let output = host.exec_within(&format!("fermata --json {command}"), Duration::from_secs(300)).unwrap();
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{command}: {error}: {output:?}"))
}

fn start_guest(host: &Host, name: &str, last: u8) {
    let words = "fermata.memory=32 fermata.disk=/dev/vda fermata.target=10.88.0.2:7070";
    let disk = format!("[[disk]]\npath = \"/srv/{name}.img\"\nformat = \"raw\"");
    let spec = guests::small_spec(name, last, 256, words, &disk);
    host.run(&format!("truncate -s 64M /srv/{name}.img")).unwrap();
    host.write(&format!("/tmp/{name}.toml"), &spec).unwrap();
    host.run(&format!("fermata vm create --start /tmp/{name}.toml")).unwrap();
}

#[test]
fn vms_keep_everything_while_the_hosts_kernel_changes() {
    let mut spec = LabSpec::for_test("kexec", 2);
    spec.hosts[1].memory_mib = 768;
    spec.hosts[1].cpus = 1;
    spec.hosts[0] = spec.hosts[0].clone().with_vault(1024);
    spec.hosts[0].files = vec![("/etc/sysctl.d/guests.conf".to_owned(), "net.ipv4.ip_forward = 1\n".to_owned())];
    let lab = Lab::up(&spec).unwrap();
    let (host, peer) = (lab.host(1), lab.host(2));
    host.wait_agent_ready(Duration::from_secs(60)).unwrap();
    // The heartbeats' other end knows the way back to the guests.
    peer.run("ip route replace 10.77.0.0/24 via 10.88.0.1").unwrap();
    assert!(json(host, "host show")["vault"].as_str().unwrap().starts_with("devdax /dev/dax0.0"));

    let guests = [("g1", 11u8), ("g2", 12)];
    for (name, last) in guests {
        start_guest(host, name, last);
    }
    let born: Vec<_> = guests.iter().map(|(_, last)| host.probe(*last).wait_alive(90).unwrap()).collect();
    // A memfd VM would be refused; these are in the vault.
    let kernel = host.run("uname -r").unwrap();
    assert!(kernel.starts_with("6.12"), "{kernel}");
    peer.sink_mark().unwrap();
    for (_, last) in guests {
        host.probe(last).mark().unwrap();
    }

    let report = change::apply(host, &change::update(host, Kernel::Backports).unwrap()).unwrap();
    println!("kexec report: {report:#}");
    assert_eq!(report["outcome"], "done", "{report:#}\n{}", log(host));
    assert!(host.run("uname -r").unwrap().starts_with("7."));
    for ((name, last), born) in guests.iter().zip(&born) {
        let probe = host.probe(*last);
        probe.wait_alive(60).unwrap();
        let after = probe.report().unwrap();
        let disk = after.disk.clone().unwrap();
        assert!(disk.errors == 0 && disk.acknowledged > 0, "{name}: {disk:?}");
        assert_eq!(after.clocks.boot_id, born.boot_id, "{name} was booted again");
        assert_eq!(probe.verify_memory().unwrap().errors, 0, "memory of {name}");
        println!("{name}: {after:?}");
        let net = after.net.unwrap();
        assert_eq!(net.tcp_reconnects, 0, "the TCP stream of {name} broke");
        assert_eq!(json(host, &format!("vm show {name}"))["state"], "running");
    }
    guests_clocks_are_right(host, &guests);
    println!("sink: {:?}", peer.sink_report().unwrap());
    assert_eq!(host.run("pgrep -c qemu-system").unwrap().trim(), "2", "one VMM each");
    lab.down().unwrap();
}

/// A guest's clock, read between two readings of the host's, lies between them (promise P3: within 50 ms).
fn guests_clocks_are_right(host: &Host, guests: &[(&str, u8)]) {
    for (name, last) in guests {
        let script = format!("date +%s%N; fermata-probe ask 10.77.0.{last}:7072 clock; date +%s%N");
        let text = host.run(&script).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let (before, after): (i64, i64) = (lines[0].parse().unwrap(), lines[2].parse().unwrap());
        let clock: Value = serde_json::from_str(lines[1]).unwrap();
        let guest = clock["wall_ns"].as_i64().unwrap();
        println!(
            "{name}: clock {} ms after the host's first reading, {} ms before the second",
            (guest - before) / 1_000_000,
            (after - guest) / 1_000_000
        );
        assert!(guest >= before - 50_000_000 && guest <= after + 50_000_000, "{name}: {before} {guest} {after}");
    }
}

fn log(host: &Host) -> String {
    host.exec("journalctl -b -u fermata-agent --no-pager -o cat | tail -40; tail -n 5 /run/fermata/vm/*/*/vmm.log")
        .map(|output| output.stdout)
        .unwrap_or_default()
}
