//! One maintenance that changes VMMs, and what every guest and its peer felt.
//!
//! Numbers about the pause count from the stage `lead` on, when twins are rehearsed already and nothing but the pause is left
//! (from the order on, where a busy host hides that stage): a rehearsal takes processor time, which on two emulated processors would be taken for a pause.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use anyhow::{Context, Result, bail};
use fermata_probe::{
    CONTROL_PORT, SINK_CONTROL_PORT,
    gap::Gap,
    offset::Offset,
    report::{Report, Sender},
};
use serde::Serialize;
use serde_json::Value;

use super::{guest::Guest, pings::Pings};
use crate::host::Host;

/// How long a maintenance of a few VMs may take on an emulated host.
const LIMIT: Duration = Duration::from_secs(420);

/// An update to another VMM, or to the same version anew.
#[derive(Debug, Clone)]
pub struct Update {
    /// The version to bring VMs to.
    pub to: String,
    /// How many VMs at once.
    pub parallelism: usize,
    /// Where the VMM is, for a host whose configuration does not say.
    pub binary: Option<String>,
}

impl Update {
    /// To a version, VMs one after the other.
    #[must_use]
    pub fn to(version: &str) -> Self {
        Self { to: version.to_owned(), parallelism: 1, binary: None }
    }

    /// The same, for a host that does not know this VMM yet.
    #[must_use]
    pub fn bringing(self, binary: &str) -> Self {
        Self { binary: Some(binary.to_owned()), ..self }
    }

    /// Its file. The same update is the same file: Fermata refuses two contents under one id.
    #[must_use]
    pub fn toml(&self) -> String {
        let Self { to, parallelism, binary } = self;
        let binary = binary.as_ref().map_or_else(String::new, |binary| format!("binary = \"{binary}\"\n"));
        format!(
            "id = \"to-{}-by-{parallelism}\"\ntitle = \"VMM {to}\"\nkind = \"vmm\"\nnotice_s = 0\n\
             parallelism = {parallelism}\n[change]\nvmm = \"{to}\"\nagain = true\n{binary}",
            to.replace('.', "-")
        )
    }
}

/// What one guest felt of one swap. Times in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Swap {
    /// The VM.
    pub vm: String,
    /// Its processors.
    pub vcpus: u32,
    /// Its memory, in MiB.
    pub memory_mib: u64,
    /// How many VMs took part in the maintenance, and how many at once.
    pub company: (usize, usize),
    /// The VMM before.
    pub from: String,
    /// The VMM after.
    pub to: String,
    /// `transfer` or `file`: how the state went over.
    pub way: &'static str,
    /// How the maintenance ended, and what it says of the VM.
    pub outcome: String,
    /// STOP to RESUME, by the report of the maintenance.
    pub host_blackout_ms: Option<f64>,
    /// From the guest's last sample before the pause to its first one after it, by the host's raw clock; see [`blackout`].
    pub guest_blackout_ms: f64,
    /// The largest gap on the guest's own raw clock in the whole maintenance, wherever in it. This clock stands in the pause.
    pub sample_gap_ms: f64,
    /// How much the guest's raw clock fell behind the host's.
    pub clock_stood_ms: f64,
    /// Largest time without a TCP heartbeat at the guest's peer.
    pub tcp_gap_ms: f64,
    /// Largest time without a UDP heartbeat at the guest's peer.
    pub udp_gap_ms: f64,
    /// UDP heartbeats, or their echoes, and echo requests of the host's own that never arrived.
    pub packets_lost: u64,
    /// How many echo requests the host sent, some of them while the guest stood.
    pub pings: u64,
    /// TCP connections that broke.
    pub reconnects: u64,
    /// Retransmission timers that fired in the guest.
    pub guest_timeouts: u64,
    /// Retransmission timers that fired on the host during the maintenance, for whatever connection. A pause of more than
    /// 200 ms, as on emulated hosts, makes the peer's timer fire: nobody answered it for so long.
    pub host_timeouts: u64,
    /// TCP segments the guest sent again without a timer (tail loss probes).
    pub retransmitted: u64,
    /// The guest's wall clock afterwards, less the host's, asked from outside.
    pub clock_error_ms: f64,
    /// How exactly that is known: half a round trip.
    pub clock_known_to_ms: f64,
    /// What the report says of the clock.
    pub clock_report: Value,
    /// Wrong pages of the memory witness so far.
    pub memory_errors: u64,
    /// Failed writes of the disk witness so far.
    pub disk_errors: u64,
    /// The guest runs on without a boot in between.
    pub boot_id_kept: bool,
    /// How long each act on the VM took.
    pub acts_ms: BTreeMap<String, f64>,
}

