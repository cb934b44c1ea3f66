//! What is measured, in which order, and the file it ends in.

use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::load::{self, Group, Pace, Tally};
use crate::server::address;

type Problem = Box<dyn std::error::Error + Send + Sync>;

const EVENTS: &str = "/metadata/scheduledevents?api-version=2020-07-01";
const INSTANCE: &str = "/metadata/instance?api-version=2021-08-01";

/// A process that ends with this value.
struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        // The service ends, and tidies up, with its standard input.
        let service = self.child.stdin.take().is_some();
        // TERM, not KILL: nginx's workers outlive a master that cannot tell them.
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid.filter(|_| !service) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

impl Server {
    fn service(vms: u32, default_limits: bool) -> Result<Self, Problem> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["serve", "--vms", &vms.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        if default_limits {
            command.arg("--default-limits");
        }
        let mut child = command.spawn()?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let port = line.trim().parse().map_err(|_| "the service did not start")?;
        Ok(Self { child, port })
    }

    /// nginx with a file of the size of an event document.
    fn nginx(folder: &Path) -> Result<Self, Problem> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let document = r#"{"DocumentIncarnation":2,"Events":[{"EventId":"32504B35-D66B-4D0A-8C64-C9DDBBD0EA13","EventStatus":"Scheduled","EventType":"Freeze","ResourceType":"VirtualMachine","Resources":["vm-0"],"NotBefore":"Wed, 31 May 2023 16:44:00 GMT","Description":"Host server is undergoing maintenance.","EventSource":"Platform","DurationInSeconds":6}]}"#;
        std::fs::write(folder.join("document.json"), document)?;
        let at = folder.display();
        let configuration = format!(
            "worker_processes 2;\ndaemon off;\npid {at}/pid;\nerror_log {at}/error.log;\nevents {{ worker_connections 4096; }}\n\
             http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 75; tcp_nodelay on;\n\
             client_body_temp_path {at}/b; proxy_temp_path {at}/p; fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
             types {{ application/json json; }}\nserver {{ listen 127.0.0.1:{port} backlog=4096; root {at}; }} }}\n"
        );
        let file = folder.join("nginx.conf");
        std::fs::write(&file, configuration)?;
        let child = Command::new(nginx_program())
            .arg("-e")
            .arg(folder.join("error.log"))
            .arg("-c")
            .arg(&file)
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| format!("nginx cannot be run ({e}); `cargo xtask bench imds` fetches it"))?;
        let server = Self { child, port };
        let begun = std::time::Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if begun.elapsed() > Duration::from_secs(10) {
                return Err("nginx did not start within 10 s".into());
            }
            std::thread::yield_now();
        }
        Ok(server)
    }

    fn target(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Resident memory in MiB.
    fn rss_mib(&self) -> Result<f64, Problem> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib / 1024.0)
    }
}

fn group(server: &Server, sources: Vec<Ipv4Addr>, path: &str, pace: Pace) -> Group {
    Group { sources, target: server.target(), request: load::request(path), pace, persistent: false }
}

fn vms(range: std::ops::Range<u32>) -> Vec<Ipv4Addr> {
    range.map(address).collect()
}

fn rate(tally: &Tally, time: Duration) -> f64 {
    f64::from(u32::try_from(tally.ok).unwrap_or(u32::MAX)) / time.as_secs_f64()
}

fn one(name: &str, mut tally: Tally, time: Duration) -> Value {
    let run = json!({
        "name": name,
        "seconds": time.as_secs(),
        "requests_per_s": rate(&tally, time).round(),
        "p50_ms": tally.percentile_ms(0.50),
        "p99_ms": tally.percentile_ms(0.99),
        "p999_ms": tally.percentile_ms(0.999),
        "refused": tally.refused,
        "broken": tally.broken,
    });
    println!("{run}");
    run
}

fn single(groups: Vec<Group>, time: Duration) -> Result<Tally, Problem> {
    load::run(groups, time)?.into_iter().next().ok_or_else(|| "no group".into())
}

/// The unpacked nginx of the workspace, or the machine's.
fn nginx_program() -> String {
    let unpacked = "target/clients/root/usr/sbin/nginx";
    if Path::new(unpacked).exists() { unpacked.to_owned() } else { "nginx".to_owned() }
}

