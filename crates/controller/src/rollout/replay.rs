//! Deriving every decision again from the log.

use std::sync::Arc;

use super::{Action, Definition, DefinitionError, Entry, Refusal, Rollout};

/// Where a log does not agree with the rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// The definition is not sound.
    #[error("the rollout's definition: {0}")]
    Definition(#[from] DefinitionError),
    /// A line is missing or out of place.
    #[error("log line {found} stands where line {expected} should; the log has a gap")]
    Gap {
        /// The number that should stand there.
        expected: u64,
        /// The number found.
        found: u64,
    },
    /// The input would not be taken.
    #[error("log line {number}: the input would be refused: {refusal}")]
    Refused {
        /// The line.
        number: u64,
        /// Why.
        refusal: Box<Refusal>,
    },
    /// The decision would be another one.
    #[error("log line {number}: decided {recorded:?}, the rules say {derived:?}")]
    Differs {
        /// The line.
        number: u64,
        /// What was done.
        recorded: Vec<Action>,
        /// What should have been done.
        derived: Vec<Action>,
    },
}

/// Derives a rollout from its log and compares every decision with the recorded one.
///
/// # Errors
/// [`ReplayError`] with the first line that does not agree.
pub fn replay<'a>(
    definition: Arc<Definition>,
    log: impl IntoIterator<Item = &'a Entry>,
) -> Result<Rollout, ReplayError> {
    let mut rollout = Rollout::new(definition)?;
    for (expected, entry) in (1..).zip(log) {
        if entry.number != expected {
            return Err(ReplayError::Gap { expected, found: entry.number });
        }
        let derived = rollout
            .step(&entry.input, &entry.view, entry.at)
            .map_err(|refusal| ReplayError::Refused { number: entry.number, refusal: Box::new(refusal) })?;
        if derived != entry.actions {
            return Err(ReplayError::Differs { number: entry.number, recorded: entry.actions.clone(), derived });
        }
    }
    Ok(rollout)
}
