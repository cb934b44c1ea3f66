//! The state: the fold of the journal. [`State::apply`] is the only place that changes it; what each fact means for it is in `facts`.

use std::collections::BTreeMap;
use std::time::Duration;

use fermata_model::{Mechanism, VmName};

use super::Way;
use super::act::{ActId, Key, Op};
use super::entry::{Entry, Outcome, Owner, Stage, Stamped};
use crate::clock::ClockOutcome;
use crate::id::BootId;
use crate::order::{Order, reserve};
use crate::time::{Mono, Now, Wall};

/// Attempts before an act that does not touch safety is left as a loose end.
pub(super) const ATTEMPTS: u32 = 5;

/// The same by act. The metadata service starts after VMs run again, on a small host a minute later; an event that is not ended
/// tells guests for good that something happens to them. With the waits between tries these are five minutes.
pub(super) const fn attempts(op: Op) -> u32 {
    match op {
        Op::EndEvents => 150,
        _ => ATTEMPTS,
    }
}

/// Attempts to restore a VM's state after a jump, before it is kept and reported.
pub(super) const RESTORES: u32 = 3;

/// One maintenance, as its journal tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// What was decided and announced.
    pub order: Order,
    /// The boot it runs in.
    pub boot: BootId,
    /// Where it stands.
    pub stage: Stage,
    /// Every VM of the order.
    pub vms: BTreeMap<VmName, VmState>,
    /// Approved before `NotBefore`.
    pub approved: bool,
    /// The first thing that went wrong. Later ones are in the journal.
    pub trouble: Option<Trouble>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// The change may have begun to take effect on the host.
    pub change_begun: bool,
    /// The undo steps all ran.
    pub undone: bool,
    /// Acts that never worked and were left.
    pub loose_ends: Vec<String>,
    /// Why the journal cannot be written now. While this is set, only rescue acts begin.
    pub adrift: Option<String>,
    /// Number of entries so far.
    pub entries: u64,
    pub(super) unwritten: Vec<Stamped>,
    pub(super) pending: BTreeMap<Key, Pending>,
    pub(super) results: BTreeMap<Key, bool>,
    pub(super) attempts: BTreeMap<Key, u32>,
    pub(super) retry_at: BTreeMap<Key, Mono>,
    pub(super) lead_until: Option<Mono>,
    pub(super) armed_at: Option<Mono>,
    pub(super) round_failed: bool,
    pub(super) announced: bool,
    pub(super) prepared: bool,
    pub(super) jump_begun: bool,
    pub(super) crossed: bool,
}

/// An act that has begun and has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pending {
    pub(super) attempt: u32,
    pub(super) by: Mono,
}

/// What went wrong.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Trouble {
    /// In which stage.
    pub stage: Stage,
    /// Doing what; `None` when nothing was being done.
    pub act: Option<ActId>,
    /// In words, with the evidence.
    pub text: String,
    /// Somebody stopped it: not a failure.
    pub aborted: bool,
}

/// One VM of a maintenance.
#[derive(Debug, Clone, PartialEq)]
pub struct VmState {
    /// Who may run its vCPUs: exactly one, always.
    pub owner: Owner,
    /// Where it stands.
    pub phase: VmPhase,
    /// Every pause so far, by the host's measure.
    pub pauses: Vec<Duration>,
    /// When each of them began; `None` where no time stamp of it came.
    pub pauses_began: Vec<Option<Wall>>,
    /// The longest blackout by the guest's own clock: how far it fell behind in it.
    pub guest_blackout: Option<Duration>,
    /// What came of its clock after its last pause.
    pub clock: Option<ClockOutcome>,
    /// How its state goes over to the new VMM (swap), once a rehearsal has told.
    pub way: Option<Way>,
    /// The error of its clock when it was last known to be undisturbed, in microseconds.
    pub(super) clock_us: Option<i64>,
    /// Why its VMM ended while it was being let go on after a jump.
    pub(super) ended: Option<String>,
    pub(super) stopped: Option<Wall>,
    pub(super) new_started: bool,
    pub(super) armed: bool,
    pub(super) armed_at: Option<Mono>,
    /// Whether it went down was never confirmed.
    pub(super) maybe_up: bool,
    /// Found running, and whether it stood before was never answered.
    pub unsure: Option<Unsure>,
    /// Found running after it had stood since then: its last pause counts until that was seen, unless the dead-man knows better.
    pub(super) found_running: Option<Now>,
}

