//! What comes next, from the state alone. Each function looks at one stage and answers with the entries to write now;
//! none when there is only waiting to do.

use std::time::Duration;

use fermata_model::{Impact, Mechanism, VmName};

use super::act::{Act, ActId, ActResult, Failure, FailureKind, Op};
use super::entry::{Entry, Outcome, Owner, Stage};
use super::state::{State, VmPhase, attempts};
use crate::order::Keeper;
use crate::time::{Mono, Now};
use crate::update::{Change, Section};

impl State {
    pub(super) fn advance(&self, now: Now) -> Vec<Entry> {
        if self.outcome.is_some() {
            return Vec::new();
        }
        let overdue = self.overdue(now);
        if !overdue.is_empty() {
            return overdue;
        }
        if self.adrift.is_some() {
            return self.rescue(now);
        }
        match self.stage {
            Stage::Planned => self.planned(now),
            Stage::Announced => self.waiting(now),
            Stage::Preflight => {
                let prepare = || Self::enter_stage(Stage::Prepare);
                self.or_close(|| self.one(None, Op::Preflight, now, prepare))
            }
            Stage::Prepare => self.or_undo(|| self.steps(Section::Prepare, now, || Self::enter_stage(Stage::Rehearse))),
            Stage::Rehearse => self.or_undo(|| self.rehearse(now)),
            Stage::Lead => self.or_undo(|| self.lead(now)),
            Stage::Window => match self.order.mechanism() {
                Mechanism::None => {
                    self.or_undo(|| self.steps(Section::Change, now, || Self::enter_stage(Stage::Verify)))
                }
                Mechanism::Hold => self.hold(now),
                Mechanism::Swap => self.swap(now),
                Mechanism::Kexec | Mechanism::Reboot => self.across_the_kernel(now),
            },
            Stage::Verify => self.or_undo(|| self.steps(Section::Verify, now, || Self::enter_stage(Stage::Closing))),
            Stage::Undo => self.undo(now),
            Stage::UndoHeld => self.hold(now),
            Stage::Closing => self.close(now),
        }
    }

    /// The next moment at which the core wants to be asked, should nothing else happen before; `asked` is when it was asked last.
    ///
    /// What fell due since then is due now: writing the journal takes time, on a busy host more than the wait for the next attempt.
    #[must_use]
    pub fn wake_at(&self, now: Now, asked: Mono) -> Option<Mono> {
        if self.outcome.is_some() {
            return None;
        }
        let writable = self.adrift.is_none();
        let by_clock = self.order.gate.keeper == Keeper::Clock || self.order.impact() == Impact::None;
        let gate = (writable && by_clock && self.stage == Stage::Announced)
            .then(|| now.mono.after(self.order.gate.not_before.since(now.wall)));
        let lead = self.lead_until.filter(|_| writable && self.stage == Stage::Lead);
        // Without a journal there is nothing to wait for but the journal itself.
        let adrift = self.adrift.as_ref().map(|_| now.mono.after(Duration::from_secs(1)));
        let pending = self.pending.values().map(|pending| pending.by);
        let retries = self.retry_at.values().copied().filter(|at| *at > asked);
        pending.chain(retries).chain(gate).chain(lead).chain(adrift).min()
    }

    pub(super) fn enter_stage(stage: Stage) -> Vec<Entry> {
        vec![Entry::Stage(stage)]
    }

    fn overdue(&self, now: Now) -> Vec<Entry> {
        let late = self.pending.iter().filter(|(_, pending)| pending.by <= now.mono);
        late.map(|((vm, op), pending)| {
            let failure = Failure { kind: FailureKind::Overdue, text: "not done by its deadline".to_owned() };
            let act = ActId { vm: vm.clone(), op: *op, attempt: pending.attempt };
            Entry::Ended { act, result: ActResult::Err(failure) }
        })
        .collect()
    }

    /// Begins an act, unless it is under way or waits for its next attempt.
    pub(super) fn begin(&self, vm: Option<&VmName>, op: Op, by: Mono, now: Now) -> Vec<Entry> {
        let key = (vm.cloned(), op);
        if self.pending.contains_key(&key) || self.retry_at.get(&key).is_some_and(|at| *at > now.mono) {
            return Vec::new();
        }
        let attempt = self.attempts.get(&key).map_or(1, |attempt| attempt + 1);
        let by = if attempt > 1 { by.max(now.mono.after(more_patience(op, attempt))) } else { by };
        vec![Entry::Began(Act { id: ActId { vm: key.0, op, attempt }, by })]
    }

