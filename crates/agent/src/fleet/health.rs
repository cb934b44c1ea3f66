//! Health gates, asked beside the VMs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use fermata_controller::health::{Check, HealthGate};
use fermata_controller::rollout::VmTrouble;
use fermata_model::{Mac, VmDefinition, VmName};
use fermata_vmm::command::Paths;
use fermata_vmm::qga::Qga;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::api::types::{VmState, VmView};
use crate::inventory::Wanted;
use crate::vms::Vms;

/// The label that says at which address a guest is reached.
const ADDRESS: &str = "address";

/// VMs that are meant to run and do not.
pub(super) fn not_running(views: &[VmView]) -> Vec<VmTrouble> {
    let meant = views.iter().filter(|vm| vm.wanted == Wanted::Running);
    meant.filter_map(|vm| Some(VmTrouble { vm: vm.name.clone(), seen: trouble(vm)? })).collect()
}

fn trouble(vm: &VmView) -> Option<String> {
    match vm.state {
        VmState::Running => None,
        // Somebody's wish, or a maintenance at work; one that was left paused is told by the visit's report.
        VmState::Paused => None,
        VmState::Failed => Some(format!("failed: {}", vm.last_failure.as_deref().unwrap_or("nobody knows why"))),
        VmState::Stopped | VmState::Starting | VmState::Unresponsive => Some(format!("is {}", vm.state)),
    }
}

/// VMs that do not run, or do not pass a gate.
pub(super) async fn ask(vms: &Vms, views: &[VmView], gates: &[HealthGate]) -> Vec<VmTrouble> {
    let mut troubles: BTreeMap<VmName, String> =
        not_running(views).into_iter().map(|trouble| (trouble.vm, trouble.seen)).collect();
    let neighbours = neighbours();
    let runs = views.iter().filter(|vm| vm.state == VmState::Running);
    let asked = runs.flat_map(|vm| gates.iter().map(move |gate| (vm, gate))).filter(|(vm, gate)| {
        gate.concerns(&vm.name, vm.definition.availability_set.as_ref().map(|member| &member.name))
    });
    let asked = asked.map(async |(vm, gate)| {
        let address = address(&vm.definition, &neighbours);
        let channel = channel(vms, &vm.name).await;
        let limit = Duration::from_millis(gate.timeout_ms);
        let answer = tokio::time::timeout(limit, one(gate, &vm.definition, address, channel, limit)).await;
        let late = || Err(format!("no answer within {} ms", gate.timeout_ms));
        let refusal = answer.unwrap_or_else(|_| late()).err()?;
        Some((vm.name.clone(), format!("does not pass {gate}: {refusal}")))
    });
    for (vm, seen) in futures_util::future::join_all(asked).await.into_iter().flatten() {
        troubles.entry(vm).and_modify(|known| *known = format!("{known}; {seen}")).or_insert(seen);
    }
    troubles.into_iter().map(|(vm, seen)| VmTrouble { vm, seen }).collect()
}

async fn channel(vms: &Vms, vm: &VmName) -> Option<PathBuf> {
    let (definition, live) = vms.live(vm).await.ok()?;
    definition.guest_agent.then(|| Paths::in_folder(&live.runtime().dir).guest_agent())
}

async fn one(
    gate: &HealthGate,
    vm: &VmDefinition,
    address: Option<IpAddr>,
    channel: Option<PathBuf>,
    limit: Duration,
) -> Result<(), String> {
    let reach = || address.ok_or_else(|| format!("nobody knows its address; give the VM the label `{ADDRESS}`"));
    match &gate.check {
        Check::GuestAgent => {
            let channel = channel.ok_or("it has no channel for a guest agent; leave it out of the gate")?;
            Qga::connect(&channel, limit).await.map(drop).map_err(|error| error.to_string())
        }
        Check::Tcp { port } => TcpStream::connect((reach()?, *port)).await.map(drop).map_err(|error| error.to_string()),
        Check::Http { port, path, status } => {
            let address = reach()?;
            let found = http(address, *port, path).await?;
            let good = status.map_or((200..400).contains(&found), |wanted| wanted == found);
            if good { Ok(()) } else { Err(format!("status {found}")) }
        }
        Check::Command { argv } => command(argv, vm, address).await,
    }
}

