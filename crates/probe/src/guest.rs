//! The probe inside a guest: what it is told by the kernel's command line, and its threads.
//!
//! ```text
//!  sampler (1 ms) ──► gaps ─┐
//!  memory witness ──────────┤
//!  disk witness ────────────┼──► report ──► console (JSON lines), control port
//!  heartbeats ──────────────┘
//! ```
//!
//! | on the command line | meaning | without it |
//! |---|---|---|
//! | `fermata.ip=A.B.C.D/N` | address of the first network card | from its MAC: `10.77.0.<last byte>/24` |
//! | `fermata.gw=A.B.C.D` | gateway | `.1` of the network |
//! | `fermata.target=A.B.C.D:PORT` or `none` | where heartbeats go | the gateway, port 7070 |
//! | `fermata.beat_us=N` | time between heartbeats | 5000 |
//! | `fermata.sample_us=N` | time between samples | 1000 |
//! | `fermata.memory_us=N` | time between steps of the memory witness | 20000 |
//! | `fermata.disk_us=N` | time between records on the disk | 50000 |
//! | `fermata.memory=MIB` | memory under watch | 16 |
//! | `fermata.disk=/dev/vdX` | device for the disk witness; its content is lost | none |
//! | `fermata.status_s=N` | seconds between status lines on the console | 10 |
//! | `fermata.restart_after_ms=N` | the guest restarts at once when it stood for so long | it does not |

use std::{
    fs,
    io::{self, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use crate::{
    BEAT_PORT, CONSOLE_PREFIX, CONTROL_PORT, beat, clock,
    clock::Clocks,
    control, disk,
    gap::Recorder,
    memory::Witness,
    report::{Answer, ConsoleLine, DiskReport, NetReport, Report, Request},
};

/// What the probe is told to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Own address and length of the network's prefix.
    pub address: (Ipv4Addr, u8),
    /// Gateway.
    pub gateway: Ipv4Addr,
    /// Where heartbeats go.
    pub target: Option<SocketAddr>,
    /// Time between heartbeats.
    pub beat: Duration,
    /// Time between samples.
    pub sample: Duration,
    /// MiB of memory under watch.
    pub memory: u64,
    /// Time between two steps over it.
    pub memory_step: Duration,
    /// Device of the disk witness.
    pub disk: Option<PathBuf>,
    /// Time between two records on it.
    pub disk_record: Duration,
    /// Time between status lines.
    pub status: Duration,
    /// A pause that makes the guest restart.
    pub restart_after: Option<Duration>,
}

impl Config {
    /// Reads a kernel command line; `mac` (text as in sysfs) gives the address where the command line does not.
    ///
    /// # Errors
    /// A value that does not parse, in words.
    pub fn parse(cmdline: &str, mac: &str) -> Result<Self, String> {
        let value = |key: &str| {
            let lead = format!("fermata.{key}=");
            cmdline.split_whitespace().filter_map(|word| word.strip_prefix(&lead)).next_back()
        };
        let address = match value("ip") {
            Some(text) => {
                let (ip, prefix) = text.split_once('/').unwrap_or((text, "24"));
                (parse("ip", ip)?, parse("ip", prefix)?)
            }
            None => (by_mac(mac), 24),
        };
        let [a, b, c, _] = address.0.octets();
        let gateway = value("gw").map_or(Ok(Ipv4Addr::new(a, b, c, 1)), |text| parse("gw", text))?;
        let target = match value("target") {
            Some("none") => None,
            Some(text) => Some(parse("target", text)?),
            None => Some(SocketAddr::new(IpAddr::V4(gateway), BEAT_PORT)),
        };
        let number = |key: &str, default: u64| value(key).map_or(Ok(default), |text| parse(key, text));
        Ok(Self {
            address,
            gateway,
            target,
            beat: Duration::from_micros(number("beat_us", 5_000)?.max(100)),
            sample: Duration::from_micros(number("sample_us", 1_000)?.max(100)),
            memory: number("memory", 16)?,
            memory_step: Duration::from_micros(number("memory_us", 20_000)?.max(100)),
            disk: value("disk").map(PathBuf::from),
            disk_record: Duration::from_micros(number("disk_us", 50_000)?.max(100)),
            status: Duration::from_secs(number("status_s", 10)?.max(1)),
            restart_after: value("restart_after_ms")
                .map(|text| parse("restart_after_ms", text).map(Duration::from_millis))
                .transpose()?,
        })
    }
}

fn parse<T: FromStr>(key: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("fermata.{key}={text}: not understood; see the table in the lab's documentation"))
}

