//! A shell on the virtual host: what the agent does with the core, in a hundred lines.

use std::time::Duration;

use fermata_maintenance::machine::{Act, Entry, Input, Maintenance, Op, Outcome, Owner, Stamped, State, VmPhase};
use fermata_maintenance::report::{Report, VmEnd};
use fermata_model::Mechanism;

use crate::world::{Blow, Disk, Effect, Fault, World, vm_name};

/// What a run ended with.
pub(crate) struct Run {
    pub(crate) world: World,
    pub(crate) disk: Disk,
    pub(crate) state: State,
    /// The agent was stuck after the jump: nothing could have helped in time, P2 is about what comes before.
    pub(crate) late_blow: bool,
}

/// Runs a maintenance to its end. `fault` chooses per act; `blow` is asked once after every append to the journal,
/// before the acts of that append begin.
pub(crate) fn run(
    mut world: World,
    mut fault: impl FnMut(&Act, &World) -> Fault,
    mut blow: impl FnMut(usize, &World) -> Blow,
) -> Run {
    let mut disk;
    let (mut maintenance, acts) =
        Maintenance::begin(world.order.clone(), world.boot_id(), Disk::default(), world.time()).unwrap();
    let mut acts: Vec<Act> = acts;
    let mut inputs: Vec<Input> = Vec::new();
    let mut asked = 0;
    let mut full_until = None;
    let mut stuck_until = None;
    let mut late_blow = false;
    for _ in 0..20_000 {
        disk = maintenance_log(&mut maintenance);
        let boot = world.boot_number();
        let mut dead = false;
        while asked < disk.appends {
            asked += 1;
            match blow(asked, &world) {
                Blow::Nothing => {}
                Blow::AgentDies => dead = true,
                Blow::AgentStuck(length) => {
                    world.note(format!("the agent is stuck for {length:?}"));
                    late_blow |= world.boot_number() > 1;
                    stuck_until = Some(world.now + length.as_micros() as u64);
                }
                Blow::PowerCut => world.power_cut(&mut disk),
                Blow::DiskFull(length) => {
                    world.note(format!("the disk is full for {length:?}"));
                    full_until = Some(world.now + length.as_micros() as u64);
                }
                Blow::Abort => {
                    inputs.push(Input::Abort { by: "operator".to_owned(), reason: "changed plans".to_owned() });
                }
                Blow::VmDies(index) => {
                    let name = vm_name(index);
                    if !world.vms[&name].old.alive && !world.vms[&name].new.alive {
                        continue;
                    }
                    world.vm_dies(&name);
                    inputs.push(Input::VmGone { vm: name, reason: "powered off by its guest".to_owned() });
                }
                Blow::TailLost => {
                    disk.entries.truncate(disk.synced);
                    dead = true;
                }
                Blow::SuccessorDies(index) => {
                    let name = vm_name(index);
                    // One that runs the VM is its VMM.
                    if world.vms[&name].new.alive && !world.vms[&name].new.running {
                        world.successor_dies(&name);
                    }
                }
            }
        }
        disk.full = full_until.is_some_and(|until| world.now < until);
        set_log(&mut maintenance, disk.clone());
        if dead || world.jumped(boot) {
            world.agent_dies();
            world.now += if world.jumped(boot) { 2_000_000 } else { 50_000 };
            inputs.clear();
            acts = recover(&mut maintenance, &mut disk, &world);
            continue;
        }
        if stuck_until.is_none() {
            for act in std::mem::take(&mut acts) {
                let chosen = fault(&act, &world);
                world.begin(act, maintenance.state(), &disk, chosen);
            }
        }
        if maintenance.state().outcome.is_some() && inputs.is_empty() {
            return Run { state: maintenance.state().clone(), disk, world, late_blow };
        }
        if inputs.is_empty() || stuck_until.is_some() {
            // Nothing to do now: on to the next moment.
            let wake = maintenance.wake_at(world.time()).map(|at| at.0).filter(|_| stuck_until.is_none());
            let next = world.next_event().into_iter().chain(wake).chain(full_until).chain(stuck_until);
            // With nothing under way and nothing to wait for it would stand for ever.
            let next = next.min().unwrap_or_else(|| panic!("nobody wakes it:\n{}", world.trace.join("\n")));
            world.now = next.max(world.now);
            if full_until.is_some_and(|until| until <= world.now) {
                full_until = None;
            }
            if stuck_until.is_some_and(|until| until <= world.now) {
                stuck_until = None;
            }
            let boot = world.boot_number();
            inputs.extend(world.due());
            if world.jumped(boot) {
                world.now += 2_000_000;
                inputs.clear();
                stuck_until = None;
                disk = maintenance_log(&mut maintenance);
                acts = recover(&mut maintenance, &mut disk, &world);
                continue;
            }
            let guarded = world.dead_man_due();
            if !guarded.is_empty() {
                world.agent_dies();
                disk = maintenance_log(&mut maintenance);
                world.dead_man_acts(&guarded, &disk);
                stuck_until = None;
                inputs.clear();
                world.now += 50_000;
                acts = recover(&mut maintenance, &mut disk, &world);
                continue;
            }
            if inputs.is_empty() {
                inputs.push(Input::Tick);
            }
            if stuck_until.is_some() {
                continue;
            }
        }
        for input in std::mem::take(&mut inputs) {
            let failed = matches!(input, Input::Ended { result: Err(_), .. });
            acts.extend(maintenance.handle(input, world.time()));
            if failed && !maintenance.state().in_pause() {
                // The journal is slow: the next attempt is due when it has been written.
                world.now += 1_500_000;
            }
        }
    }
    panic!("no end after 20000 moments:\n{}\n{:#?}", world.trace.join("\n"), maintenance.state());
}

