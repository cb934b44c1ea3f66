//! What goes to an agent and what comes back.
//!
//! Both directions are levels, not edges: the controller offers the newest order of a host for as long as it stands, the
//! agent offers its newest report. Messages may be lost, doubled, late or out of order without anything depending on it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use fermata_model::{HostName, Mechanism, SetName, VmName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Fences orders of one host: each has a number above all before it. 0 is before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! label_type {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $type(pub String);

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl From<&str> for $type {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }
    };
}

label_type!(
    /// The name of a rollout.
    RolloutId
);
label_type!(
    /// A part of a set that may be under maintenance while the others are not: an update domain, or the value of
    /// whatever label the set is sequenced by.
    Part
);

/// One update as it is ordered: the digest says which bytes were meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UpdateRef {
    /// The update's name.
    pub name: String,
    /// SHA-256 of the update file, in hexadecimal; an agent refuses a file with another digest.
    pub digest: String,
    /// How it reaches the host; never harsher than this (promise P7).
    pub mechanism: Mechanism,
}

/// Who shares one scheduled event.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// All VMs of a set, on whatever host.
    Set(SetName),
    /// A VM that stands alone.
    Vm(VmName),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(set) => write!(f, "set {set}"),
            Self::Vm(vm) => write!(f, "VM {vm}"),
        }
    }
}

/// What an agent is told to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Order {
    /// The host it is for.
    pub host: HostName,
    /// Fences it.
    pub generation: Generation,
    /// The rollout that ordered it.
    pub rollout: RolloutId,
    /// What to do.
    pub task: Task,
}

/// The task of an order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// Announce, wait, do all the updates in one visit.
    Maintain(Visit),
    /// Forget earlier orders unless a VM has been touched for one, and say so.
    StandDown,
}

/// One visit to a host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Visit {
    /// The updates, in order.
    pub updates: Vec<UpdateRef>,
    /// What guests are told as `NotBefore`, by the controller's clock.
    pub not_before: Timestamp,
    /// The notice promised to guests; the agent grants it by its own clock too, whatever `not_before` says.
    pub notice: Duration,
    /// Whose events must be approved, or run out, before a VM is touched.
    pub scopes: BTreeSet<Scope>,
    /// Those already approved: by guests on other hosts, or by an operator.
    pub approved: BTreeSet<Scope>,
    /// The VMs on other hosts that approved, each with the set it spoke for; an operator's approval has none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub approvers: BTreeMap<VmName, SetName>,
}

/// Who approved a visit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approved {
    /// The scopes that did.
    pub scopes: BTreeSet<Scope>,
    /// The VMs that did so for a set.
    #[serde(default)]
    pub by: BTreeMap<VmName, SetName>,
}

/// How a visit ended; the host is whole in all cases but `Lost`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// All updates are in and verified.
    Updated,
    /// Nothing was done to any VM.
    Refused(String),
    /// Begun and taken back; VMs run on the old environment.
    Undone(String),
    /// VMs were lost; the text says which and where it happened.
    Lost(String),
}

/// Where an agent stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// No order.
    Idle,
    /// Guests have been told; the time is by the agent's clock.
    Announced {
        /// No VM is touched before this time unless all scopes approve.
        not_before: Timestamp,
    },
    /// At work: VMs may be touched at any moment.
    InWork,
    /// The visit has ended, for good.
    Finished(Outcome),
    /// No order up to this generation will be acted on any more.
    StoodDown,
}

/// What an agent says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Report {
    /// The host.
    pub host: HostName,
    /// The newest generation it knows; `standing` is about this one.
    pub generation: Generation,
    /// Where it stands.
    pub standing: Standing,
    /// The last visit that ended, with its generation: a stand-down may have crossed with the work.
    pub last: Option<(Generation, Outcome)>,
}

/// A host's place for orders in the store: the newest order, and whether it still stands. One visit at a time.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Slot {
    /// The generation of the newest order; never falls, whoever ordered.
    pub generation: Generation,
    /// The rollout whose visit is open, from its order until its locks are given back.
    pub open: Option<RolloutId>,
    /// The newest order; offered to the agent until the next one.
    pub order: Option<Order>,
}
