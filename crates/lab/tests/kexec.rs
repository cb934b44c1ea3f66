//! The host's kernel changes under running VMs: on a real host, by a real kexec, from 6.12 to 7.2.
//!
//! The guests' connections go to a second host, so that their other end lives through the jump.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, with the lab's words")]

use std::time::Duration;

use fermata_lab::{
    Host, Kernel, Lab, LabSpec,
    kexecs::{change, measure},
    paths,
    swaps::guest::Guest,
};
use serde_json::Value;

fn json(host: &Host, command: &str) -> Value {
    let output = host.exec_within(&format!("fermata --json {command}"), Duration::from_secs(300)).unwrap();
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{command}: {error}: {output:?}"))
}

#[test]
fn vms_keep_everything_while_the_hosts_kernel_changes() {
    let mut spec = LabSpec::for_test("kexec", 2);
    spec.hosts[1].memory_mib = 768;
    spec.hosts[1].cpus = 1;
    spec.hosts[0] = spec.hosts[0].clone().with_vault(1024);
    // What the host came to is on its console, should it not come up.
    spec.hosts[0].cmdline = "loglevel=7".to_owned();
    spec.hosts[0].files = vec![("/etc/sysctl.d/guests.conf".to_owned(), "net.ipv4.ip_forward = 1\n".to_owned())];
    let lab = Lab::up(&spec).unwrap();
    let (host, peer) = (lab.host(1), lab.host(2));
    host.wait_agent_ready(Duration::from_secs(60)).unwrap();
    // The heartbeats' other end knows the way back to the guests.
    peer.run("ip route replace 10.77.0.0/24 via 10.88.0.1").unwrap();
    assert!(json(host, "host show")["vault"].as_str().unwrap().starts_with("devdax /dev/dax0.0"));

    let guests = [("g1", 11), ("g2", 12)].map(|(name, last)| {
        let mut guest = Guest::new(name, last);
        // At the usual pace two probes leave an emulated processor no time for the guests' agents: clocks would be put right late.
        let pace = "fermata.sample_us=5000 fermata.beat_us=40000";
        guest.cmdline = format!("fermata.memory=32 fermata.target=10.88.0.2:7070 {pace}");
        guest
    });
    for guest in &guests {
        guest.create(host).unwrap();
        guest.start(host).unwrap();
    }
    let kernel = host.run("uname -r").unwrap();
    assert!(kernel.starts_with("6.12"), "{kernel}");
    what_cannot_be_entered_is_refused_before_anything(host);
    let before = measure::before(host, peer, &guests).unwrap();
    one_module_is_packed(host);

    let report = change::apply(host, &change::update(host, Kernel::Backports).unwrap()).unwrap();
    println!("kexec report: {report:#}");
    assert_eq!(report["outcome"], "done", "{report:#}\n{}", log(host));
    assert!(host.run("uname -r").unwrap().starts_with("7."));
    for felt in measure::since(&before, peer, &guests, Some(&report)).unwrap() {
        println!("{felt:?}");
        let name = &felt.vm;
        assert!(felt.boot_id_kept, "{name} was booted again");
        assert_eq!((felt.memory_errors, felt.disk_errors), (0, 0), "memory and disk of {name}");
        assert_eq!(felt.reconnects, 0, "the TCP stream of {name} broke");
        let stood = felt.guest_blackout_ms;
        assert!(felt.udp_gap_ms <= stood + 2_000.0, "{name} ran after {stood} ms, its network later: {felt:?}");
        assert_eq!(json(host, &format!("vm show {name}"))["state"], "running");
    }
    for guest in &guests {
        let check = guest.probe(host).report().unwrap().disk.unwrap();
        assert!(check.acknowledged > 0, "{}: {check:?}", guest.name);
    }
    guests_clocks_are_right(host, &guests);
    the_report_is_a_page_that_needs_nothing_else(host, report["maintenance"].as_str().unwrap());
    assert_eq!(host.run("pgrep -c qemu-system").unwrap().trim(), "2", "one VMM each");
    vms_came_first_and_are_within_their_limits(host);
    nothing_was_unpacked_while_vms_stood(host);
    lab.down().unwrap();
}

/// An update is told how its kernel would be entered, or why it cannot be, and nothing is begun then.
fn what_cannot_be_entered_is_refused_before_anything(host: &Host) {
    let good = change::update(host, Kernel::Backports).unwrap();
    let said = |update: &str, command: &str| {
        host.write("/root/other.toml", update).unwrap();
        let output = host.exec(&format!("fermata update {command} /root/other.toml")).unwrap();
        (output.status == 0, output.stdout + &output.stderr)
    };
    let (fine, told) = said(&good, "check");
    println!("{told}");
    assert!(fine && told.contains("initial RAM disk: Fermata's"), "{told}");

    let modules = host.run("ls -d /usr/lib/modules/7.*").unwrap().trim().to_owned();
    host.run(&format!("mv {modules} /root/modules && mkdir /root/initrds && mv /boot/initrd.img-7.* /root/initrds/"))
        .unwrap();
    let (fine, told) = said(&good, "apply --detach");
    assert!(!fine && told.contains("install the modules of kernel 7."), "{told}");
    let prepared = "[[prepare]]\ncommand = [\"/usr/bin/true\"]\ntimeout_ms = 1000\n";
    let (fine, told) = said(&good.replace("[change]", &format!("{prepared}[change]")), "check");
    assert!(fine && told.contains("not yet: "), "{told}");
    host.run(&format!("mv /root/modules {modules}")).unwrap();

    let (fine, told) = said(&format!("{good}as_is = true\n"), "apply --detach");
    assert!(!fine && told.contains("has no initial RAM disk (initrd.img-7."), "{told}");
    assert!(said(&good, "check").0, "Fermata's own needs no other");
    host.run("mv /root/initrds/* /boot/").unwrap();
    let (fine, told) = said(&format!("{good}initrd = \"/boot/none\"\n"), "apply --detach");
    assert!(!fine && told.contains("`initrd` /boot/none is no file"), "{told}");
    assert_eq!(json(host, "maintenance list"), Value::Array(Vec::new()), "nothing was begun");
}

