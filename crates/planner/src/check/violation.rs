//! What the checker finds.

use std::fmt;

use fermata_model::{HostName, SetName};
use jiff::Timestamp;
use serde::Serialize;

/// A broken rule, with the objects that break it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the fields are what their names say; the texts below explain them")]
pub enum Violation {
    /// Two parts of a set in work at once (promise P4).
    TwoParts { set: SetName, first: HostName, second: HostName, at: Timestamp },
    /// Less rest between two parts of a set than its recovery time.
    Recovery { set: SetName, first: HostName, second: HostName, rest_s: i64, needed_s: i64 },
    /// A host with two update domains of a set, not allowed by name.
    SelfConflict { host: HostName, set: SetName },
    /// More of a set's VMs in work than its share.
    Share { set: SetName, at: Timestamp, vms: u32, limit: u32 },
    /// More hosts in work than allowed.
    Hosts { at: Timestamp, hosts: u32, limit: u32 },
    /// More hosts of a rack in work than allowed.
    Rack { rack: String, at: Timestamp, hosts: u32, limit: u32 },
    /// In work outside a window.
    Window { host: HostName, start: Timestamp, end: Timestamp },
    /// A stage that begins before the one before it is over and watched.
    Stage { host: HostName, stage: u32, before: u32 },
    /// A host that the inventory does not have.
    UnknownHost { host: HostName },
    /// A host planned too often, or forgotten.
    Count { host: HostName, times: u32, expected: u32 },
    /// A planned time that is not the host's work time.
    WorkTime { host: HostName, expected_s: u32 },
    /// A cordoned host in a plan.
    Cordoned { host: HostName },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TwoParts { set, first, second, at } => {
                write!(
                    f,
                    "availability set {set}: hosts {first} and {second} carry two parts of it and are in work together at {at}"
                )
            }
            Self::Recovery { set, first, second, rest_s, needed_s } => write!(
                f,
                "availability set {set}: {rest_s} s of rest between host {first} and host {second}, {needed_s} s are due"
            ),
            Self::SelfConflict { host, set } => {
                write!(
                    f,
                    "host {host} carries two update domains of availability set {set} and was not allowed by name"
                )
            }
            Self::Share { set, at, vms, limit } => {
                write!(f, "availability set {set}: {vms} VMs in work at {at}, {limit} are allowed")
            }
            Self::Hosts { at, hosts, limit } => write!(f, "{hosts} hosts in work at {at}, {limit} are allowed"),
            Self::Rack { rack, at, hosts, limit } => {
                write!(f, "rack {rack}: {hosts} hosts in work at {at}, {limit} are allowed")
            }
            Self::Window { host, start, end } => write!(f, "host {host} in work outside its windows, {start} to {end}"),
            Self::Stage { host, stage, before } => {
                write!(f, "host {host} of stage {stage} begins before stage {before} is over and watched")
            }
            Self::UnknownHost { host } => write!(f, "host {host} is not in the inventory"),
            Self::Count { host, times, expected } => {
                write!(f, "host {host} is {times} times in the plan, {expected} is right")
            }
            Self::WorkTime { host, expected_s } => {
                write!(f, "host {host} is not planned for its {expected_s} s of work")
            }
            Self::Cordoned { host } => write!(f, "host {host} is cordoned and planned"),
        }
    }
}

/// The checker's result.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[must_use = "violations raise an alarm"]
pub struct Report {
    /// How many visits were looked at.
    pub visits: usize,
    /// How many sets they touch.
    pub sets: usize,
    /// How many rules are broken.
    pub total: usize,
    /// The first of them.
    pub violations: Vec<Violation>,
}

impl Report {
    /// How many violations are kept in words; more are only counted.
    pub const KEPT: usize = 100;

    /// Whether no rule is broken.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.total == 0
    }

    pub(super) fn add(&mut self, violation: Violation) {
        self.total += 1;
        if self.violations.len() < Self::KEPT {
            self.violations.push(violation);
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_clean() {
            return write!(f, "{} visits of {} sets: every rule is kept", self.visits, self.sets);
        }
        writeln!(f, "{} visits of {} sets: {} violations", self.visits, self.sets, self.total)?;
        self.violations.iter().try_for_each(|v| writeln!(f, "  {v}"))
    }
}
