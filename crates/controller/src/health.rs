//! Health gates: which VMs count as healthy. Defined here, carried by rollouts, asked by agents beside the VMs.
//!
//! Two things are asked of every VM, gates or not: that it runs if it is meant to run, and that it was not lost. A gate adds to that. It must
//! pass *before* a visit too: a gate that nobody passes would stop every rollout, and one that cannot be asked would pass
//! everything.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use fermata_model::{SetName, VmName};
use serde::{Deserialize, Serialize};

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// The agent in the guest answers.
    GuestAgent,
    /// A port of the guest takes connections.
    Tcp {
        /// Which.
        port: u16,
    },
    /// A page of the guest is there.
    Http {
        /// The port.
        port: u16,
        /// The page.
        path: String,
        /// The status it must have; any of 200 to 399 when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        status: Option<u16>,
    },
    /// A program on the host ends with status 0. `FERMATA_VM` and `FERMATA_ADDRESS` tell it which guest is meant.
    Command {
        /// Program, with its whole path, and arguments.
        argv: Vec<String>,
    },
}

/// A gate: a check, and who must pass it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthGate {
    /// What is asked.
    pub check: Check,
    /// Only these VMs.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub vms: BTreeSet<VmName>,
    /// Only VMs of these sets.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub sets: BTreeSet<SetName>,
    /// How long an answer may take, in milliseconds.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
}

const fn default_timeout_ms() -> u64 {
    2_000
}

/// Longest time that a gate may take for an answer.
const LONGEST_MS: u64 = 60_000;

/// Why a gate is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// Not one of the kinds.
    #[error("`{0}` is no health gate; write guest-agent, tcp:PORT, http:PORT/PATH or command:/PROGRAM ARGUMENT...")]
    Unknown(String),
    /// A port that is none.
    #[error("health gate {0}: port 0 takes no connections; give 1 to 65535")]
    Port(String),
    /// A page without its slash.
    #[error("health gate {0}: the path of a page begins with `/`")]
    Path(String),
    /// A program that depends on where the agent was started.
    #[error("health gate {0}: the program needs its whole path")]
    Program(String),
    /// Out of range.
    #[error("health gate {gate}: {given} ms is out of range; give 1 to {LONGEST_MS} ms")]
    Timeout {
        /// Which.
        gate: String,
        /// What was given.
        given: u64,
    },
}

impl HealthGate {
    /// The check for all VMs, with the usual time limit.
    #[must_use]
    pub const fn of(check: Check) -> Self {
        Self { check, vms: BTreeSet::new(), sets: BTreeSet::new(), timeout_ms: default_timeout_ms() }
    }

    /// Whether a VM has to pass it.
    #[must_use]
    pub fn concerns(&self, vm: &VmName, set: Option<&SetName>) -> bool {
        let everybody = self.vms.is_empty() && self.sets.is_empty();
        everybody || self.vms.contains(vm) || set.is_some_and(|set| self.sets.contains(set))
    }

    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`GateError`] with the way out.
    pub fn validate(&self) -> Result<(), GateError> {
        let name = || self.to_string();
        match &self.check {
            Check::Tcp { port: 0 } | Check::Http { port: 0, .. } => return Err(GateError::Port(name())),
            Check::Http { path, .. } if !path.starts_with('/') => return Err(GateError::Path(name())),
            Check::Command { argv } if !argv.first().is_some_and(|program| program.starts_with('/')) => {
                return Err(GateError::Program(name()));
            }
            Check::GuestAgent | Check::Tcp { .. } | Check::Http { .. } | Check::Command { .. } => {}
        }
        if !(1..=LONGEST_MS).contains(&self.timeout_ms) {
            return Err(GateError::Timeout { gate: name(), given: self.timeout_ms });
        }
        Ok(())
    }
}

impl fmt::Display for HealthGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.check {
            Check::GuestAgent => f.write_str("guest-agent"),
            Check::Tcp { port } => write!(f, "tcp:{port}"),
            Check::Http { port, path, .. } => write!(f, "http:{port}{path}"),
            Check::Command { argv } => write!(f, "command:{}", argv.join(" ")),
        }
    }
}

impl FromStr for HealthGate {
    type Err = GateError;
    fn from_str(text: &str) -> Result<Self, GateError> {
        let unknown = || GateError::Unknown(text.to_owned());
        let check = match text.split_once(':') {
            None if text == "guest-agent" => Check::GuestAgent,
            Some(("tcp", port)) => Check::Tcp { port: port.parse().map_err(|_| unknown())? },
            Some(("http", rest)) => {
                let (port, path) = rest.split_once('/').unwrap_or((rest, ""));
                Check::Http { port: port.parse().map_err(|_| unknown())?, path: format!("/{path}"), status: None }
            }
            Some(("command", line)) => {
                Check::Command { argv: line.split_whitespace().map(ToOwned::to_owned).collect() }
            }
            _ => return Err(unknown()),
        };
        let gate = Self::of(check);
        gate.validate()?;
        Ok(gate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_reads_as_it_writes() {
        for text in ["guest-agent", "tcp:22", "http:80/healthz", "command:/bin/check now"] {
            assert_eq!(text.parse::<HealthGate>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_gate_that_could_not_tell_anything_is_refused_with_the_way_out() {
        let refusal = |text: &str| text.parse::<HealthGate>().unwrap_err().to_string();
        assert!(refusal("ping").contains("guest-agent, tcp:PORT"));
        assert!(refusal("tcp:0").contains("1 to 65535"));
        assert!(refusal("tcp:70000").contains("tcp:PORT"));
        assert!(refusal("command:check").contains("whole path"));
        let gate = HealthGate { timeout_ms: 0, ..HealthGate::of(Check::GuestAgent) };
        assert!(gate.validate().unwrap_err().to_string().contains("60000"));
    }

    #[test]
    fn a_gate_concerns_everybody_or_those_it_names() {
        let mut gate = HealthGate::of(Check::GuestAgent);
        let (vm, set): (VmName, SetName) = ("a".parse().unwrap(), "web".parse().unwrap());
        assert!(gate.concerns(&vm, None));
        gate.sets.insert(set.clone());
        assert!(!gate.concerns(&vm, None) && gate.concerns(&vm, Some(&set)));
        gate.vms.insert(vm.clone());
        assert!(gate.concerns(&vm, None));
    }
}