fn recover(maintenance: &mut Maintenance<Disk>, disk: &mut Disk, world: &World) -> Vec<Act> {
    let (again, acts) = Maintenance::recover(&disk.entries, world.boot_id(), disk.clone(), world.time()).unwrap();
    *maintenance = again;
    acts
}

fn maintenance_log(maintenance: &mut Maintenance<Disk>) -> Disk {
    maintenance.log_mut().clone()
}

fn set_log(maintenance: &mut Maintenance<Disk>, disk: Disk) {
    *maintenance.log_mut() = disk;
}

impl Run {
    /// The promises at the end, whatever happened. `bounded`: no act of the way back was made to fail.
    pub(crate) fn check(&self, bounded: bool) {
        let Self { world, disk, state, .. } = self;
        assert_eq!(&State::replay(&disk.entries).unwrap(), state, "the journal tells the whole state");
        assert!(world.step_running.is_none() || state.outcome != Some(Outcome::Done));
        for (name, vm) in &world.vms {
            let told = &state.vms[name];
            assert!(!(vm.old.running && vm.new.running), "P1: two VMMs run {name}");
            match &told.phase {
                // It ended after the end.
                VmPhase::Untouched | VmPhase::Resumed | VmPhase::Restarted { .. } if vm.died => {}
                VmPhase::Untouched | VmPhase::Resumed => {
                    assert!(vm.running(), "{name} is told to run and does not");
                    assert!(!vm.started_anew, "{name} was started anew and nobody says so");
                    assert_eq!(told.owner == Owner::New, vm.new.running, "owner of {name}");
                }
                // A shutdown that was never answered may be told as a restart; one that happened is never denied.
                VmPhase::Restarted { .. } => {
                    assert!(vm.running() && (vm.started_anew || vm.mechanism == Mechanism::Reboot), "{name}");
                }
                VmPhase::Preserved { .. } => assert!(!vm.running() && vm.saved, "{name} is told to be kept"),
                VmPhase::Gone { .. } | VmPhase::Lost { .. } => assert!(vm.died, "{name} is told to be gone"),
                other => panic!("{name} ends as {other:?}"),
            }
            if bounded && !vm.died && !self.late_blow {
                assert!(
                    u128::from(vm.longest_pause) <= vm.budget.duration().as_micros(),
                    "P2: {name} {}",
                    vm.longest_pause
                );
            }
            if bounded && told.phase == VmPhase::Resumed && told.clock.is_some() {
                assert!(vm.clock_set, "P3: clock of {name}");
            }
        }
        self.check_report();
        let swapped =
            world.vms.values().filter(|vm| !vm.died).all(|vm| vm.mechanism != Mechanism::Swap || vm.new.running);
        match state.outcome {
            Some(Outcome::Done) => {
                assert!(swapped, "done, but not every VM runs on the new VMM");
                if world.order.update.change.step().is_some() || world.order.mechanism() >= Mechanism::Kexec {
                    assert_eq!(world.host, Effect::Changed, "done, but the host is not changed");
                }
                assert!(state.trouble.is_none());
            }
            Some(Outcome::Failed | Outcome::Aborted) => assert!(state.trouble.is_some(), "no reason given"),
            None => panic!("not over"),
        }
        if state.undone {
            assert_eq!(world.host, Effect::Undone, "told to be undone");
        }
        assert!(
            world.events_ended || !state.loose_ends.is_empty() || !disk.entries.iter().any(announced),
            "events left"
        );
    }
}

