//! The state machine of one maintenance on one host.
//!
//! ```text
//!  planned ──> announced ──(approved | NotBefore)──> preflight ──> prepare ──> rehearse ──> lead
//!     │            │                                     │            │            │          │
//!     │            │ abort                               │ refused    │ failed     │ failed   │ abort
//!     v            v                                     v            v            v          v
//!  closing <──────────────────────────────────────────────────── undo <──────────────── window (below)
//!     │                                                               ^                       │
//!     v                                                               │ failed                v
//!  finished(done | failed | aborted) <── closing <─────────────── verify <────────────────────┘
//!
//!  window, per VM (what differs per mechanism):
//!
//!                none    runs throughout
//!                hold    untouched ─HOLD─> pausing ──> paused ──(step, or step + undo)──RESUME──> resumed
//!                swap    untouched ─START NEW, ARM─HAND OVER─> pausing ──> paused ═owner: new═RESUME──> resumed ─RETIRE OLD
//!                                                                │            │
//!                                                                └─TAKE BACK──┴──> resumed (on the old one)
//!                kexec   untouched ─SAVE─> pausing ──> paused ─JUMP═owner: new═> carried ─RESTORE─> paused ─RESUME─> resumed
//!                                             │           │ jump refused           │
//!                                             └─TAKE BACK─┴──> resumed (old)       └──> preserved | down ─RESTART─> restarted
//!                reboot  untouched ─SHUT DOWN─> down ─REBOOT─RESTART─> restarted
//!
//!  after every resume: dead-man disarmed, clock put right.
//! ```
//!
//! # How it is built
//!
//! The journal is the state: [`State`] is the fold of [`Entry`]s, and nothing is remembered anywhere else. [`step`]
//! takes an [`Input`], turns it into entries (the fact itself, then what [`State`] wants next) and returns them as
//! [`Journalled`]; only committing them to a [`Log`] yields the new state and the [`Act`]s. After a crash,
//! [`State::replay`] and [`Input::Restarted`] continue from whatever the journal says last.
//!
//! # Invariants (tested in `tests/`)
//!
//! - **One owner** (P1). [`VmState::owner`] is one value. `new` is written before the new VMM may run, in the same write
//!   as the intent to let it run; `take back` is only ever begun while it is `old`, and kills the new VMM first.
//! - **Budget** (P2). Every act in a pause has a deadline inside the budget; an act that misses it counts as failed, and
//!   a quarter of the budget (at most 1 s) is kept for the way back.
//! - **Journal first** (P6). An [`Act`] exists only after its entry was written.
//! - **Nothing harsher** (P7). Acts on a VM follow its plan in the [`Order`](crate::order::Order), which never changes.
//! - **Whoever comes first**: the rescue of a paused VM (by this core without a journal, after a restart, or by the
//!   dead-man) is the same: the owner named by the journal runs.

mod act;
mod decide;
mod driver;
mod entry;
mod facts;
mod journalled;
mod state;
mod window;

use fermata_model::VmName;

pub use act::{Act, ActId, ActResult, Evidence, Failure, FailureKind, Key, Op};
pub use fermata_vmm::handover::Way;

pub use driver::{Maintenance, StartError};
pub use entry::{Entry, Outcome, Owner, Stage, Stamped};
pub use journalled::{Durability, Journalled, Log, LogFailure, Unwritten};
pub use state::{ReplayError, State, Trouble, Unsure, VmPhase, VmState};

use crate::id::BootId;
use crate::order::Order;
use crate::time::Now;

/// What the shell tells the core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Time passed: [`Maintenance::wake_at`] came.
    Tick,
    /// An act ended.
    Ended {
        /// Which attempt.
        act: ActId,
        /// How.
        result: ActResult,
    },
    /// All events of this maintenance are approved.
    Approved {
        /// Who.
        by: String,
    },
    /// Somebody wants it to stop: everything that can still be taken back is.
    Abort {
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
    /// A VM ended by itself.
    VmGone {
        /// The VM.
        vm: VmName,
        /// What is known.
        reason: String,
    },
    /// The agent came back and replayed the journal; always the first input after [`State::replay`].
    Restarted {
        /// The boot it came back in.
        boot: BootId,
    },
}

/// Begins a maintenance.
pub fn plan(order: Order, boot: BootId, now: Now) -> Journalled {
    let planned = Entry::Planned { order: Box::new(order.clone()), boot: boot.clone() };
    let mut next = State::new(order, boot);
    let mut entries = vec![Stamped { at: now, entry: planned }];
    settle(&mut next, &mut entries, now);
    Journalled::new(None, next, entries)
}

/// One step: (state, input, now) -> (entries, state, acts).
pub fn step(state: &State, input: Input, now: Now) -> Journalled {
    let mut next = state.clone();
    let mut entries = Vec::new();
    if state.outcome.is_none()
        && let Some(entry) = fact(input)
    {
        let fact = Stamped { at: now, entry };
        next.apply(&fact);
        entries.push(fact);
    }
    settle(&mut next, &mut entries, now);
    Journalled::new(Some(Box::new(state.clone())), next, entries)
}

fn fact(input: Input) -> Option<Entry> {
    Some(match input {
        Input::Tick => return None,
        Input::Ended { act, result } => Entry::Ended { act, result },
        Input::Approved { by } => Entry::Approved { by },
        Input::Abort { by, reason } => Entry::AbortAsked { by, reason },
        Input::VmGone { vm, reason } => Entry::VmGone { vm, reason },
        Input::Restarted { boot } => Entry::Restarted { boot },
    })
}

/// Asks the state what comes next until it only waits.
fn settle(state: &mut State, entries: &mut Vec<Stamped>, now: Now) {
    loop {
        let next = state.advance(now);
        if next.is_empty() {
            return;
        }
        for entry in next {
            let entry = Stamped { at: now, entry };
            state.apply(&entry);
            entries.push(entry);
        }
    }
}
