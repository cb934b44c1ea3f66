//! Public clients, unmodified, in guests on a real bridge.
//!
//! Needs what `common/net.rs` says, `python3`, `curl` and `nodejs`, and the clients in `target/clients` (or
//! `$FERMATA_CLIENTS`), where `cargo xtask clients` unpacks them: nothing is installed on the machine, because cloud-init
//! and the guest agent would act on it. A client that is missing is a failure with the way out, never a silent pass.
#![allow(clippy::unwrap_used, reason = "test support: a failure is a failed test")]

mod common;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::net::{Space, bridge, in_own_namespaces, mac, port, wiring};
use common::*;
use fermata_events::*;
use fermata_imds::instance::{Address, Instance, Interface, PublicKey, Subnet};
use fermata_imds::wire::apply;
use fermata_imds::*;
use fermata_model::Membership;

/// Where the clients are.
fn clients() -> PathBuf {
    let target = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/clients");
    std::env::var_os("FERMATA_CLIENTS").map_or_else(target, PathBuf::from)
}

/// A file of a client.
fn client(path: &str) -> PathBuf {
    let path = clients().join(path);
    assert!(path.exists(), "{} is missing: run `cargo xtask clients`", path.display());
    path.canonicalize().unwrap()
}

/// A host with guests `vm-a` and `vm-b`, one set, two update domains.
struct Pair {
    service: Service,
    clock: HandClock,
    a: Space,
    b: Space,
    _task: tokio::task::JoinHandle<std::io::Result<()>>,
}

async fn pair() -> Pair {
    let bridge = bridge();
    let (a, b) = (Space::new("tapa", Some(mac(1))), Space::new("tapb", Some(mac(2))));
    for (guest, last, name) in [(&a, 5, "node-a"), (&b, 6, "node-b")] {
        guest.ip(&format!("address add 10.0.0.{last}/24 dev eth0"));
        guest.ip("route add 169.254.169.254/32 dev eth0");
        let named = guest.command("sh").args(["-c", &format!("echo {name} >/proc/sys/kernel/hostname")]).status();
        assert!(named.unwrap().success());
    }
    apply::apply(&wiring(bridge, vec![port("tapa", 1), port("tapb", 2)])).unwrap();
    let clock = HandClock::new();
    let store = Box::new(SqliteStore::in_memory().unwrap());
    let service = Service::open(store, Arc::new(clock.clone()), settings()).unwrap();
    for (name, last, domain) in [("vm-a", 1u8, 0u32), ("vm-b", 2, 1)] {
        let mut interface = Interface::new(mac(last));
        interface.ipv4.push(Address { private: [10, 0, 0, last + 4].into(), public: None });
        interface.subnets.push(Subnet { address: [10, 0, 0, 0].into(), prefix: 24 });
        let instance = Instance {
            vm_id: uuid::Uuid::from_u128(last.into()),
            location: "here".to_owned(),
            admin_user: "ann".to_owned(),
            user_data: "I2Nsb3VkLWNvbmZpZwo=".to_owned(),
            public_keys: vec![PublicKey {
                key_data: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA== a".to_owned(),
                path: String::new(),
            }],
            interfaces: vec![interface],
            ..Instance::default()
        };
        let membership =
            Some(Membership { name: "ha".parse().unwrap(), update_domain: Some(domain.try_into().unwrap()) });
        let ports = vec![port(&format!("tap{}", &name[3..]), last)];
        service.upsert(VmRecord { membership, instance, ports, ..VmRecord::new(vm(name)) }).await.unwrap();
    }
    let listener = tokio::net::TcpListener::bind((wire::ADDRESS, 80)).await.unwrap();
    let task = tokio::spawn(serve(listener, service.clone(), Arc::new(ByMark(service.clone()))));
    Pair { service, clock, a, b, _task: task }
}

impl Pair {
    async fn ok(&self, input: Input) {
        self.service.apply(input).await.unwrap();
    }

