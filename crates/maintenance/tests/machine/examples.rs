//! What an ordinary maintenance looks like, and the failures that have a name.

use std::time::Duration;

use fermata_maintenance::machine::{Act, Entry, Evidence, Op, Outcome, Owner, State, VmPhase};
use fermata_maintenance::report::{Report, VmEnd};
use fermata_maintenance::time::Mono;
use fermata_maintenance::update::Section;

use crate::shell::{Run, run};
use crate::world::{Blow, Effect, Fault, HOLD, KERNEL, PACKAGE, REBOOT, SWAP, World};

fn smooth(update: &str, vms: usize) -> Run {
    let run = run(World::new(update, vms, 30_000, 7), |_, _| Fault::Works, |_, _| Blow::Nothing);
    run.check(true);
    run
}

fn failing(update: &str, op: Op) -> Run {
    let fault = move |act: &Act, _: &World| if act.id.op == op { Fault::Fails } else { Fault::Works };
    let run = run(World::new(update, 2, 30_000, 7), fault, |_, _| Blow::Nothing);
    run.check(true);
    run
}

fn began(run: &Run) -> Vec<String> {
    let act = |entry: &Entry| if let Entry::Began(act) = entry { Some(act.id.to_string()) } else { None };
    run.disk.entries.iter().filter_map(|stamped| act(&stamped.entry)).collect()
}

#[test]
fn a_swap_goes_in_this_order() {
    let run = smooth(SWAP, 1);
    assert_eq!(run.state.outcome, Some(Outcome::Done));
    assert_eq!(
        began(&run),
        [
            "announce",
            "preflight",
            "prepare step 1",
            "rehearse of VM vm-0",
            "publish started",
            "start new VMM of VM vm-0",
            "arm dead-man of VM vm-0",
            "hand over of VM vm-0",
            "resume of VM vm-0",
            "retire old VMM of VM vm-0",
            "disarm dead-man of VM vm-0",
            "set clock of VM vm-0",
            "verify step 1",
            "end events",
        ]
    );
}

#[test]
fn a_guests_clock_tells_how_long_it_stood() {
    for update in [SWAP, KERNEL] {
        let run = smooth(update, 1);
        let (name, vm) = run.state.vms.first_key_value().unwrap();
        let stood = run.world.vms[name].longest_pause;
        assert!(stood > 0);
        assert_eq!(vm.guest_blackout, Some(Duration::from_micros(stood)), "{update}");
    }
    // Nothing is rehearsed, so nobody knows what the clock said before.
    assert_eq!(smooth(HOLD, 1).state.vms.values().next().unwrap().guest_blackout, None);
}

#[test]
fn a_host_that_comes_back_into_its_old_kernel_tells_so() {
    let run = failing(KERNEL, Op::CheckKernel);
    assert_eq!(run.state.outcome, Some(Outcome::Failed));
    let report = Report::of(&run.disk.entries).unwrap();
    assert!(!report.change_in_effect);
    for vm in &report.vms {
        assert_eq!((&vm.end, vm.host_blackouts.len()), (&VmEnd::AsBefore, 1), "{}", vm.vm);
    }
}

#[test]
fn a_vmm_that_ends_after_its_vm_was_saved_takes_nothing_with_it() {
    let mut dead = false;
    let blow = |_, world: &World| {
        let hit = world.vms.values().all(|vm| vm.saved) && !dead;
        dead |= hit;
        if hit { Blow::VmDies(0) } else { Blow::Nothing }
    };
    let run = run(World::new(KERNEL, 1, 30_000, 7), |_, _| Fault::Works, blow);
    run.check(true);
    let report = Report::of(&run.disk.entries).unwrap();
    assert!(dead && report.vms.iter().all(|vm| vm.end == VmEnd::Updated), "{report}");
}

#[test]
fn a_hold_goes_in_this_order() {
    let run = smooth(HOLD, 1);
    assert_eq!(run.state.outcome, Some(Outcome::Done));
    assert_eq!(
        began(&run),
        [
            "announce",
            "preflight",
            "prepare step 1",
            "publish started",
            "arm dead-man",
            "hold of VM vm-0",
            "change step 1",
            "resume of VM vm-0",
            "disarm dead-man",
            "set clock of VM vm-0",
            "verify step 1",
            "end events",
        ]
    );
}

#[test]
fn a_package_touches_no_vm_and_tells_no_guest() {
    let run = smooth(PACKAGE, 2);
    assert_eq!(began(&run), ["preflight", "change step 1", "verify step 1"]);
}

