//! What each entry of the journal means for the state. Pure; [`State::apply`] is the only way in.

use std::collections::BTreeMap;
use std::time::Duration;

use fermata_model::{Mechanism, VmName};

use super::act::{ActId, ActResult, Evidence, Failure, FailureKind, Op};
use super::entry::{Owner, Stage};
use super::state::{ATTEMPTS, RESTORES, State, Trouble, Unsure, VmPhase, VmState, attempts};
use crate::clock::ClockOutcome;
use crate::id::BootId;
use crate::mechanism::Choice;
use crate::time::{Mono, Now};
use crate::update::Section;

impl VmState {
    /// Whether the guest's agent has told its clock in this maintenance.
    #[must_use]
    pub const fn clock_is_told(&self) -> bool {
        self.clock_us.is_some()
    }

    /// What came of the clock after a pause, and what that tells of the pause: a guest's clock stands while its vCPUs do. One that is
    /// much less behind was put right by the guest itself, and tells nothing.
    fn clock_read(&mut self, outcome: &ClockOutcome) {
        let (found, left) = match outcome {
            ClockOutcome::Corrected { before_us, after_us } => (Some(*before_us), Some(*after_us)),
            ClockOutcome::WithinTolerance { error_us } => (Some(*error_us), Some(*error_us)),
            ClockOutcome::NotCorrected { .. } => (None, None),
        };
        let behind = self.clock_us.zip(found).map(|(before, after)| before.saturating_sub(after));
        let behind = behind.and_then(|us| u64::try_from(us).ok()).map(Duration::from_micros);
        let stood = self.pauses.last().copied().unwrap_or_default();
        if let Some(behind) = behind.filter(|behind| *behind >= stood / 2) {
            self.guest_blackout = self.guest_blackout.max(Some(behind));
        }
        self.clock_us = left;
        self.clock = Some(outcome.clone());
    }
}

impl State {
    pub(super) fn fail(&mut self, act: Option<&ActId>, text: String, aborted: bool) {
        if self.trouble.is_none() {
            self.trouble = Some(Trouble { stage: self.stage, act: act.cloned(), text, aborted });
        }
    }

