//! The agent's side: which orders it obeys, and when it may touch a VM.
//!
//! ```text
//!              order g                  NotBefore or all approved            maintenance ended
//!   Idle --------------------> Announced ----------------------> InWork -----------------------> Finished
//!     ^                           |                                  |                             |
//!     |        stand down g+1     |          stand down g+1: noted, the work is finished first      |
//!     |  StoodDown <--------------+                                  |                             |
//!     |        ^                                                     v                             |
//!     |        +-------------------------------------------------- (ended) <-----------------------+
//!     +--- each of the end states obeys the next order of a higher generation
//! ```
//!
//! Invariants:
//! - The generation never falls. An order of a lower one is refused, one of the same one changes nothing but approvals.
//! - `InWork` is entered only from `Announced`, when its `NotBefore` has come by the host's clock *and* the promised notice has passed since the
//!   guests were told, or when every scope has approved (promise P5).
//! - Every change must be in the host's journal before anything is done about it or said of it (P6): a gate that forgets is no gate.

use std::collections::BTreeSet;

use fermata_model::HostName;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::order::{Generation, Order, Outcome, Report, Scope, Standing, Task, Visit};

/// The gate's state: small, and all of it goes to the journal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OrderGate {
    host: HostName,
    generation: Generation,
    work: Work,
    last: Option<(Generation, Outcome)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Work {
    Idle,
    Announced { order: Order, not_before: Timestamp },
    Begun { order: Order, stand_down: Option<Generation> },
    Finished(Outcome),
    StoodDown,
}

/// What the agent must do, after the gate's new state is in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Do {
    /// Tell the guests: events with this `NotBefore`.
    Announce {
        /// The order.
        order: Order,
        /// By the host's clock.
        not_before: Timestamp,
    },
    /// Take the events of an order back.
    Cancel(Order),
    /// Begin the maintenance.
    Begin(Order),
}

/// Why an order is not obeyed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GateRefusal {
    /// For somebody else.
    #[error("the order is for host {found}, this is {host}; check the agent's identity")]
    OtherHost {
        /// This host.
        host: HostName,
        /// The order's.
        found: HostName,
    },
    /// Overtaken.
    #[error("the order of generation {found} is older than {known}, which this host already knows; ask for the newest")]
    Old {
        /// The newest generation known.
        known: Generation,
        /// The order's.
        found: Generation,
    },
    /// A visit is being done; a second one has to wait.
    #[error(
        "the host is at work for generation {current}; the order of generation {found} has to wait until that has ended"
    )]
    AtWork {
        /// The generation at work.
        current: Generation,
        /// The order's.
        found: Generation,
    },
}

impl OrderGate {
    /// A host that never had an order.
    #[must_use]
    pub const fn new(host: HostName) -> Self {
        Self { host, generation: Generation(0), work: Work::Idle, last: None }
    }

    /// The newest generation known.
    #[must_use]
    pub const fn generation(&self) -> Generation {
        self.generation
    }

    /// The order at work, if VMs may be touched now.
    #[must_use]
    pub const fn at_work(&self) -> Option<&Order> {
        match &self.work {
            Work::Begun { order, .. } => Some(order),
            Work::Idle | Work::Announced { .. } | Work::Finished(_) | Work::StoodDown => None,
        }
    }

    /// The announced order and the `NotBefore` its guests were told.
    #[must_use]
    pub const fn announced(&self) -> Option<(&Order, Timestamp)> {
        match &self.work {
            Work::Announced { order, not_before } => Some((order, *not_before)),
            Work::Idle | Work::Begun { .. } | Work::Finished(_) | Work::StoodDown => None,
        }
    }

