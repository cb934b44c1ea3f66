//! Why a hand over did not happen.

use std::path::PathBuf;
use std::time::Duration;

use fermata_vault::process::ProcessError;

use crate::qmp::{QmpError, RunState};

/// Why a VM was not handed over, saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// QEMU says that it cannot be done with this VM.
    #[error("this VM cannot be handed over: {}", .0.join("; "))]
    Blocked(Vec<String>),
    /// The old VMM.
    #[error("the VMM that has the VM: {0}")]
    Old(QmpError),
    /// The new VMM.
    #[error("the new VMM: {0}")]
    New(QmpError),
    /// The old VMM gave up.
    #[error("the hand over failed: {0}")]
    Failed(String),
    /// The new VMM ended.
    #[error("the new VMM (process {pid}) ended when it should {what}; its log says why")]
    NewDied {
        /// Its process id.
        pid: i32,
        /// What it should have done.
        what: &'static str,
    },
    /// Too slow.
    #[error("the new VMM did not {what} within {limit:?}")]
    Late {
        /// What it should have done.
        what: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// The new VMM is somewhere it should not be.
    #[error("the new VMM is in state {0:?} after the hand over; it was expected to stand still with the VM loaded")]
    OddState(RunState),
    /// The new VMM's monitor was never reached.
    #[error("the new VMM has no monitor; it must have been waited for before a hand over by file")]
    NoMonitor,
    /// The new VMM's process cannot be watched.
    #[error(transparent)]
    Process(ProcessError),
    /// The state file.
    #[error("state file {path}: {what}: {source}")]
    File {
        /// Where.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// The kernel's reason.
        source: std::io::Error,
    },
}

/// Why a VM was not taken back.
#[derive(Debug, thiserror::Error)]
pub enum TakeBackError {
    /// The new VMM may still live: the old one was not touched, because two must never run one VM.
    #[error("the VM was not taken back, because the new VMM may still live: {0}")]
    NewLives(ProcessError),
    /// The old VMM does not do it.
    #[error("the VM was not taken back: {0}")]
    Old(QmpError),
}