fn first_line(program: &str, argument: &str) -> String {
    let output = Command::new(program).arg(argument).output();
    let text = output.map(|o| [o.stdout, o.stderr].concat()).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
}

fn machine() -> Value {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or_default();
    json!({
        "cpu": model.trim_start_matches(['\t', ':', ' ']),
        "cores": std::thread::available_parallelism().map(usize::from).unwrap_or(1),
        "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
    })
}

/// Measures everything and writes `out`.
pub(crate) fn run(time: Duration, out: &Path) -> Result<(), Problem> {
    let mut runs = Vec::new();
    let mut best = 0.0f64;
    // One VM may use several connections; of many VMs each uses one.
    for (count, sources) in [(1, vec![address(0); 16]), (100, vms(0..100)), (1_000, vms(0..1_000))] {
        let server = Server::service(count, false)?;
        let tally = single(vec![group(&server, sources, EVENTS, Pace::Closed)], time)?;
        best = best.max(rate(&tally, time));
        runs.push(one(&format!("events, {count} VMs, as fast as possible"), tally, time));
    }

    let server = Server::service(1_000, false)?;
    let warm = Duration::from_secs(2);
    single(vec![group(&server, vms(0..1_000), INSTANCE, Pace::Closed)], warm)?;
    single(vec![group(&server, vms(0..1_000), EVENTS, Pace::Closed)], warm)?;
    let half = single(vec![group(&server, vms(0..100), EVENTS, Pace::Open { per_second: best / 2.0 })], time)?;
    let rss = server.rss_mib()?;
    let p99_half = half.clone().percentile_ms(0.99);
    runs.push(one("events, 100 of 1000 VMs, half load", half, time));
    let tally = single(vec![group(&server, vms(0..100), INSTANCE, Pace::Closed)], time)?;
    runs.push(one("instance, 100 VMs, as fast as possible", tally, time));
    drop(server);

    // Default limits: 100 VMs poll five times a second each, one VM asks and connects as fast as it can.
    let server = Server::service(101, true)?;
    let pollers = group(&server, vms(0..100), EVENTS, Pace::Open { per_second: 500.0 });
    let calm = single(vec![pollers.clone()], time)?;
    runs.push(one("100 VMs at 5 Hz, calm", calm, time));
    let flood = Group { persistent: true, ..group(&server, vec![address(100); 64], EVENTS, Pace::Closed) };
    let mut tallies = load::run(vec![pollers, flood], time)?.into_iter();
    let (Some(mut others), Some(flooder)) = (tallies.next(), tallies.next()) else { return Err("no groups".into()) };
    let p99_flooded = others.percentile_ms(0.99);
    let failed = others.refused + others.broken;
    runs.push(one("100 VMs at 5 Hz, beside a flooding VM", others, time));
    runs.push(one("the flooding VM", flooder, time));
    if failed > 0 {
        return Err(format!("{failed} requests of other VMs failed beside the flooding one").into());
    }
    drop(server);

    let folder = std::env::temp_dir().join(format!("imds-bench-nginx-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let server = Server::nginx(&folder)?;
    let tally = single(vec![group(&server, vms(0..100), "/document.json", Pace::Closed)], time)?;
    let peer = rate(&tally, time);
    runs.push(one("nginx, plain file, 100 connections", tally, time));
    drop(server);
    std::fs::remove_dir_all(&folder)?;

    let report = json!({
        "machine": machine(),
        "accelerator": "none",
        "versions": {
            "fermata": env!("CARGO_PKG_VERSION"),
            "nginx": first_line(&nginx_program(), "-v"),
            "rustc": first_line("rustc", "-V"),
        },
        "runs": runs,
        "summary": {
            "requests_per_s": best.round(),
            "p99_ms_half_load": p99_half,
            "p99_ms_flooded": p99_flooded,
            "rss_mib_1000_vms": (rss * 10.0).round() / 10.0,
            "peer_requests_per_s": peer.round(),
        },
    });
    if let Some(folder) = out.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(out, serde_json::to_string_pretty(&report)? + "\n")?;
    println!("{}", report["summary"]);
    println!("{}", out.display());
    Ok(())
}
