//! Requests to a probe and what it answers: JSON, one value a line.

use serde::{Deserialize, Serialize};

use crate::{beat::Arrivals, clock::Clocks, gap::Gaps};

/// A question to a probe or a sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Request {
    /// Everything at once.
    Report,
    /// The clocks, read while the request is answered.
    Clock,
    /// Forget gaps and network gaps so far: what comes later is measured from here.
    Mark,
    /// Check all witness memory now, however long that takes.
    VerifyMemory,
}

/// The answer to a [`Request`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// To [`Request::Report`], from a guest.
    Report(Box<Report>),
    /// To [`Request::Report`], from a sink.
    Sink(SinkReport),
    /// To [`Request::Clock`].
    Clock(Clocks),
    /// To [`Request::Mark`].
    Marked,
    /// To [`Request::VerifyMemory`].
    Memory(MemoryReport),
    /// The request could not be answered.
    Refused {
        /// Why, and what would work.
        reason: String,
    },
}

/// A line that a probe writes on its console, after [`crate::CONSOLE_PREFIX`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ConsoleLine {
    /// The probe runs and its control port answers.
    Alive(Clocks),
    /// Now and then: that the guest lives on, and how well. Short: the driver of a serial port holds a guest's processor while it writes, and each
    /// byte leaves the guest (seen: 1.5 s for a whole [`Report`] in an emulated host, every ten seconds).
    Status {
        /// Monotonic clock, in seconds.
        up_s: u64,
        /// Largest gap between samples since the last mark, in milliseconds.
        gap_ms: u64,
        /// What the witnesses found wrong.
        wrong: u64,
    },
}

/// All that a probe in a guest knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// All clocks at the instant of the report.
    pub clocks: Clocks,
    /// Gaps between samples since the last mark.
    pub gaps: Gaps,
    /// The memory witness, if one was asked for.
    pub memory: Option<MemoryReport>,
    /// The disk witness, if one was asked for.
    pub disk: Option<DiskReport>,
    /// Heartbeats sent, and the echoes that came back, if there is a target.
    pub net: Option<NetReport>,
}

impl Report {
    /// What of it goes to the console.
    #[must_use]
    pub fn status(&self) -> ConsoleLine {
        ConsoleLine::Status {
            up_s: self.clocks.monotonic_ns / 1_000_000_000,
            gap_ms: self.gaps.max_ns() / 1_000_000,
            wrong: self.memory.as_ref().map_or(0, |memory| memory.errors)
                + self.disk.as_ref().map_or(0, |disk| disk.errors),
        }
    }
}

/// The memory witness.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryReport {
    /// Memory under watch, in MiB.
    pub mib: u64,
    /// Pages checked so far.
    pub checked: u64,
    /// Pages that did not hold what was written last.
    pub errors: u64,
    /// The first wrong page, in words.
    pub first_error: Option<String>,
}

/// The disk witness.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskReport {
    /// Number of the last record whose sync succeeded; 0 before the first.
    pub acknowledged: u64,
    /// Writes or syncs that failed.
    pub errors: u64,
    /// The last failure, in words.
    pub last_error: Option<String>,
    /// Longest time from write to successful sync, in nanoseconds of the monotonic clock.
    pub slowest_ns: u64,
}

/// Heartbeats as the sender sees them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetReport {
    /// UDP heartbeats sent.
    pub udp_sent: u64,
    /// UDP heartbeats that came back.
    pub udp: Arrivals,
    /// TCP heartbeats sent.
    pub tcp_sent: u64,
    /// TCP heartbeats that came back, in order.
    pub tcp: Arrivals,
    /// How often the TCP connection was lost (0 is the promise).
    pub tcp_reconnects: u64,
    /// Retransmission timers of this guest's kernel that fired (`TCPTimeouts`).
    pub tcp_timeouts: u64,
    /// Segments that this guest's kernel sent again (`RetransSegs`).
    pub tcp_retransmitted: u64,
}

/// Heartbeats as a sink sees them, one entry for each sender.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SinkReport {
    /// By address of the sender, in the order they appeared.
    pub senders: Vec<Sender>,
}

/// One sender of heartbeats.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender {
    /// Address of the guest.
    pub address: std::net::IpAddr,
    /// Its UDP heartbeats.
    pub udp: Arrivals,
    /// Its TCP heartbeats, over all connections.
    pub tcp: Arrivals,
    /// TCP connections it made; more than one means that one broke.
    pub connections: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gap::{Gap, KEPT};

    #[test]
    fn a_line_on_the_console_is_short_however_much_there_is_to_tell() {
        let gap = Gap { end_wall_ns: u64::MAX, end_raw_ns: u64::MAX, raw_ns: 3_500_000_000, tsc_ns: 0 };
        let gaps = Gaps { largest: vec![gap; KEPT], ..Gaps::default() };
        let memory = Some(MemoryReport { errors: 2, ..MemoryReport::default() });
        let report = Report { clocks: Clocks::now(), gaps, memory, disk: None, net: None };
        let status = report.status();
        assert!(matches!(status, ConsoleLine::Status { gap_ms: 3500, wrong: 2, .. }), "{status:?}");
        assert!(serde_json::to_string(&status).unwrap().len() < 100);
    }
}
