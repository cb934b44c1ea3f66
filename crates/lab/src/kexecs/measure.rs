//! What guests felt of something that was done to their host, measured from another host: its clocks and its end of their
//! connections live through it.

use anyhow::{Context, Result};
use fermata_probe::offset::Offset;
use serde::Serialize;
use serde_json::Value;

use crate::{
    host::Host,
    swaps::{
        guest::Guest,
        measure::{self, Snapshot},
    },
};

/// What one guest felt. Times in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Felt {
    /// The VM.
    pub vm: String,
    /// From its last sample before the pause to its first one after it: how far its clock fell behind the other host's, and the gap that
    /// holds the pause. Where the pause is not known, its largest gap.
    pub guest_blackout_ms: f64,
    /// The largest gap between its samples from the order to the end, wherever in it: what else there was to do on its host.
    pub sample_gap_ms: f64,
    /// Largest time without a UDP heartbeat at the other host.
    pub udp_gap_ms: f64,
    /// Largest time without a TCP heartbeat at the other host.
    pub tcp_gap_ms: f64,
    /// Connections that broke.
    pub reconnects: u64,
    /// UDP heartbeats, or their echoes, that never arrived.
    pub packets_lost: u64,
    /// Its wall clock afterwards against what its host's would say if nothing had been done, by the other host's clock.
    pub clock_error_ms: f64,
    /// How exactly that is known: the half round trips of all readings.
    pub clock_known_to_ms: f64,
    /// Wrong pages of all its memory under watch.
    pub memory_errors: u64,
    /// Failed writes to its disk.
    pub disk_errors: u64,
    /// It runs on without a boot in between.
    pub boot_id_kept: bool,
}

/// Guests as they were.
pub struct Before {
    snapshots: Vec<Snapshot>,
    /// How far each guest's clock was from its own host's.
    at_home: Vec<Offset>,
}

/// Makes all of them, and their peer, forget what was.
///
/// # Errors
/// One does not answer.
pub fn before(host: &Host, peer: &Host, guests: &[Guest]) -> Result<Before> {
    let (mut snapshots, mut at_home) = (Vec::new(), Vec::new());
    for guest in guests {
        at_home.push(measure::snapshot(host, guest)?.offset);
        snapshots.push(measure::snapshot(peer, guest)?);
        guest.probe(peer).mark()?;
    }
    peer.sink_mark()?;
    Ok(Before { snapshots, at_home })
}

/// What each of them felt since, in a maintenance with this report if it was one.
///
/// # Errors
/// One does not answer.
pub fn since(before: &Before, peer: &Host, guests: &[Guest], report: Option<&Value>) -> Result<Vec<Felt>> {
    let mut felt = Vec::new();
    for ((guest, before), at_home) in guests.iter().zip(&before.snapshots).zip(&before.at_home) {
        guest.probe(peer).wait_alive(120)?;
        let after = measure::snapshot(peer, guest)?;
        let memory = guest.probe(peer).verify_memory()?;
        let senders = peer.sink_report()?.senders;
        let sender = senders.iter().find(|sender| sender.address == measure::address(guest));
        let sender = sender.with_context(|| format!("{} hears nothing of {}", peer.name, guest.name))?;
        let (net, net_before) =
            (after.report.net.clone().unwrap_or_default(), before.report.net.clone().unwrap_or_default());
        // The report has the pause by the clock of the guest's own host.
        let ahead = at_home.wall_error_ns - before.offset.wall_error_ns;
        let pause = report.and_then(|report| measure::pause(report, &guest.name));
        let pause =
            pause.map(|(begin, end)| (begin + ahead - at_home.half_trip_ns, end + ahead + at_home.half_trip_ns));
        let gaps = &after.report.gaps.largest;
        let blackout = measure::blackout(gaps, &before.offset, &after.offset, pause);
        felt.push(Felt {
            vm: guest.name.clone(),
            guest_blackout_ms: measure::signed_ms(blackout),
            sample_gap_ms: measure::ms(gaps.iter().map(|gap| gap.raw_ns).max().unwrap_or(0)),
            udp_gap_ms: measure::ms(sender.udp.gap_ns),
            tcp_gap_ms: measure::ms(sender.tcp.gap_ns),
            reconnects: net.tcp_reconnects - net_before.tcp_reconnects,
            packets_lost: net.udp.missing.saturating_sub(net_before.udp.missing),
            clock_error_ms: measure::signed_ms(
                after.offset.wall_error_ns - before.offset.wall_error_ns + at_home.wall_error_ns,
            ),
            clock_known_to_ms: measure::signed_ms(
                after.offset.half_trip_ns + before.offset.half_trip_ns + at_home.half_trip_ns,
            ),
            memory_errors: memory.errors,
            disk_errors: after.report.disk.as_ref().map_or(0, |disk| disk.errors),
            boot_id_kept: after.report.clocks.boot_id == before.report.clocks.boot_id,
        });
    }
    Ok(felt)
}

/// The longest pause of a VM by the report of a maintenance, STOP to RESUME, in milliseconds.
#[must_use]
pub fn host_blackout_ms(report: &Value, vm: &str) -> Option<f64> {
    let told = report["vms"].as_array()?.iter().find(|told| told["vm"] == vm)?;
    let longest = told["host_blackouts"].as_array()?.iter().filter_map(Value::as_f64).reduce(f64::max)?;
    Some(longest / 1e3)
}

/// When each act of a VM began and ended, in milliseconds from its pause, by the report; acts before it have negative times.
#[must_use]
pub fn acts_ms(report: &Value, vm: &str) -> Vec<(String, f64, f64)> {
    let none = Vec::new();
    let vms = report["vms"].as_array().unwrap_or(&none);
    let told = vms.iter().find(|told| told["vm"] == vm).cloned().unwrap_or_default();
    let Some(pause) = told["blackouts_began"].as_array().and_then(|all| all.last()).and_then(Value::as_f64) else {
        return Vec::new();
    };
    let acts = told["acts"].as_array().unwrap_or(&none).iter();
    acts.filter_map(|act| {
        let (from, took) = (act["from_us"].as_f64()?, act["took_us"].as_f64()?);
        Some((act["what"].as_str()?.to_owned(), (from - pause) / 1e3, (from + took - pause) / 1e3))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn acts_are_told_from_the_pause_on() {
        let report = json!({"vms": [{"vm": "a", "host_blackouts": [9_000_000], "blackouts_began": [1_000_000],
            "acts": [{"what": "save", "from_us": 1_500_000, "took_us": 250_000}, {"what": "old", "took_us": 1}]}]});
        assert_eq!(acts_ms(&report, "a"), [("save".to_owned(), 500.0, 750.0)]);
        assert_eq!(host_blackout_ms(&report, "a"), Some(9000.0));
        assert_eq!(host_blackout_ms(&report, "b"), None);
    }
}
