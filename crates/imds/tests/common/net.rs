//! Network namespaces, bridges and guests for tests that need real frames.
//!
//! Needs `unshare` and `nsenter` (util-linux), `ip` (iproute2) and `nft` (nftables), and root or unprivileged user
//! namespaces. Fails, and says so, where they are missing.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fermata_imds::wire::{self, Bridge, Wiring};
use fermata_imds::*;
use fermata_model::Mac;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const INSIDE: &str = "FERMATA_TEST_INSIDE";

/// Runs `test` inside namespaces of its own: the first call starts this binary again in them and waits.
pub(crate) fn in_own_namespaces(name: &str, test: impl FnOnce()) {
    if std::env::var(INSIDE).is_ok_and(|inside| inside == name) {
        return test();
    }
    let own = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let output = command
        .args(["--net", "--mount", "--uts"])
        .arg(own)
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, name)
        .output()
        .expect("this test needs `unshare` of util-linux");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}

pub(crate) fn run(line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap_or_else(|e| panic!("{line}: {e}"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A bridge `br0` without an address.
pub(crate) fn bridge() -> Bridge {
    run("ip link set lo up");
    run("ip link add br0 address 02:00:00:00:00:01 type bridge");
    run("ip link set br0 up");
    Bridge { name: "br0".parse().unwrap(), mac: "02:00:00:00:00:01".parse().unwrap(), dhcp: true }
}

pub(crate) fn mac(last: u8) -> Mac {
    format!("52:54:00:00:00:{last:02x}").parse().unwrap()
}

pub(crate) fn port(tap: &str, last: u8) -> Port {
    Port { tap: tap.into(), bridge: "br0".parse().unwrap(), mac: mac(last), number: last.into() }
}

pub(crate) fn wiring(bridge: Bridge, ports: Vec<Port>) -> Wiring {
    Wiring { bridges: vec![bridge], ports, open: vec![] }
}

/// A guest: namespaces held by a process, with one interface `eth0`.
pub(crate) struct Space(Child);

impl Drop for Space {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Space {
    pub(crate) fn new(tap: &str, mac: Option<Mac>) -> Self {
        let mut child = Command::new("unshare")
            .args(["--net", "--uts", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // `cat` echoes once it runs, and it runs inside the namespaces.
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let space = Self(child);
        let address = mac.map(|mac| format!(" address {mac}")).unwrap_or_default();
        run(&format!("ip link add {tap} type veth peer name eth0 netns {}{address}", space.0.id()));
        run(&format!("ip link set {tap} master br0 up"));
        space.ip("link set lo up");
        space.ip("link set eth0 up");
        space
    }

    /// A command that runs in the guest.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.0.id().to_string(), "-n", "-u", program]);
        command
    }

    pub(crate) fn ip(&self, arguments: &str) {
        let output = self.command("ip").args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs `work` on a thread inside the guest's network.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let space = std::fs::File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    /// Leaves `work` running on a thread inside the guest's network.
    pub(crate) fn within(&self, work: impl FnOnce() + Send + 'static) {
        let space = std::fs::File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap();
        std::thread::spawn(move || {
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work();
        });
    }

    pub(crate) fn name_seen(&self) -> Option<String> {
        self.inside(|| ask(SocketAddr::from((wire::ADDRESS, 80))))
    }

    pub(crate) fn reaches(&self, address: Ipv4Addr, port: u16) -> bool {
        self.inside(move || {
            TcpStream::connect_timeout(&SocketAddr::from((address, port)), Duration::from_millis(700)).is_ok()
        })
    }
}

/// The name that the service gives to whoever asks here.
pub(crate) fn ask(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(1_500)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let request =
        "GET /metadata/instance/compute/name?api-version=2021-08-01&format=text HTTP/1.0\r\nMetadata: true\r\n\r\n";
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}
