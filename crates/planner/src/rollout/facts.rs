//! What is true at a moment of a rollout. The caller keeps it; nothing here changes it.

use std::collections::{BTreeMap, BTreeSet};

use fermata_model::{HostName, SetName, UpdateDomain};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Everything [`decide`](super::decide) needs to know besides plan and inventory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Facts {
    /// Hosts that are not simply waiting for their turn.
    pub hosts: BTreeMap<HostName, HostFact>,
    /// What others (another rollout, a repair by hand, a VM that is down) hold of sets.
    pub sets: BTreeMap<SetName, Vec<SetFact>>,
    /// Whether the rollout as a whole goes on.
    pub gate: Gate,
    /// Stages, by position, after which an operator said go.
    pub approved_stages: BTreeSet<u32>,
}

/// Where a host of the rollout is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostFact {
    /// Waiting for its turn but kept back.
    Held(Hold),
    /// Left out by an operator; nothing waits for it.
    Skipped,
    /// Its maintenance runs, from announcement or pause (the caller decides which of them opens the update domain).
    InWork {
        /// Since when.
        started: Timestamp,
    },
    /// Its maintenance is over and every VM is resumed and healthy, whether the update succeeded or was undone.
    Whole {
        /// When it started.
        started: Timestamp,
        /// When the last VM was healthy.
        healthy: Timestamp,
    },
    /// Its maintenance is over, or lost, and not every VM is healthy: its sets stay closed to other update domains.
    Broken {
        /// When it started.
        started: Timestamp,
        /// What is wrong.
        reason: String,
    },
}

/// Why a single host is kept back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// An operator paused it.
    Paused {
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
    /// It needs an operator's approval, and has none yet.
    NeedsApproval,
    /// Its preflight failed.
    Preflight {
        /// What it found.
        reason: String,
    },
    /// Its agent has not been heard of.
    Silent {
        /// Since when.
        since: Timestamp,
    },
}

/// What somebody outside this rollout holds of a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetFact {
    /// The update domain held; absent: all of the set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<UpdateDomain>,
    /// How many VMs are held; they count against the share of the set.
    #[serde(default = "one")]
    pub vms: u32,
    /// Who holds it, in words: `rollout kernel-7.2`, `VM web-3 is down`.
    pub holder: String,
    /// When it was or will be let go of, recovery time not included; absent: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

const fn one() -> u32 {
    1
}

/// Whether the rollout as a whole goes on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// It does.
    #[default]
    Open,
    /// An operator paused it.
    Paused {
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
    /// A health gate or the failure budget stopped it.
    Stopped {
        /// Which, with the evidence.
        reason: String,
    },
}
