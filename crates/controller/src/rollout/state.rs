//! Where a rollout and its hosts stand.

use std::collections::{BTreeMap, BTreeSet};

use fermata_model::{HostName, VmName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::order::{Generation, Outcome, UpdateRef};

/// Everything about a rollout that changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct State {
    /// The rollout as a whole.
    pub phase: Phase,
    /// Every host.
    pub hosts: BTreeMap<HostName, HostState>,
    /// The stage at work.
    pub stage: usize,
    /// What the stage waits for, once its hosts are through.
    pub gate: StageGate,
    /// Hosts begun and not at an end; derived from `hosts`, kept so that a step does not have to look at all of them.
    pub in_flight: BTreeSet<HostName>,
    /// Hosts per stage that are not at an end; derived as well.
    pub open: Vec<u32>,
    /// Failures against the budget.
    pub failures: BTreeMap<HostName, String>,
}

impl State {
    /// Whether the rollout is over.
    #[must_use]
    pub const fn phase_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended(_))
    }
}

/// The rollout as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Planned; nothing happens until it is started.
    Planned,
    /// Hosts are visited.
    Running,
    /// No VM is touched anew; hosts that are only announced are called back.
    Paused,
    /// The same for good; ends when no host is in work any more.
    Stopping(End),
    /// Over.
    Ended(End),
}

/// How a rollout ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Every host was done, or skipped.
    Completed,
    /// By an operator.
    Aborted,
    /// By the failure budget.
    Failed(Evidence),
}

/// What the failure budget saw when it stopped a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Evidence {
    /// Which limit, in words.
    pub limit: String,
    /// Failed hosts, with reasons.
    pub failed: BTreeMap<HostName, String>,
    /// VMs of updated hosts that are unhealthy, with what was seen.
    pub unhealthy: Vec<VmTrouble>,
    /// How many VMs had been updated.
    pub updated_vms: u32,
    /// The rest of the fleet, for comparison: unhealthy VMs and all VMs that were checked.
    pub rest: Option<(u32, u32)>,
}

/// A VM that is not healthy.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VmTrouble {
    /// The VM.
    pub vm: VmName,
    /// Which gate it does not pass, and what was seen.
    pub seen: String,
}

/// What a stage waits for when its hosts are through.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageGate {
    /// Hosts are not through yet.
    Working,
    /// It is being watched.
    Soaking {
        /// Until then.
        until: Timestamp,
    },
    /// An operator must say go.
    Approval,
}

/// One host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostState {
    /// Where it stands.
    pub phase: HostPhase,
    /// Paused by an operator.
    pub held: bool,
    /// Approved by an operator.
    pub approved: bool,
    /// To be skipped as soon as its agent has stood down.
    pub skip: bool,
    /// Updates of other rollouts that were merged into the visit.
    pub merged: Vec<UpdateRef>,
    /// The last preflight, if it was refused.
    pub refused: Option<Refused>,
    /// Its VMs that were unhealthy when they were last looked at.
    pub unhealthy: Vec<VmTrouble>,
}

/// A preflight that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Refused {
    /// Why.
    pub reason: String,
    /// The next try.
    pub again_at: Timestamp,
}

/// Where a host stands; see the diagram in [`crate::rollout`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum HostPhase {
    /// Not begun; [`crate::rollout::Rollout::explain`] says why.
    Waiting,
    /// The agent is asked whether the host could be visited right now.
    Preflight {
        /// When it was asked; an answer to an earlier question does not count.
        asked: Timestamp,
    },
    /// Locks are held and the order stands; the agent has not answered yet.
    Ordered {
        /// The order's.
        generation: Generation,
        /// Since when.
        since: Timestamp,
    },
    /// Guests have been told.
    Announced {
        /// The order's.
        generation: Generation,
        /// Since when.
        since: Timestamp,
        /// What the guests were told.
        not_before: Timestamp,
    },
    /// VMs may be touched.
    InWork {
        /// The order's.
        generation: Generation,
        /// Since when.
        since: Timestamp,
    },
    /// The order is being taken back.
    StandingDown {
        /// The generation of the order that takes it back.
        generation: Generation,
        /// The generation of the order taken back.
        of: Generation,
        /// Since when.
        since: Timestamp,
    },
    /// The visit is over; VMs are not known to be healthy yet. Locks are held.
    Checking {
        /// The newest order's generation.
        generation: Generation,
        /// Since when.
        since: Timestamp,
        /// How the visit ended.
        outcome: Outcome,
    },
    /// Healthy, locks given back, still watched.
    Soaking {
        /// Until then.
        until: Timestamp,
    },
    /// Updated and healthy.
    Done {
        /// Since when.
        at: Timestamp,
    },
    /// Not updated; the host is whole.
    Failed {
        /// Since when.
        at: Timestamp,
        /// Why.
        reason: String,
    },
    /// Left out by an operator.
    Skipped {
        /// Since when.
        at: Timestamp,
    },
}

impl HostPhase {
    /// Whether the host needs nothing more.
    #[must_use]
    pub const fn at_end(&self) -> bool {
        matches!(self, Self::Done { .. } | Self::Failed { .. } | Self::Skipped { .. })
    }

    /// Whether the host counts as in work: it has locks, or is about to ask for them.
    #[must_use]
    pub const fn in_work(&self) -> bool {
        match self {
            Self::Preflight { .. } => true,
            Self::Waiting | Self::Soaking { .. } | Self::Done { .. } | Self::Failed { .. } | Self::Skipped { .. } => {
                false
            }
            _ => self.generation().is_some(),
        }
    }

    /// The generation its locks are held with.
    #[must_use]
    pub const fn generation(&self) -> Option<Generation> {
        match self {
            Self::Ordered { generation, .. }
            | Self::Announced { generation, .. }
            | Self::InWork { generation, .. }
            | Self::StandingDown { generation, .. }
            | Self::Checking { generation, .. } => Some(*generation),
            Self::Waiting
            | Self::Preflight { .. }
            | Self::Soaking { .. }
            | Self::Done { .. }
            | Self::Failed { .. }
            | Self::Skipped { .. } => None,
        }
    }

    /// The phase in one word.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Preflight { .. } => "preflight",
            Self::Ordered { .. } => "ordered",
            Self::Announced { .. } => "announced",
            Self::InWork { .. } => "in work",
            Self::StandingDown { .. } => "standing down",
            Self::Checking { .. } => "checking",
            Self::Soaking { .. } => "soaking",
            Self::Done { .. } => "done",
            Self::Failed { .. } => "failed",
            Self::Skipped { .. } => "skipped",
        }
    }
}

impl HostState {
    pub(super) const fn new() -> Self {
        Self {
            phase: HostPhase::Waiting,
            held: false,
            approved: false,
            skip: false,
            merged: Vec::new(),
            refused: None,
            unhealthy: Vec::new(),
        }
    }
}
