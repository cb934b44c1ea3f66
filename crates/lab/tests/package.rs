//! The Debian package on a real host: installed, upgraded under a running VM, refused to go while it runs, removed, purged.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, with the lab's words")]

use std::time::Duration;

use fermata_lab::{Host, Lab, LabSpec, artifact, guests, package};
use serde_json::Value;

/// What an operator adds to the configuration that comes with the package: a bridge, and the probe's sink for guests.
const BRIDGE: &str = "sed -i 's/^\\[imds\\]$/[[bridge]]\\nname = \"br0\"\\naddress = \"10.77.0.1\\/24\"\\n\\n[imds]\\nopen = [{ tcp = 7070 }, { udp = 7070 }]/' \
                      /etc/fermata/agent.toml && systemctl restart fermata-agent";

fn json(host: &Host, command: &str) -> Value {
    serde_json::from_str(&host.run(&format!("fermata --json {command}")).unwrap()).unwrap()
}

/// The main process of a unit, and the program it runs.
fn runs(host: &Host, unit: &str) -> (u32, String) {
    let told = host
        .run(&format!("pid=$(systemctl show -p MainPID --value {unit}); echo $pid; readlink /proc/$pid/exe"))
        .unwrap();
    let mut lines = told.lines();
    (lines.next().unwrap().parse().unwrap(), lines.next().unwrap_or_default().to_owned())
}