#[test]
fn a_kernel_update_saves_jumps_and_restores_all_side_by_side() {
    let run = smooth(KERNEL, 3);
    assert_eq!(run.state.outcome, Some(Outcome::Done));
    for vm in run.state.vms.values() {
        assert_eq!((vm.owner, &vm.phase), (Owner::New, &VmPhase::Resumed));
    }
    let began = began(&run);
    let position = |what: &str| began.iter().position(|act| act == what).unwrap();
    assert!(position("load kernel") < position("save of VM vm-0"), "everything that costs time is before the pause");
    assert!(position("jump") < position("restore of VM vm-2"));
    assert!(position("set host clock") < position("set clock of VM vm-0"));
}

#[test]
fn a_pause_across_kernels_is_never_too_short_though_the_answer_that_named_its_end_was_lost() {
    let mut entries = smooth(KERNEL, 1).disk.entries;
    let is = |entry: &Entry, op: Op| matches!(entry, Entry::Ended { act, .. } if act.op == op);
    let stopped = entries.iter().find(|stamped| is(&stamped.entry, Op::Save)).unwrap().at;
    let resumed = entries.iter().position(|stamped| is(&stamped.entry, Op::Resume)).unwrap();
    // The first attempt let it run, and nobody heard; a later one finds it running.
    if let Entry::Ended { result, .. } = &mut entries[resumed].entry {
        *result = Ok(Evidence::Resumed { at: None });
    }
    let pause = entries[resumed].at.wall.since(stopped.wall);
    let jumped = entries.iter().position(|stamped| matches!(stamped.entry, Entry::Restarted { .. })).unwrap();
    for (stamped, second) in entries[jumped..].iter_mut().zip(1..) {
        stamped.at.mono = Mono(1_000_000 * second);
    }
    let state = State::replay(&entries).unwrap();
    let told = state.vms.values().next().unwrap().pauses.clone();
    assert!(pause > Duration::ZERO && told.len() == 1 && told[0] >= pause, "{told:?} for {pause:?}");
}

#[test]
fn a_hand_over_that_fails_leaves_the_vm_on_its_old_vmm() {
    let run = failing(SWAP, Op::HandOver);
    assert_eq!(run.state.outcome, Some(Outcome::Failed));
    assert!(run.state.vms.values().all(|vm| vm.owner == Owner::Old));
    assert_eq!(run.world.host, Effect::Undone, "prepare was taken back");
}

#[test]
fn a_rehearsal_that_fails_means_that_no_vm_is_touched() {
    let run = failing(SWAP, Op::Rehearse);
    assert!(run.state.vms.values().all(|vm| vm.phase == VmPhase::Untouched && vm.pauses.is_empty()));
    assert!(!run.world.started_published);
}

#[test]
fn a_held_step_that_fails_is_undone_in_the_same_pause() {
    let run = failing(HOLD, Op::Run { section: Section::Change, index: 0 });
    assert_eq!(run.world.host, Effect::Undone);
    assert!(run.state.undone);
    assert!(run.state.vms.values().all(|vm| vm.pauses.len() == 1));
}

#[test]
fn a_held_step_that_hangs_is_ended_in_time_and_undone() {
    let hangs = |act: &Act, _: &World| {
        if act.id.op == (Op::Run { section: Section::Change, index: 0 }) { Fault::Hangs } else { Fault::Works }
    };
    let run = run(World::new(HOLD, 2, 5_000, 7), hangs, |_, _| Blow::Nothing);
    run.check(true);
    assert!(run.state.undone);
}

#[test]
fn a_held_change_that_does_not_verify_is_undone_in_a_second_pause() {
    let run = failing(HOLD, Op::Run { section: Section::Verify, index: 0 });
    assert_eq!((run.state.outcome, run.state.undone), (Some(Outcome::Failed), true));
    assert!(run.state.vms.values().all(|vm| vm.pauses.len() == 2));
}

#[test]
fn a_refused_jump_ends_on_the_old_kernel() {
    let run = failing(KERNEL, Op::Jump);
    assert!(run.state.vms.values().all(|vm| vm.owner == Owner::Old && vm.phase == VmPhase::Resumed));
    assert!(began(&run).contains(&"unload kernel".to_owned()));
}

#[test]
fn a_vm_whose_state_does_not_load_is_kept_and_told() {
    let fault = |act: &Act, _: &World| {
        let broken = act.id.op == Op::Restore && act.id.vm.as_ref().is_some_and(|vm| vm.as_str() == "vm-1");
        if broken { Fault::Fails } else { Fault::Works }
    };
    let run = run(World::new(KERNEL, 3, 30_000, 7), fault, |_, _| Blow::Nothing);
    let phases: Vec<_> = run.state.vms.values().map(|vm| &vm.phase).collect();
    assert!(matches!(phases[..], [VmPhase::Resumed, VmPhase::Preserved { .. }, VmPhase::Resumed]), "{phases:?}");
    assert_eq!(run.state.outcome, Some(Outcome::Failed));
}

