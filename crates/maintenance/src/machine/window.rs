//! The window: the stages in which VMs are paused, one function per mechanism.

use std::time::Duration;

use fermata_model::{Mechanism, VmName};

use super::act::Op;
use super::decide::patience;
use super::entry::{Entry, Owner, Stage};
use super::state::{State, VmPhase, VmState};
use crate::order::reserve;
use crate::time::{Mono, Now};
use crate::update::Section;

/// How often the dead-man is armed for one pause when arming is slow.
const ARMINGS: u32 = 3;

impl State {
    /// `hold`: all VMs stop side by side, the step (or, the second time, the undo) runs, all continue.
    pub(super) fn hold(&self, now: Now) -> Vec<Entry> {
        let undo_round = self.stage == Stage::UndoHeld;
        let names: Vec<&VmName> = self.taking_part(&[Mechanism::Hold]).collect();
        let phase = |name: &VmName| self.vms.get(name).map(|vm| &vm.phase);
        let untouched = |name: &VmName| phase(name) == Some(&VmPhase::Untouched);
        let paused = |name: &VmName| matches!(phase(name), Some(VmPhase::Paused { .. }));
        let may_be_paused = |name: &VmName| phase(name).is_some_and(|phase| phase.paused_since().is_some());
        let released = names.iter().any(|name| phase(name) == Some(&VmPhase::Resumed));
        let dead_man_ready =
            names.is_empty() || self.armed_freshly(None, self.armed_at, reserve(self.order.common_budget()), now);

        if !self.round_failed && !released {
            if !dead_man_ready {
                return self.begin(None, Op::ArmDeadMan, self.dead_man_at(now), now);
            }
            let give_up = self
                .give_up()
                .unwrap_or_else(|| now.mono.after(patience(Op::Run { section: Section::Change, index: 0 })));
            let to_hold: Vec<Entry> = names
                .iter()
                .filter(|name| untouched(name))
                .flat_map(|name| self.begin(Some(name), Op::Hold, give_up, now))
                .collect();
            if !to_hold.is_empty() {
                return to_hold;
            }
            if !names.iter().all(|name| paused(name)) {
                return Vec::new();
            }
            let section = if undo_round { Section::Undo } else { Section::Change };
            if let Some((op, timeout)) = self.next_step(section) {
                // The change leaves time for its own undo.
                let kept = if undo_round { Duration::ZERO } else { self.order.update.longest(Section::Undo) };
                let last = Mono(give_up.0.saturating_sub(u64::try_from(kept.as_micros()).unwrap_or(u64::MAX)));
                if now.mono >= last && !self.is_pending(None, op) {
                    return vec![Entry::TooLate { op }];
                }
                return self.begin(None, op, last.min(now.mono.after(timeout)), now);
            }
        }
        if self.round_failed && !released && !undo_round {
            let undoing = self.undo_while_held(now, names.iter().any(|name| paused(name)));
            if let Some(entries) = undoing {
                return entries;
            }
        }
        let release: Vec<Entry> =
            names.iter().filter(|name| may_be_paused(name)).flat_map(|name| self.release_held(name, now)).collect();
        if !release.is_empty() || names.iter().any(|name| may_be_paused(name)) {
            return release;
        }
        let after = self.after_pause(None, now);
        if after.iter().any(Option::is_some) {
            return after.into_iter().flatten().flatten().collect();
        }
        match (&self.trouble, undo_round) {
            (None, _) => Self::enter_stage(Stage::Verify),
            (Some(_), true) => Self::enter_stage(Stage::Closing),
            // Tried in the pause and failed: trying again with guests running would not be what was announced.
            (Some(_), false) if self.any_undo_failed() => Self::enter_stage(Stage::Closing),
            (Some(_), false) => self.go_back(),
        }
    }

    /// Undo of a change that failed while VMs are held; `None` when it is time to let them go.
    fn undo_while_held(&self, now: Now, anybody_paused: bool) -> Option<Vec<Entry>> {
        let give_up = self.give_up().filter(|at| now.mono < *at)?;
        let change = Op::Run { section: Section::Change, index: 0 };
        if !self.change_begun || !anybody_paused || self.any_undo_failed() {
            return None;
        }
        // An abort, or a VM that ended, does not wait for the step: it is killed first, then taken back.
        if (self.is_pending(None, change) || !self.is_over(change)) && !self.settled(None, Op::KillStep) {
            return Some(self.begin(None, Op::KillStep, give_up, now));
        }
        let (op, timeout) = self.next_step(Section::Undo)?;
        Some(self.begin(None, op, give_up.min(now.mono.after(timeout)), now))
    }

