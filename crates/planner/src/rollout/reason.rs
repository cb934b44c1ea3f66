//! Why a host waits: typed, with the blocking object.

use std::fmt;

use fermata_model::{HostName, SetName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::facts::Hold;
use crate::fleet::SelfConflict;

/// What holds something that a waiting host needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holder {
    /// A host in work.
    InWork(HostName),
    /// A host whose VMs are healthy again; the set's recovery time runs.
    Recovering(HostName),
    /// A host whose VMs are not healthy.
    Broken(HostName),
    /// A host that comes first in the plan.
    Planned(HostName),
    /// Somebody outside this rollout.
    Outside(String),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InWork(host) => write!(f, "host {host} is in work"),
            Self::Recovering(host) => write!(f, "host {host} has finished and the recovery time runs"),
            Self::Broken(host) => {
                write!(f, "host {host} is not whole; repair it, then retry or skip it")
            }
            Self::Planned(host) => write!(f, "host {host} comes first in the plan"),
            Self::Outside(holder) => write!(f, "{holder} holds it"),
        }
    }
}

/// Why a host waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WaitReason {
    /// The rollout is paused.
    RolloutPaused {
        /// By whom.
        by: String,
        /// Why.
        reason: String,
    },
    /// A gate or the failure budget stopped the rollout.
    RolloutStopped {
        /// Which, with the evidence.
        reason: String,
    },
    /// The host itself is kept back.
    Held(Hold),
    /// The host is cordoned.
    Cordoned,
    /// The host carries two update domains of one set.
    SelfConflict(SelfConflict),
    /// The host is no longer in the inventory.
    Gone,
    /// An earlier stage is not over.
    Stage {
        /// The name of the stage.
        stage: String,
        /// A host of it that is not finished.
        host: HostName,
    },
    /// An earlier stage is over and being watched.
    Soak {
        /// The name of the stage.
        stage: String,
        /// Until when.
        until: Timestamp,
    },
    /// An operator must say go after an earlier stage.
    StageApproval {
        /// The name of the stage.
        stage: String,
    },
    /// Another part of a set is in work, recovering or planned before.
    Set {
        /// The set.
        set: SetName,
        /// The part that is held: an update domain, a fault domain, a zone or a label's value.
        part: String,
        /// Who holds it.
        holder: Holder,
    },
    /// As many of a set's VMs are in work as its share allows.
    Share {
        /// The set.
        set: SetName,
        /// How many VMs may be in work at once.
        limit: u32,
        /// One of those that hold it.
        holder: Holder,
    },
    /// The rack's limit is reached.
    Rack {
        /// The rack.
        rack: String,
        /// How many hosts may be in work at once.
        limit: u32,
        /// One of those that hold it.
        holder: Holder,
    },
    /// The fleet's limit is reached.
    HostLimit {
        /// How many hosts may be in work at once.
        limit: u32,
    },
    /// No window is open for long enough.
    Window,
    /// The plan has not begun.
    NotBegun,
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RolloutPaused { by, reason } => write!(f, "the rollout was paused by {by}: {reason}"),
            Self::RolloutStopped { reason } => write!(f, "the rollout was stopped: {reason}"),
            Self::Held(Hold::Paused { by, reason }) => write!(f, "the host was paused by {by}: {reason}"),
            Self::Held(Hold::NeedsApproval) => f.write_str("the host needs an operator's approval"),
            Self::Held(Hold::Preflight { reason }) => write!(f, "the preflight failed: {reason}"),
            Self::Held(Hold::Silent { since }) => write!(f, "its agent has been silent since {since:.0}"),
            Self::Cordoned => f.write_str("the host is cordoned; uncordon it to go on"),
            Self::SelfConflict(conflict) => conflict.fmt(f),
            Self::Gone => f.write_str("the host is no longer in the inventory; skip it or plan again"),
            Self::Stage { stage, host } => write!(f, "stage {stage} is not over: host {host} is not finished"),
            Self::Soak { stage, until } => write!(f, "stage {stage} is watched until {until:.0}"),
            Self::StageApproval { stage } => write!(f, "an operator must say go after stage {stage}"),
            Self::Set { set, part, holder } => write!(f, "availability set {set}, {part}: {holder}"),
            Self::Share { set, limit, holder } => {
                write!(f, "availability set {set} allows {limit} of its VMs in work at once: {holder}")
            }
            Self::Rack { rack, limit, holder } => {
                write!(f, "rack {rack} allows {limit} hosts in work at once: {holder}")
            }
            Self::HostLimit { limit } => write!(f, "{limit} hosts in work at once is the limit"),
            Self::Window => f.write_str("no maintenance window is open for long enough"),
            Self::NotBegun => f.write_str("the plan has not begun"),
        }
    }
}