    /// Takes an order in.
    ///
    /// # Errors
    /// [`GateRefusal`]; the gate is as it was.
    pub fn order(&mut self, order: &Order, now: Timestamp) -> Result<Vec<Do>, GateRefusal> {
        if order.host != self.host {
            return Err(GateRefusal::OtherHost { host: self.host.clone(), found: order.host.clone() });
        }
        if order.generation < self.generation {
            return Err(GateRefusal::Old { known: self.generation, found: order.generation });
        }
        match (&mut self.work, &order.task) {
            (Work::Begun { stand_down, .. }, Task::StandDown) => {
                if order.generation > self.generation {
                    *stand_down = Some(order.generation.max(stand_down.unwrap_or_default()));
                }
                Ok(Vec::new())
            }
            (Work::Begun { .. }, Task::Maintain(_)) if order.generation > self.generation => {
                Err(GateRefusal::AtWork { current: self.generation, found: order.generation })
            }
            (Work::Announced { order: known, .. }, Task::Maintain(visit)) if order.generation == self.generation => {
                if let Task::Maintain(known) = &mut known.task {
                    known.approved.extend(visit.approved.iter().cloned());
                    known.approvers.extend(visit.approvers.iter().map(|(vm, set)| (vm.clone(), set.clone())));
                }
                Ok(Vec::new())
            }
            _ if order.generation == self.generation => Ok(Vec::new()),
            (Work::Announced { order: known, .. }, task) => {
                let cancelled = Do::Cancel(known.clone());
                let mut actions = vec![cancelled];
                match task {
                    Task::StandDown => self.stand_down(order.generation),
                    Task::Maintain(visit) => actions.push(self.announce(order, visit, now)),
                }
                Ok(actions)
            }
            (_, Task::StandDown) => {
                self.stand_down(order.generation);
                Ok(Vec::new())
            }
            (_, Task::Maintain(visit)) => Ok(vec![self.announce(order, visit, now)]),
        }
    }

    fn stand_down(&mut self, generation: Generation) {
        self.generation = generation;
        self.work = Work::StoodDown;
    }

    fn announce(&mut self, order: &Order, visit: &Visit, now: Timestamp) -> Do {
        // The controller's clock may be behind ours: then its NotBefore comes too early for the notice it promised.
        let notice = SignedDuration::try_from(visit.notice).unwrap_or(SignedDuration::MAX);
        let own = now.saturating_add(notice).unwrap_or(Timestamp::MAX);
        let not_before = visit.not_before.max(own);
        self.generation = order.generation;
        self.work = Work::Announced { order: order.clone(), not_before };
        Do::Announce { order: order.clone(), not_before }
    }

    /// A guest of this host, or an operator on it, approved.
    pub fn approve(&mut self, scope: &Scope) {
        if let Work::Announced { order, .. } = &mut self.work
            && let Task::Maintain(visit) = &mut order.task
            && visit.scopes.contains(scope)
        {
            visit.approved.insert(scope.clone());
        }
    }

    /// Time has passed: begins the work when it may begin.
    pub fn tick(&mut self, now: Timestamp) -> Option<Do> {
        let (order, not_before) = self.announced()?;
        if now < not_before && !all_approved(order) {
            return None;
        }
        let order = order.clone();
        self.work = Work::Begun { order: order.clone(), stand_down: None };
        Some(Do::Begin(order))
    }

    /// The maintenance of a generation ended. Said again, or of an older one, it changes nothing.
    pub fn finished(&mut self, generation: Generation, outcome: Outcome) {
        let Work::Begun { order, stand_down } = &self.work else { return };
        if order.generation != generation {
            return;
        }
        self.last = Some((generation, outcome.clone()));
        match *stand_down {
            Some(raised) => self.stand_down(raised),
            None => self.work = Work::Finished(outcome),
        }
    }

    /// What the agent says of itself.
    #[must_use]
    pub fn report(&self) -> Report {
        let standing = match &self.work {
            Work::Idle => Standing::Idle,
            Work::Announced { not_before, .. } => Standing::Announced { not_before: *not_before },
            Work::Begun { .. } => Standing::InWork,
            Work::Finished(outcome) => Standing::Finished(outcome.clone()),
            Work::StoodDown => Standing::StoodDown,
        };
        Report { host: self.host.clone(), generation: self.generation, standing, last: self.last.clone() }
    }
}

fn all_approved(order: &Order) -> bool {
    match &order.task {
        // Without a scope there is nobody to ask, and nobody who is touched; the notice is still kept.
        Task::Maintain(visit) => !visit.scopes.is_empty() && visit.scopes.is_subset(&visit.approved),
        Task::StandDown => false,
    }
}

/// The scopes of an announced order that have not approved yet.
#[must_use]
pub fn missing_approvals(order: &Order) -> BTreeSet<Scope> {
    match &order.task {
        Task::Maintain(visit) => visit.scopes.difference(&visit.approved).cloned().collect(),
        Task::StandDown => BTreeSet::new(),
    }
}

#[cfg(test)]
mod tests;