/// What a guest says of itself, and its clocks against the host's.
pub(crate) struct Snapshot {
    pub(crate) report: Report,
    pub(crate) offset: Offset,
}

pub(crate) fn snapshot(host: &Host, guest: &Guest) -> Result<Snapshot> {
    let address = format!("10.77.0.{}:{CONTROL_PORT}", guest.last);
    let text = host.run(&format!("fermata-probe offset {address}")).with_context(|| guest.last_words(host))?;
    let offset = serde_json::from_str(&text).with_context(|| format!("read an offset: {text}"))?;
    Ok(Snapshot { report: guest.probe(host).report()?, offset })
}

/// Retransmission timers that fired on the host itself.
fn host_timeouts(host: &Host) -> Result<u64> {
    let text = host.run("nstat -asz TcpExtTCPTimeouts | awk '/TCPTimeouts/{print $2}'")?;
    text.trim().parse().with_context(|| format!("read the host's TCP counters: {text}"))
}

/// The VMM that runs a VM.
///
/// # Errors
/// It does not run.
pub fn vmm_of(host: &Host, vm: &str) -> Result<String> {
    let view: Value = serde_json::from_str(&host.run(&format!("fermata --json vm show {vm}"))?)?;
    Ok(view["process"]["vmm"].as_str().with_context(|| format!("VM {vm} does not run"))?.to_owned())
}

/// Applies an update that concerns these guests alone, and tells what each of them felt.
///
/// # Errors
/// The update is refused, or something does not answer. A maintenance that failed is no error: its outcome is told.
pub fn swap(host: &Host, guests: &[Guest], update: &Update) -> Result<Vec<Swap>> {
    let timeouts = host_timeouts(host)?;
    let mut before = Vec::new();
    for guest in guests {
        before.push((vmm_of(host, &guest.name)?, snapshot(host, guest)?));
    }
    let senders = host.sink_report()?.senders;
    let pings = guests.iter().map(|guest| Pings::begin(host, guest, guests.len())).collect::<Result<Vec<_>>>()?;
    let report = apply(host, guests, update)?;
    let pings = pings.into_iter().map(Pings::missing).collect::<Result<Vec<_>>>()?;
    let timeouts = host_timeouts(host)? - timeouts;
    let after_senders = host.sink_report()?.senders;
    let mut swaps = Vec::new();
    for ((guest, (from, before)), (unanswered, pings)) in guests.iter().zip(before).zip(pings) {
        let after = snapshot(host, guest)?;
        let to = vmm_of(host, &guest.name)?;
        let sender = |senders: &[Sender]| senders.iter().find(|s| s.address == address(guest)).cloned();
        let peers = (sender(&senders), sender(&after_senders));
        let (Some(peer_before), Some(peer)) = peers else { bail!("the sink hears nothing of {}", guest.name) };
        let told = Told::of(&report, &guest.name);
        let (net_before, net) = (before.report.net.unwrap_or_default(), after.report.net.unwrap_or_default());
        let gaps = &after.report.gaps.largest;
        let sample_gap = gaps.iter().map(|gap| gap.raw_ns).max().unwrap_or(0);
        let stood = after.offset.raw_behind_ns - before.offset.raw_behind_ns;
        swaps.push(Swap {
            vm: guest.name.clone(),
            vcpus: guest.vcpus,
            memory_mib: guest.memory_mib,
            company: (guests.len(), update.parallelism),
            way: way(&from, &to),
            from,
            to,
            outcome: told.outcome,
            host_blackout_ms: told.host_blackout_ms,
            guest_blackout_ms: signed_ms(blackout(gaps, &before.offset, &after.offset, told.pause)),
            sample_gap_ms: ms(sample_gap),
            clock_stood_ms: signed_ms(stood),
            tcp_gap_ms: ms(peer.tcp.gap_ns),
            udp_gap_ms: ms(peer.udp.gap_ns),
            packets_lost: net.udp.missing.saturating_sub(net_before.udp.missing) + unanswered,
            pings,
            reconnects: net.tcp_reconnects - net_before.tcp_reconnects + (peer.connections - peer_before.connections),
            guest_timeouts: net.tcp_timeouts - net_before.tcp_timeouts,
            host_timeouts: timeouts,
            retransmitted: net.tcp_retransmitted - net_before.tcp_retransmitted,
            clock_error_ms: signed_ms(after.offset.wall_error_ns),
            clock_known_to_ms: signed_ms(after.offset.half_trip_ns),
            clock_report: told.clock,
            memory_errors: after.report.memory.map_or(0, |memory| memory.errors),
            disk_errors: after.report.disk.map_or(0, |disk| disk.errors),
            boot_id_kept: before.report.clocks.boot_id == after.report.clocks.boot_id,
            acts_ms: told.acts_ms,
        });
    }
    Ok(swaps)
}

