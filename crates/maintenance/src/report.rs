//! What happened, for people and for programs: built from the journal alone, so it says what was done and measured and
//! nothing else (promise P10). A report of a maintenance that still runs says so.

mod text;

use std::collections::BTreeMap;
use std::time::Duration;

use fermata_model::{Mechanism, PauseBudget, VmName};
use serde::{Deserialize, Serialize};

use crate::clock::ClockOutcome;
use crate::forecast::Forecast;
use crate::id::{Digest, MaintenanceId, UpdateId};
use crate::machine::{
    ActId, Entry, Key, Op, Outcome, Owner, ReplayError, Stage, Stamped, State, Trouble, VmPhase, Way,
};
use crate::time::{Now, Wall, micros};
use crate::update::Section;

/// The report of one maintenance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[must_use]
pub struct Report {
    /// The maintenance.
    pub maintenance: MaintenanceId,
    /// The update.
    pub update: UpdateId,
    /// Its title.
    pub title: String,
    /// Its file.
    pub digest: Digest,
    /// How it reached the host.
    pub mechanism: Mechanism,
    /// How it ended; `None` while it runs.
    pub outcome: Option<Outcome>,
    /// Where it stands, or stood last.
    pub stage: Stage,
    /// Until when guests may get ready, unless they approve before or asked for more time; only while they are waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_until: Option<Wall>,
    /// What went wrong first.
    pub trouble: Option<Trouble>,
    /// The change took effect, at least in part, and was taken back by the undo steps.
    pub undone: bool,
    /// The change may be in effect, at least in part, on the host.
    pub change_in_effect: bool,
    /// What could not be tidied up.
    pub loose_ends: Vec<String>,
    /// When it was ordered.
    pub ordered: Wall,
    /// The last entry.
    pub last: Wall,
    /// How long each stage took, in order.
    pub stages: Vec<Timed>,
    /// How long each act on the host took, in order.
    pub acts: Vec<Timed>,
    /// Each VM, by name.
    pub vms: Vec<VmReport>,
}

/// One VM in a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmReport {
    /// The VM.
    pub vm: VmName,
    /// How the update reached it.
    pub mechanism: Mechanism,
    /// How its state went, or would have gone, to another VMM; `None` before a rehearsal has told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub way: Option<Way>,
    /// Why it was not touched, where that needs saying.
    pub note: Option<String>,
    /// What was expected.
    pub forecast: Forecast,
    /// What it allowed.
    pub budget: PauseBudget,
    /// Every pause as the host measured it, STOP to RESUME.
    pub host_blackouts: Vec<Micros>,
    /// How long after the order each of them began, by the host's wall clock; `None` where no time stamp of it came.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blackouts_began: Vec<Option<Micros>>,
    /// It was found running and nobody answered whether it had stood before; if it had, then for no longer than this.
    #[serde(rename = "may_have_stood_us", with = "micros::option", default, skip_serializing_if = "Option::is_none")]
    pub may_have_stood: Option<Duration>,
    /// The longest blackout that a program in the guest measured, when one did.
    #[serde(rename = "guest_blackout_us", with = "micros::option")]
    pub guest_blackout: Option<Duration>,
    /// What came of its clock.
    pub clock: Option<ClockOutcome>,
    /// How it is now.
    pub end: VmEnd,
    /// How long each act on it took, in order.
    pub acts: Vec<Timed>,
}

/// A duration in JSON: whole microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Micros(#[serde(with = "micros")] pub Duration);

/// Something that took time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timed {
    /// What.
    pub what: String,
    /// From intent to answer, by the agent's clock. Across a jump: by the wall clock.
    #[serde(rename = "took_us", with = "micros")]
    pub took: Duration,
    /// How long after the order it began, by the same clock.
    #[serde(rename = "from_us", with = "micros::option", default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Duration>,
    /// Whether it worked, for acts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// How a VM is at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum VmEnd {
    /// Was never paused and runs as before.
    Untouched,
    /// Was paused and runs as before, on the old VMM.
    AsBefore,
    /// Runs on what the update brought.
    Updated,
    /// Is paused at this moment.
    Paused,
    /// Was started again from its disks; its memory is lost.
    Restarted {
        /// Why.
        reason: String,
    },
    /// Does not run; memory and state are kept.
    Preserved {
        /// What was tried.
        reason: String,
    },
    /// Does not run; its memory is lost.
    Lost {
        /// How.
        reason: String,
    },
    /// Ended by itself.
    Gone {
        /// What is known.
        reason: String,
    },
}