    pub(super) fn worked_already(&self, vm: Option<&VmName>, op: Op) -> bool {
        self.results.get(&(vm.cloned(), op)) == Some(&true)
    }

    pub(super) fn failed_already(&self, vm: Option<&VmName>, op: Op) -> bool {
        self.results.get(&(vm.cloned(), op)) == Some(&false)
    }

    pub(super) fn is_pending(&self, vm: Option<&VmName>, op: Op) -> bool {
        self.pending.contains_key(&(vm.cloned(), op))
    }

    /// Worked, or was tried often enough to be left as a loose end.
    pub(super) fn settled(&self, vm: Option<&VmName>, op: Op) -> bool {
        let key = (vm.cloned(), op);
        match self.results.get(&key) {
            Some(true) => true,
            Some(false) => self.attempts.get(&key).is_some_and(|tried| tried.is_multiple_of(attempts(op))),
            None => false,
        }
    }

    /// One act, then what follows.
    fn one(&self, vm: Option<&VmName>, op: Op, now: Now, then: impl FnOnce() -> Vec<Entry>) -> Vec<Entry> {
        if self.worked_already(vm, op) { then() } else { self.begin(vm, op, now.mono.after(patience(op)), now) }
    }

    /// The steps of a section one after the other, then what follows. Only while VMs run.
    fn steps(&self, section: Section, now: Now, then: impl FnOnce() -> Vec<Entry>) -> Vec<Entry> {
        match self.next_step(section) {
            None => then(),
            Some((op, timeout)) => self.begin(None, op, now.mono.after(timeout + Duration::from_secs(5)), now),
        }
    }

    /// The first step of a section that has not worked yet, and how long it may take.
    pub(super) fn next_step(&self, section: Section) -> Option<(Op, Duration)> {
        (0u16..).zip(self.order.update.steps(section)).find_map(|(index, step)| {
            let op = Op::Run { section, index };
            (!self.worked_already(None, op)).then_some((op, step.timeout))
        })
    }

    fn or_close(&self, next: impl FnOnce() -> Vec<Entry>) -> Vec<Entry> {
        if self.trouble.is_some() { Self::enter_stage(Stage::Closing) } else { next() }
    }

    fn or_undo(&self, next: impl FnOnce() -> Vec<Entry>) -> Vec<Entry> {
        if self.trouble.is_none() {
            return next();
        }
        // A step that was being waited for when somebody aborted is ended before anything is taken back.
        if self.pending.keys().any(|(_, op)| matches!(op, Op::Run { .. })) && !self.settled(None, Op::KillStep) {
            return Vec::new();
        }
        self.go_back()
    }

    /// The stage that takes back what can be taken back.
    pub(super) fn go_back(&self) -> Vec<Entry> {
        let anybody_new = self.vms.values().any(|vm| vm.owner == Owner::New);
        let due = match self.order.update.change {
            Change::Package { .. } | Change::Service { .. } => self.change_begun,
            Change::Vmm { .. } | Change::Kernel(_) => self.prepared && !anybody_new && !self.crossed,
        };
        let held = matches!(self.order.update.change, Change::Service { .. })
            && self.vms.iter().any(|(name, vm)| self.plan_mechanism(name) == Mechanism::Hold && vm.runs());
        Self::enter_stage(match (due && !self.undone && !self.order.update.undo.is_empty(), held) {
            (true, true) => Stage::UndoHeld,
            (true, false) => Stage::Undo,
            (false, _) => Stage::Closing,
        })
    }

    fn planned(&self, now: Now) -> Vec<Entry> {
        if self.trouble.is_some() {
            return Self::enter_stage(Stage::Closing);
        }
        if self.order.impact() == Impact::None {
            return Self::enter_stage(Stage::Announced);
        }
        self.one(None, Op::Announce, now, || Self::enter_stage(Stage::Announced))
    }

    /// Promise P5: not before `NotBefore`, unless approved.
    fn waiting(&self, now: Now) -> Vec<Entry> {
        self.or_close(|| {
            let by_clock = self.order.gate.keeper == Keeper::Clock || self.order.impact() == Impact::None;
            let open = self.approved || (by_clock && now.wall >= self.order.gate.not_before);
            if open { Self::enter_stage(Stage::Preflight) } else { Vec::new() }
        })
    }

