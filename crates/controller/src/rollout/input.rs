//! What a rollout is told, and what it wants done.

use std::collections::{BTreeMap, BTreeSet};

use fermata_model::{HostName, SetName, VmName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::state::VmTrouble;
use crate::lock::SetLock;
use crate::order::{Report, Scope, Slot, UpdateRef};

/// What a rollout is told.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Input {
    /// Begin.
    Start,
    /// Touch no further VM.
    Pause,
    /// Go on.
    Resume,
    /// End it and leave every host whole.
    Abort,
    /// Leave a host out.
    Skip(HostName),
    /// Try a failed or skipped host again.
    Retry(HostName),
    /// Pause a host.
    Hold(HostName),
    /// Let a paused host go on.
    Unhold(HostName),
    /// Approve a host where the rules ask for it.
    ApproveHost(HostName),
    /// Let the next stage begin.
    ApproveStage,
    /// A scope approved the visit of a host: start now.
    ApproveVisit {
        /// The host to be visited.
        host: HostName,
        /// Who approved.
        scopes: BTreeSet<Scope>,
        /// The VMs that did so for a set; none when an operator did.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        by: BTreeMap<VmName, SetName>,
    },
    /// Do these updates too, on the hosts named that have not been begun.
    Merge {
        /// The updates.
        updates: Vec<UpdateRef>,
        /// The hosts.
        hosts: BTreeSet<HostName>,
    },
    /// Give a host up that does not come back: its locks are given back although nobody knows what became of its VMs. Needs an
    /// administrator.
    GiveUp(HostName),
    /// Ask a host whether it could be visited now.
    AskPreflight(HostName),
    /// What a host answered.
    Preflight {
        /// The host.
        host: HostName,
        /// The question it answers.
        asked: Timestamp,
        /// Why it cannot be visited now; nothing when it can.
        refusal: Option<String>,
    },
    /// Take an order back that was not begun.
    Recall(HostName),
    /// What an agent says of itself.
    Report(Report),
    /// What the health gates say of a host's VMs.
    Health {
        /// The host.
        host: HostName,
        /// Its VMs that do not pass; empty when all do.
        unhealthy: Vec<VmTrouble>,
    },
    /// What the same gates say of hosts not yet updated, for comparison.
    Rest {
        /// VMs that do not pass.
        unhealthy: u32,
        /// VMs looked at.
        checked: u32,
    },
    /// Time has passed.
    Tick,
}

impl Input {
    /// The host whose locks and slot the decision reads.
    #[must_use]
    pub const fn host(&self) -> Option<&HostName> {
        match self {
            Self::Skip(host)
            | Self::Retry(host)
            | Self::Hold(host)
            | Self::Unhold(host)
            | Self::ApproveHost(host)
            | Self::ApproveVisit { host, .. }
            | Self::GiveUp(host)
            | Self::AskPreflight(host)
            | Self::Preflight { host, .. }
            | Self::Recall(host)
            | Self::Report(Report { host, .. })
            | Self::Health { host, .. } => Some(host),
            Self::Start
            | Self::Pause
            | Self::Resume
            | Self::Abort
            | Self::ApproveStage
            | Self::Merge { .. }
            | Self::Rest { .. }
            | Self::Tick => None,
        }
    }
}

/// What the store says about the host of an input. The decision is valid only while the store still says so.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct View {
    /// The locks of the host's sets; a set without a record has the default.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub locks: BTreeMap<SetName, SetLock>,
    /// The host's slot for orders.
    #[serde(default)]
    pub slot: Slot,
    /// Whether the host is cordoned in the inventory.
    #[serde(default)]
    pub cordoned: bool,
}

/// What a rollout wants done. Writes go into the transaction that records the decision; the rest may be lost and is asked for
/// again by [`super::Rollout::agenda`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Write the lock of a set.
    Lock {
        /// The set.
        set: SetName,
        /// Its new record.
        lock: SetLock,
    },
    /// Write the slot of a host.
    Slot {
        /// The host.
        host: HostName,
        /// Its new record.
        slot: Slot,
    },
    /// Tell people.
    Alarm {
        /// About this host, if about one.
        host: Option<HostName>,
        /// What, and the way out.
        text: String,
    },
}

/// Who gave an input.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Author {
    /// A person or a program with a token or certificate.
    Operator(String),
    /// A controller, by itself.
    Controller(String),
    /// The agent of a host.
    Agent(HostName),
}

/// One line of a rollout's log: what was decided, from what, by whom, why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Position in the log, from 1.
    pub number: u64,
    /// When, by the clock of the controller that decided.
    pub at: Timestamp,
    /// Who.
    pub author: Author,
    /// Why, in the author's words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What.
    pub input: Input,
    /// What the store said.
    pub view: View,
    /// What was decided.
    pub actions: Vec<Action>,
}