impl Report {
    /// The report that a journal tells.
    ///
    /// # Errors
    /// [`ReplayError`] when the entries are not those of a maintenance.
    pub fn of(entries: &[Stamped]) -> Result<Self, ReplayError> {
        let state = State::replay(entries)?;
        let times = Times::of(entries);
        let order = &state.order;
        let ordered = entries.first().map(|entry| entry.at.wall).unwrap_or_default();
        let vms = order.vms.iter().filter_map(|plan| {
            let vm = state.vms.get(&plan.vm)?;
            let paused = !vm.pauses.is_empty();
            let end = match &vm.phase {
                VmPhase::Pausing { .. } | VmPhase::Paused { .. } | VmPhase::Carried { .. } => VmEnd::Paused,
                VmPhase::Untouched | VmPhase::Resumed if vm.owner == Owner::New && !state.led_back() => VmEnd::Updated,
                VmPhase::Resumed if plan.mechanism == Mechanism::Hold && state.outcome == Some(Outcome::Done) => {
                    VmEnd::Updated
                }
                VmPhase::Untouched if !paused => VmEnd::Untouched,
                VmPhase::Untouched | VmPhase::Resumed => VmEnd::AsBefore,
                VmPhase::Restarted { reason } => VmEnd::Restarted { reason: reason.clone() },
                VmPhase::Preserved { reason } => VmEnd::Preserved { reason: reason.clone() },
                VmPhase::Down { reason } | VmPhase::Lost { reason } => VmEnd::Lost { reason: reason.clone() },
                VmPhase::Gone { reason } => VmEnd::Gone { reason: reason.clone() },
            };
            Some(VmReport {
                vm: plan.vm.clone(),
                mechanism: plan.mechanism,
                way: vm.way,
                note: plan.note.clone(),
                forecast: plan.forecast,
                budget: plan.budget,
                host_blackouts: vm.pauses.iter().copied().map(Micros).collect(),
                blackouts_began: vm
                    .pauses_began
                    .iter()
                    .map(|began| began.map(|at| Micros(at.since(ordered))))
                    .collect(),
                may_have_stood: vm.unsure.map(|unsure| unsure.at_most),
                guest_blackout: vm.guest_blackout,
                clock: vm.clock.clone(),
                end,
                acts: times.acts.get(&Some(plan.vm.clone())).cloned().unwrap_or_default(),
            })
        });
        Ok(Self {
            maintenance: order.id.clone(),
            update: order.update.id.clone(),
            title: order.update.title.clone(),
            digest: order.update.digest,
            mechanism: order.mechanism(),
            outcome: state.outcome,
            stage: state.stage,
            waits_until: (state.outcome.is_none() && state.stage == Stage::Announced).then_some(order.gate.not_before),
            trouble: state.trouble.clone(),
            undone: state.undone,
            change_in_effect: state.change_in_effect(),
            loose_ends: state.loose_ends.clone(),
            ordered,
            last: entries.last().map(|entry| entry.at.wall).unwrap_or_default(),
            stages: times.stages,
            acts: times.acts.get(&None).cloned().unwrap_or_default(),
            vms: vms.collect(),
        })
    }

    /// What later forecasts are made of: blackouts of VMs that went through as planned. For `hold` what the step itself
    /// took is subtracted, because a step counts with its own deadline.
    #[must_use]
    pub fn measured(&self) -> Vec<(Mechanism, Duration)> {
        let held = [Section::Change, Section::Undo].map(|section| format!("{section} step"));
        let steps: Duration =
            self.acts.iter().filter(|act| held.iter().any(|step| act.what.starts_with(step))).map(|act| act.took).sum();
        let mut samples = Vec::new();
        for vm in self.vms.iter().filter(|vm| vm.end == VmEnd::Updated) {
            for pause in &vm.host_blackouts {
                match vm.mechanism {
                    Mechanism::Hold => samples.push((Mechanism::Hold, pause.0.saturating_sub(steps))),
                    Mechanism::Swap | Mechanism::Kexec => samples.push((vm.mechanism, pause.0)),
                    Mechanism::None | Mechanism::Reboot => {}
                }
            }
        }
        samples
    }
}

#[derive(Default)]
struct Times {
    stages: Vec<Timed>,
    acts: BTreeMap<Option<VmName>, Vec<Timed>>,
}

