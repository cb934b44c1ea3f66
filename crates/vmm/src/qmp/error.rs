//! Why a command has no answer.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// Nobody listens.
    #[error("monitor {path}: no VMM answered within {limit:?}: {source}")]
    Connect {
        /// The monitor's socket.
        path: PathBuf,
        /// How long was tried.
        limit: Duration,
        /// The last reason.
        source: io::Error,
    },
    /// No answer in time. The command may still take effect.
    #[error("the VMM did not answer `{command}` within {limit:?}; it hangs or the host is overloaded")]
    Timeout {
        /// The command.
        command: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// QEMU's refusal.
    #[error("the VMM refused `{command}`: {desc} ({class})")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's class, usually `GenericError`.
        class: String,
        /// QEMU's words.
        desc: String,
    },
    /// The connection ended before the answer.
    #[error("the VMM closed its monitor before it answered `{command}`")]
    Closed {
        /// The command.
        command: &'static str,
    },
    /// What came is not QMP, or not what this command answers.
    #[error("the monitor does not speak the QMP that Fermata knows: {what}")]
    Protocol {
        /// What was wrong.
        what: String,
    },
}

impl QmpError {
    /// Whether QEMU itself said no: then the command had no effect.
    #[must_use]
    pub const fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}
