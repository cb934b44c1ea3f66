//! The life of a rollout and of every host in it.
//!
//! ```text
//!   Planned -> Running <-> Paused            a host:
//!                 |           |
//!                 v           v              Waiting -> Preflight -> Ordered -> Announced -> InWork -> Checking -> Soaking -> Done
//!              Stopping (aborted, failed)       ^           |           |           |                      |
//!                 |                             +-----------+           v           v                      +--> Failed
//!                 v                             +------------------- StandingDown --+---> Skipped
//!               Ended (completed, aborted, failed)
//! ```
//!
//! [`Rollout::step`] is pure: (state, input, what the store says, now) gives the new state and actions, or a [`Refusal`] and nothing has
//! changed. A rollout is the fold of its log over its [`Definition`]; [`replay`] derives it again and compares every
//! decision. [`Rollout::agenda`] says which inputs it needs next; [`Rollout::explain`] says for any host why it is not in
//! work.
//!
//! Invariants:
//! - A host in `Ordered`, `Announced`, `InWork`, `StandingDown` or `Checking` holds the locks of all its sets.
//! - Locks are given back only when the agent has said that it touches no VM for the order any more, *and* the VMs it touched are
//!   healthy. The one exception, giving a host up, needs an administrator and stays in the log.
//! - A refused input leaves no trace.

mod admit;
mod agenda;
mod budget;
mod definition;
mod explain;
mod input;
mod of_plan;
mod operator;
mod replay;
mod state;
mod step;

use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

pub use agenda::Need;
pub use definition::{Definition, DefinitionError, HostTask, Member, Rules, StageRule};
pub use explain::{Explanation, Wait};
pub use input::{Action, Author, Entry, Input, View};
pub use replay::{ReplayError, replay};
pub use state::{End, Evidence, HostPhase, HostState, Phase, Refused, StageGate, State, VmTrouble};
pub use step::Refusal;
pub(crate) use step::after;

/// A rollout: what it is to do and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollout {
    definition: Arc<Definition>,
    state: State,
}

impl Hash for Rollout {
    // The definition never changes under a rollout, so states alone tell rollouts of one definition apart.
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.state.hash(hasher);
    }
}

impl Rollout {
    /// A planned rollout that has not begun.
    ///
    /// # Errors
    /// [`DefinitionError`].
    pub fn new(definition: Arc<Definition>) -> Result<Self, DefinitionError> {
        definition.check()?;
        let mut open = vec![0; definition.stages.len()];
        for task in definition.hosts.values() {
            open[task.stage] += 1;
        }
        let state = State {
            phase: Phase::Planned,
            hosts: definition.hosts.keys().map(|host| (host.clone(), HostState::new())).collect(),
            stage: 0,
            gate: StageGate::Working,
            in_flight: BTreeSet::new(),
            open,
            failures: std::collections::BTreeMap::new(),
        };
        Ok(Self { definition, state })
    }

    /// What it is to do.
    #[must_use]
    pub const fn definition(&self) -> &Arc<Definition> {
        &self.definition
    }

    /// Where it stands.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Whether it is over.
    #[must_use]
    pub const fn ended(&self) -> bool {
        matches!(self.state.phase, Phase::Ended(_))
    }
}

#[cfg(test)]
mod tests;