/// How long a guest did nothing around a pause (its begin and end by the host's wall clock, in nanoseconds since 1970), in nanoseconds:
/// of the gaps between its samples the one that holds the pause, with the time its clock stood.
///
/// Before the pause the guest's raw clock is behind the host's by what `before` says, after it by what `after` says; so the ends of a gap
/// across the pause are known on the host's raw clock. A pause that is in none of the gaps, or that is not known, is taken to be in the
/// largest: never less than what was missed.
#[must_use]
pub fn blackout(gaps: &[Gap], before: &Offset, after: &Offset, pause: Option<(i64, i64)>) -> i64 {
    let signed = |ns: u64| i64::try_from(ns).unwrap_or(i64::MAX);
    let stood = (after.raw_behind_ns - before.raw_behind_ns).max(0);
    // As exactly as both ends can be known: the readings, and the microseconds of the VMM's time stamps.
    let slack = before.half_trip_ns + after.half_trip_ns + 1_000_000;
    let around = |gap: &&Gap| {
        pause.is_some_and(|(stopped, resumed)| {
            let end = signed(gap.end_raw_ns) + after.raw_behind_ns + after.wall_less_raw_ns;
            let begin = end - signed(gap.raw_ns) - stood;
            begin <= stopped + slack && end >= resumed - slack
        })
    };
    let longest = |gap: &Gap| signed(gap.raw_ns);
    let gap = gaps.iter().filter(around).map(longest).max().or_else(|| gaps.iter().map(longest).max());
    gap.unwrap_or(0) + stood
}

/// An older VMM does not read what a newer one sends over `cpr-transfer`; then a file is the way.
#[must_use]
pub fn way(from: &str, to: &str) -> &'static str {
    let number = |version: &str| -> Vec<u32> { version.split('.').filter_map(|part| part.parse().ok()).collect() };
    if number(to) < number(from) { "file" } else { "transfer" }
}

pub(crate) fn address(guest: &Guest) -> IpAddr {
    IpAddr::from([10, 77, 0, guest.last])
}

pub(crate) fn ms(ns: u64) -> f64 {
    Duration::from_nanos(ns).as_secs_f64() * 1e3
}

pub(crate) fn signed_ms(ns: i64) -> f64 {
    ms(ns.unsigned_abs()).copysign(if ns < 0 { -1.0 } else { 1.0 })
}

/// Applies it, tells every probe and the sink when nothing but the pause is left, and gives the report.
fn apply(host: &Host, guests: &[Guest], update: &Update) -> Result<Value> {
    host.write("/tmp/swap.toml", &update.toml())?;
    let marks: Vec<String> =
        guests.iter().map(|guest| format!("fermata-probe ask {}:{CONTROL_PORT} mark;", address(guest))).collect();
    let script = format!(
        "mark() {{ {} fermata-probe ask 127.0.0.1:{SINK_CONTROL_PORT} mark; }} >/dev/null
         mark; rm -f /tmp/swap.out
         fermata update apply /tmp/swap.toml 2>&1 >/tmp/swap.out | while read -r line; do
           case \"$line\" in *': Lead') mark;; esac; echo \"$line\" >&2
         done; head -n 1 /tmp/swap.out",
        marks.join(" ")
    );
    let output = host.exec_within(&script, LIMIT)?;
    // The first line of the report, or any line of the progress, names the maintenance.
    let lines = output.stdout.lines().filter_map(|line| line.strip_prefix("maintenance ")).chain(output.stderr.lines());
    let id = lines.filter_map(|line| line.split_once(": ")).map(|(id, _)| id).find(|id| id.starts_with("to-"));
    let Some(id) = id else { bail!("{} was not begun: {}", update.toml(), output.stderr) };
    let text = host.run(&format!("fermata --json maintenance show {id}"))?;
    serde_json::from_str(&text).with_context(|| format!("read the report of {id}"))
}

