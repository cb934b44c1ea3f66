//! One virtual host, and in it what every other test builds on: both VMMs, KVM, a guest whose probe tells sane things.

use std::time::{Duration, Instant};

use fermata_lab::{Lab, LabSpec, guests, payload::vmm_binary};

#[test]
fn a_host_runs_guests_under_kvm_with_both_vmms_and_survives_a_power_cut() {
    let lab = Lab::up(&LabSpec::for_test("host", 1)).unwrap();
    let host = lab.host(1);

    for version in ["10.0", "11.1"] {
        // The list of devices loads every module: one of the other build would end the VMM.
        let text = host.run(&format!("{0} -version && {0} -device help", vmm_binary(version))).unwrap();
        assert!(text.starts_with(&format!("QEMU emulator version {version}.")), "{text}");
        assert!(text.contains("virtio-net-pci"), "{text}");
    }
    host.run("test -c /dev/kvm && ls /boot/vmlinuz-6.12* /boot/vmlinuz-7* /boot/initrd.img-7*").unwrap();

    let (folder, vmm) = (guests::FOLDER, vmm_binary("10.0"));
    host.run(
        "ip link show br0 2>/dev/null || { ip link add br0 type bridge && ip addr add 10.77.0.1/24 dev br0; }; ip link set br0 up
         ip tuntap add labtest mode tap && ip link set labtest master br0 up",
    )
    .unwrap();
    host.run(&format!(
        "systemd-run --quiet --unit=labtest {vmm} -nodefaults -machine q35,accel=kvm -cpu host -m 256 -display none \
         -kernel {folder}/small/vmlinuz -initrd {folder}/small/initrd.img -append 'console=ttyS0 quiet' \
         -netdev tap,id=net,ifname=labtest,script=no,downscript=no,vhost=on \
         -device virtio-net-pci,netdev=net,romfile=,mac=52:54:00:00:00:0b -serial file:/tmp/labtest.console"
    ))
    .unwrap();
    let probe = host.probe(11);
    let born = probe.wait_alive(120).unwrap();
    assert_eq!(born.clocksource, "kvm-clock");
    assert_eq!(probe.verify_memory().unwrap().errors, 0);
    probe.mark().unwrap();
    let report = probe.report().unwrap();
    assert_eq!(report.clocks.boot_id, born.boot_id);
    assert!(report.clocks.monotonic_ns > born.monotonic_ns);
    // It answers before its first heartbeats have come back.
    let until = Instant::now() + Duration::from_secs(20);
    let net = loop {
        let net = probe.report().unwrap().net.unwrap();
        if net.udp.received > 0 && net.tcp.received > 0 {
            break net;
        }
        assert!(Instant::now() < until, "no heartbeat came back: {net:?}");
    };
    assert_eq!(net.tcp_reconnects, 0, "{net:?}");
    assert_eq!(host.sink_report().unwrap().senders.len(), 1);

    let before = host.boot_id().unwrap();
    host.run("echo kept >/root/kept && sync").unwrap();
    host.reset().unwrap();
    let after = host.wait_boot_after(&before, Duration::from_secs(180)).unwrap();
    assert_eq!(host.boot_id().unwrap(), after);
    assert_eq!(host.run("cat /root/kept").unwrap(), "kept\n");
    lab.down().unwrap();
}
