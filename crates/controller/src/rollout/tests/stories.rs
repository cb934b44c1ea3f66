use std::time::Duration;

use super::world::{World, at, definition, host, update};
use crate::order::{Outcome, Report, Scope, Standing, Task};
use crate::rollout::*;

fn two_parts() -> Definition {
    definition(&["h1:web=0", "h2:web=1", "h3:web=0"])
}

#[test]
fn one_part_of_a_set_at_a_time_with_its_recovery_between() {
    let mut world = World::started(two_parts());
    world.visit("h1", Outcome::Updated);
    let refusal = world.order("h2").unwrap_err();
    assert!(refusal.to_string().contains("set web: part 0 is in work for r on h1"), "{refusal}");
    world.visit("h3", Outcome::Updated);
    world.healthy("h1").unwrap();
    assert!(matches!(world.wait("h2"), Some(Wait::SetInWork { .. })));
    world.now = 10;
    world.healthy("h3").unwrap();
    assert!(matches!(world.wait("h2"), Some(Wait::SetRecovers { until, .. }) if until == at(310)));
    world.now = 310;
    world.through("h2");
    assert_eq!(world.rollout.state().phase, Phase::Ended(End::Completed));
}

#[test]
fn vms_that_are_not_healthy_keep_the_part_open_and_stop_the_rollout_only_when_the_limit_has_passed() {
    let mut world = World::started(two_parts());
    world.visit("h1", Outcome::Updated);
    world.unhealthy("h1", &["a", "b"]).unwrap();
    assert_eq!(world.rollout.state().phase, Phase::Running);
    world.now = 299;
    assert_eq!(world.give(Input::Tick), Err(Refusal::Nothing));
    world.now = 300;
    world.give(Input::Tick).unwrap();
    let Phase::Stopping(End::Failed(evidence)) = &world.rollout.state().phase else { panic!("goes on") };
    assert_eq!(evidence.limit, "2 of 2 updated VMs are unhealthy, 20 % may be");
    assert_eq!(evidence.unhealthy[0].seen, "tcp 80: refused");
    world.healthy("h1").unwrap();
    assert!(matches!(world.rollout.state().phase, Phase::Ended(End::Failed(_))));
    assert_eq!((world.word("h1"), world.word("h2")), ("done", "waiting"));
}

#[test]
fn a_visit_that_was_undone_fails_the_host_and_the_budget_stops_the_rollout() {
    let mut world = World::started(two_parts());
    world.visit("h1", Outcome::Undone("state did not load".into()));
    assert_eq!(world.rollout.phase_word(), "failing");
    assert!(world.locks[&"web".parse().unwrap()].open.is_some(), "locked until the VMs are known to be healthy");
    world.healthy("h1").unwrap();
    assert_eq!(world.word("h1"), "failed");
    let Phase::Ended(End::Failed(evidence)) = &world.rollout.state().phase else { panic!("goes on") };
    assert_eq!(evidence.failed[&host("h1")], "state did not load");
}

#[test]
fn within_the_budget_a_failed_host_can_be_tried_again() {
    let mut definition = two_parts();
    definition.rules.max_failed_hosts = 1;
    let mut world = World::started(definition);
    world.visit("h1", Outcome::Undone("no".into()));
    world.healthy("h1").unwrap();
    assert_eq!((world.rollout.phase_word(), world.word("h1")), ("running", "failed"));
    world.give(Input::Retry(host("h1"))).unwrap();
    world.through("h1");
    assert!(world.rollout.state().failures.is_empty());
}

#[test]
fn pausing_calls_back_what_was_only_announced_and_lets_what_began_end() {
    let mut world = World::started(two_parts());
    world.announce("h1");
    world.visit("h3", Outcome::Updated);
    world.give(Input::Pause).unwrap();
    let needs = world.rollout.agenda(at(0), 9);
    assert!(needs.contains(&Need::Give(Input::Recall(host("h1")))));
    world.give(Input::Recall(host("h1"))).unwrap();
    assert!(matches!(world.slots[&host("h1")].order.as_ref().unwrap().task, Task::StandDown));
    assert!(world.give(Input::Recall(host("h3"))).is_err());
    world.healthy("h3").unwrap();
    assert!(world.locks[&"web".parse().unwrap()].open.is_some(), "h1 has not answered");
    world.report("h1", Standing::StoodDown).unwrap();
    assert_eq!((world.word("h1"), world.word("h3")), ("waiting", "done"));
    assert!(matches!(world.wait("h1"), Some(Wait::Rollout { .. })));
    world.give(Input::Resume).unwrap();
    world.through("h1");
}

