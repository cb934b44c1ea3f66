//! What stands in the journal. The state is the fold of these and of nothing else.

use fermata_model::VmName;
use serde::{Deserialize, Serialize};

use super::act::{Act, ActId, ActResult, Op};
use crate::id::BootId;
use crate::order::Order;
use crate::time::Now;

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamped {
    /// When.
    pub at: Now,
    /// What.
    pub entry: Entry,
}

/// What can stand in the journal: intents, written before the act, and facts, written when they are known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// Intent, always the first: the order.
    Planned {
        /// All of it.
        order: Box<Order>,
        /// The boot in which it was made.
        boot: BootId,
    },
    /// Intent: the stage changes.
    Stage(Stage),
    /// Intent: an act is about to begin.
    Began(Act),
    /// Fact: an act ended, or is not waited for any longer.
    Ended {
        /// Which attempt.
        act: ActId,
        /// How.
        result: ActResult,
    },
    /// Intent: who may run the vCPUs of a VM from here on. Besides this only a jump changes it, together with the kernel
    /// ([`Entry::Restarted`] in the new boot), and a new VMM that is known to have ended before the VM ran in it
    /// ([`super::FailureKind::NeverRan`]).
    Owner {
        /// The VM.
        vm: VmName,
        /// The one.
        owner: Owner,
    },
    /// Fact: somebody in the guests' scope, or the operator, approved.
    Approved {
        /// Who.
        by: String,
    },
    /// Fact: somebody wants it to stop.
    AbortAsked {
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
    /// Fact: a VM ended by itself (guest shut down, VMM crashed).
    VmGone {
        /// The VM.
        vm: VmName,
        /// What is known.
        reason: String,
    },
    /// Intent: what comes next would not fit into the pause any more; go back.
    TooLate {
        /// For what.
        op: Op,
    },
    /// Fact: the agent came back, in this boot.
    Restarted {
        /// The boot.
        boot: BootId,
    },
    /// Fact: the journal could not be written for a while; what stands before this line was written late.
    JournalFailed {
        /// Why.
        reason: String,
    },
    /// Fact, always the last: it is over.
    Finished {
        /// How.
        outcome: Outcome,
    },
}

impl Entry {
    /// Facts stay true when they cannot be written; intents that cannot be written are not carried out.
    #[must_use]
    pub const fn is_fact(&self) -> bool {
        match self {
            Self::Ended { .. }
            | Self::Approved { .. }
            | Self::AbortAsked { .. }
            | Self::VmGone { .. }
            | Self::Restarted { .. }
            | Self::JournalFailed { .. } => true,
            Self::Planned { .. }
            | Self::Stage(_)
            | Self::Began(_)
            | Self::Owner { .. }
            | Self::TooLate { .. }
            | Self::Finished { .. } => false,
        }
    }
}

/// Who may run a VM's vCPUs. One value per VM: that is promise P1 as a type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// The VMM that ran it before the maintenance.
    Old,
    /// The VMM that took it over: after the point of no return.
    New,
}

/// Where a maintenance stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The order stands; events are being published.
    Planned,
    /// Announced; waiting for approval or `NotBefore`.
    Announced,
    /// Facts are gathered again.
    Preflight,
    /// Prepare steps run, VMs run.
    Prepare,
    /// Twins are rehearsed, the kernel is loaded; VMs run.
    Rehearse,
    /// `Started` is published and left to be seen; VMs run.
    Lead,
    /// Pause, change, resume, clock.
    Window,
    /// Verify steps run, VMs run.
    Verify,
    /// Undo steps run, VMs run (or are down after a power cut).
    Undo,
    /// Undo steps run while VMs are held once more.
    UndoHeld,
    /// Loose ends: VMs that are down are started, the events end.
    Closing,
}

/// How a maintenance ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The change is in effect and verified.
    Done,
    /// It is not, or not everywhere; the report says what was undone.
    Failed,
    /// Somebody stopped it.
    Aborted,
}
