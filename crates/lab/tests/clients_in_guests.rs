//! Public clients, unmodified, inside Debian guests of a real host, through a whole change of VMM: Pacemaker's two agents for
//! Azure, cloud-init's Azure data source, curl, and the listener of the protocol's documentation.
//!
//! The clients come from the guests' own Debian packages; what Pacemaker's commands would do is done by a stub whose
//! attributes are one store for both guests, as a cluster's are.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, with the lab's words")]
#![expect(clippy::disallowed_methods, reason = "what a guest sees can only be asked for")]

use std::time::{Duration, Instant};

use fermata_lab::{Host, Lab, LabSpec};
use serde_json::Value;

/// Attributes of the cluster: files that both guests read and write over HTTP.
const STORE: &str = r#"
import http.server, os
class Store(http.server.BaseHTTPRequestHandler):
    def file(self): return "/run/cluster/" + self.path.strip("/").replace("/", "_")
    def answer(self, code, body=b""):
        self.send_response(code); self.send_header("Content-Length", str(len(body))); self.end_headers(); self.wfile.write(body)
    def do_GET(self):
        self.answer(200, open(self.file(), "rb").read() if os.path.exists(self.file()) else b"")
    def do_PUT(self):
        open(self.file(), "wb").write(self.rfile.read(int(self.headers["Content-Length"]))); self.answer(200)
    def do_DELETE(self):
        if os.path.exists(self.file()): os.remove(self.file())
        self.answer(200)
    def log_message(self, *words): pass
os.makedirs("/run/cluster", exist_ok=True)
http.server.ThreadingHTTPServer(("", 8000), Store).serve_forever()
"#;

/// Stands in for Pacemaker's commands: nothing is pending, both nodes are known.
const COMMANDS: &str = r#"#!/bin/sh
store=http://10.77.0.21:8000
case "${0##*/}" in
crm_node) printf '1 node-a member\n2 node-b member\n' ;;
crm_simulate) printf 'Current cluster status:\n\nTransition Summary:\n' ;;
crm_attribute)
    name= node=cluster do=query value=
    while [ $# -gt 0 ]; do
        case "$1" in
        --name | -n) name=$2; shift ;;
        --node | -N) node=$2; shift ;;
        --update | -v) do=update value=$2; shift ;;
        --delete) do=delete ;;
        --type | -t | --default) shift ;;
        esac
        shift
    done
    name=$(printf %s "$node.$name" | tr '#' '_')
    case "$do" in
    update) curl -sf -X PUT --data-binary "$value" "$store/$name" ;;
    delete) curl -sf -X DELETE "$store/$name" ;;
    query) curl -sf "$store/$name" ;;
    esac ;;
esac
"#;

/// A listener in the style of the protocol's documentation: polls at 1 Hz and prints what it sees.
const LISTENER: &str = r#"
import json, time, urllib.request
URL = "http://169.254.169.254/metadata/scheduledevents?api-version=2020-07-01"
last = -1
while True:
    with urllib.request.urlopen(urllib.request.Request(URL, None, {"Metadata": "true"}), timeout=5) as answer:
        document = json.loads(answer.read())
    if document["DocumentIncarnation"] != last:
        last = document["DocumentIncarnation"]
        print([e["EventStatus"] for e in document["Events"]], flush=True)
    time.sleep(1)
"#;

/// cloud-init's own reading of the instance.
const CLOUD_INIT: &str = r#"
import json
from cloudinit.sources import DataSourceAzure as azure
from cloudinit.sources.azure import imds
document = imds.fetch_metadata_with_api_fallback(retry_deadline=60.0)
network = azure.generate_network_config_from_instance_network_metadata(document["network"], apply_network_config_for_secondary_ips=True)
print(json.dumps({"name": document["compute"]["name"], "host": azure._hostname_from_imds(document), "network": network}))
"#;

#[derive(Clone, Copy)]
struct Guest<'a> {
    host: &'a Host,
    name: &'static str,
}

