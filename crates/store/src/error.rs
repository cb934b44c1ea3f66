//! What a store refuses, and why.

use crate::types::{LeaseId, Revision};

/// Why a store did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Keys have at least one byte.
    #[error("a key is empty; give it a name")]
    EmptyKey,
    /// One transaction has one effect per key.
    #[error("key `{0}` is written twice in one transaction; write it once")]
    DuplicateKey(String),
    /// The lease has ended, or never was.
    #[error("lease {0} has ended; grant a new one")]
    LeaseNotFound(LeaseId),
    /// The events asked for have been forgotten.
    #[error("revision {asked} was compacted away at {compacted}; read the range again and watch from its revision")]
    Compacted {
        /// The revision asked for.
        asked: Revision,
        /// The oldest revision still known.
        compacted: Revision,
    },
    /// Compaction of what has not happened yet.
    #[error("revision {asked} has not happened yet, the store is at {current}; compact at or before it")]
    FutureRevision {
        /// The revision asked for.
        asked: Revision,
        /// The store's revision.
        current: Revision,
    },
    /// The store's files were written by a newer version.
    #[error("the store at {path} has format {found}, this program knows {known}; start the newer version")]
    Format {
        /// Where the store lies.
        path: String,
        /// Format found.
        found: i64,
        /// Format known.
        known: i64,
    },
    /// The medium or the server failed.
    #[error("the store is unavailable while {doing}: {reason}; what was asked may or may not have happened")]
    Unavailable {
        /// What was being done.
        doing: &'static str,
        /// What the medium said.
        reason: String,
    },
}