#[test]
fn work_that_crossed_with_its_recall_counts() {
    let mut world = World::started(two_parts());
    world.announce("h1");
    let generation = world.generation("h1");
    world.give(Input::Hold(host("h1"))).unwrap();
    world.give(Input::Recall(host("h1"))).unwrap();
    let last = Some((generation, Outcome::Updated));
    let crossed = Report { host: host("h1"), generation: generation.next(), standing: Standing::StoodDown, last };
    world.give(Input::Report(crossed)).unwrap();
    assert_eq!(world.word("h1"), "checking");
    world.healthy("h1").unwrap();
    assert!(matches!(world.wait("h2"), Some(Wait::SetRecovers { .. })), "its VMs were touched");
}

#[test]
fn an_announced_host_is_skipped_when_it_has_stood_down() {
    let mut world = World::started(two_parts());
    world.announce("h1");
    world.give(Input::Skip(host("h1"))).unwrap();
    world.give(Input::Recall(host("h1"))).unwrap();
    world.report("h1", Standing::StoodDown).unwrap();
    assert_eq!(world.word("h1"), "skipped");
    assert_eq!(world.order("h2"), Ok(()), "nothing was touched, so nothing recovers");
    assert!(matches!(world.give(Input::Skip(host("nobody"))), Err(Refusal::UnknownHost(_))));
}

#[test]
fn abort_ends_when_no_host_is_in_work() {
    let mut world = World::started(two_parts());
    world.visit("h1", Outcome::Updated);
    world.announce("h3");
    world.give(Input::Abort).unwrap();
    world.give(Input::Recall(host("h3"))).unwrap();
    world.report("h3", Standing::StoodDown).unwrap();
    assert_eq!(world.rollout.phase_word(), "aborting");
    world.healthy("h1").unwrap();
    assert_eq!(world.rollout.phase_word(), "aborted");
    assert!(world.give(Input::Resume).is_err());
    assert!(world.locks.values().all(|lock| lock.open.is_none()));
    assert!(world.slots.values().all(|slot| slot.open.is_none()));
}

#[test]
fn a_canary_is_watched_and_the_next_stage_waits_for_a_word() {
    let mut definition = definition(&["h1:", "h2:", "h3:"]);
    let soak = Duration::from_secs(600);
    definition.stages = vec![
        StageRule { name: "canary".into(), soak, approval: true },
        StageRule { name: "rest".into(), soak: Duration::ZERO, approval: false },
    ];
    for name in ["h2", "h3"] {
        definition.hosts.get_mut(&host(name)).unwrap().stage = 1;
    }
    let mut world = World::started(definition);
    assert_eq!(world.wait("h2"), Some(Wait::Stage { stage: "canary".into(), hosts_left: 1 }));
    world.through("h1");
    assert_eq!(world.wait("h2"), Some(Wait::StageSoaks { stage: "canary".into(), until: at(600) }));
    assert!(world.give(Input::ApproveStage).is_err());
    world.now = 600;
    world.give(Input::Tick).unwrap();
    assert!(matches!(world.wait("h2"), Some(Wait::StageApproval { .. })));
    world.give(Input::ApproveStage).unwrap();
    world.through("h2");
    world.through("h3");
    assert_eq!(world.rollout.phase_word(), "completed");
}

#[test]
fn a_canary_that_is_worse_than_the_rest_stops_the_rollout_with_the_comparison() {
    let mut definition = definition(&["h1:web=0", "h2:db=0"]);
    definition.rules.host_soak = Duration::from_secs(600);
    definition.rules.max_unhealthy_percent = 100;
    let mut world = World::started(definition);
    world.through("h1");
    world.unhealthy("h1", &["a"]).unwrap();
    assert!(world.give(Input::Rest { unhealthy: 2, checked: 5 }).is_err(), "the others are as bad");
    world.give(Input::Rest { unhealthy: 1, checked: 10 }).unwrap();
    let Phase::Stopping(End::Failed(evidence)) = &world.rollout.state().phase else { panic!("goes on") };
    assert_eq!(evidence.rest, Some((1, 10)));
    assert!(evidence.limit.starts_with("50 % of the updated VMs"), "{}", evidence.limit);
}

