//! After a pause: the guest's wall clock.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What helps a guest whose clock Fermata cannot reach.
pub const HELPS: &str =
    "run qemu-guest-agent in the guest; or a vmclock device (Linux 6.13), or PTP_KVM with chrony `makestep 0.1 -1`";

/// What came of putting a clock right. Errors are guest (or host) time minus true time, in microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum ClockOutcome {
    /// It was wrong and is right now.
    Corrected {
        /// Error before, in microseconds.
        before_us: i64,
        /// Error after, read back, in microseconds.
        after_us: i64,
    },
    /// It was right already.
    WithinTolerance {
        /// Error, in microseconds.
        error_us: i64,
    },
    /// It may be wrong.
    NotCorrected {
        /// Why.
        reason: String,
        /// The way out.
        helps: String,
    },
}

/// The largest error that counts as right (promise P3).
pub const TOLERANCE: Duration = Duration::from_millis(50);
