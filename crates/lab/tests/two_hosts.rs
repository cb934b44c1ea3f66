//! Two hosts with two guests each on one small machine: they know each other by name and fit in its memory.

use std::time::Duration;

use fermata_lab::{Lab, LabSpec, guests};

/// What a laptop has to spare for all of it, in bytes.
const ROOM: u64 = 10 << 30;

#[test]
fn two_hosts_with_two_guests_each_fit_and_reach_each_other() {
    let mut spec = LabSpec::for_test("two-hosts", 2);
    for host in &mut spec.hosts {
        host.memory_mib = 3072;
    }
    let lab = Lab::up(&spec).unwrap();
    for host in lab.hosts() {
        host.wait_agent_ready(Duration::from_secs(90)).unwrap();
        for last in [11, 12] {
            let guest = guests::small_spec(&format!("g{last}"), last, 256, "", "");
            host.write("/tmp/vm.toml", &guest).unwrap();
            host.run("fermata vm create --start /tmp/vm.toml").unwrap();
        }
    }
    for host in lab.hosts() {
        for last in [11, 12] {
            host.probe(last).wait_alive(120).unwrap();
        }
    }
    for (from, to) in [(1, "host2"), (2, "host1")] {
        let said = lab.host(from).run(&format!("ping -n -c 3 -W 5 {to}")).unwrap();
        assert!(said.contains(" 0% packet loss"), "{said}");
    }
    let used: u64 = lab.hosts().iter().map(|host| host.memory_used().unwrap()).sum();
    println!("two hosts with two guests each use {} MiB", used >> 20);
    assert!(used <= ROOM, "{} MiB", used >> 20);
}