    pub(super) fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        if stage == Stage::UndoHeld {
            // A second pause: what the first one needed is needed again.
            self.round_failed = false;
            self.armed_at = None;
            self.results.retain(|(_, op), _| {
                !matches!(op, Op::ArmDeadMan | Op::DisarmDeadMan | Op::Hold | Op::Resume | Op::SetClock | Op::KillStep)
            });
            for vm in self.vms.values_mut().filter(|vm| vm.phase == VmPhase::Resumed) {
                vm.phase = VmPhase::Untouched;
            }
        }
    }

    pub(super) fn began(&mut self, act: &ActId, _by: Mono, at: Now) {
        match act.op {
            Op::Announce => self.announced = true,
            Op::ArmDeadMan if act.vm.is_none() => self.armed_at = Some(at.mono),
            Op::Run { section: Section::Prepare, .. } => self.prepared = true,
            Op::Run { section: Section::Change, .. } => self.change_begun = true,
            Op::Jump | Op::Reboot => self.jump_begun = true,
            _ => {}
        }
        let Some(vm) = act.vm.as_ref().and_then(|vm| self.vms.get_mut(vm)) else { return };
        match act.op {
            Op::Hold | Op::HandOver | Op::Save => vm.phase = VmPhase::Pausing { since: at },
            Op::StartNew => vm.new_started = true,
            Op::ArmDeadMan => {
                vm.armed = true;
                vm.armed_at = Some(at.mono);
            }
            _ => {}
        }
    }

    pub(super) fn ended(&mut self, act: &ActId, result: &ActResult, at: Now) {
        let key = act.key();
        self.results.insert(key.clone(), result.is_ok());
        match result {
            Ok(evidence) => self.worked(act, evidence, at),
            Err(failure) => {
                let wait = Duration::from_millis(match act.op {
                    Op::Resume | Op::TakeBack => 20 * u64::from(act.attempt.min(10)),
                    _ => 200 * u64::from(act.attempt.min(10)),
                });
                self.retry_at.insert(key, at.mono.after(wait));
                self.failed(act, failure);
            }
        }
    }

    fn worked(&mut self, act: &ActId, evidence: &Evidence, at: Now) {
        match (act.op, evidence) {
            (Op::PublishStarted, _) => self.lead_until = Some(at.mono.after(self.order.gate.lead)),
            (Op::Preflight, Evidence::Preflight { choice }) => self.compare(act, choice),
            (Op::Preflight, _) => self.fail(Some(act), "preflight answered without facts".to_owned(), false),
            (Op::DisarmDeadMan, Evidence::DeadMan { fired: true, freed }) => {
                self.count_freed(freed);
                self.fail(Some(act), "the dead-man had to resume VMs: the agent did not in time".to_owned(), false);
            }
            (Op::Run { section: Section::Undo, index }, _) => {
                self.undone = usize::from(index) + 1 == self.order.update.undo.len();
            }
            _ => {}
        }
        let crossed = self.crossed;
        let Some(vm) = act.vm.as_ref().and_then(|vm| self.vms.get_mut(vm)) else { return };
        match (act.op, &vm.phase) {
            (Op::Hold | Op::HandOver | Op::Save, VmPhase::Pausing { since }) => {
                let since = *since;
                vm.stopped = if let Evidence::Stopped { at } = evidence { Some(*at) } else { None };
                vm.phase = VmPhase::Paused { since };
            }
            (Op::Rehearse, _) => {
                if let Evidence::Rehearsed { way, clock_us } = evidence {
                    (vm.way, vm.clock_us) = (*way, *clock_us);
                }
            }
            (Op::Restore, VmPhase::Carried { since }) => vm.phase = VmPhase::Paused { since: *since },
            (Op::Resume | Op::TakeBack, VmPhase::Pausing { since } | VmPhase::Paused { since }) => {
                let since = *since;
                // The monotonic clock began anew with the kernel.
                let bound = if crossed { at.wall.since(since.wall) } else { at.mono.since(since.mono) };
                let pause = match evidence {
                    Evidence::ResumedAfter { blackout } => Some(*blackout),
                    // It never stopped, or the dead-man let it run and tells when ([`Op::DisarmDeadMan`]), or an act whose
                    // answer was lost did.
                    Evidence::Resumed { at: None } if matches!(vm.phase, VmPhase::Pausing { .. }) => {
                        vm.unsure = Some(Unsure { since, at_most: bound });
                        None
                    }
                    Evidence::Resumed { at: None } => {
                        vm.found_running = Some(since);
                        Some(bound)
                    }
                    // Without both time stamps the agent's own bracket around the acts stands: never too short.
                    Evidence::Resumed { at: Some(at) } => Some(vm.stopped.map_or(bound, |stopped| at.since(stopped))),
                    _ => Some(bound),
                };
                if let Some(pause) = pause {
                    vm.pauses.push(pause);
                    vm.pauses_began.push(vm.stopped);
                }
                vm.stopped = None;
                vm.phase = vm.ended.take().map_or(VmPhase::Resumed, |reason| VmPhase::Gone { reason });
            }
            (Op::ShutDown, _) => vm.phase = VmPhase::Down { reason: "shut down for the maintenance".to_owned() },
            // Only the first attempt can tell: a later one may find what an earlier one, never answered, has started.
            (Op::Restart, VmPhase::Down { .. })
                if vm.maybe_up && act.attempt == 1 && *evidence == (Evidence::Resumed { at: None }) =>
            {
                vm.phase = VmPhase::Untouched;
            }
            (Op::Restart, VmPhase::Down { reason }) => vm.phase = VmPhase::Restarted { reason: reason.clone() },
            (Op::DiscardNew | Op::TakeBack, _) => vm.new_started = false,
            (Op::DisarmDeadMan, _) => vm.armed = false,
            (Op::SetClock, _) => {
                if let Evidence::Clock { outcome } = evidence {
                    vm.clock_read(outcome);
                }
            }
            _ => {}
        }
        if act.op == Op::TakeBack {
            vm.new_started = false;
        }
    }

    /// VMs that the dead-man let run: they stood, or may have stood, until then.
    fn count_freed(&mut self, freed: &BTreeMap<VmName, Mono>) {
        for (name, at) in freed {
            let Some(vm) = self.vms.get_mut(name) else { continue };
            // It may tell of an earlier pause than the one in question.
            if let Some(unsure) = vm.unsure.take_if(|unsure| unsure.since.mono <= *at) {
                vm.pauses.push(at.since(unsure.since.mono));
                vm.pauses_began.push(None);
            }
            let found_running = vm.found_running.take_if(|since| since.mono <= *at);
            if let (Some(since), Some(last)) = (found_running, vm.pauses.last_mut()) {
                *last = (*last).min(at.since(since.mono));
            }
        }
    }

    fn failed(&mut self, act: &ActId, failure: &Failure) {
        let text = failure.text.clone();
        match act.op {
            Op::Announce
            | Op::PublishStarted
            | Op::Preflight
            | Op::LoadKernel
            | Op::Rehearse
            | Op::StartNew
            | Op::ShutDown => self.fail(Some(act), text.clone(), false),
            Op::Run { section: Section::Undo, .. } => self.round_failed = true,
            Op::ArmDeadMan | Op::Hold | Op::HandOver | Op::Save | Op::Jump | Op::Reboot | Op::Run { .. } => {
                self.round_failed = true;
                if matches!(act.op, Op::Jump | Op::Reboot) {
                    self.jump_begun = false;
                }
                self.fail(Some(act), text.clone(), false);
            }
            Op::CheckKernel if act.attempt >= RESTORES => self.fail(Some(act), text.clone(), false),
            Op::Restore if act.attempt >= RESTORES || failure.kind == FailureKind::MemoryGone => {
                self.fail(Some(act), text.clone(), false);
            }
            Op::Restart if act.attempt >= ATTEMPTS => self.fail(Some(act), text.clone(), false),
            Op::Resume if failure.kind == FailureKind::NeverRan && self.crossed => {}
            Op::Resume | Op::TakeBack
                if matches!(failure.kind, FailureKind::VmmDead | FailureKind::NeverRan | FailureKind::Ran) =>
            {
                self.fail(Some(act), text.clone(), false);
            }
            Op::SetClock
            | Op::SetHostClock
            | Op::Retire
            | Op::DiscardNew
            | Op::DisarmDeadMan
            | Op::EndEvents
            | Op::KillStep
            | Op::UnloadKernel
                if act.attempt >= attempts(act.op) =>
            {
                self.loose_ends.push(format!("{act}: {text}"));
            }
            _ => {}
        }
        let (crossed, kernel) = (self.crossed, self.order.mechanism() == Mechanism::Kexec);
        let Some(vm) = act.vm.as_ref().and_then(|vm| self.vms.get_mut(vm)) else { return };
        match (act.op, failure.kind) {
            // Its state is in the vault still.
            (Op::Resume, FailureKind::NeverRan) if crossed => self.restored_in_vain(act.vm.as_ref(), &text),
            (Op::Resume | Op::TakeBack, FailureKind::NeverRan) if kernel => {
                vm.phase = VmPhase::Preserved { reason: text };
            }
            // The one way back over the point of no return: nothing of the VM is newer than what the old VMM has.
            (Op::Resume, FailureKind::NeverRan) => vm.owner = Owner::Old,
            (Op::TakeBack | Op::DiscardNew, FailureKind::Ran) => vm.owner = Owner::New,
            (Op::Resume | Op::TakeBack, FailureKind::VmmDead) => vm.phase = VmPhase::Lost { reason: text },
            // It may be down already, or go down any moment: it is to be looked after, not assumed to run.
            (Op::ShutDown, _) => {
                vm.maybe_up = true;
                vm.phase = VmPhase::Down { reason: format!("shut down without an answer: {text}") };
            }
            (Op::Restore, FailureKind::MemoryGone) => vm.phase = VmPhase::Down { reason: text },
            (Op::Restore, _) if act.attempt >= RESTORES => vm.phase = VmPhase::Preserved { reason: text },
            (Op::Restart, _) if act.attempt >= ATTEMPTS => vm.phase = VmPhase::Lost { reason: text },
            (Op::SetClock, _) if act.attempt >= ATTEMPTS => {
                vm.clock = Some(ClockOutcome::NotCorrected { reason: text, helps: crate::clock::HELPS.to_owned() });
            }
            _ => {}
        }
    }

    /// Promise P7: fresh facts may say no, never something harsher than was announced.
    fn compare(&mut self, act: &ActId, fresh: &Choice) {
        if let Some(refusal) = fresh.refusals.first() {
            return self.fail(Some(act), refusal.to_string(), false);
        }
        for plan in &fresh.plans {
            match self.order.plan(&plan.vm) {
                None if plan.mechanism > Mechanism::None => {
                    let text = format!("VM {} appeared after the announcement; order the maintenance again", plan.vm);
                    return self.fail(Some(act), text, false);
                }
                Some(known) if plan.mechanism > known.mechanism => {
                    let text = format!(
                        "VM {} would need \"{}\" now, but \"{}\" was announced; order the maintenance again",
                        plan.vm, plan.mechanism, known.mechanism
                    );
                    return self.fail(Some(act), text, false);
                }
                _ => {}
            }
        }
        let missing = |vm: &VmName| !fresh.plans.iter().any(|plan| plan.vm == *vm);
        for (name, vm) in &mut self.vms {
            if missing(name) && vm.phase == VmPhase::Untouched {
                vm.phase = VmPhase::Gone { reason: "not there any more at preflight".to_owned() };
            }
        }
    }

    /// A VM was restored after a jump, and its VMM ended before it ran: it is restored again, a few times.
    fn restored_in_vain(&mut self, name: Option<&VmName>, reason: &str) {
        let tried = self.attempts.get(&(name.cloned(), Op::Restore)).copied().unwrap_or_default();
        let Some(vm) = name.and_then(|name| self.vms.get_mut(name)) else { return };
        vm.ended = None;
        let VmPhase::Paused { since } = vm.phase else { return };
        if tried < RESTORES {
            vm.phase = VmPhase::Carried { since };
            return;
        }
        vm.phase = VmPhase::Preserved { reason: reason.to_owned() };
        self.fail(None, reason.to_owned(), false);
    }

    fn ended_in_pause(&mut self, name: &VmName, reason: &str) {
        self.pending.retain(|(vm, _), _| vm.as_ref() != Some(name));
        self.round_failed = true;
        self.fail(None, format!("VM {name} ended in its pause: {reason}"), false);
    }

    pub(super) fn gone(&mut self, name: &VmName, reason: &str) {
        let key = (Some(name.clone()), Op::Resume);
        if self.plan_mechanism(name) == Mechanism::Kexec && !self.crossed {
            match self.vms.get(name).map(|vm| &vm.phase) {
                // All of it is in the vault; the next kernel does not need its VMM.
                Some(VmPhase::Paused { .. }) if self.worked_already(Some(name), Op::Save) => return,
                // Whether its state had reached the vault, the way back will tell.
                Some(VmPhase::Pausing { .. } | VmPhase::Paused { .. }) => return self.ended_in_pause(name, reason),
                _ => {}
            }
        }
        if self.crossed && !self.attempts.contains_key(&key) {
            return self.restored_in_vain(Some(name), reason);
        }
        let paused = |vm: &VmState| matches!(vm.phase, VmPhase::Paused { .. });
        if self.crossed && (self.pending.contains_key(&key) || self.vms.get(name).is_some_and(paused)) {
            // Whether it ran before it ended, the act will tell, or its next attempt.
            if let Some(vm) = self.vms.get_mut(name) {
                vm.ended = Some(reason.to_owned());
            }
            return;
        }
        let Some(vm) = self.vms.get_mut(name) else { return };
        let reason = reason.to_owned();
        match vm.phase {
            VmPhase::Untouched | VmPhase::Resumed => vm.phase = VmPhase::Gone { reason },
            VmPhase::Pausing { .. } | VmPhase::Paused { .. } => {
                vm.phase = VmPhase::Lost { reason: reason.clone() };
                self.ended_in_pause(name, &reason);
            }
            VmPhase::Carried { .. }
            | VmPhase::Down { .. }
            | VmPhase::Restarted { .. }
            | VmPhase::Preserved { .. }
            | VmPhase::Lost { .. }
            | VmPhase::Gone { .. } => {}
        }
    }

    pub(super) fn restarted(&mut self, boot: &BootId, at: Now) {
        let interrupted: Vec<ActId> = self
            .pending
            .iter()
            .filter(|((_, op), _)| match op {
                Op::HandOver | Op::Hold | Op::Save | Op::Jump | Op::Reboot => true,
                // It goes on where nothing has failed; else its guest may still be on its way down.
                Op::ShutDown => self.trouble.is_some(),
                _ => false,
            })
            .chain(self.pending.iter().filter(|((_, op), _)| {
                self.in_pause() && matches!(op, Op::Run { section: Section::Change | Section::Undo, .. })
            }))
            .map(|((vm, op), pending)| ActId { vm: vm.clone(), op: *op, attempt: pending.attempt })
            .collect();
        let same_boot = *boot == self.boot;
        self.boot = boot.clone();
        if !same_boot {
            self.after_boot(at);
            return;
        }
        self.pending.clear();
        let text = "the agent was restarted while this was under way";
        for act in interrupted {
            let failure = Failure { kind: FailureKind::Interrupted, text: text.to_owned() };
            self.ended(&act, &Err(failure), at);
        }
        let going_back = |vm: &VmState| vm.owner == Owner::Old && vm.phase.paused_since().is_some();
        if self.vms.values().any(going_back) {
            self.round_failed = true;
            self.fail(None, "the agent was restarted while VMs were paused".to_owned(), false);
        }
    }

    /// Another kernel runs. Either the maintenance made it so, or the power was cut.
    fn after_boot(&mut self, at: Now) {
        self.pending.clear();
        self.retry_at.clear();
        self.lead_until = None;
        self.armed_at = None;
        for vm in self.vms.values_mut() {
            vm.maybe_up = false;
            vm.new_started = false;
            vm.armed = false;
        }
        if self.stage < Stage::Preflight {
            return;
        }
        let jumped = self.jump_begun && !self.crossed && self.stage == Stage::Window;
        if jumped {
            self.crossed = true;
        } else {
            // A held step counts as begun: its own entry need not have reached the disk (see `Durability`).
            self.change_begun |= self.in_pause() && self.stage == Stage::Window;
            self.round_failed = true;
            self.fail(None, "the host was restarted during the maintenance".to_owned(), false);
        }
        for vm in self.vms.values_mut() {
            match &vm.phase {
                VmPhase::Paused { since } if jumped => {
                    // Another kernel runs: the old VMM is gone for certain, and only the vault has the VM.
                    vm.owner = Owner::New;
                    vm.phase = VmPhase::Carried { since: *since };
                }
                VmPhase::Untouched
                | VmPhase::Resumed
                | VmPhase::Pausing { .. }
                | VmPhase::Paused { .. }
                | VmPhase::Restarted { .. } => {
                    vm.phase = VmPhase::Down { reason: "the host was restarted".to_owned() };
                }
                // Whether the vault has it still, another try tells.
                VmPhase::Preserved { .. } if self.crossed => vm.phase = VmPhase::Carried { since: at },
                VmPhase::Preserved { .. } => {
                    vm.phase = VmPhase::Down { reason: "kept in the vault until the host was restarted".to_owned() };
                }
                VmPhase::Carried { .. } | VmPhase::Down { .. } | VmPhase::Lost { .. } | VmPhase::Gone { .. } => {}
            }
        }
        // Keys that must be done again in the new boot.
        self.results.retain(|(_, op), _| !matches!(op, Op::Restore | Op::Resume | Op::Restart));
        self.attempts.retain(|(_, op), _| !matches!(op, Op::Restore | Op::Resume | Op::Restart));
    }
}