#[test]
fn the_most_urgent_vms_are_restored_first_and_no_more_at_once_than_the_host_can() {
    let mut world = World::new(KERNEL, 4, 30_000, 7);
    for (plan, ms) in world.order.vms.iter_mut().zip([30_000_u64, 29_000, 29_500, 28_500]) {
        plan.budget = ms.try_into().unwrap();
    }
    world.order = world.order.clone().restoring_at_once(2);
    let run = run(world, |_, _| Fault::Works, |_, _| Blow::Nothing);
    run.check(false);
    assert_eq!(run.state.outcome, Some(Outcome::Done));
    let order: Vec<_> = began(&run).into_iter().filter(|act| act.starts_with("restore")).collect();
    assert_eq!(order, ["vm-3", "vm-1", "vm-2", "vm-0"].map(|vm| format!("restore of VM {vm}")));
    let mut at_once = 0_i32;
    for stamped in &run.disk.entries {
        at_once += match &stamped.entry {
            Entry::Began(act) if act.id.op == Op::Restore => 1,
            Entry::Ended { act, .. } if act.op == Op::Restore => -1,
            _ => 0,
        };
        assert!(at_once <= 2, "{at_once} at once");
    }
}

#[test]
fn a_vm_whose_new_vmm_dies_before_it_ran_goes_on_in_the_old_one() {
    let name = "vm-0".parse().unwrap();
    let blow = |_, world: &World| {
        let new = &world.vms[&name].new;
        if new.loaded && !new.running { Blow::SuccessorDies(0) } else { Blow::Nothing }
    };
    let run = run(World::new(SWAP, 1, 5_000, 7), |_, _| Fault::Works, blow);
    run.check(true);
    let vm = &run.state.vms[&name];
    assert_eq!((vm.owner, &vm.phase, run.state.outcome), (Owner::Old, &VmPhase::Resumed, Some(Outcome::Failed)));
    assert!(!run.world.vms[&name].died && vm.pauses.len() == 1, "{:?}", vm.pauses);
}

#[test]
fn a_vm_that_the_dead_man_let_run_stood_until_then_and_not_until_somebody_looked() {
    let mut blown = false;
    let blow = |_, world: &World| {
        let ready = world.vms.values().all(|vm| vm.new.loaded && !vm.new.running);
        if !ready || std::mem::replace(&mut blown, ready) {
            return Blow::Nothing;
        }
        Blow::AgentStuck(Duration::from_secs(60))
    };
    let run = run(World::new(SWAP, 1, 5_000, 7), |_, _| Fault::Works, blow);
    run.check(true);
    let (told, stood) = (&run.state.vms.values().next().unwrap().pauses, run.world.vms.values().next().unwrap());
    let over = told[0].saturating_sub(Duration::from_micros(stood.longest_pause));
    assert!(told.len() == 1 && over < Duration::from_millis(20), "{told:?} for {} us", stood.longest_pause);
}

#[test]
fn events_are_ended_when_the_metadata_service_comes_a_minute_later() {
    let mut since = None;
    let fault = |act: &Act, world: &World| {
        let first = *since.get_or_insert(world.time().mono);
        let away = world.time().mono.since(first) < Duration::from_secs(150);
        if act.id.op == Op::EndEvents && away { Fault::Fails } else { Fault::Works }
    };
    let run = run(World::new(KERNEL, 2, 30_000, 7), fault, |_, _| Blow::Nothing);
    run.check(true);
    assert_eq!((run.state.outcome, run.state.loose_ends.as_slice()), (Some(Outcome::Done), &[][..]));
    assert!(run.world.events_ended);
}

#[test]
fn a_dead_man_that_had_to_be_started_is_armed_again_so_that_the_pause_has_its_whole_budget() {
    for update in [SWAP, HOLD] {
        let fault = |act: &Act, _: &World| {
            if act.id.op == Op::ArmDeadMan && act.id.attempt == 1 { Fault::Slow } else { Fault::Works }
        };
        let run = run(World::new(update, 1, 4_000, 7), fault, |_, _| Blow::Nothing);
        run.check(true);
        assert_eq!(run.state.outcome, Some(Outcome::Done));
        let armed = began(&run).iter().filter(|act| act.starts_with("arm dead-man")).count();
        assert_eq!(armed, 2, "{:?}", began(&run));
    }
}

#[test]
fn vms_that_cannot_be_kept_are_shut_down_and_started_again_only_where_the_file_says_so() {
    let run = smooth(REBOOT, 3);
    assert_eq!(run.state.outcome, Some(Outcome::Done));
    let phases: Vec<_> = run.state.vms.values().map(|vm| &vm.phase).collect();
    assert!(
        matches!(phases[..], [VmPhase::Restarted { .. }, VmPhase::Resumed, VmPhase::Restarted { .. }]),
        "{phases:?}"
    );
    let alone = smooth(REBOOT, 1);
    assert!(began(&alone).contains(&"reboot".to_owned()) && !began(&alone).contains(&"jump".to_owned()));
}