    /// From Started to the end.
    async fn maintain(&self, name: &str, touched: &str, meanwhile: impl AsyncFn(&str)) {
        self.ok(Input::Start { job: job(name) }).await;
        meanwhile("started").await;
        self.clock.pass(Duration::from_secs(5));
        self.ok(Input::Tick).await;
        self.ok(Input::Pausing { job: job(name), vms: vec![] }).await;
        self.clock.pass(Duration::from_secs(4));
        self.ok(Input::Resumed { job: job(name), vm: vm(touched), paused_ms: 4_000 }).await;
        meanwhile("resumed").await;
        self.ok(Input::ClockVerified { job: job(name), vm: vm(touched), clock_step_ms: 4_000 }).await;
        self.ok(Input::Finish { job: job(name), outcome: Outcome::Done }).await;
        meanwhile("over").await;
    }
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

fn output(mut command: Command) -> String {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// One `monitor` of a resource agent, as Pacemaker would run it.
fn monitor(agent: &str, guest: &Space, cluster: &Path) {
    let path = format!("{}:{}", cluster.join("bin").display(), std::env::var("PATH").unwrap());
    let mut command = guest.command("env");
    command
        .arg(format!("PATH={path}"))
        .arg(format!("CLUSTER={}", cluster.display()))
        .arg(format!("OCF_ROOT={}", client("root/usr/lib/ocf").display()))
        .args(["OCF_RESKEY_eventTypes=Freeze", "OCF_RESOURCE_INSTANCE=test", "/usr/bin/python3"])
        .arg(client(&format!("root/usr/lib/ocf/resource.d/heartbeat/{agent}")))
        .arg("monitor");
    output(command);
}

async fn pacemaker(agent: &'static str, approver: &str, standby: (&str, &str, &str)) {
    let pair = pair().await;
    let folder = tempfile::tempdir().unwrap();
    let cluster = folder.path();
    std::fs::create_dir(cluster.join("bin")).unwrap();
    for name in ["crm_node", "crm_simulate", "crm_resource", "crm_attribute"] {
        symlink(source("crm.sh"), cluster.join("bin").join(name)).unwrap();
    }
    let attribute =
        |node: &str, name: &str| std::fs::read_to_string(cluster.join(format!("{node}.{name}"))).unwrap_or_default();
    let state = |node: &str| attribute(node, &format!("{agent}_curNodeState"));
    // A cluster polls for ever; here until a round changes nothing that matters.
    let rounds = |count: usize| {
        for _ in 0..count {
            monitor(agent, &pair.a, cluster);
            monitor(agent, &pair.b, cluster);
        }
    };
    rounds(1);
    pair.ok(Input::Announce(announce("m", &["vm-a"], 900))).await;
    rounds(4);
    assert!(pair.service.gate(&job("m")).is_empty(), "{agent} approved");
    let native = pair.service.read(|state, now| serde_json::to_value(state.all_native_events(now)).unwrap());
    assert_eq!(native[0]["approvals"][0]["by"], approver);
    let (attribute_name, stopped, back) = standby;
    assert_eq!((attribute("node-a", attribute_name), state("node-a")), (stopped.to_owned(), "IN_EVENT".to_owned()));
    pair.maintain("m", "vm-a", async |step| {
        rounds(2);
        let expected = if step == "over" { (back, "AVAILABLE") } else { (stopped, "IN_EVENT") };
        assert_eq!((attribute("node-a", attribute_name).as_str(), state("node-a").as_str()), expected, "{step}");
    })
    .await;
}

#[test]
fn pacemakers_azure_events_az_takes_its_node_through_a_whole_maintenance() {
    in_own_namespaces("pacemakers_azure_events_az_takes_its_node_through_a_whole_maintenance", || {
        block_on(pacemaker("azure-events-az", "vm-a", ("#health-azure", "-1000000", "0")));
    });
}

#[test]
fn pacemakers_azure_events_takes_a_peer_through_a_whole_maintenance() {
    in_own_namespaces("pacemakers_azure_events_takes_a_peer_through_a_whole_maintenance", || {
        block_on(pacemaker("azure-events", "vm-b", ("standby", "on", "off")));
    });
}

/// A Python program with the unpacked clients in reach.
fn python(guest: &Space, program: &str) -> Command {
    let mut command = guest.command("env");
    command
        .arg(format!("PYTHONPATH={}", client("root/usr/lib/python3/dist-packages").display()))
        .arg(clients().join("venv/bin/python"))
        .arg(source(program));
    command
}

fn block_on(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(work);
}

#[test]
fn cloud_inits_azure_data_source_reads_the_instance() {
    in_own_namespaces("cloud_inits_azure_data_source_reads_the_instance", || {
        block_on(async {
            let pair = pair().await;
            let command = python(&pair.a, "cloud_init.py");
            let seen: serde_json::Value = serde_json::from_str(&output(command)).unwrap();
            assert_eq!(
                (&seen["user"], &seen["host"], &seen["no_password"]),
                (&"ann".into(), &"vm-a".into(), &true.into())
            );
            assert_eq!((&seen["pps"], &seen["key"], &seen["oldest"]), (&"None".into(), &true.into(), &"vm-a".into()));
            assert_eq!(seen["userdata"], "I2Nsb3VkLWNvbmZpZwo=");
            let network = &seen["network"]["ethernets"]["eth0"];
            assert_eq!(network["match"]["macaddress"], mac(1).to_string());
        });
    });
}

#[test]
fn one_hertz_pollers_of_a_set_see_every_step_in_order() {
    in_own_namespaces("one_hertz_pollers_of_a_set_see_every_step_in_order", || {
        block_on(async {
            let pair = pair().await;
            let listen = |guest: &Space| {
                guest.command("/usr/bin/python3").arg(source("listener.py")).stdout(Stdio::piped()).spawn().unwrap()
            };
            let (first, second) = (listen(&pair.a), listen(&pair.b));
            let mut feed = pair.service.feed();
            pair.ok(Input::Announce(announce("m", &["vm-a"], 900))).await;
            while feed.recv().await.unwrap() != (Action::GateOpened { job: job("m") }) {}
            // Real seconds: the pollers are programs with a clock of their own.
            let two_polls = || tokio::time::sleep(Duration::from_millis(2_500));
            two_polls().await;
            pair.maintain("m", "vm-a", async |_| two_polls().await).await;
            let expected = ["[]", "[('Scheduled', 'Freeze', 6)]", "[('Started', 'Freeze', 6)]", "[]"];
            for (poller, name) in [(first, "vm-a"), (second, "vm-b")] {
                let output = poller.wait_with_output().unwrap();
                let said = String::from_utf8(output.stdout).unwrap();
                let lines: Vec<&str> = said.lines().collect();
                // A poller that started after the announcement has no empty document to show first.
                assert!(lines == expected || lines == expected[1..], "{name}: {lines:?}");
            }
        });
    });
}

#[test]
fn curl_and_node_keep_connections_and_post() {
    in_own_namespaces("curl_and_node_keep_connections_and_post", || {
        block_on(async {
            let pair = pair().await;
            let url = "http://169.254.169.254/metadata/scheduledevents?api-version=2020-07-01";
            let mut command = pair.a.command("curl");
            command.args(["-sS", "--fail", "-H", "Metadata:true", "--noproxy", "*", url, url]);
            assert_eq!(output(command).matches("DocumentIncarnation").count(), 2);
            let mut command = pair.a.command("curl");
            command.args(["-sS", "--fail", "-H", "Metadata: true", "-d", r#"{"StartRequests":[]}"#, url]);
            assert_eq!(output(command), "");
            let mut command = pair.a.command("curl");
            command.args([
                "-sS",
                "--fail",
                "--http1.0",
                "-H",
                "Metadata: true",
                "-H",
                "Expect: 100-continue",
                "-d",
                "{\"StartRequests\":[]}",
                url,
            ]);
            assert_eq!(output(command), "");
            let mut command = pair.b.command("node");
            command.arg(source("telemetry.mjs"));
            let seen: serde_json::Value = serde_json::from_str(&output(command)).unwrap();
            assert_eq!(seen["results"], serde_json::json!(vec![200; 15]));
            assert_eq!((&seen["name"], &seen["vmId"]), (&"vm-b".into(), &uuid::Uuid::from_u128(2).to_string().into()));
        });
    });
}

#[test]
fn guest_agent_telemetry_and_identity_clients_of_two_languages() {
    in_own_namespaces("guest_agent_telemetry_and_identity_clients_of_two_languages", || {
        block_on(async {
            let pair = pair().await;
            let seen: serde_json::Value = serde_json::from_str(&output(python(&pair.a, "sdks.py"))).unwrap();
            assert_eq!(seen["agent"], serde_json::json!([true, ""]), "{seen}");
            assert_eq!(seen["agent_compute"], "vm-a");
            assert_eq!(
                (&seen["telemetry"]["host.name"], &seen["telemetry"]["cloud.region"]),
                (&"vm-a".into(), &"here".into())
            );
            assert!(seen["identity"] != "a token" && seen["identity_seconds"].as_f64().unwrap() < 5.0, "{seen}");
            let mut command = pair.b.command("env");
            command
                .arg(format!("CLIENTS={}", client("node").parent().unwrap().display()))
                .arg("node")
                .arg(source("sdks.mjs"));
            let seen: serde_json::Value = serde_json::from_str(&output(command)).unwrap();
            assert_eq!(seen["telemetry"]["host.name"], "vm-b", "{seen}");
            assert!(seen["identity"] != "a token" && seen["seconds"].as_f64().unwrap() < 5.0, "{seen}");
        });
    });
}
