//! The lock between deciding and doing: acts come out of a journal only (promise P6).
//!
//! [`Journalled`] holds the next state and the intents, both private. [`Journalled::commit`] writes them and only then
//! hands out the state and the acts. There is no other way to an [`Act`], so "the journal was forgotten" does not
//! compile. When the journal cannot be written, [`Unwritten::rescue`] hands out what the journal implies already.

use fermata_model::Mechanism;

use super::act::Act;
use super::entry::{Entry, Stamped};
use super::state::State;
use crate::id::MaintenanceId;
use crate::time::Now;

/// How long an entry must last before its act begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// It outlives the agent: written, not synced. Used while VMs are paused, where a sync would be blackout: what the
    /// entry protects (VMMs, held vCPUs) does not outlive a power cut either, and the synced entry before the pause
    /// already says that it may have begun. The beginnings of pauses and of the jump are synced also then, and all of
    /// a maintenance that holds VMs while a step runs.
    Process,
    /// It outlives the host's power: synced.
    Power,
}

/// Where entries are kept. [`crate::journal::Journal`] is the real one.
pub trait Log {
    /// Appends `entries`, the first of which is number `first` of the maintenance (counted from 0). All or nothing.
    ///
    /// # Errors
    /// [`LogFailure`]; nothing was appended then.
    fn append(
        &mut self,
        maintenance: &MaintenanceId,
        first: u64,
        entries: &[Stamped],
        durability: Durability,
    ) -> Result<(), LogFailure>;
}

/// Why entries could not be appended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct LogFailure {
    /// For people: what happened and the way out.
    pub text: String,
    /// Somebody else wrote: this agent is not the one in charge any longer and must not act at all.
    pub superseded: bool,
}

/// Entries to write, and what follows from them.
#[derive(Debug)]
#[must_use = "nothing is decided until it is committed"]
pub struct Journalled {
    before: Option<Box<State>>,
    next: State,
    entries: Vec<Stamped>,
    durability: Durability,
}

/// A commit that failed.
#[derive(Debug)]
#[must_use = "paused VMs wait for the rescue"]
pub struct Unwritten {
    /// Why.
    pub failure: LogFailure,
    before: Option<Box<State>>,
    entries: Vec<Stamped>,
}

impl Journalled {
    pub(super) fn new(before: Option<Box<State>>, next: State, entries: Vec<Stamped>) -> Self {
        let only_here =
            |entry: &Stamped| matches!(&entry.entry, Entry::Began(act) if act.id.op.is_told_by_the_journal_alone());
        // A step takes longer than any write, and only the journal could tell whether VMs stand still while it is undone.
        let held = next.order.mechanism() == Mechanism::Hold;
        let in_pause = !held && before.as_ref().is_some_and(|state| state.in_pause());
        let durability =
            if in_pause && !entries.iter().any(only_here) { Durability::Process } else { Durability::Power };
        Self { before, next, entries, durability }
    }

    /// What will be written.
    #[must_use]
    pub fn entries(&self) -> &[Stamped] {
        &self.entries
    }

    /// Writes, then hands out the state and the acts to begin, in order.
    ///
    /// # Errors
    /// [`Unwritten`] when the journal cannot be written: go on with [`Unwritten::rescue`].
    pub fn commit<L: Log>(self, log: &mut L) -> Result<(State, Vec<Act>), Unwritten> {
        let late = self.before.as_ref().map_or(&[][..], |state| &state.unwritten);
        let all: Vec<Stamped> = late.iter().chain(&self.entries).cloned().collect();
        let first = self.next.entries - u64::try_from(all.len()).unwrap_or(u64::MAX);
        if !all.is_empty()
            && let Err(failure) = log.append(&self.next.order.id, first, &all, self.durability)
        {
            return Err(Unwritten { failure, before: self.before, entries: self.entries });
        }
        let acts = begun(&self.entries);
        let mut next = self.next;
        next.unwritten.clear();
        next.adrift = None;
        Ok((next, acts))
    }
}

impl Unwritten {
    /// What to do without a journal: keep the facts in memory, begin nothing new, let every paused VM run on the owner
    /// that the journal names. `None` when there was no maintenance yet: then there is nothing to do at all.
    #[must_use]
    pub fn rescue(self, now: Now) -> Option<(State, Vec<Act>)> {
        let mut state = *self.before?;
        let mut facts: Vec<Stamped> = self.entries.into_iter().filter(|entry| entry.entry.is_fact()).collect();
        if state.adrift.is_none() {
            facts.push(Stamped { at: now, entry: Entry::JournalFailed { reason: self.failure.text.clone() } });
        }
        for fact in &facts {
            state.apply(fact);
        }
        state.adrift = Some(self.failure.text);
        state.unwritten.extend(facts);
        if self.failure.superseded {
            return Some((state, Vec::new()));
        }
        let mut rescue = Vec::new();
        loop {
            let entries: Vec<Stamped> =
                state.advance(now).into_iter().map(|entry| Stamped { at: now, entry }).collect();
            if entries.is_empty() {
                break;
            }
            for entry in &entries {
                state.apply(entry);
            }
            rescue.extend(entries);
        }
        let acts = begun(&rescue);
        state.unwritten.extend(rescue);
        Some((state, acts))
    }
}

fn begun(entries: &[Stamped]) -> Vec<Act> {
    let act = |entry: &Stamped| match &entry.entry {
        Entry::Began(act) => Some(act.clone()),
        _ => None,
    };
    entries.iter().filter_map(act).collect()
}