impl<'a> Guest<'a> {
    fn start(host: &'a Host, name: &'static str, last: u8, vmm: &str, domain: u8) -> Self {
        let overlay = "qemu-img create -q -f qcow2 -F qcow2 -b /var/lib/fermata-lab/images/debian/disk.qcow2";
        host.run(&format!("{overlay} /srv/{name}.qcow2")).unwrap();
        let spec = format!(
            "name = \"{name}\"\nvcpus = 1\nmemory = \"512MiB\"\nvmm = \"{vmm}\"\nmachine = \"pc-q35-10.0\"\n\
             availability_set = {{ name = \"ha\", update_domain = {domain} }}\n\
             [[disk]]\npath = \"/srv/{name}.qcow2\"\nformat = \"qcow2\"\n\
             [[nic]]\nbridge = \"br0\"\nmac = \"52:54:00:00:00:{last:02x}\"\n"
        );
        host.write(&format!("/tmp/{name}.toml"), &spec).unwrap();
        host.run(&format!("fermata vm create --start /tmp/{name}.toml")).unwrap();
        Self { host, name }
    }

    fn try_run(self, script: &str) -> (i32, String) {
        self.host.write(&format!("/tmp/{}.sh", self.name), script).unwrap();
        let socket = format!("$(ls -d /run/fermata/vm/{}/*/qga | tail -n 1)", self.name);
        let run = format!("fermata-probe inside {socket} 110 \"$(cat /tmp/{}.sh)\"", self.name);
        let ran = self.host.exec_within(&run, Duration::from_secs(150)).unwrap();
        (ran.status, format!("{}{}", ran.stdout, ran.stderr))
    }

    fn run(self, script: &str) -> String {
        let (status, text) = self.try_run(script);
        assert_eq!(status, 0, "{}: {script}: {text}", self.name);
        text
    }

    fn write(self, path: &str, content: &str) {
        self.run(&format!("cat >{path} <<'END-OF-FILE'\n{content}\nEND-OF-FILE\nchmod 755 {path}"));
    }

    /// One `monitor` of a resource agent, as Pacemaker would run it.
    fn monitor(self, agent: &str) {
        let environment =
            "PATH=/opt/cluster:$PATH OCF_ROOT=/usr/lib/ocf OCF_RESKEY_eventTypes=Freeze OCF_RESOURCE_INSTANCE=test";
        self.run(&format!("{environment} /usr/lib/ocf/resource.d/heartbeat/{agent} monitor 2>&1"));
    }

    fn attribute(self, node: &str, name: &str) -> String {
        self.run(&format!("curl -sf http://10.77.0.21:8000/{node}.{}", name.replace('#', "_")))
    }
}

fn wait<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn json(host: &Host, command: &str) -> Value {
    serde_json::from_str(&host.run(&format!("fermata --json {command}")).unwrap()).unwrap()
}

