//! All clocks of a machine, read at one instant.

use std::{fs, time::Duration};

use fermata_vault::tsc::rdtsc;
use rustix::{
    thread::{NanosleepRelativeResult, nanosleep},
    time::{ClockId, Timespec, clock_gettime},
};
use serde::{Deserialize, Serialize};

use crate::gap::Sample;

/// Clocks and identity of a running kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// Wall clock, in nanoseconds since 1970.
    pub wall_ns: u64,
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub monotonic_ns: u64,
    /// `CLOCK_BOOTTIME`, in nanoseconds.
    pub boottime_ns: u64,
    /// `CLOCK_MONOTONIC_RAW`, in nanoseconds.
    pub raw_ns: u64,
    /// Time stamp counter.
    pub tsc: u64,
    /// Changes with every boot of the guest, never by an update of its host.
    pub boot_id: String,
    /// The clock source in use, as the kernel names it.
    pub clocksource: String,
}

impl Clocks {
    /// Reads all clocks.
    #[must_use]
    pub fn now() -> Self {
        let read = |path: &str| fs::read_to_string(path).map_or_else(|_| String::new(), |text| text.trim().to_owned());
        let boot_id = read("/proc/sys/kernel/random/boot_id");
        let clocksource = read("/sys/devices/system/clocksource/clocksource0/current_clocksource");
        Self {
            wall_ns: ns(ClockId::Realtime),
            monotonic_ns: ns(ClockId::Monotonic),
            boottime_ns: ns(ClockId::Boottime),
            raw_ns: ns(ClockId::MonotonicRaw),
            tsc: rdtsc(),
            boot_id,
            clocksource,
        }
    }
}

/// Reads one clock, in nanoseconds.
#[must_use]
pub fn ns(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    u64::try_from(i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)).unwrap_or(0)
}

/// One sample for the gap recorder.
#[must_use]
pub fn sample() -> Sample {
    Sample { raw_ns: ns(ClockId::MonotonicRaw), tsc: rdtsc(), wall_ns: ns(ClockId::Realtime) }
}

/// Waits; what the probe does between two samples or heartbeats, so that it takes next to no processor time.
pub fn rest(time: Duration) {
    let mut left = Timespec::try_from(time).unwrap_or(Timespec { tv_sec: 1, tv_nsec: 0 });
    while let NanosleepRelativeResult::Interrupted(remaining) = nanosleep(&left) {
        left = remaining;
    }
}

/// Measures the frequency of the time stamp counter, in kHz, against the raw monotonic clock; takes `time`.
#[must_use]
pub fn measure_tsc_khz(time: Duration) -> u64 {
    let start = sample();
    rest(time);
    let end = sample();
    let ns = end.raw_ns.saturating_sub(start.raw_ns).max(1);
    let khz = u128::from(end.tsc.saturating_sub(start.tsc)) * 1_000_000 / u128::from(ns);
    u64::try_from(khz).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_run_forward_and_name_their_boot() {
        let first = Clocks::now();
        rest(Duration::from_millis(2));
        let second = Clocks::now();
        assert_eq!(first.boot_id, second.boot_id);
        assert!(!first.boot_id.is_empty());
        assert!(second.monotonic_ns >= first.monotonic_ns + 2_000_000);
        assert!(second.tsc > first.tsc);
    }
}