    /// The runner itself said how the step ended; nothing of it is left.
    fn is_over(&self, op: Op) -> bool {
        self.worked_already(None, op) || (self.failed_already(None, op) && self.trouble_is_of(op))
    }

    fn trouble_is_of(&self, op: Op) -> bool {
        self.trouble.as_ref().and_then(|trouble| trouble.act.as_ref()).is_some_and(|act| act.op == op)
    }

    fn release_held(&self, name: &VmName, now: Now) -> Vec<Entry> {
        // A `Resume` under way that hangs is followed by `TakeBack`, which uses the rescue connection.
        let tried = self.failed_already(Some(name), Op::Resume) || self.round_failed;
        if self.is_pending(Some(name), Op::Resume) || self.is_pending(Some(name), Op::TakeBack) {
            return Vec::new();
        }
        if tried {
            self.release(name, now)
        } else {
            self.begin(Some(name), Op::Resume, now.mono.after(patience(Op::Resume)), now)
        }
    }

    fn dead_man_at(&self, now: Now) -> Mono {
        let budget = self.order.common_budget();
        now.mono.after(budget.duration().saturating_sub(reserve(budget) / 2))
    }

    /// What follows every pause: dead-man disarmed, clocks put right. `Some(entries)` while something is open.
    fn after_pause(&self, host_clock: Option<Op>, now: Now) -> Vec<Option<Vec<Entry>>> {
        let mut open = Vec::new();
        if self.armed_at.is_some()
            && self.worked_already(None, Op::ArmDeadMan)
            && !self.settled(None, Op::DisarmDeadMan)
        {
            let op = Op::DisarmDeadMan;
            open.push(Some(self.begin(None, op, now.mono.after(patience(op)), now)));
        }
        if let Some(op) = host_clock.filter(|op| !self.settled(None, *op)) {
            open.push(Some(self.begin(None, op, now.mono.after(patience(op)), now)));
            return open;
        }
        for (name, vm) in self.vms.iter().filter(|(_, vm)| vm.phase == VmPhase::Resumed) {
            open.push(self.correct_clock(name, vm, now));
        }
        open
    }

    fn correct_clock(&self, name: &VmName, vm: &VmState, now: Now) -> Option<Vec<Entry>> {
        // A VM that its operator had stopped before has no running clock to correct.
        let stopped_before = self.order.plan(name).is_some_and(|plan| plan.paused);
        if vm.phase != VmPhase::Resumed || stopped_before || self.settled(Some(name), Op::SetClock) {
            return None;
        }
        Some(self.begin(Some(name), Op::SetClock, now.mono.after(patience(Op::SetClock)), now))
    }

