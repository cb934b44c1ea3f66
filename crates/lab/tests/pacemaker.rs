//! A cluster of two Debian guests on two hosts, with the resource agents that Debian's `resource-agents` has for Scheduled Events,
//! unmodified, through whole rollouts: another VMM, another kernel, and back.
//!
//! ```text
//!   host1: controller, agent, node-a (set ha, UD 0) ─┐ crm_attribute, a stub
//!   host2:             agent, node-b (set ha, UD 1) ─┤
//!   host3: the cluster's attributes  ◄───────────────┘
//! ```
//! `azure-events-az` approves for its own node, `azure-events` lets another node approve: for a node of one host the approval comes
//! from the other. Before the first and after the last rollout other public clients ask in the same guests.
//!
//! Only Pacemaker itself is a stub; its commands answer at once that nothing is pending.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, with the lab's words")]
#![expect(clippy::disallowed_methods, reason = "what a guest sees can only be asked for")]

mod told_guests;

use std::time::{Duration, Instant};

use fermata_lab::fleet::Fleet;
use fermata_lab::{Lab, LabSpec};
use serde_json::{Value, json};
use told_guests::{Guest, json, wait};

/// Far more than an approval needs: what is begun without one fails the test.
const NOTICE: u64 = 600;
const NODES: [&str; 2] = ["node-a", "node-b"];

/// A resource agent, and how it takes its node out of service and back.
struct Agent {
    name: &'static str,
    attribute: &'static str,
    out: &'static str,
    back: &'static str,
    /// Whether it approves what comes over its own node.
    approves_itself: bool,
}

const AZ: Agent =
    Agent { name: "azure-events-az", attribute: "#health-azure", out: "-1000000", back: "0", approves_itself: true };
const CLASSIC: Agent =
    Agent { name: "azure-events", attribute: "standby", out: "on", back: "off", approves_itself: false };

#[test]
fn pacemakers_agents_take_their_nodes_through_whole_rollouts() {
    let began = Instant::now();
    let at = |what: &str| println!("{:6.1} s: {what}", began.elapsed().as_secs_f64());
    let mut spec = LabSpec::for_test("pacemaker", 3);
    spec.debian_guest = true;
    for host in &mut spec.hosts[..2] {
        // 512 MiB for the guest, the rest for its state.
        *host = host.clone().with_vault(1024);
        host.imds = true;
        host.files = vec![("/etc/sysctl.d/guests.conf".to_owned(), "net.ipv4.ip_forward = 1\n".to_owned())];
    }
    spec.hosts[2].memory_mib = 768;
    let fleet = Fleet::form(Lab::up(&spec).unwrap(), 2).unwrap();
    at("the hosts have joined");
    keep_attributes_at(&fleet);
    fleet.json("set create ha --update-domains 2 --recovery 0").unwrap();
    let nodes: Vec<Guest<'_>> = (0..2).map(|index| start(&fleet, index)).collect();
    for node in &nodes {
        node.host.probe(node.last).wait_alive(400).unwrap();
    }
    at("the nodes are up");
    let boot = |node: &Guest<'_>| node.run("cat /proc/sys/kernel/random/boot_id");
    for node in &nodes {
        wait("its guest agent answers", Duration::from_secs(120), || (node.try_run("true").0 == 0).then_some(()));
    }
    let boots: Vec<String> = nodes.iter().map(boot).collect();
    for node in &nodes {
        prepare(*node);
        other_clients_ask(*node);
    }
    at("other clients were answered");

    let images = ["7", "6"].map(|major| fleet.controller().run(&format!("ls /boot/vmlinuz-{major}*")).unwrap());
    let kernel = |image: &str| format!("kind = \"kernel\"\n[change]\nimage = \"{}\"\n", image.trim());
    let vmm = |version: &str| format!("kind = \"vmm\"\n[change]\nvmm = \"{version}\"\n");
    let rollouts = [
        ("newer-vmm", vmm("11.1"), &AZ),
        ("newer-kernel", kernel(&images[0]), &CLASSIC),
        ("older-vmm", vmm("10.0"), &CLASSIC),
        ("older-kernel", kernel(&images[1]), &AZ),
    ];
    for (name, file, agent) in rollouts {
        cluster_goes_along(&fleet, &nodes, name, &file, agent);
        at(name);
    }
    for (node, before) in nodes.iter().zip(&boots) {
        assert_eq!(&boot(node), before, "{} was booted again", node.name);
        other_clients_ask(*node);
    }
    at("end");
}