    fn rehearse(&self, now: Now) -> Vec<Entry> {
        let mut entries = Vec::new();
        let by = now.mono.after(patience(Op::Rehearse));
        let mut all = true;
        let mut room = self.room(Op::Rehearse);
        for name in self.taking_part(&[Mechanism::Swap, Mechanism::Kexec]) {
            if !self.worked_already(Some(name), Op::Rehearse) {
                all = false;
                if room > 0 {
                    let began = self.begin(Some(name), Op::Rehearse, by, now);
                    room -= began.len();
                    entries.extend(began);
                }
            }
        }
        if self.jumps() && !self.worked_already(None, Op::LoadKernel) {
            all = false;
            entries.extend(self.begin(None, Op::LoadKernel, now.mono.after(patience(Op::LoadKernel)), now));
        }
        if all { Self::enter_stage(Stage::Lead) } else { entries }
    }

    /// How many more acts of this kind may begin side by side.
    pub(super) fn room(&self, op: Op) -> usize {
        let busy = self.pending.keys().filter(|(_, pending)| *pending == op).count();
        usize::from(self.order.update.parallelism).saturating_sub(busy)
    }

    /// Whether the host jumps into another kernel by kexec.
    pub(super) fn jumps(&self) -> bool {
        match self.order.mechanism() {
            Mechanism::Kexec => true,
            Mechanism::Reboot => self.order.vms.iter().any(|plan| plan.mechanism == Mechanism::Kexec),
            Mechanism::None | Mechanism::Hold | Mechanism::Swap => false,
        }
    }

    /// VMs with one of these mechanisms that are still in it.
    pub(super) fn taking_part<'a>(&'a self, mechanisms: &'a [Mechanism]) -> impl Iterator<Item = &'a VmName> {
        self.vms.iter().filter_map(|(name, vm)| {
            let out = matches!(vm.phase, VmPhase::Gone { .. } | VmPhase::Lost { .. });
            (!out && mechanisms.contains(&self.plan_mechanism(name))).then_some(name)
        })
    }

    fn lead(&self, now: Now) -> Vec<Entry> {
        if self.order.impact() == Impact::None {
            return Self::enter_stage(Stage::Window);
        }
        self.one(None, Op::PublishStarted, now, || {
            let seen = self.lead_until.is_some_and(|until| now.mono >= until);
            if seen { Self::enter_stage(Stage::Window) } else { Vec::new() }
        })
    }

    fn undo(&self, now: Now) -> Vec<Entry> {
        let failed = self.round_failed && self.any_undo_failed();
        if failed {
            return Self::enter_stage(Stage::Closing);
        }
        self.steps(Section::Undo, now, || Self::enter_stage(Stage::Closing))
    }

    pub(super) fn any_undo_failed(&self) -> bool {
        let undo = |(key, worked): (&super::act::Key, &bool)| {
            matches!(key.1, Op::Run { section: Section::Undo, .. }) && !worked
        };
        self.results.iter().any(undo)
    }

    fn close(&self, now: Now) -> Vec<Entry> {
        let mut entries = self.restart_down(now);
        let mut open = self.anybody_down();
        let mut tidy = |vm: Option<&VmName>, op: Op| {
            if !self.settled(vm, op) {
                open = true;
                entries.extend(self.begin(vm, op, now.mono.after(patience(op)), now));
            }
        };
        for (name, vm) in &self.vms {
            if vm.new_started && vm.owner == Owner::Old {
                tidy(Some(name), Op::DiscardNew);
            }
            if vm.armed {
                tidy(Some(name), Op::DisarmDeadMan);
            }
        }
        if self.armed_at.is_some() {
            tidy(None, Op::DisarmDeadMan);
        }
        if self.worked_already(None, Op::LoadKernel) && !self.crossed {
            tidy(None, Op::UnloadKernel);
        }
        if open {
            return entries;
        }
        if self.announced && !self.settled(None, Op::EndEvents) {
            return self.begin(None, Op::EndEvents, now.mono.after(patience(Op::EndEvents)), now);
        }
        let outcome = match &self.trouble {
            None => Outcome::Done,
            Some(trouble) if trouble.aborted => Outcome::Aborted,
            Some(_) => Outcome::Failed,
        };
        vec![Entry::Finished { outcome }]
    }

    pub(super) fn restart_down(&self, now: Now) -> Vec<Entry> {
        let by = now.mono.after(patience(Op::Restart));
        let down = self.vms.iter().filter(|(_, vm)| matches!(vm.phase, VmPhase::Down { .. }));
        down.flat_map(|(name, _)| self.begin(Some(name), Op::Restart, by, now)).collect()
    }

    pub(super) fn anybody_down(&self) -> bool {
        self.vms.values().any(|vm| matches!(vm.phase, VmPhase::Down { .. }))
    }

