//! Heartbeats: small numbered messages every few milliseconds over UDP and TCP, and who counts them.
//!
//! A message is sixteen bytes: sequence number and the sender's monotonic clock in nanoseconds, little endian. A sink sends
//! each one back, so that the guest sees both directions and the sink sees one.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream, UdpSocket},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use rustix::time::ClockId;
use serde::{Deserialize, Serialize};

use crate::{clock, report::NetReport};

/// Length of a heartbeat on the wire, in bytes.
pub const LENGTH: usize = 16;

/// A TCP connection without progress for this long is given up and made anew: longer than any pause that is planned.
const STUCK: Duration = Duration::from_secs(120);

/// Sequence numbers and times of what arrived.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrivals {
    /// Messages that arrived, duplicates included.
    pub received: u64,
    /// Highest sequence number that arrived.
    pub highest: u64,
    /// Numbers below the highest that have not arrived (late ones are taken off again).
    pub missing: u64,
    /// Messages that arrived again, as far as can be told: late ones beyond those missing.
    pub duplicates: u64,
    /// Largest time between two arrivals since the last mark, in nanoseconds.
    pub gap_ns: u64,
    /// Wall clock of the receiver at the end of that gap, in nanoseconds since 1970.
    pub gap_end_wall_ns: u64,
    /// Receiver's raw clock at the last arrival, in nanoseconds; not for comparing between machines.
    last_raw_ns: u64,
}

impl Arrivals {
    /// A message with this number arrived now.
    pub fn arrived(&mut self, number: u64, raw_ns: u64, wall_ns: u64) {
        let gap = raw_ns.saturating_sub(self.last_raw_ns);
        if self.received > 0 && gap > self.gap_ns {
            self.gap_ns = gap;
            self.gap_end_wall_ns = wall_ns;
        }
        self.last_raw_ns = raw_ns;
        if number > self.highest {
            // The first message sets the start: a sink may be younger than its sender.
            self.missing += if self.received == 0 { 0 } else { number - self.highest - 1 };
            self.highest = number;
        } else if self.missing > 0 {
            self.missing -= 1;
        } else {
            self.duplicates += 1;
        }
        self.received += 1;
    }

    /// Forgets the largest gap.
    pub fn mark(&mut self) {
        self.gap_ns = 0;
        self.gap_end_wall_ns = 0;
    }
}

/// Writes a heartbeat.
#[must_use]
pub fn encode(number: u64) -> [u8; LENGTH] {
    let mut message = [0; LENGTH];
    message[..8].copy_from_slice(&number.to_le_bytes());
    message[8..].copy_from_slice(&clock::ns(ClockId::Monotonic).to_le_bytes());
    message
}

/// Reads the number of a heartbeat.
#[must_use]
pub fn decode(message: &[u8; LENGTH]) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&message[..8]);
    u64::from_le_bytes(number)
}

/// Starts sending to a sink, forever, in threads of its own; `net` is kept up to date.
pub fn start(target: SocketAddr, every: Duration, net: &Arc<Mutex<NetReport>>) {
    let (udp, tcp) = (Arc::clone(net), Arc::clone(net));
    thread::spawn(move || {
        loop {
            // Without a route yet, or with the target gone: the next try is as good as any.
            let _ = udp_beats(target, every, &udp);
            clock::rest(Duration::from_millis(200));
        }
    });
    thread::spawn(move || {
        loop {
            let before = lock(&tcp).tcp_sent;
            let _ = tcp_beats(target, every, &tcp);
            let mut report = lock(&tcp);
            report.tcp_reconnects += u64::from(report.tcp_sent > before);
            drop(report);
            clock::rest(Duration::from_millis(200));
        }
    });
}

fn lock(net: &Mutex<NetReport>) -> std::sync::MutexGuard<'_, NetReport> {
    net.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn udp_beats(target: SocketAddr, every: Duration, net: &Arc<Mutex<NetReport>>) -> std::io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(target)?;
    let (receiver, report) = (socket.try_clone()?, Arc::clone(net));
    receiver.set_read_timeout(Some(Duration::from_secs(1)))?;
    let alive = Arc::new(());
    let watched = Arc::downgrade(&alive);
    let echo = thread::spawn(move || {
        let mut message = [0; LENGTH];
        while watched.strong_count() > 0 {
            if let Ok(LENGTH) = receiver.recv(&mut message) {
                lock(&report).udp.arrived(
                    decode(&message),
                    clock::ns(ClockId::MonotonicRaw),
                    clock::ns(ClockId::Realtime),
                );
            }
        }
    });
    let mut pace = Pace::new(every);
    loop {
        let number = lock(net).udp_sent + 1;
        match socket.send(&encode(number)) {
            // A target that refuses for a moment is part of what is measured; the heartbeat counts as sent.
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
            Err(error) => {
                drop(alive);
                let _ = echo.join();
                return Err(error);
            }
        }
        lock(net).udp_sent = number;
        pace.wait();
    }
}

fn tcp_beats(target: SocketAddr, every: Duration, net: &Arc<Mutex<NetReport>>) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(10))?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(STUCK))?;
    let (mut receiver, report) = (stream.try_clone()?, Arc::clone(net));
    let echo = thread::spawn(move || {
        let mut message = [0; LENGTH];
        while receiver.read_exact(&mut message).is_ok() {
            lock(&report).tcp.arrived(decode(&message), clock::ns(ClockId::MonotonicRaw), clock::ns(ClockId::Realtime));
        }
        let _ = receiver.shutdown(Shutdown::Both);
    });
    let mut pace = Pace::new(every);
    let broken = loop {
        let number = lock(net).tcp_sent + 1;
        if let Err(error) = stream.write_all(&encode(number)) {
            break error;
        }
        lock(net).tcp_sent = number;
        pace.wait();
    };
    let _ = stream.shutdown(Shutdown::Both);
    let _ = echo.join();
    Err(broken)
}

/// A steady pace that does not try to catch up after a pause: the beats of a pause were never sent.
struct Pace {
    every: Duration,
    next: Instant,
}

impl Pace {
    fn new(every: Duration) -> Self {
        Self { every, next: Instant::now() + every }
    }

    fn wait(&mut self) {
        let now = Instant::now();
        clock::rest(self.next.saturating_duration_since(now));
        self.next = self.next.max(now) + self.every;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_late_and_doubled_messages_are_told_apart() {
        let mut arrivals = Arrivals::default();
        for number in [5, 6, 9, 7, 9] {
            arrivals.arrived(number, number * 1_000, 0);
        }
        assert_eq!((arrivals.highest, arrivals.missing, arrivals.received), (9, 0, 5));
        arrivals.arrived(9, 9_000, 0);
        assert_eq!(arrivals.duplicates, 1);
        arrivals.arrived(12, 20_000, 77);
        assert_eq!((arrivals.missing, arrivals.gap_ns, arrivals.gap_end_wall_ns), (2, 11_000, 77));
        arrivals.mark();
        assert_eq!(arrivals.gap_ns, 0);
    }
}