/// As Debian's package has them all; the lab's image has them unpacked.
fn one_module_is_packed(host: &Host) {
    host.run("cd /usr/lib/modules/7.* && xz kernel/drivers/net/tun.ko && depmod ${PWD##*/}").unwrap();
}

/// The next kernel and its module were unpacked before the jump, and the kernel's addresses were chosen at random.
fn nothing_was_unpacked_while_vms_stood(host: &Host) {
    let said = host.run("journalctl --no-pager -q -o cat -u fermata-agent").unwrap();
    assert!(said.contains("the kernel is unpacked already"), "{said}");
    assert!(said.contains("an initial RAM disk is made"), "{said}");
    assert_eq!(host.run("ls /var/lib/fermata/modules").unwrap().trim(), "tun.ko");
    // `loadflags`, bit 1: `KASLR_FLAG` (Documentation/arch/x86/boot.rst).
    let flags: u8 = host.run("od -An -tu1 -j529 -N1 /sys/kernel/boot_params/data").unwrap().trim().parse().unwrap();
    assert_eq!(flags & 2, 2, "addresses at random");
    println!("{}", host.run("grep ' _text$' /proc/kallsyms; grep 'Kernel code' /proc/iomem").unwrap());
}

/// The VMMs were started before there was a service manager; it has them now.
fn vms_came_first_and_are_within_their_limits(host: &Host) {
    let kernel = host.run("dmesg").unwrap();
    assert!(kernel.contains("fermata-first: modules are there"), "{kernel}");
    assert!(kernel.contains("fermata-first: disks are there"), "not by Fermata's initial RAM disk: {kernel}");
    // Both of the host's file systems, and not the RAM disk's.
    let mounts = host
        .run("findmnt --noheadings --output TARGET,FSTYPE,OPTIONS --target / --target /var/lib/fermata-lab/images")
        .unwrap();
    assert!(mounts.contains("ext4") && !mounts.contains("rootfs"), "{mounts}");
    assert!(!kernel.contains("modprobe looks for modules"), "not as noted before the jump: {kernel}");
    assert!(
        host.run("cat /proc/cmdline").unwrap().contains("cryptomgr.notests=1"),
        "ciphers were tested while VMs stood"
    );
    // A kernel without tests has no such file.
    let left_out = host.run("cat /sys/module/cryptomgr/parameters/notests || echo N").unwrap();
    assert_eq!(left_out.trim(), "N", "ciphers are tested again");
    // Its verdict on other units is not asked for here.
    host.exec_within("systemctl is-system-running --wait", Duration::from_secs(180)).unwrap();
    let told = host.run("systemctl show 'fermata-vm-*.scope' --property ActiveState,DevicePolicy").unwrap();
    let scopes: Vec<&str> = told.split("\n\n").map(str::trim).filter(|scope| !scope.is_empty()).collect();
    assert_eq!(scopes.len(), 2, "{told}");
    for scope in scopes {
        assert!(scope.contains("ActiveState=active") && scope.contains("DevicePolicy=closed"), "{told}");
    }
}

/// A guest's clock, read between two readings of the host's, lies between them (promise P3: within 50 ms).
fn guests_clocks_are_right(host: &Host, guests: &[Guest]) {
    for Guest { name, last, .. } in guests {
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

/// Kept in `target/lab/kexec.html`, for people.
fn the_report_is_a_page_that_needs_nothing_else(host: &Host, id: &str) {
    host.run(&format!("fermata maintenance report {id} --html /root/report.html")).unwrap();
    let kept = paths::lab().join("kexec.html");
    host.copy_from("/root/report.html", &kept).unwrap();
    let page = std::fs::read_to_string(&kept).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.contains("<svg"), "{page}");
    assert!(["g1", "g2", "jump"].iter().all(|word| page.contains(word)), "{page}");
    assert!(!["<script", "src=", "<link"].iter().any(|word| page.contains(word)), "{page}");
}

fn log(host: &Host) -> String {
    host.exec("journalctl -b -u fermata-agent --no-pager -o cat | tail -40; tail -n 5 /run/fermata/vm/*/*/vmm.log")
        .map(|output| output.stdout)
        .unwrap_or_default()
}