#[test]
fn pacemaker_cloud_init_and_others_go_through_a_change_of_vmm() {
    let mut spec = LabSpec::for_test("clients", 1);
    spec.debian_guest = true;
    spec.hosts[0].imds = true;
    let lab = Lab::up(&spec).unwrap();
    let host = lab.host(1);
    host.wait_agent_ready(Duration::from_secs(60)).unwrap();
    // Only the first will feel the update: the other one has the newer VMM already.
    let a = Guest::start(host, "vm-a", 21, "10.0", 0);
    let b = Guest::start(host, "vm-b", 22, "11.1", 1);
    for guest in [a, b] {
        wait("the guest's agent", Duration::from_secs(400), || (guest.try_run("true").0 == 0).then_some(()));
        guest.run(&format!("hostname node-{}; mkdir -p /opt/cluster", &guest.name[3..]));
        for command in ["crm_node", "crm_simulate", "crm_resource", "crm_attribute"] {
            guest.write(&format!("/opt/cluster/{command}"), COMMANDS);
        }
    }
    a.write("/opt/cluster/store.py", STORE);
    a.run("python3 /opt/cluster/store.py >/dev/null 2>&1 &");
    b.write("/opt/listener.py", LISTENER);
    b.write("/opt/cloud_init.py", CLOUD_INIT);
    wait("the cluster's store", Duration::from_secs(60), || {
        (b.try_run("curl -sf http://10.77.0.21:8000/x").0 == 0).then_some(())
    });

    let seen: Value = serde_json::from_str(b.run("python3 /opt/cloud_init.py 2>/dev/null").trim()).unwrap();
    assert_eq!((&seen["name"], &seen["host"]), (&"vm-b".into(), &"vm-b".into()));
    assert_eq!(seen["network"]["ethernets"]["eth0"]["match"]["macaddress"], "52:54:00:00:00:16", "{seen}");
    b.run("python3 /opt/listener.py >/run/listener 2>&1 &");

    for (number, (agent, approver, attribute, away, back)) in [
        ("azure-events-az", "vm-a", "#health-azure", "-1000000", "0"),
        ("azure-events", "vm-b", "standby", "on", "off"),
    ]
    .into_iter()
    .enumerate()
    {
        a.monitor(agent);
        b.monitor(agent);
        let file = format!(
            "id = \"to-{number}\"\ntitle = \"a newer VMM\"\nnotice_s = 3000\nkind = \"vmm\"\n[change]\nvmm = \"11.1\"\n"
        );
        if number == 1 {
            // Started anew, it is on the older VMM again and can be updated once more.
            host.run("fermata vm stop vm-a --timeout 90 && fermata vm start vm-a").unwrap();
            wait("the guest's agent", Duration::from_secs(400), || (a.try_run("true").0 == 0).then_some(()));
            a.run("hostname node-a; python3 /opt/cluster/store.py >/dev/null 2>&1 &");
            wait("the cluster's store", Duration::from_secs(60), || {
                (b.try_run("curl -sf http://10.77.0.21:8000/x").0 == 0).then_some(())
            });
            a.monitor(agent);
            b.monitor(agent);
        }
        host.write("/tmp/update.toml", &file).unwrap();
        host.run("fermata update apply --detach /tmp/update.toml").unwrap();
        wait("the event", Duration::from_secs(30), || {
            json(host, "event list").as_array().is_some_and(|all| !all.is_empty()).then_some(())
        });
        // Rounds as a cluster runs them, until the agent approved.
        let approved = wait("the approval", Duration::from_secs(200), || {
            a.monitor(agent);
            b.monitor(agent);
            let events = json(host, "event list");
            let by = events[0]["approvals"][0]["by"].as_str().map(str::to_owned);
            by.or_else(|| events.as_array().unwrap().is_empty().then(|| "gone".to_owned()))
        });
        assert_eq!(approved, approver, "{agent}");
        assert_eq!(a.attribute("node-a", attribute), away, "{agent}: the node is out of the cluster's work");
        let outcome = wait("the end", Duration::from_secs(300), || {
            json(host, "maintenance list")[0]["outcome"].as_str().map(str::to_owned)
        });
        assert_eq!(outcome, "done");
        wait("the node's return", Duration::from_secs(120), || {
            a.monitor(agent);
            b.monitor(agent);
            (a.attribute("node-a", attribute) == back).then_some(())
        });
        assert_eq!(a.attribute("node-a", &format!("{agent}_curNodeState")), "AVAILABLE");
        println!("{agent}: approved by {approved}, done, node back");
    }
    let listener = b.run("cat /run/listener");
    println!("listener on vm-b: {listener:?}");
    let whole = "['Scheduled']\n['Started']\n[]\n";
    assert_eq!(listener.matches(whole).count(), 2, "{listener}");
    let url = "http://169.254.169.254/metadata/scheduledevents?api-version=2020-07-01";
    let curl = a.run(&format!("curl -sS --fail -H Metadata:true {url} {url}"));
    assert_eq!(curl.matches("DocumentIncarnation").count(), 2, "{curl}");
}
