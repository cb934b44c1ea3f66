//! A guest's clocks against those of the machine that asks: several readings, the sharpest counts.
//!
//! QEMU resumes a VM with its clocks where they stood, so no clock *inside* the guest shows a pause. From outside it does: the
//! guest's raw clock falls behind the host's by exactly the time it stood ([`Offset::raw_behind_ns`] after less before).

use std::{net::SocketAddr, time::Duration};

use rustix::time::ClockId;
use serde::{Deserialize, Serialize};

use crate::{
    clock,
    control::{AskError, ask},
    report::{Answer, Request},
};

/// How many readings are taken.
const READINGS: usize = 12;

/// How far a guest's clocks are from the asking machine's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offset {
    /// Host's raw clock less the guest's, in nanoseconds: only changes of it mean something.
    pub raw_behind_ns: i64,
    /// Guest's wall clock less the host's, in nanoseconds.
    pub wall_error_ns: i64,
    /// The asking machine's wall clock less its raw clock, in nanoseconds: turns its time stamps into times of its raw clock.
    pub wall_less_raw_ns: i64,
    /// The first two are known to this, in nanoseconds: half the round trip of the sharpest reading.
    pub half_trip_ns: i64,
}

/// Asks a probe for its clocks.
///
/// # Errors
/// It does not answer.
pub fn measure(address: SocketAddr) -> Result<Offset, AskError> {
    let mut sharpest: Option<Offset> = None;
    for _ in 0..READINGS {
        let (raw, wall) = (now(ClockId::MonotonicRaw), now(ClockId::Realtime));
        let answer = ask(address, Request::Clock, Duration::from_secs(10))?;
        let half = (now(ClockId::MonotonicRaw) - raw) / 2;
        let Answer::Clock(guest) = answer else {
            return Err(AskError::Answer { address, answer: format!("{answer:?}") });
        };
        let signed = |ns: u64| i64::try_from(ns).unwrap_or(i64::MAX);
        let offset = Offset {
            raw_behind_ns: raw + half - signed(guest.raw_ns),
            wall_error_ns: signed(guest.wall_ns) - wall - half,
            wall_less_raw_ns: wall - raw,
            half_trip_ns: half,
        };
        if sharpest.is_none_or(|known| offset.half_trip_ns < known.half_trip_ns) {
            sharpest = Some(offset);
        }
    }
    sharpest.ok_or_else(|| AskError::Answer { address, answer: String::new() })
}

fn now(clock: ClockId) -> i64 {
    i64::try_from(clock::ns(clock)).unwrap_or(i64::MAX)
}