#[test]
fn a_preflight_is_asked_just_before_and_a_refusal_is_explained_and_tried_again() {
    let mut world = World::started(two_parts());
    world.give(Input::AskPreflight(host("h1"))).unwrap();
    let refusal = Some("VM a has a pass-through device".to_owned());
    world.give(Input::Preflight { host: host("h1"), asked: at(0), refusal }).unwrap();
    assert!(world.locks.is_empty() && world.slots.is_empty());
    assert!(matches!(world.wait("h1"), Some(Wait::Preflight { again_at, .. }) if again_at == at(60)));
    assert_eq!(world.rollout.agenda(at(0), 1), [Need::Give(Input::AskPreflight(host("h2")))], "others go on");
    world.now = 60;
    world.through("h1");
}

#[test]
fn an_answer_to_an_older_question_does_not_count() {
    let mut world = World::started(two_parts());
    world.give(Input::AskPreflight(host("h1"))).unwrap();
    world.now = 60;
    world.give(Input::Tick).unwrap();
    assert!(matches!(world.wait("h1"), Some(Wait::Preflight { .. })));
    let late = Input::Preflight { host: host("h1"), asked: at(0), refusal: None };
    assert_eq!(world.give(late), Err(Refusal::Nothing));
}

#[test]
fn a_host_that_does_not_come_back_stops_the_rollout_until_somebody_gives_it_up() {
    let mut world = World::started(two_parts());
    world.announce("h1");
    world.report("h1", Standing::InWork).unwrap();
    world.now = 1_800;
    assert!(world.rollout.agenda(at(1_800), 0).contains(&Need::Give(Input::Tick)));
    world.give(Input::Tick).unwrap();
    assert_eq!(world.rollout.phase_word(), "failing");
    assert!(world.locks[&"web".parse().unwrap()].open.is_some());
    world.give(Input::GiveUp(host("h1"))).unwrap();
    assert_eq!(world.rollout.phase_word(), "failed");
    assert!(world.locks[&"web".parse().unwrap()].open.is_none());
}

#[test]
fn limits_of_hosts_racks_and_a_sets_share_hold() {
    let mut definition = definition(&["h1:web=0", "h2:web=0", "h3:web=0", "h4:", "h5:"]);
    for name in ["h4", "h5"] {
        definition.hosts.get_mut(&host(name)).unwrap().rack = Some("a".into());
    }
    for task in definition.hosts.values_mut() {
        task.sets.values_mut().for_each(|member| member.of = 20);
    }
    definition.rules.limits.hosts_per_rack = std::num::NonZeroU32::new(1);
    definition.rules.limits.hosts = std::num::NonZeroU32::new(3);
    let mut world = World::started(definition);
    world.announce("h1");
    world.announce("h2");
    assert!(matches!(world.wait("h3"), Some(Wait::SetShare { limit: 4, in_work: 4, vms: 2, .. })));
    world.announce("h4");
    assert!(matches!(world.wait("h5"), Some(Wait::Limit { limit: 3, .. })));
    world.report("h1", Standing::InWork).unwrap();
    world.report("h1", Standing::Finished(Outcome::Updated)).unwrap();
    world.healthy("h1").unwrap();
    assert!(matches!(world.wait("h5"), Some(Wait::Limit { what, .. }) if what.contains("rack a")));
}

#[test]
fn a_visit_fits_into_a_window_of_every_group() {
    let mut definition = definition(&["h1:"]);
    let window = |from: &str, to: &str| {
        vec![serde_json::from_value(serde_json::json!({"from": from, "to": to, "time_zone": "Europe/Berlin"})).unwrap()]
    };
    // 1_800_000_000 is 2027-01-15 09:00 in Berlin.
    let task = definition.hosts.get_mut(&host("h1")).unwrap();
    task.windows = vec![window("08:00", "12:00"), window("10:00", "14:00")];
    let mut world = World::started(definition);
    assert!(matches!(world.wait("h1"), Some(Wait::Window { windows }) if windows.contains("10:00")));
    world.now = 3_600;
    assert_eq!(world.wait("h1"), None);
    world.now = 3 * 3_600 - 900;
    assert!(matches!(world.wait("h1"), Some(Wait::Window { .. })), "notice and work do not fit any more");
}