impl Times {
    fn of(entries: &[Stamped]) -> Self {
        let mut times = Self::default();
        let mut begun: BTreeMap<Key, Now> = BTreeMap::new();
        // Monotonic times of two boots cannot be compared; wall-clock times can.
        let mut boot_began: Option<Now> = None;
        let span = |from: Now, to: Now, boot: Option<Now>| match boot {
            Some(boot) if from.wall < boot.wall => to.wall.since(from.wall),
            _ => to.mono.since(from.mono),
        };
        let moments = moments(entries);
        let Some(ordered) = moments.first().copied() else { return times };
        let timed = |what: &str, from: Now, to: Now, boot: Option<Now>, failure: Option<String>| Timed {
            what: what.to_owned(),
            took: span(from, to, boot),
            from: Some(span(ordered, from, boot)),
            failure,
        };
        let mut stage: Option<(Stage, Now)> = Some((Stage::Planned, ordered));
        let mut last_boot = None;
        for (at, Stamped { entry, .. }) in moments.iter().zip(entries) {
            match entry {
                Entry::Planned { boot, .. } => last_boot = Some(boot),
                Entry::Restarted { boot } if last_boot != Some(boot) => {
                    last_boot = Some(boot);
                    boot_began = Some(*at);
                    // The jump is over when something runs again.
                    for key in [(None, Op::Jump), (None, Op::Reboot)] {
                        if let Some(from) = begun.remove(&key) {
                            times.push(key, |what| timed(what, from, *at, boot_began, None));
                        }
                    }
                }
                Entry::Stage(next) => {
                    if let Some((stage, from)) = stage.replace((*next, *at)) {
                        times.stages.push(timed(name(stage), from, *at, boot_began, None));
                    }
                }
                Entry::Began(act) => {
                    begun.insert(act.id.key(), *at);
                }
                Entry::Ended { act, result } => {
                    if let Some(from) = begun.remove(&act.key()) {
                        let failure = result.as_ref().err().map(|failure| failure.text.clone());
                        times.push(act.key(), |what| timed(what, from, *at, boot_began, failure));
                    }
                }
                Entry::Finished { .. } => {
                    if let Some((stage, from)) = stage.take() {
                        times.stages.push(timed(name(stage), from, *at, boot_began, None));
                    }
                }
                _ => {}
            }
        }
        times
    }

    fn push(&mut self, (vm, op): Key, timed: impl FnOnce(&str) -> Timed) {
        let what = ActId { vm: None, op, attempt: 1 }.to_string();
        self.acts.entry(vm).or_default().push(timed(&what));
    }
}

/// When entries were written. A kernel begins with the seconds of its RTC: what it wrote before its clock was put right is
/// counted back from there by the time since it started.
fn moments(entries: &[Stamped]) -> Vec<Now> {
    let mut moments: Vec<Now> = entries.iter().map(|entry| entry.at).collect();
    let mut began = 0;
    let mut last_boot = None;
    for (number, Stamped { at, entry }) in entries.iter().enumerate() {
        match entry {
            Entry::Planned { boot, .. } => last_boot = Some(boot),
            Entry::Restarted { boot } if last_boot != Some(boot) => {
                last_boot = Some(boot);
                began = number;
            }
            Entry::Ended { act, result: Ok(_) } if act.op == Op::SetHostClock => {
                for moment in moments.iter_mut().take(number).skip(began) {
                    moment.wall = Wall((at.wall.0 + moment.mono.0).saturating_sub(at.mono.0));
                }
            }
            _ => {}
        }
    }
    moments
}

/// A stage for people.
#[must_use]
pub const fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::Planned => "planned",
        Stage::Announced => "announced",
        Stage::Preflight => "preflight",
        Stage::Prepare => "prepare",
        Stage::Rehearse => "rehearse",
        Stage::Lead => "lead",
        Stage::Window => "window",
        Stage::Verify => "verify",
        Stage::Undo => "undo",
        Stage::UndoHeld => "undo while held",
        Stage::Closing => "closing",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Act, Evidence};
    use crate::time::Mono;

    #[test]
    fn what_a_kernel_did_before_its_clock_was_put_right_is_told_where_it_was() {
        let vm: VmName = "v1".parse().unwrap();
        let id = |vm: Option<&VmName>, op| ActId { vm: vm.cloned(), op, attempt: 1 };
        let began = |vm, op| Entry::Began(Act { id: id(vm, op), by: Mono(60_000_000) });
        let ended = |vm, op| Entry::Ended { act: id(vm, op), result: Ok(Evidence::Done) };
        let at = |mono, wall, entry| Stamped { at: Now { mono: Mono(mono), wall: Wall(wall) }, entry };
        // The jump took 5 s; the RTC of the next kernel is 0.6 s behind.
        let entries = [
            at(900_000_000, 1_000_000_000, began(None, Op::Jump)),
            at(4_000_000, 1_004_400_000, Entry::Restarted { boot: "new".parse().unwrap() }),
            at(4_000_000, 1_004_400_000, began(Some(&vm), Op::Restore)),
            at(4_100_000, 1_005_100_000, ended(None, Op::SetHostClock)),
            at(6_000_000, 1_007_000_000, ended(Some(&vm), Op::Restore)),
            at(6_000_000, 1_007_000_000, began(Some(&vm), Op::Resume)),
            at(6_100_000, 1_007_100_000, ended(Some(&vm), Op::Resume)),
        ];
        let times = Times::of(&entries);
        let told = |vm: Option<VmName>| -> Vec<(u128, u128)> {
            times.acts[&vm].iter().map(|act| (act.from.unwrap().as_millis(), act.took.as_millis())).collect()
        };
        assert_eq!(told(None), [(0, 5_000)]);
        assert_eq!(told(Some(vm)), [(5_000, 2_000), (7_000, 100)]);
    }
}