/// One rollout under a cluster with one of the two agents.
fn cluster_goes_along(fleet: &Fleet, nodes: &[Guest<'_>], name: &str, file: &str, agent: &Agent) {
    let store = fleet.lab.host(3);
    store.run("rm -rf /root/cluster /root/cluster.log; touch /root/cluster.log").unwrap();
    for node in nodes {
        let unit = "systemctl reset-failed cluster 2>/dev/null; systemd-run -q --unit cluster";
        node.run(&format!("{unit} /bin/sh /opt/node.sh {}", agent.name));
    }
    // A node that looks for the first time tells the cluster its name.
    for node in nodes {
        let told = format!("grep ' hostName_{} ' /root/cluster.log", node.name);
        let until = Instant::now() + Duration::from_secs(120);
        while store.exec(&told).unwrap().status != 0 {
            assert!(Instant::now() < until, "{}", node.run("journalctl -u cluster -n 40 --no-pager -o cat"));
        }
    }
    let hosts_before: Vec<String> = nodes.iter().map(|node| node.host.boot_id().unwrap()).collect();
    fleet.plan(name, file, &format!("--notice {NOTICE}")).unwrap();
    fleet.json(&format!("rollout start {name} --reason test")).unwrap();
    if let Err(error) = fleet.phase(name, "completed") {
        panic!("{error:#}\n{}", store.run("cat /root/cluster.log").unwrap());
    }
    assert_eq!(fleet.json(&format!("rollout check {name}")).unwrap()["clean"], true);
    if file.contains("kind = \"kernel\"") {
        // VMs run before the rest of their host does, its shell among it.
        for (node, before) in nodes.iter().zip(&hosts_before) {
            node.host.wait_boot_after(before, Duration::from_secs(180)).unwrap();
        }
    }
    let back = |node: &str| format!("grep ' {node} {} {}$' /root/cluster.log", agent.attribute, agent.back);
    for node in NODES {
        wait("both nodes are back in service", Duration::from_secs(180), || store.run(&back(node)).ok());
    }
    let log = store.run("cat /root/cluster.log").unwrap();
    println!("{name}: the cluster with {}:\n{log}", agent.name);
    for (index, node) in nodes.iter().enumerate() {
        node.run("systemctl stop cluster");
        let approver = if agent.approves_itself { NODES[index] } else { NODES[1 - index] };
        went_through(&log, NODES[index], approver, agent);
        let history = json(node.host, "event history");
        let record = history.as_array().unwrap().iter().rev().find(|one| !one["vms"][node.name].is_null()).unwrap();
        println!("{name} on {}: {record}", node.name);
        assert_eq!(record["approvedBy"], json!([approver]), "{record}");
        assert!(record["vms"][node.name]["pauseMs"].as_u64().is_some_and(|pause| pause > 0), "{record}");
    }
}

/// The node was taken out of service, its event begun by who approves, and taken back: in this order.
fn went_through(log: &str, node: &str, approver: &str, agent: &Agent) {
    let state = format!("{}_curNodeState", agent.name);
    let steps = [
        (node, state.as_str(), "STOPPING"),
        (node, agent.attribute, agent.out),
        (approver, state.as_str(), "IN_EVENT"),
        (node, state.as_str(), "AVAILABLE"),
        (node, agent.attribute, agent.back),
    ];
    let mut lines = log.lines();
    for (asker, name, value) in steps {
        let wanted = format!(" {asker} {node} {name} {value}");
        assert!(lines.any(|line| line.ends_with(&wanted)), "not, or not in this order:{wanted}\n{log}");
    }
}

/// The third host keeps the cluster's attributes, and knows the way to the nodes.
fn keep_attributes_at(fleet: &Fleet) {
    let store = fleet.lab.host(3);
    store.write("/root/store.sh", include_str!("pacemaker/store.sh")).unwrap();
    store.run("ip route replace 10.77.0.11/32 via 10.88.0.1 && ip route replace 10.77.0.12/32 via 10.88.0.2").unwrap();
    let socat = "socat TCP-LISTEN:7000,fork,reuseaddr 'EXEC:/bin/sh /root/store.sh'";
    store.run(&format!("systemd-run -q --unit store {socat}")).unwrap();
}

/// One Debian guest on one host, in the set.
fn start(fleet: &Fleet, index: usize) -> Guest<'_> {
    let (host, name) = (&fleet.hosts()[index], NODES[index]);
    let last = 11 + u8::try_from(index).unwrap();
    let overlay = "qemu-img create -q -f qcow2 -F qcow2 -b /var/lib/fermata-lab/images/debian/disk.qcow2";
    host.run(&format!("{overlay} /srv/{name}.qcow2")).unwrap();
    let spec = format!(
        r#"name = "{name}"
vcpus = 1
memory = "512MiB"
firmware = "bios"
availability_set = {{ name = "ha", update_domain = {index} }}
[[disk]]
path = "/srv/{name}.qcow2"
format = "qcow2"
[[nic]]
bridge = "br0"
mac = "52:54:00:00:00:{last:02x}"
"#
    );
    host.write("/tmp/vm.toml", &spec).unwrap();
    host.run("fermata vm create --start /tmp/vm.toml").unwrap();
    Guest { host, name, last }
}

