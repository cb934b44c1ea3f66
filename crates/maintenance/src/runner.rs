//! Runs a step under a hard deadline, also when it hangs, forks, or ignores signals.
//!
//! On a host the agent runs steps as transient systemd units and kills the whole cgroup: nothing can escape that. The
//! [`ProcessRunner`] here does without systemd: a process group of its own, SIGKILL to all of it at the deadline, and no
//! waiting for anything that a step which left its group may still hold open. Both answer through [`StepRunner`], and
//! both obey [`Supervisor`], which decides and is pure:
//!
//! ```text
//!  running ──exit──> over(exited)
//!     │ deadline
//!     v
//!  killing ──exit──> over(timed out)
//!     │ grace
//!     v
//!  over(timed out, survives the kill)       e.g. stuck in the kernel; guests do not wait for it
//! ```

mod process;

use std::future::Future;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use process::ProcessRunner;

use crate::machine::{ActResult, Evidence, Failure, FailureKind};
use crate::time::{Mono, human};
use crate::update::Command;

/// How long a killed step may take to vanish before nobody waits for it any longer.
pub const GRACE: Duration = Duration::from_millis(50);

/// How much of what a step prints is kept: its end.
pub const TAIL: usize = 4096;

/// Something that can run a step.
pub trait StepRunner {
    /// Runs `command`; whatever happens, answers at `limit` + [`GRACE`] at the latest. Ends what an earlier call under
    /// the same `name` left behind first.
    fn run(&self, name: &str, command: &Command, limit: Duration) -> impl Future<Output = StepOutcome> + Send;

    /// Kills whatever is left of the steps under this `name`, for certain.
    ///
    /// # Errors
    /// What could not be killed, in words.
    fn kill(&self, name: &str) -> impl Future<Output = Result<(), String>> + Send;
}

/// What came of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[must_use]
pub struct StepOutcome {
    /// How it ended.
    pub end: StepEnd,
    /// From start to end.
    #[serde(rename = "took_us", with = "crate::time::micros")]
    pub took: Duration,
    /// The end of what it printed, standard output and error together.
    pub tail: String,
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum StepEnd {
    /// By itself.
    Exited {
        /// Exit status; 0 is success.
        code: i32,
    },
    /// By a signal that was not ours.
    Signalled {
        /// Its number.
        signal: i32,
    },
    /// Killed at the deadline.
    TimedOut {
        /// Nothing is left of it, as far as the runner can see.
        gone: bool,
    },
    /// It could not be started.
    NotStarted {
        /// Why.
        reason: String,
    },
}

impl StepOutcome {
    /// The answer for the core.
    ///
    /// # Errors
    /// Everything but exit status 0.
    pub fn into_result(self) -> ActResult {
        let Self { end, took, tail } = self;
        let (kind, what) = match end {
            StepEnd::Exited { code: 0 } => return Ok(Evidence::Output { tail }),
            StepEnd::Exited { code } => {
                (FailureKind::Failed, format!("ended with status {code} after {}", human(took)))
            }
            StepEnd::Signalled { signal } => {
                (FailureKind::Failed, format!("ended by signal {signal} after {}", human(took)))
            }
            StepEnd::TimedOut { gone: true } => {
                (FailureKind::Overdue, format!("was not done after {} and was killed", human(took)))
            }
            StepEnd::TimedOut { gone: false } => (
                FailureKind::Overdue,
                format!("was not done after {}, was killed and has not vanished yet", human(took)),
            ),
            StepEnd::NotStarted { reason } => (FailureKind::Failed, format!("could not be started: {reason}")),
        };
        let tail = tail.trim();
        let said = if tail.is_empty() { "it printed nothing".to_owned() } else { format!("it printed: {tail}") };
        Err(Failure { kind, text: format!("{what}; {said}") })
    }
}

/// Decides over one running step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Supervisor {
    started: Mono,
    deadline: Mono,
    killed: bool,
}

/// What happened to the step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepEvent {
    /// Time passed.
    Tick,
    /// Its main process ended.
    Ended(StepEnd),
}

/// What to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepAct {
    /// Wait for the end, at most until this moment.
    WaitUntil(Mono),
    /// Kill all of it, then ask again.
    Kill,
    /// It is over; kill what it left behind and answer.
    Answer {
        /// How it ended.
        end: StepEnd,
        /// From start to end.
        took: Duration,
    },
}

impl Supervisor {
    /// A step that starts now.
    #[must_use]
    pub fn new(started: Mono, limit: Duration) -> Self {
        Self { started, deadline: started.after(limit), killed: false }
    }

    /// What to do at `now`.
    pub fn handle(&mut self, event: StepEvent, now: Mono) -> StepAct {
        let took = now.since(self.started);
        match event {
            StepEvent::Ended(end) if self.killed => {
                // Killed, but it may have ended by itself in the same moment: then it was done in time.
                let end = if end == (StepEnd::Exited { code: 0 }) { end } else { StepEnd::TimedOut { gone: true } };
                StepAct::Answer { end, took }
            }
            StepEvent::Ended(end) => StepAct::Answer { end, took },
            StepEvent::Tick if now < self.deadline => StepAct::WaitUntil(self.deadline),
            StepEvent::Tick if !self.killed => {
                self.killed = true;
                StepAct::Kill
            }
            StepEvent::Tick if now < self.deadline.after(GRACE) => StepAct::WaitUntil(self.deadline.after(GRACE)),
            StepEvent::Tick => StepAct::Answer { end: StepEnd::TimedOut { gone: false }, took },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_answer_comes_by_the_deadline_and_its_grace(limit in 0u64..100_000, ticks in proptest::collection::vec(0u64..20_000, 0..20)) {
            let limit = Duration::from_micros(limit);
            let mut supervisor = Supervisor::new(Mono(5), limit);
            let mut now = Mono(5);
            let mut kills = 0;
            for tick in ticks.into_iter().chain([1_000_000, 0, 0]) {
                now = Mono(now.0 + tick);
                match supervisor.handle(StepEvent::Tick, now) {
                    StepAct::WaitUntil(at) => prop_assert!(at > now && at <= Mono(5).after(limit).after(GRACE)),
                    StepAct::Kill => {
                        kills += 1;
                        prop_assert!(now >= Mono(5).after(limit), "killed too early");
                    }
                    StepAct::Answer { end, .. } => {
                        prop_assert_eq!(end, StepEnd::TimedOut { gone: false });
                        prop_assert_eq!(kills, 1);
                        return Ok(());
                    }
                }
            }
            prop_assert!(false, "no answer");
        }
    }

    #[test]
    fn a_failure_tells_what_the_step_printed() {
        let outcome = StepOutcome {
            end: StepEnd::Exited { code: 3 },
            took: Duration::from_millis(120),
            tail: "cannot bind\n".to_owned(),
        };
        let text = outcome.into_result().unwrap_err().text;
        assert_eq!(text, "ended with status 3 after 120.0 ms; it printed: cannot bind");
    }
}