fn active(host: &Host, units: &str) -> String {
    host.exec(&format!("systemctl is-active {units}")).unwrap().stdout.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_package_is_installed_upgraded_under_a_vm_and_removed() {
    let mut spec = LabSpec::for_test("package", 1);
    spec.hosts[0].bare = true;
    let binary = artifact::fermata().unwrap();
    let newer = format!("{}+1", package::VERSION);
    let packages = [package::VERSION, newer.as_str()].map(|version| package::make(&binary, version).unwrap());
    let lab = Lab::up(&spec).unwrap();
    let host = lab.host(1);
    host.copy_to(&packages[0], "/root/older.deb").unwrap();
    host.copy_to(&packages[1], "/root/newer.deb").unwrap();

    it_runs_after_its_installation(host);
    host.run(BRIDGE).unwrap();
    host.wait_agent_ready(Duration::from_secs(60)).unwrap();
    host.write("/tmp/vm.toml", &guests::small_spec("guest", 11, 128, "", "")).unwrap();
    host.run("fermata vm create --start /tmp/vm.toml").unwrap();
    host.probe(11).wait_alive(90).unwrap();
    an_upgrade_restarts_the_agent_and_nothing_that_holds_guests(host, &newer);
    a_removal_is_refused_while_a_vm_runs(host);
    a_removal_leaves_what_belongs_to_people(host);
    lab.down().unwrap();
}

fn it_runs_after_its_installation(host: &Host) {
    // The image's builder forbids services to be started by packages, and its word is still there.
    host.run("rm -f /usr/sbin/policy-rc.d").unwrap();
    host.exec_within("apt-get install --yes --no-install-recommends /root/older.deb", Duration::from_secs(240))
        .map(|done| assert_eq!(done.status, 0, "{}{}", done.stdout, done.stderr))
        .unwrap();
    host.wait_agent_ready(Duration::from_secs(60)).unwrap();
    let enabled =
        host.run("systemctl is-enabled fermata-agent fermata-guests fermata-imds.socket fermata-controller").unwrap();
    assert!(enabled.lines().all(|one| one == "enabled"), "{enabled}");
    assert_eq!(active(host, "fermata-agent fermata-guests fermata-imds.socket fermata-imds"), ["active"; 4].join(" "));
    assert_eq!(json(host, "host show")["vmms"][0]["found"]["Ok"].as_str().map(|it| &it[..3]), Some("10."));
    assert_eq!(host.run("stat -c '%a %U' /etc/fermata/imds.toml").unwrap().trim(), "600 root");
    host.run("id fermata-vm && test -s /usr/share/bash-completion/completions/fermata").unwrap();
    // The controller is there for whoever makes it one.
    assert_eq!(active(host, "fermata-controller"), "inactive");
    host.run("fermata controller init && systemctl start fermata-controller").unwrap();
    host.run("timeout 30 sh -c 'until fermata fleet list; do sleep 0.5; done'").unwrap();
    // Its own first host: agent and controller speak with each other under the limits of their units.
    host.run("fermata controller token >/etc/fermata/join-token").unwrap();
    host.run("printf '\n[fleet]\ncontroller = \"127.0.0.1:7440\"\ntoken_file = \"/etc/fermata/join-token\"\n' >>/etc/fermata/agent.toml").unwrap();
    host.run("systemctl restart fermata-agent && timeout 60 sh -c 'until fermata fleet list | grep host1; do sleep 0.5; done'").unwrap();
    for unit in ["fermata-agent", "fermata-imds", "fermata-controller"] {
        let told = host.run(&format!("systemd-analyze security --no-pager {unit} | tail -n 1")).unwrap();
        println!("{}", told.trim());
    }
}

fn an_upgrade_restarts_the_agent_and_nothing_that_holds_guests(host: &Host, newer: &str) {
    let probe = host.probe(11);
    let vmm = || json(host, "vm show guest")["process"]["pid"].as_u64().unwrap();
    let (boot, its_vmm) = (probe.clocks().unwrap().boot_id, vmm());
    let (agent, imds) = (runs(host, "fermata-agent"), runs(host, "fermata-imds"));
    probe.mark().unwrap();
    host.run("dpkg --install /root/newer.deb").unwrap();
    host.wait_agent_ready(Duration::from_secs(60)).unwrap();
    let gap = Duration::from_nanos(probe.report().unwrap().gaps.max_ns());
    println!("largest gap in the guest during the upgrade: {gap:?}");

    assert_eq!(host.run("dpkg-query -W -f '${Version}' fermata").unwrap(), format!("{newer}-1"));
    assert_eq!((vmm(), probe.clocks().unwrap().boot_id), (its_vmm, boot), "the same VMM, the same guest");
    let agent_now = runs(host, "fermata-agent");
    assert_ne!(agent_now.0, agent.0, "the agent is started anew");
    assert_eq!(agent_now.1, "/usr/bin/fermata", "from the new file");
    assert_eq!(runs(host, "fermata-imds"), (imds.0, "/usr/bin/fermata (deleted)".to_owned()), "as if nothing had been");
    assert_eq!(
        active(host, "fermata-agent fermata-guests fermata-imds.socket fermata-controller"),
        ["active"; 4].join(" ")
    );
    host.run("grep -q br0 /etc/fermata/agent.toml").unwrap();
    assert_eq!(json(host, "vm show guest")["state"], "running");
}

fn a_removal_is_refused_while_a_vm_runs(host: &Host) {
    let refused = host.exec("apt-get remove --yes fermata").unwrap();
    assert_ne!(refused.status, 0, "{}", refused.stdout);
    let said = refused.stdout + &refused.stderr;
    assert!(said.contains("1 VMs run on this host") && said.contains("fermata host stop-guests"), "{said}");
    host.wait_agent_ready(Duration::from_secs(60)).unwrap();
    assert_eq!(json(host, "vm show guest")["state"], "running");
    assert_eq!(active(host, "fermata-guests"), "active");
}

fn a_removal_leaves_what_belongs_to_people(host: &Host) {
    host.run("fermata host stop-guests --timeout 30 && apt-get remove --yes fermata").unwrap();
    assert!(
        !active(host, "fermata-agent fermata-guests fermata-imds.socket fermata-imds")
            .split(' ')
            .any(|one| one == "active")
    );
    host.run("test ! -e /usr/bin/fermata && test -e /etc/fermata/agent.toml && test -e /var/lib/fermata/agent.db")
        .unwrap();
    let purged = host.exec("dpkg --purge fermata").unwrap();
    assert_eq!(purged.status, 0, "{}", purged.stderr);
    assert!(purged.stderr.contains("/var/lib/fermata is kept"), "{}", purged.stderr);
    host.run("test ! -e /etc/fermata/agent.toml && test ! -e /var/lib/private/fermata-imds && test -e /var/lib/fermata/agent.db").unwrap();
    assert_eq!(host.run("systemctl list-unit-files --no-legend 'fermata-[agi]*' | wc -l").unwrap().trim(), "0");
}