/// The lab's rule: the last byte of the MAC is the last byte of the address.
fn by_mac(mac: &str) -> Ipv4Addr {
    let last = mac.trim().rsplit(':').next().and_then(|byte| u8::from_str_radix(byte, 16).ok());
    Ipv4Addr::new(10, 77, 0, last.unwrap_or(2))
}

/// Runs the probe, forever. With `network`, the first network card gets its address first (there is nobody else to do it).
///
/// # Errors
/// The command line is wrong, or the control port is taken.
pub fn run(network: bool) -> io::Result<()> {
    let cmdline = fs::read_to_string("/proc/cmdline")?;
    let mac = fs::read_to_string("/sys/class/net/eth0/address").unwrap_or_default();
    let config = Config::parse(&cmdline, &mac).map_err(io::Error::other)?;
    if network {
        for words in network_commands(&config) {
            // A guest without a network card still has clocks and memory to tell about.
            let _ = Command::new("ip").args(words.split(' ')).status();
        }
    }
    let state = State::start(&config)?;
    say(&ConsoleLine::Alive(Clocks::now()));
    loop {
        clock::rest(config.status);
        say(&state.report().status());
    }
}

fn network_commands(config: &Config) -> [String; 3] {
    let ((ip, prefix), gateway) = (config.address, config.gateway);
    [
        format!("addr add {ip}/{prefix} dev eth0"),
        "link set eth0 up".to_owned(),
        format!("route add default via {gateway}"),
    ]
}

/// One write for a line, so that the kernel's own lines on the same console do not cut it.
fn say(line: &ConsoleLine) {
    if let Ok(text) = serde_json::to_string(line) {
        let mut out = io::stdout().lock();
        let _ = out.write_all(format!("\n{CONSOLE_PREFIX}{text}\n").as_bytes()).and_then(|()| out.flush());
    }
}

/// What the threads share.
#[derive(Clone)]
struct State {
    gaps: Arc<Mutex<Recorder>>,
    memory: Option<Arc<Mutex<Witness>>>,
    disk: Option<Arc<Mutex<DiskReport>>>,
    net: Option<Arc<Mutex<NetReport>>>,
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn start(config: &Config) -> io::Result<Self> {
        let khz = clock::measure_tsc_khz(Duration::from_millis(200));
        let state = Self {
            gaps: Arc::new(Mutex::new(Recorder::new(clock::sample(), khz))),
            memory: (config.memory > 0).then(|| Arc::new(Mutex::new(Witness::new(config.memory, clock::sample().tsc)))),
            disk: config.disk.is_some().then(Arc::default),
            net: config.target.is_some().then(Arc::default),
        };
        // Filling the memory took a while in which nothing was sampled.
        *lock(&state.gaps) = Recorder::new(clock::sample(), khz);
        let (gaps, every, longest) = (Arc::clone(&state.gaps), config.sample, config.restart_after);
        thread::spawn(move || {
            loop {
                clock::rest(every);
                let gap = lock(&gaps).sample(clock::sample());
                if longest.is_some_and(|longest| Duration::from_nanos(gap.ns()) >= longest) {
                    // At once, as a watchdog would (Linux, `Documentation/admin-guide/sysrq.rst`).
                    let _ = fs::write("/proc/sysrq-trigger", "b");
                }
            }
        });
        if let Some(memory) = state.memory.clone() {
            let every = config.memory_step;
            thread::spawn(move || {
                loop {
                    clock::rest(every);
                    lock(&memory).step(4);
                }
            });
        }
        if let (Some(report), Some(path)) = (state.disk.clone(), config.disk.clone()) {
            let every = config.disk_record;
            thread::spawn(move || write_disk(&path, every, &report));
        }
        if let (Some(net), Some(target)) = (&state.net, config.target) {
            beat::start(target, config.beat, net);
        }
        let answering = state.clone();
        control::serve(CONTROL_PORT, move |request| answering.answer(request))?;
        Ok(state)
    }