    /// `swap`: VM by VM, at most `parallelism` at once. What one VM needs never waits for another's pause.
    pub(super) fn swap(&self, now: Now) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut open = false;
        let on_the_way = |name: &VmName, vm: &VmState| {
            vm.phase.paused_since().is_some()
                || (vm.phase == VmPhase::Untouched && (vm.new_started || self.is_pending(Some(name), Op::StartNew)))
        };
        let busy = self.vms.iter().filter(|(name, vm)| on_the_way(name, vm)).count();
        let mut room = usize::from(self.order.update.parallelism).saturating_sub(busy);
        for name in self.taking_part(&[Mechanism::Swap]) {
            let Some(vm) = self.vms.get(name) else { continue };
            let going = on_the_way(name, vm);
            if self.trouble.is_none() && vm.phase == VmPhase::Untouched && !going {
                open = true;
                if room == 0 {
                    continue;
                }
                room -= 1;
            }
            if let Some(next) = self.swap_one(name, vm, now) {
                open = true;
                entries.extend(next);
            }
        }
        match (open, &self.trouble) {
            (true, _) => entries,
            (false, None) => Self::enter_stage(Stage::Verify),
            (false, Some(_)) => self.go_back(),
        }
    }

    /// The next entries for one VM; `None` when nothing is open for it.
    fn swap_one(&self, name: &VmName, vm: &VmState, now: Now) -> Option<Vec<Entry>> {
        let tidy = |op: Op| self.begin(Some(name), op, now.mono.after(patience(op)), now);
        match &vm.phase {
            VmPhase::Untouched if self.trouble.is_some() => {
                if vm.new_started && !self.settled(Some(name), Op::DiscardNew) {
                    return Some(tidy(Op::DiscardNew));
                }
                (vm.armed && !self.settled(Some(name), Op::DisarmDeadMan)).then(|| tidy(Op::DisarmDeadMan))
            }
            VmPhase::Untouched => {
                if !self.worked_already(Some(name), Op::StartNew) {
                    return Some(tidy(Op::StartNew));
                }
                let budget = self.order.plan(name).map(|plan| plan.budget).unwrap_or_default();
                if !self.armed_freshly(Some(name), vm.armed_at, reserve(budget), now) {
                    return Some(self.begin(Some(name), Op::ArmDeadMan, self.pause_end(name, now.mono, 2), now));
                }
                // The agent gives up before the dead-man does, so both count from the same moment.
                let from = vm.armed_at.unwrap_or(now.mono);
                let by = self.pause_end(name, from, 1);
                if by <= now.mono && !self.is_pending(Some(name), Op::HandOver) {
                    return Some(vec![Entry::TooLate { op: Op::HandOver }]);
                }
                Some(self.begin(Some(name), Op::HandOver, by, now))
            }
            VmPhase::Pausing { .. } if self.is_pending(Some(name), Op::HandOver) => Some(Vec::new()),
            VmPhase::Paused { .. } if vm.owner == Owner::Old && self.may_commit(name) => {
                // The point of no return of this VM: in one write with the intent to let the new one run.
                let mut entries = vec![Entry::Owner { vm: name.clone(), owner: Owner::New }];
                entries.extend(tidy(Op::Resume));
                Some(entries)
            }
            VmPhase::Pausing { .. } | VmPhase::Paused { .. } => Some(self.release(name, now)),
            VmPhase::Resumed => {
                let mut open = Vec::new();
                if vm.owner == Owner::New && !self.settled(Some(name), Op::Retire) {
                    open.push(tidy(Op::Retire));
                }
                if vm.armed && !self.settled(Some(name), Op::DisarmDeadMan) {
                    open.push(tidy(Op::DisarmDeadMan));
                }
                open.extend(self.correct_clock(name, vm, now));
                (!open.is_empty()).then(|| open.into_iter().flatten().collect())
            }
            VmPhase::Carried { .. }
            | VmPhase::Down { .. }
            | VmPhase::Restarted { .. }
            | VmPhase::Preserved { .. }
            | VmPhase::Lost { .. }
            | VmPhase::Gone { .. } => None,
        }
    }

    /// The dead-man is armed, and its deadline was not half used up by arming it: the first time it may have to be
    /// started. Then it is armed once more, which takes next to nothing.
    fn armed_freshly(&self, vm: Option<&VmName>, at: Option<Mono>, reserve: Duration, now: Now) -> bool {
        let slow = at.is_some_and(|at| now.mono.since(at) > reserve / 4);
        let tried = self.attempts.get(&(vm.cloned(), Op::ArmDeadMan)).copied().unwrap_or(0);
        let paused = self.in_pause() && vm.is_none();
        self.worked_already(vm, Op::ArmDeadMan) && (!slow || paused || tried.is_multiple_of(ARMINGS))
    }

    /// The end of a pause that begins at `from`, less its reserve divided by `part`.
    fn pause_end(&self, name: &VmName, from: Mono, part: u32) -> Mono {
        let budget = self.order.plan(name).map(|plan| plan.budget).unwrap_or_default();
        from.after(budget.duration().saturating_sub(reserve(budget) / part))
    }

    /// A hand-over that worked is completed even if another VM, or an abort, stopped the rest: it is the shortest way
    /// for this VM. After a restart of the agent, or without a journal, its end is not known: then it goes back.
    fn may_commit(&self, name: &VmName) -> bool {
        self.worked_already(Some(name), Op::HandOver)
            && !self.failed_already(Some(name), Op::TakeBack)
            && !self.is_pending(Some(name), Op::TakeBack)
            // The new VMM had its chance and is dead: while the old one owns the VM, no other failure of this act is possible.
            && !self.failed_already(Some(name), Op::Resume)
    }

    /// `kexec` and `reboot`: what cannot be kept is shut down, the rest is saved, the host goes over, all come back.
    pub(super) fn across_the_kernel(&self, now: Now) -> Vec<Entry> {
        if self.crossed { self.beyond(now) } else { self.before_the_jump(now) }
    }

    fn before_the_jump(&self, now: Now) -> Vec<Entry> {
        let shut: Vec<&VmName> = self.taking_part(&[Mechanism::Reboot]).collect();
        let save: Vec<&VmName> = self.taking_part(&[Mechanism::Kexec]).collect();
        if self.is_pending(None, Op::Jump) || self.is_pending(None, Op::Reboot) {
            // Nobody can call it back; letting VMs run now could mean to lose what they do. It answers, or misses its
            // deadline, after which the shell must not jump any more.
            return Vec::new();
        }
        if self.round_failed || self.trouble.is_some() {
            return self.stay_here(&save, now);
        }
        let mut entries = Vec::new();
        for name in &shut {
            let up = self.vms.get(*name).is_some_and(VmState::runs);
            if up {
                entries.extend(self.begin(Some(name), Op::ShutDown, now.mono.after(patience(Op::ShutDown)), now));
            }
        }
        if !entries.is_empty() || self.pending.keys().any(|(_, op)| *op == Op::ShutDown) {
            return entries;
        }
        if !self.jumps() {
            return self.begin(None, Op::Reboot, now.mono.after(patience(Op::Reboot)), now);
        }
        let ready = self.armed_freshly(None, self.armed_at, reserve(self.order.common_budget()), now);
        if !save.is_empty() && !ready {
            return self.begin(None, Op::ArmDeadMan, self.dead_man_at(now), now);
        }
        let last = self.last_moment_to_jump().unwrap_or_else(|| now.mono.after(patience(Op::Save)));
        let mut all = true;
        for name in &save {
            match self.vms.get(*name).map(|vm| &vm.phase) {
                Some(VmPhase::Paused { .. }) => {}
                Some(VmPhase::Untouched) => {
                    all = false;
                    entries.extend(self.begin(Some(name), Op::Save, last, now));
                }
                _ => all = false,
            }
        }
        if !all {
            return entries;
        }
        // An answer can come late (an agent that was stopped for a while), so the clock is asked again here.
        if !save.is_empty() && now.mono >= last {
            return vec![Entry::TooLate { op: Op::Jump }];
        }
        let by = if save.is_empty() { now.mono.after(patience(Op::Jump)) } else { last };
        self.begin(None, Op::Jump, by, now)
    }

    /// Promise P2: the jump is not made when what it is expected to take no longer fits.
    fn last_moment_to_jump(&self) -> Option<Mono> {
        let budget = self.order.common_budget().duration();
        let expected = self.order.vms.iter().map(|plan| plan.forecast.upper).max().unwrap_or_default();
        self.armed_at.map(|at| at.after(budget.saturating_sub(expected)))
    }

    fn stay_here(&self, save: &[&VmName], now: Now) -> Vec<Entry> {
        let paused = |name: &VmName| self.vms.get(name).is_some_and(|vm| vm.phase.paused_since().is_some());
        if save.iter().any(|name| paused(name)) {
            return save.iter().filter(|name| paused(name)).flat_map(|name| self.release(name, now)).collect();
        }
        let mut entries = self.restart_down(now);
        let waiting = self.anybody_down() || self.pending.keys().any(|(_, op)| *op == Op::ShutDown);
        let after = self.after_pause(None, now);
        let open = after.iter().any(Option::is_some);
        entries.extend(after.into_iter().flatten().flatten());
        if entries.is_empty() && !waiting && !open { self.go_back() } else { entries }
    }

    /// In the new kernel: the most urgent VMs first, as many at once as the order allows. One whose state does not load gives up its
    /// place between two tries; one that hangs keeps it until its act is overdue.
    fn beyond(&self, now: Now) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut open = false;
        let under_way = self.pending.keys().filter(|(_, op)| *op == Op::Restore).count();
        let mut room = self.order.restores_at_once.saturating_sub(under_way);
        for name in self.order.by_urgency().into_iter().map(|plan| &plan.vm) {
            let Some(vm) = self.vms.get(name) else { continue };
            match &vm.phase {
                VmPhase::Carried { .. } => {
                    open = true;
                    if room > 0 {
                        let begun = self.begin(Some(name), Op::Restore, now.mono.after(patience(Op::Restore)), now);
                        room -= usize::from(!begun.is_empty());
                        entries.extend(begun);
                    }
                }
                VmPhase::Paused { .. } => {
                    open = true;
                    entries.extend(self.release(name, now));
                }
                _ => {}
            }
        }
        entries.extend(self.restart_down(now));
        open |= self.anybody_down();
        if !self.settled(None, Op::CheckKernel) {
            open = true;
            entries.extend(self.begin(None, Op::CheckKernel, now.mono.after(patience(Op::CheckKernel)), now));
        }
        let kept = self.vms.values().any(|vm| vm.owner == Owner::New);
        let after = self.after_pause(kept.then_some(Op::SetHostClock), now);
        open |= after.iter().any(Option::is_some);
        entries.extend(after.into_iter().flatten().flatten());
        match (open, &self.trouble) {
            (true, _) => entries,
            (false, None) => Self::enter_stage(Stage::Verify),
            (false, Some(_)) => Self::enter_stage(Stage::Closing),
        }
    }
}