/// Gives a guest its name, the stub and the loop that asks its resource agent.
fn prepare(node: Guest<'_>) {
    let name = node.name;
    // It has set the network up; measuring would take most of an emulated processor.
    node.run("systemctl stop fermata-probe");
    node.run(&format!("echo {name} >/etc/hostname; echo {name} >/proc/sys/kernel/hostname; mkdir -p /opt/cluster"));
    node.run("echo store=10.88.0.3 >/etc/cluster");
    let files = [
        ("/opt/cluster/crm", include_str!("../../imds/tests/clients/crm.sh")),
        ("/opt/node.sh", include_str!("pacemaker/node.sh")),
        ("/opt/clients.py", include_str!("pacemaker/clients.py")),
        ("/opt/facter.rb", include_str!("pacemaker/facter.rb")),
    ];
    for (path, content) in files {
        node.run(&format!("cat >{path} <<'END OF FILE'\n{content}END OF FILE\n"));
    }
    let commands = "crm_node crm_simulate crm_resource crm_attribute";
    node.run(&format!("chmod 755 /opt/cluster/crm; cd /opt/cluster; for one in {commands}; do ln -sf crm $one; done"));
    node.run("/opt/cluster/crm_attribute --name there --update yes && /opt/cluster/crm_attribute --name there --query");
}

/// cloud-init's data source, the Azure Linux agent's client, Facter's resolver and curl.
fn other_clients_ask(node: Guest<'_>) {
    let read = |text: &str| serde_json::from_str::<Value>(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let seen = read(&node.run("/usr/bin/python3 /opt/clients.py 2>/tmp/said || { cat /tmp/said; exit 1; }"));
    println!("{}: {seen}", node.name);
    assert_eq!((&seen["cloud_init"], &seen["agent_compute"]), (&node.name.into(), &node.name.into()));
    assert_eq!(seen["agent"], json!([true, ""]), "{seen}");
    assert_eq!(seen["network"], json!([format!("52:54:00:00:00:{:02x}", node.last)]));
    let facts = read(&node.run("/usr/bin/ruby /opt/facter.rb 2>/tmp/said || { cat /tmp/said; exit 1; }"));
    assert_eq!(facts["compute"]["name"], node.name, "{facts}");
    let url = "http://169.254.169.254/metadata/instance/compute/name?api-version=2021-08-01\\&format=text";
    assert_eq!(node.run(&format!("curl -sS --fail --noproxy '*' -H Metadata:true {url}")), node.name);
}