async fn http(address: IpAddr, port: u16, path: &str) -> Result<u16, String> {
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    let stream = TcpStream::connect((address, port)).await.map_err(|error| failed(&error))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
    let request = hyper::Request::get(path)
        .header("host", address.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(&error))?;
    // Ends by itself when the sender is dropped, at the time limit at the latest.
    tokio::spawn(connection);
    sender.send_request(request).await.map(|reply| reply.status().as_u16()).map_err(|error| failed(&error))
}

async fn command(argv: &[String], vm: &VmDefinition, address: Option<IpAddr>) -> Result<(), String> {
    let (program, words) = argv.split_first().ok_or("it has no program")?;
    let mut command = tokio::process::Command::new(program);
    command.args(words).env("FERMATA_VM", vm.name.as_str());
    command.env("FERMATA_ADDRESS", address.map_or_else(String::new, |address| address.to_string()));
    // Ends with the time limit: dropping the future is what the limit does.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = command.output().await.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}; it said: {}", output.status, said.trim().chars().take(200).collect::<String>()))
}

/// Addresses that the kernel has seen, by MAC.
fn neighbours() -> BTreeMap<Mac, IpAddr> {
    std::fs::read_to_string("/proc/net/arp").map(|text| parse_arp(&text)).unwrap_or_default()
}

/// Lines of /proc/net/arp: address, type, flags, MAC, mask, device.
fn parse_arp(text: &str) -> BTreeMap<Mac, IpAddr> {
    let row = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next()?.parse().ok()?;
        Some((words.nth(2)?.parse().ok()?, address))
    };
    text.lines().skip(1).filter_map(row).collect()
}

fn address(vm: &VmDefinition, neighbours: &BTreeMap<Mac, IpAddr>) -> Option<IpAddr> {
    let labelled = vm.labels.get(ADDRESS).and_then(|text| text.parse().ok());
    labelled.or_else(|| vm.nics.iter().find_map(|nic| neighbours.get(&nic.mac).copied()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_found_by_the_mac_of_a_nic() {
        let text = "IP address       HW type     Flags       HW address            Mask     Device\n\
                    10.77.0.11       0x1         0x2         52:54:00:00:00:0b     *        br0\n";
        let found = parse_arp(text);
        assert_eq!(found.get(&"52:54:00:00:00:0b".parse().unwrap()), Some(&"10.77.0.11".parse().unwrap()));
    }

    fn vm() -> VmDefinition {
        serde_json::from_value(serde_json::json!({
            "name": "a", "uuid": "00000000-0000-0000-0000-000000000007", "vcpus": 1, "memory": "256MiB", "cpu": "qemu64",
            "tsc_khz": null, "machine": "pc-q35-10.0", "vmm": "10.0", "os": "linux", "firmware": "bios", "autostart": false,
            "guest_agent": false, "vmclock": false, "pause_budget_ms": 30_000, "availability_set": null, "disks": [],
            "nics": [], "labels": {}
        }))
        .unwrap()
    }

    async fn passes(gate: &str, address: Option<IpAddr>) -> Result<(), String> {
        one(&gate.parse().unwrap(), &vm(), address, None, Duration::from_secs(5)).await
    }

    #[tokio::test]
    async fn a_gate_tells_what_it_saw_and_passes_only_what_passes() {
        let here = Some("127.0.0.1".parse().unwrap());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(passes(&format!("tcp:{port}"), here).await, Ok(()));
        let server = tokio::spawn(async move {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            // The connection of the check above comes first.
            listener.accept().await.unwrap();
            for status in ["200 OK", "503 Busy"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 1024]).await.unwrap();
                let reply = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                stream.write_all(reply.as_bytes()).await.unwrap();
            }
        });
        assert_eq!(passes(&format!("http:{port}/healthz"), here).await, Ok(()));
        assert_eq!(passes(&format!("http:{port}/healthz"), here).await, Err("status 503".to_owned()));
        server.await.unwrap();
        assert!(passes(&format!("tcp:{port}"), here).await.unwrap_err().contains("refused"));
        assert!(passes("tcp:1", None).await.unwrap_err().contains("label `address`"));
        assert!(passes("guest-agent", here).await.unwrap_err().contains("leave it out"));
        assert_eq!(passes("command:/bin/true", here).await, Ok(()));
        assert!(passes("command:/bin/ls /nowhere-at-all", here).await.unwrap_err().contains("nowhere-at-all"));
    }
}