/// A pause that may have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsure {
    pub(super) since: Now,
    /// It was no longer than this.
    pub at_most: Duration,
}

/// Where a VM stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmPhase {
    /// Runs as before.
    Untouched,
    /// May be stopped at any moment from here on.
    Pausing {
        /// From when its pause counts.
        since: Now,
    },
    /// Stopped: held, handed over or saved.
    Paused {
        /// From when its pause counts.
        since: Now,
    },
    /// Its state was carried into the new kernel and waits to be loaded.
    Carried {
        /// From when its pause counts, in the old boot.
        since: Now,
    },
    /// Runs again.
    Resumed,
    /// Not running: shut down for the maintenance or by a power cut; to be started again.
    Down {
        /// Why.
        reason: String,
    },
    /// Started again from its disks.
    Restarted {
        /// Why it had to be.
        reason: String,
    },
    /// Not running; memory and state are kept and not overwritten.
    Preserved {
        /// What was tried.
        reason: String,
    },
    /// Its memory is lost.
    Lost {
        /// How.
        reason: String,
    },
    /// It ended by itself.
    Gone {
        /// What is known.
        reason: String,
    },
}

impl VmPhase {
    /// From when the pause counts, while its vCPUs may be stopped.
    #[must_use]
    pub const fn paused_since(&self) -> Option<Now> {
        match self {
            Self::Pausing { since } | Self::Paused { since } | Self::Carried { since } => Some(*since),
            Self::Untouched
            | Self::Resumed
            | Self::Down { .. }
            | Self::Restarted { .. }
            | Self::Preserved { .. }
            | Self::Lost { .. }
            | Self::Gone { .. } => None,
        }
    }
}

/// A journal that is not one of a maintenance.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// No entries.
    #[error("journal: the maintenance has no entries; it was never ordered, remove it")]
    Empty,
    /// The first entry is not the order.
    #[error("journal: the first entry is not the order; the file is damaged, restore it or remove this maintenance")]
    NoOrder,
}

impl State {
    /// The state that a journal tells.
    ///
    /// # Errors
    /// [`ReplayError`] when the entries are not those of a maintenance.
    pub fn replay(entries: &[Stamped]) -> Result<Self, ReplayError> {
        let (first, rest) = entries.split_first().ok_or(ReplayError::Empty)?;
        let Entry::Planned { order, boot } = &first.entry else { return Err(ReplayError::NoOrder) };
        let mut state = Self::new((**order).clone(), boot.clone());
        for entry in rest {
            state.apply(entry);
        }
        Ok(state)
    }

    pub(super) fn new(order: Order, boot: BootId) -> Self {
        let vm = |plan: &crate::mechanism::VmPlan| {
            let state = VmState {
                owner: Owner::Old,
                phase: VmPhase::Untouched,
                pauses: Vec::new(),
                pauses_began: Vec::new(),
                guest_blackout: None,
                clock: None,
                way: None,
                clock_us: None,
                ended: None,
                stopped: None,
                new_started: false,
                armed: false,
                armed_at: None,
                maybe_up: false,
                unsure: None,
                found_running: None,
            };
            (plan.vm.clone(), state)
        };
        Self {
            vms: order.vms.iter().map(vm).collect(),
            order,
            boot,
            stage: Stage::Planned,
            approved: false,
            trouble: None,
            outcome: None,
            change_begun: false,
            undone: false,
            loose_ends: Vec::new(),
            adrift: None,
            entries: 1,
            unwritten: Vec::new(),
            pending: BTreeMap::new(),
            results: BTreeMap::new(),
            attempts: BTreeMap::new(),
            retry_at: BTreeMap::new(),
            lead_until: None,
            armed_at: None,
            round_failed: false,
            announced: false,
            prepared: false,
            jump_begun: false,
            crossed: false,
        }
    }

