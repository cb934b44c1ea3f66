//! What a host sends to a guest of its own accord, also while the guest stands: heartbeats of the guest are answered only when it sends.
//!
//! Every request is an answer or a loss, however late the answer is.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, Result};

use super::{guest::Guest, measure};
use crate::host::Host;

/// Ten a second to one guest: at least one in every pause, and little work. Several guests share them.
const EVERY: Duration = Duration::from_millis(100);

/// Requests to one guest, until they are counted.
#[derive(Debug)]
pub struct Pings<'a> {
    host: &'a Host,
    unit: String,
}

impl<'a> Pings<'a> {
    /// Begins, to one of so many guests.
    ///
    /// # Errors
    /// The host does not start it.
    pub fn begin(host: &'a Host, guest: &Guest, guests: usize) -> Result<Self> {
        let every = EVERY.as_secs_f64() * f64::from(u32::try_from(guests)?);
        let (unit, address) = (format!("pings-{}", guest.name), measure::address(guest));
        host.run(&format!(
            "systemd-run --quiet --collect --property=KillSignal=SIGINT --unit {unit} sh -c 'exec ping -O -n -i {every} {address} >/run/{unit}'"
        ))?;
        Ok(Self { host, unit })
    }

    /// Ends; how many requests before the last answered one have no answer, and how many there were.
    ///
    /// # Errors
    /// The host does not answer, or the guest never did.
    pub fn missing(self) -> Result<(u64, u64)> {
        let unit = &self.unit;
        let text = self.host.run(&format!("systemctl stop {unit}; cat /run/{unit}"))?;
        missing(&text).with_context(|| format!("no answer at all: {text}"))
    }
}

/// By what `ping -O` prints: `64 bytes from 10.77.0.11: icmp_seq=86 ttl=64 time=316 ms`.
fn missing(text: &str) -> Option<(u64, u64)> {
    let answered = text.lines().filter(|line| line.contains(" time="));
    let number = |line: &str| line.split("icmp_seq=").nth(1)?.split_whitespace().next()?.parse::<u64>().ok();
    let answered: BTreeSet<u64> = answered.filter_map(number).collect();
    let last = *answered.last()?;
    Some((last - u64::try_from(answered.len()).ok()?, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_answer_is_no_loss_and_the_last_request_may_be_under_way() {
        let text = "PING 10.77.0.11 (10.77.0.11) 56(84) bytes of data.\n\
            64 bytes from 10.77.0.11: icmp_seq=1 ttl=64 time=10.6 ms\n\
            no answer yet for icmp_seq=2\n\
            64 bytes from 10.77.0.11: icmp_seq=2 ttl=64 time=316 ms\n\
            no answer yet for icmp_seq=3\n\
            64 bytes from 10.77.0.11: icmp_seq=4 ttl=64 time=7.76 ms\n\
            64 bytes from 10.77.0.11: icmp_seq=4 ttl=64 time=8.76 ms (DUP!)\n\
            no answer yet for icmp_seq=5\n";
        assert_eq!(missing(text), Some((1, 4)));
        assert_eq!(missing("PING\nno answer yet for icmp_seq=1\n"), None);
    }
}
