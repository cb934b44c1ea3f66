//! Sees everything, with the one true clock.

use std::collections::{BTreeMap, BTreeSet};

use fermata_controller::order::{Generation, Order, Part, RolloutId, Scope, Task};
use fermata_controller::rollout::Definition;
use fermata_model::{HostName, SetName};
use jiff::Timestamp;

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// P4.
    #[error(
        "P4: {host} was begun in part {part} of set {set} while {other} was under maintenance in part {other_part}"
    )]
    TwoParts {
        /// The set.
        set: SetName,
        /// Begun.
        host: HostName,
        /// Its part.
        part: Part,
        /// Under maintenance.
        other: HostName,
        /// Its part.
        other_part: Part,
    },
    /// P5.
    #[error("P5: {host} was begun at {at}, its guests were told {not_before} and had not approved")]
    TooEarly {
        /// The host.
        host: HostName,
        /// True time.
        at: Timestamp,
        /// True time at which the notice runs out.
        not_before: Timestamp,
    },
    /// P6: the same visit twice.
    #[error("P6: {host} was begun twice for generation {generation}")]
    Twice {
        /// The host.
        host: HostName,
        /// The order.
        generation: Generation,
    },
    /// P6: it does not go on by itself.
    #[error("P6: after all faults have stopped, rollout {rollout} does not end: {state}")]
    Stuck {
        /// The rollout.
        rollout: RolloutId,
        /// Where it stands.
        state: String,
    },
    /// Locks or slots outlive all rollouts.
    #[error("{key} is still held after all rollouts have ended")]
    Leaked {
        /// The record.
        key: String,
    },
    /// A log that its rules did not write.
    #[error("rollout {rollout}: {reason}")]
    Log {
        /// The rollout.
        rollout: RolloutId,
        /// What does not agree.
        reason: String,
    },
    /// What the planner's checker found.
    #[error("rollout {rollout}: the independent checker: {found}")]
    Checker {
        /// The rollout.
        rollout: RolloutId,
        /// What.
        found: String,
    },
}

/// One visit with its true times.
#[derive(Debug, Clone)]
pub struct Visit {
    /// The rollout that ordered it.
    pub rollout: RolloutId,
    /// The host.
    pub host: HostName,
    /// When VMs could be touched first.
    pub begun: Timestamp,
    /// When all its VMs were healthy again.
    pub healthy: Option<Timestamp>,
}

/// The judge's memory.
#[derive(Debug, Default)]
pub struct Judge {
    /// Parts of sets by host: the same for all rollouts over one fleet.
    parts: BTreeMap<HostName, BTreeMap<SetName, Part>>,
    told: BTreeMap<(HostName, Generation), Timestamp>,
    approved: BTreeMap<(HostName, Generation), BTreeSet<Scope>>,
    begun: BTreeSet<(HostName, Generation)>,
    under: BTreeSet<HostName>,
    /// Every visit so far.
    pub visits: Vec<Visit>,
}

impl Judge {
    /// Learns which host carries which parts.
    pub fn learn(&mut self, definition: &Definition) {
        for (host, task) in &definition.hosts {
            let parts = task.sets.iter().map(|(set, member)| (set.clone(), member.part.clone()));
            self.parts.insert(host.clone(), parts.collect());
        }
    }

    /// Guests have been told; `until` is when the promised notice runs out, in true time.
    pub fn announced(&mut self, order: &Order, until: Timestamp) {
        self.told.entry((order.host.clone(), order.generation)).or_insert(until);
    }

    /// A scope has approved, somewhere.
    pub fn approves(&mut self, host: &HostName, generation: Generation, scope: Scope) {
        self.approved.entry((host.clone(), generation)).or_default().insert(scope);
    }

    /// VMs may be touched from now on.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn begins(&mut self, order: &Order, now: Timestamp) -> Result<(), Violation> {
        let key = (order.host.clone(), order.generation);
        if !self.begun.insert(key.clone()) {
            return Err(Violation::Twice { host: key.0, generation: key.1 });
        }
        let scopes = match &order.task {
            Task::Maintain(visit) => visit.scopes.clone(),
            Task::StandDown => BTreeSet::new(),
        };
        let approved = self.approved.get(&key).is_some_and(|approved| scopes.is_subset(approved));
        let not_before = self.told.get(&key).copied().unwrap_or(Timestamp::MAX);
        if now < not_before && !approved {
            return Err(Violation::TooEarly { host: key.0, at: now, not_before });
        }
        let mine = self.parts.get(&order.host).cloned().unwrap_or_default();
        for other in self.under.iter().filter(|other| **other != order.host) {
            for (set, other_part) in &self.parts[other] {
                if let Some(part) = mine.get(set).filter(|part| *part != other_part) {
                    return Err(Violation::TwoParts {
                        set: set.clone(),
                        host: order.host.clone(),
                        part: part.clone(),
                        other: other.clone(),
                        other_part: other_part.clone(),
                    });
                }
            }
        }
        self.under.insert(order.host.clone());
        self.visits.push(Visit { rollout: order.rollout.clone(), host: order.host.clone(), begun: now, healthy: None });
        Ok(())
    }

    /// All VMs of a visited host are healthy again.
    pub fn healthy(&mut self, host: &HostName, now: Timestamp) {
        self.under.remove(host);
        if let Some(visit) = self.visits.iter_mut().rev().find(|visit| visit.host == *host) {
            visit.healthy.get_or_insert(now);
        }
    }
}
