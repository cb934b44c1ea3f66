//! For tests of faults: the agent halts itself, as by SIGSTOP, at an act that it has just written down, so that somebody
//! outside can do the worst at exactly this step.
//!
//! Asked for by the environment variable `FERMATA_HALT_AT`: an act's name as reports have it (`hand over`) halts before the
//! act, with `after` in front right after it and before its end is written. Only root can set the environment of the agent's
//! unit, and root could stop the process anyway. It halts once: the file `halted` in the run folder says that it did.

use std::fs::OpenOptions;
use std::path::Path;

use fermata_maintenance::machine::Op;
use rustix::process::{Signal, getpid, kill_process};

const VARIABLE: &str = "FERMATA_HALT_AT";

/// On which side of an act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Before,
    After,
}

/// Halts here, if this is where a test wants it.
pub(super) fn here(run_dir: &Path, side: Side, op: Op) {
    let Ok(wanted) = std::env::var(VARIABLE) else { return };
    if !means(&wanted, side, op)
        || OpenOptions::new().write(true).create_new(true).open(run_dir.join("halted")).is_err()
    {
        return;
    }
    tracing::warn!(at = wanted, "halts, as {VARIABLE} asks");
    if let Err(error) = kill_process(getpid(), Signal::STOP) {
        tracing::error!(%error, "cannot halt");
    }
}

fn means(wanted: &str, side: Side, op: Op) -> bool {
    match (wanted.strip_prefix("after "), side) {
        (Some(act), Side::After) => act == op.to_string(),
        (None, Side::Before) => wanted == op.to_string(),
        (Some(_), Side::Before) | (None, Side::After) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_meant_by_its_name_and_side() {
        assert!(means("hand over", Side::Before, Op::HandOver));
        assert!(means("after hand over", Side::After, Op::HandOver));
        assert!(!means("after hand over", Side::Before, Op::HandOver));
        assert!(!means("hand over", Side::Before, Op::Hold));
    }
}