impl Run {
    /// The report says what the virtual host knows.
    fn check_report(&self) {
        let report = Report::of(&self.disk.entries).unwrap();
        assert_eq!(report.outcome, self.state.outcome);
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report, "the report survives JSON");
        assert!(!report.to_string().is_empty());
        // Stages follow each other without a gap, also across a jump: pictures of them rest on that.
        let mut from = Duration::ZERO;
        for stage in &report.stages {
            assert_eq!(stage.from, Some(from), "{stage:?}");
            from += stage.took;
        }
        for told in &report.vms {
            assert_eq!(
                told.blackouts_began.len(),
                told.host_blackouts.len(),
                "every pause has its place, or says that it has none"
            );
            let vm = &self.world.vms[&told.vm];
            let pauses = told.host_blackouts.iter().map(|pause| pause.0).chain(told.may_have_stood);
            let longest = pauses.max().map_or(0, |pause| pause.as_micros());
            assert!(
                vm.died || vm.started_anew || longest >= u128::from(vm.longest_pause),
                "P10: {} stood for {} us and is told {longest} us",
                told.vm,
                vm.longest_pause
            );
            match &told.end {
                VmEnd::Untouched | VmEnd::AsBefore | VmEnd::Updated => {
                    let jumped = told.mechanism == Mechanism::Kexec && told.end == VmEnd::Updated;
                    assert!(
                        !jumped || self.world.kernel_is_new(),
                        "{} is told to be on a kernel that is not there",
                        told.vm
                    );
                    assert!(vm.died || (vm.running() && !vm.started_anew), "{} is told {:?}", told.vm, told.end);
                }
                VmEnd::Restarted { .. } => {
                    let likely = vm.started_anew || vm.mechanism == Mechanism::Reboot;
                    assert!(vm.died || likely, "{} is told to be restarted", told.vm);
                }
                VmEnd::Preserved { .. } => assert!(vm.saved && !vm.running(), "{} is told to be kept", told.vm),
                VmEnd::Lost { .. } | VmEnd::Gone { .. } => {
                    assert!(!vm.running(), "{} is told to be lost", told.vm);
                    let kept = told.mechanism == Mechanism::Kexec && vm.saved && !vm.new_ran;
                    assert!(!kept, "{} is told to be lost, but is in the vault", told.vm);
                }
                VmEnd::Paused => panic!("{} is told to be paused at the end", told.vm),
            }
        }
        if self.world.order.update.change.step().is_some() {
            let in_effect = matches!(self.world.host, Effect::Half | Effect::Changed);
            // A change that may have begun counts; one that did is never denied.
            assert!(report.change_in_effect || !in_effect, "the host is changed and nobody says so");
        }
        if report.outcome == Some(Outcome::Done) {
            assert!(
                report.change_in_effect || self.world.vms.values().all(|vm| vm.died || vm.mechanism == Mechanism::None)
            );
        }
    }
}

fn announced(stamped: &Stamped) -> bool {
    matches!(&stamped.entry, Entry::Began(act) if act.id.op == Op::Announce)
}