    fn report(&self) -> Report {
        Report {
            clocks: Clocks::now(),
            gaps: lock(&self.gaps).gaps().clone(),
            memory: self.memory.as_ref().map(|memory| lock(memory).report()),
            disk: self.disk.as_ref().map(|disk| lock(disk).clone()),
            net: self.net.as_ref().map(|net| {
                let counters = |file, group, name| counter(&fs::read_to_string(file).unwrap_or_default(), group, name);
                NetReport {
                    tcp_timeouts: counters("/proc/net/netstat", "TcpExt:", "TCPTimeouts"),
                    tcp_retransmitted: counters("/proc/net/snmp", "Tcp:", "RetransSegs"),
                    ..lock(net).clone()
                }
            }),
        }
    }

    fn answer(&self, request: Request) -> Answer {
        match request {
            Request::Report => Answer::Report(Box::new(self.report())),
            Request::Clock => Answer::Clock(Clocks::now()),
            Request::Mark => {
                lock(&self.gaps).mark();
                if let Some(net) = &self.net {
                    let mut net = lock(net);
                    net.udp.mark();
                    net.tcp.mark();
                }
                Answer::Marked
            }
            Request::VerifyMemory => self.memory.as_ref().map_or_else(
                || Answer::Refused {
                    reason: "no memory is under watch; start the guest with fermata.memory=MIB".to_owned(),
                },
                |memory| Answer::Memory(lock(memory).verify()),
            ),
        }
    }
}

fn write_disk(path: &std::path::Path, every: Duration, report: &Mutex<DiskReport>) {
    let failed = |error: &io::Error| {
        let mut report = lock(report);
        report.errors += 1;
        report.last_error = Some(error.to_string());
    };
    loop {
        let mut writer = match disk::Writer::open(path) {
            Ok(writer) => writer,
            Err(error) => {
                failed(&error);
                clock::rest(Duration::from_secs(1));
                continue;
            }
        };
        loop {
            let start = std::time::Instant::now();
            match writer.append() {
                Ok(number) => {
                    let mut report = lock(report);
                    report.acknowledged = number;
                    report.slowest_ns =
                        report.slowest_ns.max(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
                }
                Err(error) => failed(&error),
            }
            clock::rest(every);
        }
    }
}

/// A counter of `/proc/net/snmp` or `netstat`: a line of names, then a line of values, both led by their group.
fn counter(text: &str, group: &str, name: &str) -> u64 {
    let mut lines = text.lines().filter(|line| line.split(' ').next() == Some(group));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else { return 0 };
    names
        .split(' ')
        .zip(values.split(' '))
        .find(|(found, _)| *found == name)
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_word_on_the_command_line_the_mac_decides() {
        let config = Config::parse("console=ttyS0 quiet", "52:54:00:00:00:2a\n").unwrap();
        assert_eq!(config.address, (Ipv4Addr::new(10, 77, 0, 42), 24));
        assert_eq!(config.target, Some("10.77.0.1:7070".parse().unwrap()));
        assert_eq!(config.restart_after, None, "pauses are borne");
    }

    #[test]
    fn the_command_line_is_obeyed_and_wrong_values_are_named() {
        let config =
            Config::parse("fermata.ip=192.168.5.9/16 fermata.target=none fermata.memory=0 fermata.disk=/dev/vdb", "")
                .unwrap();
        assert_eq!(
            (config.address, config.gateway),
            ((Ipv4Addr::new(192, 168, 5, 9), 16), Ipv4Addr::new(192, 168, 5, 1))
        );
        assert_eq!((config.target, config.memory, config.disk), (None, 0, Some(PathBuf::from("/dev/vdb"))));
        let paced = Config::parse("fermata.memory_us=80000 fermata.disk_us=200000", "").unwrap();
        assert_eq!((paced.memory_step, paced.disk_record), (Duration::from_millis(80), Duration::from_millis(200)));
        let config = Config::parse("fermata.restart_after_ms=3000", "").unwrap();
        assert_eq!(config.restart_after, Some(Duration::from_secs(3)));
        assert!(Config::parse("fermata.memory=lots", "").unwrap_err().contains("fermata.memory=lots"));
    }

    #[test]
    fn kernel_counters_are_found_by_name() {
        let text = "Tcp: A RetransSegs B\nTcp: 1 22 3\n";
        assert_eq!(counter(text, "Tcp:", "RetransSegs"), 22);
        assert_eq!(counter(text, "TcpExt:", "RetransSegs"), 0);
    }
}