/// What a report says of one VM.
struct Told {
    outcome: String,
    host_blackout_ms: Option<f64>,
    /// The last pause: begin and end by the host's wall clock, in nanoseconds.
    pause: Option<(i64, i64)>,
    clock: Value,
    acts_ms: BTreeMap<String, f64>,
}

impl Told {
    fn of(report: &Value, vm: &str) -> Self {
        let none = Vec::new();
        let vms = report["vms"].as_array().unwrap_or(&none);
        let told = vms.iter().find(|told| told["vm"] == vm).cloned().unwrap_or_default();
        let micros = |value: &Value| value.as_f64().map(|us| us / 1e3);
        let pauses = told["host_blackouts"].as_array().unwrap_or(&none);
        let mut acts_ms: BTreeMap<String, f64> = BTreeMap::new();
        for act in told["acts"].as_array().unwrap_or(&none) {
            *acts_ms.entry(act["what"].as_str().unwrap_or("?").to_owned()).or_default() +=
                micros(&act["took_us"]).unwrap_or(0.0);
        }
        let word = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
        let trouble = report["trouble"]["text"].as_str().map(|text| format!(" ({text})")).unwrap_or_default();
        Self {
            outcome: format!("{}: {}{trouble}", word(&report["outcome"]), word(&told["end"]["kind"])),
            host_blackout_ms: pauses.iter().filter_map(micros).reduce(f64::max),
            pause: pause(report, vm),
            clock: told["clock"].clone(),
            acts_ms,
        }
    }
}

/// The last pause of a VM by the report of a maintenance: begin and end by the host's wall clock, in nanoseconds since 1970.
pub(crate) fn pause(report: &Value, vm: &str) -> Option<(i64, i64)> {
    let told = report["vms"].as_array()?.iter().find(|told| told["vm"] == vm)?;
    let ns = |value: &Value| value.as_i64().map(|us| us * 1000);
    let begin = ns(&report["ordered"])? + ns(told["blackouts_began"].as_array()?.last()?)?;
    Some((begin, begin + ns(told["host_blackouts"].as_array()?.last()?)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_a_step_down_goes_by_file() {
        assert_eq!((way("10.0", "11.1"), way("11.1", "10.0")), ("transfer", "file"));
        assert_eq!((way("9.2", "10.0"), way("10.0", "10.0")), ("transfer", "transfer"));
    }

    #[test]
    fn the_gap_that_holds_the_pause_counts_and_not_the_largest() {
        const MS: i64 = 1_000_000;
        let offset =
            |raw_behind_ns| Offset { raw_behind_ns, wall_error_ns: 0, wall_less_raw_ns: 1000 * MS, half_trip_ns: MS };
        let gap = |end: u64, raw: u64| Gap {
            end_wall_ns: 0,
            end_raw_ns: end * 1_000_000,
            raw_ns: raw * 1_000_000,
            tsc_ns: 0,
        };
        // The guest's clock is 100 ms behind, stands for 200 ms, and is 300 ms behind then. The pause: 2000 to 2200 of the host's wall.
        let (before, after) = (offset(100 * MS), offset(300 * MS));
        let gaps = [gap(700, 40), gap(903, 5), gap(1500, 30)];
        let pause = Some((2000 * MS, 2200 * MS));
        assert_eq!(blackout(&gaps, &before, &after, pause), 205 * MS);
        assert_eq!(blackout(&gaps, &before, &after, None), 240 * MS, "not known: never too little");
        assert_eq!(blackout(&gaps[..1], &before, &after, pause), 240 * MS);
    }

    #[test]
    fn a_report_is_read_as_it_is_written() {
        let report = json!({"outcome": "failed", "ordered": 4500, "trouble": {"text": "no"}, "vms": [{"vm": "a", "host_blackouts": [1500, 2500], "blackouts_began": [null, 2000],
            "end": {"kind": "as_before"}, "clock": null, "acts": [{"what": "arm", "took_us": 1000}, {"what": "arm", "took_us": 500}]}]});
        let told = Told::of(&report, "a");
        assert_eq!(told.outcome, "failed: as_before (no)");
        assert_eq!(told.host_blackout_ms, Some(2.5));
        assert_eq!(told.pause, Some((6_500_000, 9_000_000)));
        assert_eq!(told.acts_ms["arm"], 1.5);
    }
}