    /// Whether any VM may be stopped at this moment.
    #[must_use]
    pub fn in_pause(&self) -> bool {
        self.vms.values().any(|vm| vm.phase.paused_since().is_some())
    }

    /// Whether the clock of a VM that runs again is still to be put right.
    #[must_use]
    pub fn a_clock_is_behind(&self) -> bool {
        self.vms.values().any(|vm| vm.phase == VmPhase::Resumed && vm.clock.is_none() && !vm.pauses.is_empty())
    }

    /// Whether the change is in effect now, at least in part.
    #[must_use]
    pub fn change_in_effect(&self) -> bool {
        match self.order.mechanism() {
            Mechanism::None | Mechanism::Hold => self.change_begun && !self.undone,
            Mechanism::Swap => self.vms.values().any(|vm| vm.owner == Owner::New),
            Mechanism::Kexec | Mechanism::Reboot => self.crossed && self.worked_already(None, Op::CheckKernel),
        }
    }

    /// Whether the host came up in another kernel than it was to enter: it went back, or was led back.
    #[must_use]
    pub fn led_back(&self) -> bool {
        self.crossed && self.settled(None, Op::CheckKernel) && !self.worked_already(None, Op::CheckKernel)
    }

    /// Until when VMs that are paused together must be on their way back: `budget - reserve` after arming.
    pub(super) fn give_up(&self) -> Option<Mono> {
        let budget = self.order.common_budget();
        self.armed_at.map(|at| at.after(budget.duration().saturating_sub(reserve(budget))))
    }

    pub(super) fn plan_mechanism(&self, vm: &VmName) -> Mechanism {
        self.order.plan(vm).map_or(Mechanism::None, |plan| plan.mechanism)
    }

    pub(super) fn apply(&mut self, stamped: &Stamped) {
        self.entries += 1;
        let at = stamped.at;
        match &stamped.entry {
            // A second order cannot come: `replay` and `plan` are the only readers of the first entry.
            Entry::Planned { .. } => {}
            Entry::Stage(stage) => self.enter(*stage),
            Entry::Began(act) => {
                let key = act.id.key();
                self.attempts.insert(key.clone(), act.id.attempt);
                self.results.remove(&key);
                self.retry_at.remove(&key);
                self.began(&act.id, act.by, at);
                self.pending.insert(key, Pending { attempt: act.id.attempt, by: act.by });
            }
            Entry::Ended { act, result } => {
                let key = act.key();
                if self.pending.get(&key).is_none_or(|pending| pending.attempt != act.attempt) {
                    return;
                }
                self.pending.remove(&key);
                self.ended(act, result, at);
            }
            Entry::Owner { vm, owner } => {
                if let Some(vm) = self.vms.get_mut(vm) {
                    vm.owner = *owner;
                }
            }
            Entry::Approved { .. } => self.approved = true,
            Entry::AbortAsked { by, reason } => {
                if self.stage < Stage::Verify {
                    self.round_failed = true;
                    self.fail(None, format!("aborted by {by}: {reason}"), true);
                }
            }
            Entry::TooLate { op } => {
                self.round_failed = true;
                self.fail(None, format!("no time left in the pause to {op}: what came before took too long"), false);
            }
            Entry::VmGone { vm, reason } => self.gone(vm, reason),
            Entry::Restarted { boot } => self.restarted(boot, at),
            Entry::JournalFailed { reason } => {
                self.round_failed = true;
                self.fail(None, format!("the journal could not be written: {reason}"), false);
            }
            Entry::Finished { outcome } => self.outcome = Some(*outcome),
        }
    }
}
