//! What cannot be done in place: a VM whose memory ends with the kernel is shut down cleanly, its host restarts, and it starts again. Never
//! without being asked for.

use std::time::Duration;

use fermata_lab::kexecs::change;
use fermata_lab::spec::Kernel;
use fermata_lab::swaps::guest::Guest;
use fermata_lab::{Lab, LabSpec};

#[test]
fn a_host_restarts_with_its_vms_shut_down_cleanly_only_when_asked() {
    let lab = Lab::up(&LabSpec::for_test("reboot", 1)).unwrap();
    let host = lab.host(1);
    host.wait_agent_ready(Duration::from_secs(60)).unwrap();
    let guest = Guest::new("g1", 11);
    guest.create(host).unwrap();
    guest.start(host).unwrap();
    let born = guest.probe(host).wait_alive(120).unwrap();
    // Where the firmware leads: an emulated host always starts with this one.
    let plain = change::update(host, Kernel::Stable).unwrap();

    host.write("/root/plain.toml", &plain).unwrap();
    let refused = host.exec("fermata update apply /root/plain.toml").unwrap();
    assert_ne!(refused.status, 0, "{}", refused.stdout);
    for word in ["g1", "vault"] {
        assert!(refused.stderr.contains(word), "no {word} in: {}", refused.stderr);
    }
    assert_eq!(guest.probe(host).clocks().unwrap().boot_id, born.boot_id);

    let asked = plain
        .replace("id = \"", "id = \"asked-")
        .replace("[change]", "harshest = \"reboot\"\non_refusal = \"shutdown\"\n[change]");
    let report = change::apply(host, &asked).unwrap();
    println!("{report:#}");
    assert_eq!((&report["outcome"], &report["vms"][0]["end"]["kind"]), (&"done".into(), &"restarted".into()));
    let now = guest.probe(host).wait_alive(180).unwrap();
    assert_ne!(now.boot_id, born.boot_id, "it started anew");
    let disk = guest.end(host).unwrap();
    assert!(disk.is_whole(), "acknowledged and not there: {:?}", disk.missing);
}
