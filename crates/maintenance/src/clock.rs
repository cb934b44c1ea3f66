//! After a pause: the guest's wall clock (promise P3). Pure policy; the shell only exchanges messages.
//!
//! ```text
//!            ┌──────────── still wrong, fewer than 3 steps ───────────┐
//!            v                                                        │
//!  start ─> measure ─ wrong ─> set to a target time ─> reset RTC ─> measure ─ right ─> corrected
//!            │ └─ right ─> within tolerance                           │
//!            └─ no answers, or too slow to tell, for long ────────────┴─> not corrected (reason, what helps)
//! ```
//!
//! Right after a pause a host can be so busy that answers take too long to tell the time by: then the clock is read again until one
//! is quick enough. How long that is worth it depends on whether the guest's agent answered before the pause.
//!
//! QEMU resumes with the guest's time standing where it stood, so the wall clock is behind by the blackout. It is put
//! right through qemu-guest-agent's `guest-set-time`, always with an explicit time (without one, Linux runs `hwclock`
//! and Windows asks the internet): host time plus half a round trip. The target is a time, never a difference, and the
//! clock is read before every step: a command whose answer was lost is not repeated when it took effect, so the guest is
//! never stepped twice for one pause. The monotonic clock is never touched.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::human;

/// What helps a guest whose clock Fermata cannot reach.
pub const HELPS: &str =
    "run qemu-guest-agent in the guest; or a vmclock device (Linux 6.13), or PTP_KVM with chrony `makestep 0.1 -1`";

/// The largest error that counts as right (promise P3).
pub const TOLERANCE: Duration = Duration::from_millis(50);

/// A reading this sharp needs no second one.
const SHARP: Duration = Duration::from_millis(5);
/// A step is made once more only when answers are this quick.
const STEADY: Duration = Duration::from_millis(25);
const READINGS: u32 = 3;
const STEPS: u32 = 3;
/// Messages that may fail in all; the guest counts as unreachable when its patience is over as well.
const FAILURES: u32 = 6;
/// A guest that does not answer, or too slowly, is given up no earlier than this: one of a busy host answers late.
pub const UNHEARD: Duration = Duration::from_secs(24);
/// The same for a guest whose agent answered before the pause: it will again.
pub const KNOWN_TO_ANSWER: Duration = Duration::from_secs(90);

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

/// Nanoseconds since 1970, host or guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixNanos(pub i64);

