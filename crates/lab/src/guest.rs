//! The probes inside the guests, and the sink inside a host, read as data.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};
use fermata_probe::{
    CONTROL_PORT, SINK_CONTROL_PORT,
    clock::Clocks,
    report::{Answer, MemoryReport, Report, SinkReport},
};

use crate::host::Host;

/// A probe in a guest of a host.
#[derive(Debug, Clone, Copy)]
pub struct Probe<'a> {
    host: &'a Host,
    address: Ipv4Addr,
}

impl<'a> Probe<'a> {
    /// The probe of the guest with an address, asked from its host.
    #[must_use]
    pub fn new(host: &'a Host, address: Ipv4Addr) -> Self {
        Self { host, address }
    }

    /// Waits until it answers.
    ///
    /// # Errors
    /// It does not, within `seconds`.
    pub fn wait_alive(&self, seconds: u64) -> Result<Clocks> {
        let ask = format!("fermata-probe ask {}:{CONTROL_PORT} clock", self.address);
        let script = format!("timeout {seconds} sh -c 'until {ask} 2>/dev/null; do sleep 0.2; done'");
        let output = self.host.exec_within(&script, std::time::Duration::from_secs(seconds + 30))?;
        match serde_json::from_str(&output.stdout) {
            Ok(Answer::Clock(clocks)) => Ok(clocks),
            _ => bail!("the probe at {} on {} was not alive within {seconds} s", self.address, self.host.name),
        }
    }

    /// Everything it knows.
    ///
    /// # Errors
    /// It does not answer.
    pub fn report(&self) -> Result<Report> {
        match self.ask("report")? {
            Answer::Report(report) => Ok(*report),
            other => bail!("the probe at {} answered {other:?}", self.address),
        }
    }

    /// Its clocks.
    ///
    /// # Errors
    /// It does not answer.
    pub fn clocks(&self) -> Result<Clocks> {
        match self.ask("clock")? {
            Answer::Clock(clocks) => Ok(clocks),
            other => bail!("the probe at {} answered {other:?}", self.address),
        }
    }

    /// Forgets the gaps so far.
    ///
    /// # Errors
    /// It does not answer.
    pub fn mark(&self) -> Result<()> {
        match self.ask("mark")? {
            Answer::Marked => Ok(()),
            other => bail!("the probe at {} answered {other:?}", self.address),
        }
    }

    /// Checks all its memory now.
    ///
    /// # Errors
    /// It does not answer, or has no memory under watch.
    pub fn verify_memory(&self) -> Result<MemoryReport> {
        match self.ask("verify")? {
            Answer::Memory(report) => Ok(report),
            other => bail!("the probe at {} answered {other:?}", self.address),
        }
    }

    fn ask(&self, what: &str) -> Result<Answer> {
        ask(self.host, &format!("{}:{CONTROL_PORT}", self.address), what)
    }
}

impl Host {
    /// The probe of a guest by the lab's rule: the last byte of its MAC is the last byte of its address.
    #[must_use]
    pub fn probe(&self, last_byte: u8) -> Probe<'_> {
        Probe::new(self, Ipv4Addr::new(10, 77, 0, last_byte))
    }

    /// What the sink of this host received from guests.
    ///
    /// # Errors
    /// It does not answer.
    pub fn sink_report(&self) -> Result<SinkReport> {
        match ask(self, &format!("127.0.0.1:{SINK_CONTROL_PORT}"), "report")? {
            Answer::Sink(report) => Ok(report),
            other => bail!("the sink on {} answered {other:?}", self.name),
        }
    }

    /// Makes the sink forget its gaps.
    ///
    /// # Errors
    /// It does not answer.
    pub fn sink_mark(&self) -> Result<()> {
        ask(self, &format!("127.0.0.1:{SINK_CONTROL_PORT}"), "mark").map(drop)
    }
}

fn ask(host: &Host, address: &str, what: &str) -> Result<Answer> {
    let text = host.run(&format!("fermata-probe ask {address} {what}"))?;
    serde_json::from_str(&text).with_context(|| format!("read what a probe said: {text}"))
}
