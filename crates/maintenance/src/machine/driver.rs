//! The loop body of a shell: input in, acts out, with the journal in between.

use super::act::{Act, Failure, FailureKind};
use super::entry::{Entry, Stamped};
use super::journalled::{Log, LogFailure};
use super::state::{ReplayError, State};
use super::{Input, plan, step};
use crate::id::BootId;
use crate::order::Order;
use crate::time::{Mono, Now};

/// One maintenance and its journal.
#[derive(Debug)]
pub struct Maintenance<L> {
    state: State,
    log: L,
    /// When it was asked last.
    asked: Mono,
}

/// Why a maintenance did not begin. No VM was touched.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The journal refused the order.
    #[error("maintenance not begun: {0}")]
    Journal(#[from] LogFailure),
    /// The journal does not tell a maintenance.
    #[error(transparent)]
    Replay(#[from] ReplayError),
}

impl<L: Log> Maintenance<L> {
    /// Writes the order and begins.
    ///
    /// # Errors
    /// [`StartError::Journal`] when the order cannot be written.
    pub fn begin(order: Order, boot: BootId, mut log: L, now: Now) -> Result<(Self, Vec<Act>), StartError> {
        let (state, acts) = plan(order, boot, now).commit(&mut log).map_err(|unwritten| unwritten.failure)?;
        Ok((Self { state, log, asked: now.mono }, acts))
    }

    /// Continues from what the journal says, after a restart of the agent or of the host.
    ///
    /// # Errors
    /// [`StartError::Replay`] when the entries are not those of a maintenance.
    pub fn recover(entries: &[Stamped], boot: BootId, log: L, now: Now) -> Result<(Self, Vec<Act>), StartError> {
        let mut maintenance = Self { state: State::replay(entries)?, log, asked: now.mono };
        let acts = maintenance.handle(Input::Restarted { boot }, now);
        Ok((maintenance, acts))
    }

    /// Takes an input and returns the acts to begin, in order. Acts on different VMs may run side by side.
    ///
    /// A journal that cannot be written is not an error here: the acts are then those of the rescue, and
    /// [`State::adrift`] says why.
    #[must_use]
    pub fn handle(&mut self, input: Input, now: Now) -> Vec<Act> {
        self.asked = now.mono;
        let decided = step(&self.state, input, now);
        if decided.entries().is_empty() && self.state.unwritten.is_empty() {
            return Vec::new();
        }
        // Acts that end with a failure are logged where they end; these end nowhere.
        for entry in decided.entries() {
            if let Entry::Ended { act, result: Err(Failure { kind: FailureKind::Overdue, text }) } = &entry.entry {
                tracing::warn!(maintenance = %self.state.order.id, %act, reason = text, "not waited for any longer");
            }
        }
        match decided.commit(&mut self.log) {
            Ok((state, acts)) => {
                let was_adrift = self.state.adrift.is_some();
                self.state = state;
                // Back from a time without a journal: what was held back may begin now.
                if was_adrift { acts.into_iter().chain(self.handle(Input::Tick, now)).collect() } else { acts }
            }
            Err(unwritten) => {
                tracing::error!(maintenance = %self.state.order.id, reason = %unwritten.failure, "journal not written");
                match unwritten.rescue(now) {
                    Some((state, acts)) => {
                        self.state = state;
                        acts
                    }
                    None => Vec::new(),
                }
            }
        }
    }

    /// What is known.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// When to send [`Input::Tick`] should nothing else come before.
    #[must_use]
    pub fn wake_at(&self, now: Now) -> Option<Mono> {
        self.state.wake_at(now, self.asked)
    }

    /// The journal.
    pub const fn log_mut(&mut self) -> &mut L {
        &mut self.log
    }

    /// Gives the journal back.
    #[must_use]
    pub fn into_log(self) -> L {
        self.log
    }
}