#[test]
fn pending_updates_of_another_rollout_are_done_in_the_same_visit() {
    let mut world = World::started(two_parts());
    world.announce("h1");
    let merge = |hosts: &[&str]| Input::Merge {
        updates: vec![update("qemu"), update("firmware")],
        hosts: hosts.iter().map(|name| host(name)).collect(),
    };
    assert!(matches!(world.give(merge(&["h1", "h3"])), Err(Refusal::HostPhase { .. })));
    world.give(merge(&["h3"])).unwrap();
    world.announce("h3");
    let Task::Maintain(visit) = &world.slots[&host("h3")].order.as_ref().unwrap().task else { panic!() };
    assert_eq!(visit.updates, [update("qemu"), update("firmware")]);
}

#[test]
fn approvals_reach_the_order_without_a_new_generation() {
    let mut world = World::started(two_parts());
    world.announce("h1");
    let scopes = [Scope::Set("web".parse().unwrap()), Scope::Set("other".parse().unwrap())];
    let by = [("web-1", "web"), ("other-1", "other")].map(|(vm, set)| (vm.parse().unwrap(), set.parse().unwrap()));
    let approve = Input::ApproveVisit { host: host("h1"), scopes: scopes.clone().into(), by: by.into() };
    world.give(approve.clone()).unwrap();
    let order = world.slots[&host("h1")].order.as_ref().unwrap();
    let Task::Maintain(visit) = &order.task else { panic!() };
    assert_eq!((visit.approved.len(), order.generation), (1, world.generation("h1")));
    let approvers: Vec<&str> = visit.approvers.keys().map(fermata_model::VmName::as_str).collect();
    assert_eq!(approvers, ["web-1"], "a VM of a set that the visit does not touch has no say");
    assert_eq!(world.give(approve), Err(Refusal::Nothing));
    // A second one of the set: for policies that want several.
    let second = [("web-2".parse().unwrap(), "web".parse().unwrap())].into();
    world.give(Input::ApproveVisit { host: host("h1"), scopes: scopes.into(), by: second }).unwrap();
    let Task::Maintain(visit) = &world.slots[&host("h1")].order.as_ref().unwrap().task else { panic!() };
    assert_eq!((visit.approved.len(), visit.approvers.len()), (1, 2));
}

#[test]
fn a_host_waits_for_another_rollouts_visit() {
    let mut world = World::started(two_parts());
    world.announce("h1");
    let mut other = two_parts();
    other.id = "s".into();
    let mut second = World::started(other);
    (second.locks, second.slots) = (world.locks.clone(), world.slots.clone());
    assert!(matches!(second.wait("h1"), Some(Wait::HostBusy { rollout }) if rollout == "r".into()));
    assert!(matches!(second.wait("h3"), Some(Wait::SetInWork { owner, .. }) if owner == "r".into()));
}

#[test]
fn the_log_derives_the_rollout_again_and_a_changed_line_is_found() {
    let mut world = World::started(two_parts());
    world.through("h1");
    world.announce("h3");
    let definition = std::sync::Arc::clone(world.rollout.definition());
    assert_eq!(replay(definition.clone(), &world.log).unwrap(), world.rollout);
    let json: Vec<Entry> = serde_json::from_str(&serde_json::to_string(&world.log).unwrap()).unwrap();
    assert_eq!(json, world.log);
    let mut gap = world.log.clone();
    gap.remove(2);
    assert!(matches!(replay(definition.clone(), &gap), Err(ReplayError::Gap { expected: 3, found: 4 })));
    let mut changed = world.log.clone();
    changed.iter_mut().find(|entry| !entry.actions.is_empty()).unwrap().actions.clear();
    assert!(matches!(replay(definition, &changed), Err(ReplayError::Differs { .. })));
}

#[test]
fn a_definition_that_does_not_fit_together_is_refused() {
    let broken = |change: fn(&mut Definition)| {
        let mut definition = two_parts();
        change(&mut definition);
        definition.check().unwrap_err()
    };
    assert!(matches!(broken(|d| d.updates.clear()), DefinitionError::NoUpdate));
    assert!(matches!(broken(|d| drop(d.order.pop())), DefinitionError::Hosts(_)));
    assert!(matches!(broken(|d| d.order.push(host("h1"))), DefinitionError::Twice(_)));
    assert!(matches!(broken(|d| d.stages.clear()), DefinitionError::Stage(_)));
}