    /// What needs no journal because the journal says it already: the owner takes every paused VM.
    ///
    /// The same is done after a restart of the agent and by the dead-man, so it does not matter which of the three
    /// comes first, or whether all of them do.
    pub(super) fn rescue(&self, now: Now) -> Vec<Entry> {
        let mut entries = Vec::new();
        for (name, vm) in &self.vms {
            entries.extend(match vm.phase {
                VmPhase::Pausing { .. } | VmPhase::Paused { .. } => self.release(name, now),
                // The journal says that the host jumped, and another kernel runs.
                VmPhase::Carried { .. } => {
                    self.begin(Some(name), Op::Restore, now.mono.after(patience(Op::Restore)), now)
                }
                _ => Vec::new(),
            });
        }
        if !self.in_pause() {
            entries.extend(self.after_rescue(now));
        }
        entries
    }

    /// With all VMs running again: nothing left for the dead-man to do, and clocks to be put right. Neither decides
    /// anything, so neither waits for the journal.
    fn after_rescue(&self, now: Now) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut tidy = |vm: Option<&VmName>, op: Op| {
            if !self.settled(vm, op) {
                entries.extend(self.begin(vm, op, now.mono.after(patience(op)), now));
            }
        };
        if self.armed_at.is_some() {
            tidy(None, Op::DisarmDeadMan);
        }
        for (name, vm) in &self.vms {
            if vm.armed {
                tidy(Some(name), Op::DisarmDeadMan);
            }
            if vm.phase == VmPhase::Resumed && !self.order.plan(name).is_some_and(|plan| plan.paused) {
                tidy(Some(name), Op::SetClock);
            }
        }
        entries
    }

    /// Lets the owner of a VM run it.
    pub(super) fn release(&self, name: &VmName, now: Now) -> Vec<Entry> {
        let owner = self.vms.get(name).map_or(Owner::Old, |vm| vm.owner);
        let op = match owner {
            Owner::New => Op::Resume,
            Owner::Old => Op::TakeBack,
        };
        self.begin(Some(name), op, now.mono.after(patience(op)), now)
    }
}

impl super::state::VmState {
    /// Its vCPUs run, as far as the journal knows.
    #[must_use]
    pub const fn runs(&self) -> bool {
        matches!(self.phase, VmPhase::Untouched | VmPhase::Resumed | VmPhase::Restarted { .. })
    }
}

/// How long another attempt at letting a VM run, or at restoring it, may take: on a host too busy to do it in the usual time, as many as
/// are made would all be cut short alike. Twice as long each time, up to a limit; nothing for other acts.
fn more_patience(op: Op, attempt: u32) -> Duration {
    let at_most = match op {
        Op::Resume | Op::TakeBack => Duration::from_secs(60),
        Op::Restore => Duration::from_secs(120),
        _ => return Duration::ZERO,
    };
    (patience(op) * 2_u32.pow(attempt.saturating_sub(1).min(6))).min(at_most)
}

/// How long an act may take before it is given up, where nothing tighter applies. In a pause the budget is tighter.
pub(super) const fn patience(op: Op) -> Duration {
    match op {
        Op::Resume => Duration::from_millis(1_000),
        // Includes making certain that the new VMM is dead.
        Op::TakeBack => Duration::from_millis(2_000),
        Op::ArmDeadMan | Op::DisarmDeadMan | Op::KillStep | Op::Hold | Op::CheckKernel | Op::SetHostClock => {
            Duration::from_secs(5)
        }
        Op::Announce | Op::PublishStarted | Op::EndEvents | Op::Retire | Op::DiscardNew => Duration::from_secs(30),
        Op::SetClock => crate::clock::KNOWN_TO_ANSWER.saturating_add(Duration::from_secs(30)),
        Op::HandOver | Op::Save | Op::Restore | Op::UnloadKernel => Duration::from_secs(30),
        Op::Preflight | Op::StartNew | Op::LoadKernel | Op::Restart => Duration::from_secs(60),
        Op::Rehearse | Op::Jump => Duration::from_secs(120),
        Op::ShutDown | Op::Reboot | Op::Run { .. } => Duration::from_secs(300),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attempt_to_restore_a_vm_or_to_let_it_run_has_twice_the_time_up_to_a_limit() {
        let seconds: Vec<u64> = (1..=8).map(|attempt| more_patience(Op::Resume, attempt).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        let seconds: Vec<u64> = (1..=4).map(|attempt| more_patience(Op::Restore, attempt).as_secs()).collect();
        assert_eq!(seconds, [30, 60, 120, 120]);
        assert_eq!(more_patience(Op::Save, 5), Duration::ZERO);
    }
}