/// What to ask the guest agent (or the VMM) next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClockAct {
    /// `guest-get-time`; answer with [`ClockAnswer::Time`].
    GetTime,
    /// `guest-set-time`. The target counts from the moment the command is sent: ask right before sending.
    SetTime {
        /// The `time` argument.
        target: UnixNanos,
    },
    /// QMP `rtc-reset-reinjection`, so that missed RTC ticks are not made up for on top.
    ResetRtc,
    /// It is over.
    Finish(ClockOutcome),
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClockAnswer {
    /// To `GetTime`.
    Time {
        /// Host time when the command was sent.
        sent: UnixNanos,
        /// Host time when the answer came.
        received: UnixNanos,
        /// What the guest said.
        guest: UnixNanos,
    },
    /// To `SetTime` and `ResetRtc`: done.
    Done,
    /// No answer in time, or an error. Whether it took effect is not known.
    Failed {
        /// The agent's words.
        reason: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reading {
    /// Guest minus host, in nanoseconds, at the middle of the round trip.
    error: i64,
    /// Half the round trip: the error is known to this.
    half_trip: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Measure,
    Set,
    Reset,
}

/// What readings say.
enum Judgement {
    /// Not enough yet.
    Unsure,
    /// It is to be set; its error in nanoseconds.
    Wrong(i64),
    Over(ClockOutcome),
}

/// Puts the clock of one guest right after one pause.
#[derive(Debug, Clone)]
pub struct ClockTask {
    doing: Doing,
    readings: u32,
    best: Option<Reading>,
    before: Option<i64>,
    steps: u32,
    failures: u32,
    last_failure: String,
    began: UnixNanos,
    patience: Duration,
    /// Half the shortest round trip seen, for the target of a step.
    half_trip: i64,
}

fn nanos(length: Duration) -> i64 {
    i64::try_from(length.as_nanos()).unwrap_or(i64::MAX)
}

impl ClockTask {
    /// Begins, right after RESUME, at host time `now`. `patience`: [`UNHEARD`] or [`KNOWN_TO_ANSWER`].
    #[must_use]
    pub const fn new(now: UnixNanos, patience: Duration) -> Self {
        Self {
            doing: Doing::Measure,
            readings: 0,
            best: None,
            before: None,
            steps: 0,
            failures: 0,
            last_failure: String::new(),
            began: now,
            patience,
            half_trip: i64::MAX,
        }
    }

    /// What to do now, at host time `now`.
    #[must_use]
    pub fn next(&self, now: UnixNanos) -> ClockAct {
        if self.failures >= FAILURES && self.is_late(now) {
            return ClockAct::Finish(not_corrected(format!("the guest agent does not answer: {}", self.last_failure)));
        }
        match self.doing {
            Doing::Set => {
                let half_trip = if self.half_trip == i64::MAX { 0 } else { self.half_trip };
                ClockAct::SetTime { target: UnixNanos(now.0.saturating_add(half_trip)) }
            }
            Doing::Reset => ClockAct::ResetRtc,
            Doing::Measure => match self.judge(now) {
                Judgement::Over(outcome) => ClockAct::Finish(outcome),
                Judgement::Unsure | Judgement::Wrong(_) => ClockAct::GetTime,
            },
        }
    }

    fn is_late(&self, now: UnixNanos) -> bool {
        now.0.saturating_sub(self.began.0) >= nanos(self.patience)
    }

    /// What the readings so far say, at host time `now`.
    fn judge(&self, now: UnixNanos) -> Judgement {
        let Some(best) = self.enough() else { return Judgement::Unsure };
        let error = best.error.saturating_abs();
        let known = |within: i64| within <= nanos(TOLERANCE);
        // A reading may be off by half its trip: the truth may be outside, or inside.
        let (certainly_right, certainly_wrong) =
            (known(error.saturating_add(best.half_trip)), !known(error.saturating_sub(best.half_trip)));
        // What blurs a reading blurs a step: the first one cannot wait, the others are to be the last.
        let steady = best.half_trip <= nanos(STEADY);
        let to_be_set = !certainly_right && (steady || self.steps == 0 && certainly_wrong);
        let over = |reason: String| Judgement::Over(not_corrected(reason));
        if to_be_set && self.steps < STEPS {
            return Judgement::Wrong(best.error);
        }
        let sharper_helps = !certainly_right && (self.steps < STEPS || !certainly_wrong);
        if sharper_helps && !self.is_late(now) {
            return Judgement::Unsure;
        }
        // What is known by now has to do.
        match (known(error), known(best.half_trip)) {
            (true, true) => Judgement::Over(match self.before {
                Some(before) => ClockOutcome::Corrected { before_us: before / 1000, after_us: best.error / 1000 },
                None => ClockOutcome::WithinTolerance { error_us: best.error / 1000 },
            }),
            (true, false) => over(format!(
                "the guest agent took {} per answer, too slow to tell the time within {}",
                human(Duration::from_nanos(best.half_trip.unsigned_abs() * 2)),
                human(TOLERANCE)
            )),
            (false, _) if self.steps >= STEPS => over(format!(
                "after {} steps the guest's clock is still off by {}; something in the guest sets it as well",
                self.steps,
                human(Duration::from_nanos(best.error.unsigned_abs()))
            )),
            (false, _) => Judgement::Wrong(best.error),
        }
    }

    /// The best reading, once there is no point in another one.
    fn enough(&self) -> Option<Reading> {
        self.best.filter(|best| self.readings >= READINGS || best.half_trip <= nanos(SHARP))
    }

    /// Takes the answer to what [`Self::next`] asked for.
    pub fn heard(&mut self, answer: &ClockAnswer) {
        match (self.doing, answer) {
            (_, ClockAnswer::Failed { reason }) => {
                self.failures += 1;
                self.last_failure.clone_from(reason);
                match self.doing {
                    Doing::Measure => {}
                    // A step that may have taken effect is not repeated blindly: look first. And the RTC alone does
                    // not spoil a step.
                    Doing::Set | Doing::Reset => self.measure(),
                }
            }
            (Doing::Measure, ClockAnswer::Time { sent, received, guest }) => {
                self.readings += 1;
                // Rounded up, so that the truth is not a nanosecond further away.
                let half_trip = received.0.saturating_sub(sent.0).max(0).saturating_add(1) / 2;
                let reading = Reading { error: guest.0.saturating_sub(sent.0.saturating_add(half_trip)), half_trip };
                self.half_trip = self.half_trip.min(half_trip);
                if self.best.is_none_or(|best| reading.half_trip < best.half_trip) {
                    self.best = Some(reading);
                }
                if let Judgement::Wrong(error) = self.judge(*received) {
                    self.before.get_or_insert(error);
                    self.doing = Doing::Set;
                }
            }
            (Doing::Set, ClockAnswer::Done) => {
                self.steps += 1;
                self.doing = Doing::Reset;
            }
            (Doing::Reset, ClockAnswer::Done) => self.measure(),
            // An answer to something else: look again.
            (Doing::Measure, ClockAnswer::Done) | (Doing::Set | Doing::Reset, ClockAnswer::Time { .. }) => {}
        }
    }

    fn measure(&mut self) {
        self.doing = Doing::Measure;
        self.readings = 0;
        self.best = None;
    }
}

fn not_corrected(reason: String) -> ClockOutcome {
    ClockOutcome::NotCorrected { reason, helps: HELPS.to_owned() }
}

/// The outcome for a VM without a guest agent.
#[must_use]
pub fn no_agent() -> ClockOutcome {
    not_corrected("the VM has no guest agent".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A guest whose clock is off, behind a link with a delay each way.
    struct Guest {
        host: i64,
        offset: i64,
        steps: Vec<i64>,
    }

    impl Guest {
        fn run(&mut self, delays: &[i64], lost: &[bool]) -> ClockOutcome {
            let mut task = ClockTask::new(UnixNanos(self.host), UNHEARD);
            for round in 0..1_000 {
                let pick = |shift: usize| delays[(2 * round + shift) % delays.len()];
                let sent = UnixNanos(self.host);
                let act = task.next(sent);
                let there = pick(0);
                self.host += there;
                let answer = match act {
                    ClockAct::Finish(outcome) => return outcome,
                    ClockAct::GetTime => {
                        let guest = UnixNanos(self.host + self.offset);
                        ClockAnswer::Time { sent, received: UnixNanos(self.host + pick(1)), guest }
                    }
                    ClockAct::SetTime { target } => {
                        self.steps.push(target.0 - (self.host + self.offset));
                        self.offset = target.0 - self.host;
                        ClockAnswer::Done
                    }
                    ClockAct::ResetRtc => ClockAnswer::Done,
                };
                self.host += pick(1);
                let answer = if lost[round % lost.len()] {
                    self.host += 500 * MS;
                    ClockAnswer::Failed { reason: "timed out".to_owned() }
                } else {
                    answer
                };
                task.heard(&answer);
            }
            panic!("no end");
        }
    }

    const MS: i64 = 1_000_000;
    const BEGIN: i64 = 1_700_000_000_000 * MS;

    fn guest(offset: i64) -> Guest {
        Guest { host: BEGIN, offset, steps: Vec::new() }
    }

    #[test]
    fn a_clock_behind_by_the_blackout_is_stepped_once() {
        let mut behind = guest(-9_200 * MS);
        let outcome = behind.run(&[2 * MS], &[false]);
        assert_eq!(outcome, ClockOutcome::Corrected { before_us: -9_200_000, after_us: 0 });
        assert_eq!(behind.steps, [9_200 * MS]);
    }

    #[test]
    fn a_clock_that_is_right_is_left_alone() {
        let mut right = guest(-3 * MS);
        assert_eq!(right.run(&[2 * MS], &[false]), ClockOutcome::WithinTolerance { error_us: -3_000 });
        assert!(right.steps.is_empty());
    }

    #[test]
    fn a_step_whose_answer_was_lost_is_not_made_twice() {
        // The third message is the first step.
        let mut behind = guest(-5_000 * MS);
        let outcome = behind.run(&[2 * MS], &[false, true, false, false, false, false, false]);
        assert!(matches!(outcome, ClockOutcome::Corrected { before_us: -5_000_000, .. }), "{outcome:?}");
        assert_eq!(behind.steps.len(), 1);
    }

    #[test]
    fn a_guest_of_a_busy_host_is_asked_until_it_answers_in_time() {
        // 300 ms each way at first, 2 ms in the end: what the slow answers set is sharpened by the quick ones.
        let mut delays = vec![300 * MS; 30];
        delays.extend([2 * MS; 400]);
        let mut behind = guest(-44_000 * MS);
        let outcome = behind.run(&delays, &[false]);
        assert!(matches!(outcome, ClockOutcome::Corrected { after_us: -50_000..=50_000, .. }), "{outcome:?}");
        assert!(behind.offset.abs() <= nanos(TOLERANCE));

        // It never does: that is told, and the clock is set all the same.
        let mut slow = guest(-44_000 * MS);
        let outcome = slow.run(&[300 * MS], &[false]);
        assert!(
            matches!(&outcome, ClockOutcome::NotCorrected { reason, .. } if reason.contains("too slow")),
            "{outcome:?}"
        );
        assert!(slow.offset.abs() <= 300 * MS, "{}", slow.offset);
    }

    #[test]
    fn a_slow_answer_that_says_right_is_not_enough() {
        // 90 ms there and none back: 80 ms behind reads as 35, known to 45.
        let mut delays = [90 * MS, 0].repeat(12);
        delays.extend([2 * MS; 400]);
        let mut behind = guest(-80 * MS);
        let outcome = behind.run(&delays, &[false]);
        assert_eq!(outcome, ClockOutcome::Corrected { before_us: -80_000, after_us: 0 });
        assert_eq!(behind.offset, 0);
    }

    #[test]
    fn a_guest_that_does_not_answer_is_reported_with_what_helps() {
        let outcome = guest(0).run(&[2 * MS], &[true]);
        assert!(
            matches!(&outcome, ClockOutcome::NotCorrected { helps, .. } if helps.contains("vmclock")),
            "{outcome:?}"
        );
    }

    proptest! {
        #[test]
        fn what_is_told_to_be_right_is_right(
            offset in -60_000 * MS..60_000 * MS,
            delays in proptest::collection::vec(1_000..200 * MS, 1..12),
            lost in proptest::collection::vec(proptest::bool::weighted(0.2), 1..12),
        ) {
            let mut guest = guest(offset);
            let outcome = guest.run(&delays, &lost);
            if !matches!(outcome, ClockOutcome::NotCorrected { .. }) {
                // Only where patience was over the truth may be as far from a reading as the reading from right.
                let patient = guest.host - BEGIN < nanos(UNHEARD);
                let allowed = nanos(TOLERANCE) * if patient { 1 } else { 2 };
                prop_assert!(guest.offset.abs() <= allowed, "{} {outcome:?}", guest.offset);
            }
            // Only the first step moves far; later ones only sharpen what long delays blurred.
            for step in guest.steps.iter().skip(1) {
                prop_assert!(step.abs() <= 400 * MS, "stepped again by {step}");
            }
        }
    }
}
