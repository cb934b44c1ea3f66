//! The same rules at their edges: what comes twice, too late, a millisecond early, or from somebody else.
#![allow(clippy::unwrap_used, reason = "test support: a failure is a failed test")]

mod common;

use std::time::Duration;

use common::*;
use fermata_events::event::DeferLimits;
use fermata_events::*;

const DAY: Duration = Duration::from_secs(24 * 3600);
const MS: Duration = Duration::from_millis(1);

fn web() -> ScopeId {
    "set/web".parse().unwrap()
}

fn opened(actions: &[Action]) -> bool {
    World::has(actions, &Action::GateOpened { job: job("j") })
}

#[test]
fn rule_14_not_before_is_rounded_up_to_a_whole_second_and_never_down() {
    for (late_ms, promised, owed_ms) in [
        (0, "Wed, 31 May 2023 16:59:00 GMT", 900_000),
        (1, "Wed, 31 May 2023 16:59:01 GMT", 900_999),
        (999, "Wed, 31 May 2023 16:59:01 GMT", 900_001),
    ] {
        let mut world = World::new();
        world.poll_all();
        world.tick(Duration::from_millis(late_ms));
        world.ok(Input::Announce(announce("j", &["alone"], 900)));
        assert_eq!(world.doc("alone")["Events"][0]["NotBefore"], promised, "{late_ms} ms into the second");
        assert!(!opened(&world.tick(Duration::from_millis(owed_ms) - MS)), "{late_ms}: a millisecond early");
        assert!(opened(&world.tick(MS)), "{late_ms}: on the second that was promised");
    }
}

#[test]
fn rule_14_with_no_notice_owed_it_is_the_second_that_has_begun() {
    let mut world = World::new();
    world.tick(Duration::from_millis(999));
    assert!(opened(&world.ok(Input::Announce(announce("j", &["alone"], 900)))), "nobody asked, so nobody waits");
    assert_eq!(world.doc("alone")["Events"][0]["NotBefore"], "Wed, 31 May 2023 16:44:00 GMT");
}

#[test]
fn rule_17_the_document_has_whole_seconds_that_no_promised_pause_exceeds() {
    let table: [(&[PauseBound], i64); 9] = [
        (&[PauseBound::None], 0),
        (&[PauseBound::AtMostMs(0)], 0),
        (&[PauseBound::AtMostMs(1)], 1),
        (&[PauseBound::AtMostMs(8_999)], 9),
        (&[PauseBound::AtMostMs(9_000)], 9),
        (&[PauseBound::AtMostMs(9_001)], 10),
        (&[PauseBound::AtMostMs(9_001), PauseBound::None], 10),
        (&[PauseBound::None, PauseBound::Unknown], -1),
        (&[PauseBound::AtMostMs(u64::MAX), PauseBound::None], i64::from(i32::MAX)),
    ];
    for (bounds, seconds) in table {
        let mut world = World::new();
        let mut job = announce("j", &["web0", "web2"][..bounds.len()], 0);
        for (affected, bound) in job.affected.iter_mut().zip(bounds) {
            affected.pause = *bound;
        }
        world.ok(Input::Announce(job));
        let event = &world.doc("web1")["Events"][0];
        assert_eq!(event["DurationInSeconds"], serde_json::json!(seconds), "{bounds:?}");
    }
}

#[test]
fn rule_18_every_step_has_a_number_of_its_own_and_a_restart_after_it_changes_nothing() {
    let mut world = World::new();
    world.poll_all();
    let mut deferrable = announce("j", &["web0"], 900);
    deferrable.defer = DeferLimits { max_s: 60, max_count: 1 };
    let second = announce("k", &["web2"], 900);
    let until = UnixMs(START_MS + 930_000);
    // step, and whether it changes what the members of the set read
    let mut script: Vec<(Input, bool)> = vec![
        (Input::Announce(deferrable), true),
        (Input::Announce(announce("l", &["alone"], 900)), false),
        (Input::Announce(second), true),
        (Input::SetPolicy { scope: web(), policy: ApprovalPolicy::OperatorOnly }, false),
        (Input::Polled { vm: vm("web1") }, false),
        (Input::Tick, false),
    ];
    let mut number = world.incarnation("web1");
    let mut go = |world: &mut World, (input, changes): (Input, bool)| {
        let actions = world.ok(input.clone());
        let members = vec![vm("web0"), vm("web1"), vm("web2")];
        assert_eq!(World::has(&actions, &Action::DocumentsChanged { vms: members }), changes, "{input:?}");
        number += u64::from(changes);
        for name in ["web0", "web1", "web2"] {
            assert_eq!(world.incarnation(name), number, "{name} after {input:?}");
        }
        let before = world.state.document(&vm("web1"), ApiVersion::NEWEST);
        world.restart();
        world.ok(Input::Tick);
        assert_eq!(world.state.document(&vm("web1"), ApiVersion::NEWEST), before, "a restart after {input:?}");
    };
    for step in script.drain(..) {
        go(&mut world, step);
    }
    let first = world.state.job(&job("j")).unwrap().events[0];
    let defer = Input::Defer { event: first, vm: vm("web0"), until };
    for step in [
        (defer, false),
        (Input::Approve { events: vec![first], by: by_vm("web0") }, false),
        (Input::Start { job: job("j") }, true),
        (Input::Cancel { job: job("k") }, true),
        (Input::Cancel { job: job("l") }, false),
        (Input::Finish { job: job("j"), outcome: Outcome::Done }, true),
    ] {
        go(&mut world, step);
    }
    assert_eq!(world.status("web1").len(), 0);
}

#[test]
fn rule_18_what_is_told_again_is_no_change_and_events_stand_in_the_order_of_their_announcement() {
    for names in [["first", "second"], ["second", "first"]] {
        let mut there = World::new();
        let mut here = World::new();
        let mut ids = Vec::new();
        for (name, member) in names.into_iter().zip(["web0", "web2"]) {
            there.ok(Input::Announce(announce(name, &[member], 900)));
            there.tick(MS);
            let id = there.state.job(&job(name)).unwrap().events[0];
            let event = there.state.event(id).unwrap().clone();
            let number = here.incarnation("web1");
            for told in 0..3 {
                here.ok(Input::Mirror { event: Box::new(event.clone()) });
                assert_eq!(here.incarnation("web1"), number + 1, "told {told} times more");
            }
            ids.push(id);
        }
        assert_eq!((there.ids("web1"), here.ids("web1")), (ids.clone(), ids), "{names:?}");
    }
}

#[test]
fn rule_18_a_number_brought_from_another_host_is_never_undercut_and_rule_11_it_fits_32_bits() {
    let mut world = World::new();
    let upsert = |floor| Input::UpsertVm {
        vm: vm("alone"),
        set: None,
        update_domain: None,
        min_notice_s: 0,
        incarnation_floor: floor,
    };
    let changed = Action::DocumentsChanged { vms: vec![vm("alone")] };
    assert!(World::has(&world.ok(upsert(9)), &changed), "a number that changes is a document that changes");
    assert_eq!(world.incarnation("alone"), 9);
    assert_eq!((world.ok(upsert(3)), world.incarnation("alone")), (vec![], 9), "never back");
    let largest = u64::try_from(i32::MAX).unwrap();
    world.ok(upsert(u32::MAX));
    world.ok(Input::Announce(announce("j", &["alone"], 0)));
    assert!(world.incarnation("alone") <= largest, "{}", world.incarnation("alone"));
}

#[test]
fn rule_22_who_approves_again_late_or_after_the_end_changes_nothing() {
    let mut world = World::new();
    world.poll_all();
    world.ok(Input::Announce(announce("j", &["web0"], 900)));
    let id = world.ids("web0")[0];
    world.approve("web1", vec![id]).unwrap();
    world.tick(Duration::from_secs(1));
    assert_eq!(world.approve("web1", vec![id]).unwrap(), [], "again, a second later");
    let first = serde_json::json!([{ "by": "web1", "timeUnixMs": START_MS }]);
    assert_eq!(serde_json::json!(world.approvals(id)), first, "the first approval stands");
    let operator = |name: &str| Input::Approve { events: vec![id], by: Approver::Operator { name: name.to_owned() } };
    world.ok(operator("ann"));
    let both = world.approvals(id);
    world.tick(Duration::from_secs(1));
    assert_eq!(world.ok(operator("bob")), [], "an operator, again");
    assert_eq!(world.approvals(id), both);
    world.ok(Input::Start { job: job("j") });
    assert_eq!(world.approve("web2", vec![id]).unwrap(), [], "somebody new, after Started");
    assert_eq!(world.approvals(id), both, "who comes late is not recorded as having allowed it");
    assert_eq!(world.steps().iter().filter(|step| **step == Lifecycle::Approved).count(), 1);
    world.ok(Input::Finish { job: job("j"), outcome: Outcome::Done });
    assert_eq!(world.approve("web2", vec![id]).unwrap(), [], "somebody new, after the end");
    assert_eq!(world.state.all_history().next().unwrap().approved_by, [vm("web1")]);
}

#[test]
fn rule_22_a_cancelled_event_can_be_approved_for_a_day_and_does_not_come_back() {
    let mut world = World::new();
    world.poll_all();
    world.ok(Input::Announce(announce("j", &["alone"], 900)));
    let id = world.ids("alone")[0];
    world.ok(Input::Cancel { job: job("j") });
    assert_eq!(world.approve("alone", vec![id]).unwrap(), []);
    world.tick(DAY);
    assert_eq!(world.approve("alone", vec![id]).unwrap(), [], "to the last moment of the day");
    assert_eq!((world.status("alone").len(), world.state.jobs().count()), (0, 0));
    assert_eq!(world.approve("other", vec![id]), Err(Refusal::UnknownEvent(id)), "rule 43: only by its own scope");
    world.now = world.now.later(MS);
    assert_eq!(world.approve("alone", vec![id]), Err(Refusal::UnknownEvent(id)));
}

#[test]
fn rule_15_an_id_is_not_used_again_even_when_it_can_no_longer_be_approved() {
    let mut world = World::new();
    world.ok(Input::Announce(announce("j", &["alone"], 0)));
    world.ok(Input::Cancel { job: job("j") });
    world.tick(DAY + MS);
    world.restart();
    assert_eq!(world.go(Input::Announce(announce("j", &["alone"], 0))), Err(Refusal::JobExists(job("j"))));
}

#[test]
fn rule_24_policies_are_fixed_at_the_announcement_and_the_operators_default_holds_for_all() {
    let config = Config { policy: ApprovalPolicy::OperatorOnly, ..Config::default() };
    let mut world = World::with(config);
    world.poll_all();
    // A scope that was heard of before has the operator's default, too.
    world.ok(Input::PeerPolled { set: "web".parse().unwrap(), at: UnixMs(START_MS) });
    let gate = |name: &str| Action::GateOpened { job: job(name) };
    for (name, member) in [("set", "web0"), ("own", "alone")] {
        world.ok(Input::Announce(announce(name, &[member], 900)));
    }
    world.ok(Input::SetPolicy { scope: web(), policy: ApprovalPolicy::AnyInScope });
    for (name, member) in [("set", "web0"), ("own", "alone")] {
        let ids = world.ids(member);
        world.approve(member, ids.clone()).unwrap();
        world.restart();
        assert!(!World::has(&world.ok(Input::Tick), &gate(name)), "{name}: no guest's word counts in open events");
        let by = Approver::Operator { name: "ann".to_owned() };
        assert!(World::has(&world.ok(Input::Approve { events: ids, by }), &gate(name)), "{name}");
        world.ok(Input::Cancel { job: job(name) });
    }
    world.ok(Input::Announce(announce("next", &["web0"], 900)));
    let ids = world.ids("web0");
    assert!(World::has(&world.approve("web1", ids).unwrap(), &gate("next")), "the policy that was set meanwhile");
}

#[test]
fn rule_24_only_affected_waits_for_each_of_them_but_not_for_one_that_is_gone() {
    let mut world = World::new();
    world.poll_all();
    world.ok(Input::SetPolicy { scope: web(), policy: ApprovalPolicy::AffectedOnly });
    world.ok(Input::Announce(announce("j", &["web0", "web2"], 900)));
    let ids = world.ids("web0");
    assert!(!opened(&world.approve("web0", ids).unwrap()));
    assert!(opened(&world.ok(Input::RemoveVm { vm: vm("web2") })), "a deleted VM has nothing to say");
}

#[test]
fn rule_24_a_quorum_counts_vms_of_the_scope_on_other_hosts_once() {
    let mut world = World::new();
    world.poll_all();
    world.ok(Input::SetPolicy { scope: web(), policy: ApprovalPolicy::Quorum { needed: 3 } });
    world.ok(Input::Announce(announce("j", &["web0"], 900)));
    let id = world.ids("web0")[0];
    let peer = |name: &str, set: &str| Input::Approve {
        events: vec![id],
        by: Approver::Peer { vm: vm(name), set: set.parse().unwrap() },
    };
    world.approve("web0", vec![id]).unwrap();
    assert_eq!(world.go(peer("web7", "db")), Err(Refusal::UnknownEvent(id)), "of another set");
    assert!(!opened(&world.ok(peer("web7", "web"))));
    assert!(!opened(&world.ok(peer("web7", "web"))), "one VM, one vote");
    assert!(opened(&world.ok(peer("web8", "web"))));
}

#[test]
fn rule_32_the_lead_is_five_seconds_where_nobody_says_otherwise_and_the_jobs_where_it_does() {
    for (lead_ms, visible_ms) in [(None, 5_000), (Some(7_500), 7_500), (Some(0), 2_000)] {
        let mut world = World::new();
        world.ok(Input::Announce(Announce { lead_ms, ..announce("j", &["alone"], 0) }));
        world.ok(Input::Start { job: job("j") });
        let may = Action::MayPause { job: job("j") };
        assert!(!World::has(&world.tick(Duration::from_millis(visible_ms) - MS), &may), "{lead_ms:?}");
        assert!(World::has(&world.tick(MS), &may), "{lead_ms:?}");
        assert!(!World::has(&world.tick(MS), &may), "{lead_ms:?}: told once");
    }
}

#[test]
fn rule_33_what_failed_its_last_check_is_removed_and_may_not_be_paused_any_more() {
    let mut world = World::new();
    world.ok(Input::Announce(announce("j", &["alone"], 0)));
    assert!(matches!(
        world.go(Input::Finish { job: job("j"), outcome: Outcome::Undone }),
        Err(Refusal::WrongStage { .. })
    ));
    world.ok(Input::Start { job: job("j") });
    world.ok(Input::Finish { job: job("j"), outcome: Outcome::Undone });
    assert!(world.status("alone").is_empty());
    let actions = world.tick(Duration::from_secs(60));
    assert!(!World::has(&actions, &Action::MayPause { job: job("j") }));
    assert_eq!(
        world.go(Input::Pausing { job: job("j"), vms: vec![] }),
        Err(Refusal::UnknownJob(job("j"))),
        "without a new event there is no pause"
    );
}

#[test]
fn rule_33_a_resume_is_measured_once_and_a_deleted_vm_holds_nobody_up() {
    let mut world = World::new();
    world.ok(Input::Announce(announce("j", &["web0", "web2"], 0)));
    world.ok(Input::Start { job: job("j") });
    let refused = world.go(Input::Resumed { job: job("j"), vm: vm("web0"), paused_ms: 1 });
    assert!(matches!(refused, Err(Refusal::WrongPhase { .. })), "it was not paused: {refused:?}");
    world.pause_and_resume("j", &["web0"], 3_000);
    world.ok(Input::Resumed { job: job("j"), vm: vm("web0"), paused_ms: 9 });
    world.ok(Input::ClockVerified { job: job("j"), vm: vm("web0"), clock_step_ms: 5 });
    world.ok(Input::ClockVerified { job: job("j"), vm: vm("web0"), clock_step_ms: 9 });
    world.ok(Input::Finish { job: job("j"), outcome: Outcome::Done });
    assert_eq!(world.status("web1"), ["Started"], "web2 is paused");
    world.ok(Input::RemoveVm { vm: vm("web2") });
    assert!(world.status("web1").is_empty());
    let record = world.state.all_history().next().unwrap();
    assert_eq!(record.vms[&vm("web0")].pause_ms, Some(3_000), "the first measurement");
    assert_eq!(record.vms[&vm("web0")].clock_step_ms, Some(5));
}

#[test]
fn rule_35_a_scope_is_enabled_to_the_last_moment_of_the_day_and_a_future_request_counts_as_now() {
    let mut world = World::new();
    let enabled = |world: &World| world.state.enabled_at(&web(), world.now.wall);
    world.ok(Input::Polled { vm: vm("web1") });
    world.tick(DAY);
    assert!(enabled(&world));
    world.tick(MS);
    assert!(!enabled(&world));
    world.ok(Input::PeerPolled { set: "web".parse().unwrap(), at: world.now.wall + DAY });
    world.tick(DAY + MS);
    assert!(!enabled(&world), "another host's clock that is ahead lengthens nothing");
    // A request that was noted long ago is noted anew, and that is durable.
    let actions = world.ok(Input::Polled { vm: vm("web1") });
    assert!(matches!(actions[0], Action::Persist { .. }));
    world.restart();
    assert!(enabled(&world));
}

#[test]
fn rule_35_a_clock_that_is_set_back_leaves_no_request_in_the_future() {
    let mut world = World::new();
    world.ok(Input::Polled { vm: vm("alone") });
    world.now.wall = UnixMs(START_MS - 7_200_000);
    let actions = world.ok(Input::Polled { vm: vm("alone") });
    assert!(matches!(actions[0], Action::Persist { .. }), "noted anew: {actions:?}");
    world.tick(DAY + MS);
    assert!(!world.state.enabled_at(&"vm/alone".parse().unwrap(), world.now.wall));
}

#[test]
fn rule_36_what_a_silent_scope_is_owed_is_the_operators_word() {
    let mut world = World::with(Config { unasked_notice_s: 30, ..Config::default() });
    world.ok(Input::Announce(announce("j", &["alone"], 900)));
    assert!(!opened(&world.tick(Duration::from_secs(29))));
    assert!(opened(&world.tick(Duration::from_secs(1))));
}

#[test]
fn rule_38_a_cancelled_event_goes_from_scheduled_to_nothing() {
    let mut world = World::new();
    world.poll_all();
    world.ok(Input::Announce(announce("j", &["alone"], 900)));
    assert_eq!(world.status("alone"), ["Scheduled"]);
    let id = world.ids("alone")[0];
    world.approve("alone", vec![id]).unwrap();
    let actions = world.ok(Input::Cancel { job: job("j") });
    assert!(World::has(&actions, &Action::JobOver { job: job("j"), outcome: Outcome::Cancelled }));
    assert!(World::has(&actions, &Action::DocumentsChanged { vms: vec![vm("alone")] }));
    assert!(world.status("alone").is_empty());
    assert_eq!(world.steps(), [Lifecycle::Scheduled, Lifecycle::Approved, Lifecycle::Removed]);
    let record = world.state.all_history().next().unwrap();
    assert_eq!((record.outcome, record.started_unix_ms), (Outcome::Cancelled, None));
    assert_eq!(world.go(Input::Start { job: job("j") }), Err(Refusal::UnknownJob(job("j"))), "and never starts");
    assert!(!opened(&world.tick(Duration::from_secs(1_000))));
}

#[test]
fn rule_38_what_has_started_cannot_be_cancelled() {
    let mut world = World::new();
    world.ok(Input::Announce(announce("j", &["alone"], 0)));
    world.ok(Input::Start { job: job("j") });
    for _ in 0..2 {
        let refused = world.go(Input::Cancel { job: job("j") });
        assert!(matches!(refused, Err(Refusal::WrongStage { .. })), "{refused:?}");
        assert_eq!(world.status("alone"), ["Started"]);
        world.tick(Duration::from_secs(5));
        world.ok(Input::Pausing { job: job("j"), vms: vec![] });
    }
}

#[test]
fn rule_38_a_failure_is_never_seen_as_scheduled_and_ends_when_the_vm_runs() {
    let mut world = World::new();
    world.poll_all();
    let mut crash = announce("crash", &["alone"], 900);
    crash.kind = EventKind::Reboot;
    let actions = world.ok(Input::Fail(crash));
    let event = &world.doc("alone")["Events"][0];
    assert_eq!(
        (&event["EventStatus"], &event["NotBefore"]),
        (&"Started".into(), &"".into()),
        "whatever notice is owed"
    );
    assert_eq!(event["Description"], "Virtual machine has encountered a failure.");
    assert_eq!(world.steps(), [Lifecycle::Started]);
    let ordered = |action: &Action| matches!(action, Action::GateOpened { .. } | Action::MayPause { .. });
    assert!(!actions.iter().any(ordered) && !world.tick(Duration::from_secs(3_600)).iter().any(ordered));
    // A VM that already has an event can fail all the same.
    world.ok(Input::Announce(announce("j", &["other"], 900)));
    world.ok(Input::Fail(announce("late", &["other"], 0)));
    assert_eq!(world.status("other"), ["Scheduled", "Started"]);
    world.ok(Input::Finish { job: job("crash"), outcome: Outcome::Failed });
    world.restart();
    assert_eq!(world.status("alone"), ["Started"], "it is down");
    world.ok(Input::RunsAgain { job: job("crash"), vm: vm("alone"), paused_ms: None });
    assert!(world.status("alone").is_empty());
}

#[test]
fn rule_41_the_floor_of_a_minute_is_a_floor_and_for_the_own_scope_only() {
    let mut world = World::new();
    world.poll_all();
    world.ok(Input::Announce(announce("first", &["web0"], 0)));
    world.ok(Input::Start { job: job("first") });
    world.pause_and_resume("first", &["web0"], 3_000);
    let not_before = |world: &World, name: &str| {
        let doc = world.doc(name);
        let events = doc["Events"].as_array().unwrap();
        events.iter().find(|e| e["EventStatus"] == "Scheduled").unwrap()["NotBefore"].as_str().unwrap().to_owned()
    };
    let in_s = |world: &World, s| (world.now.wall + Duration::from_secs(s)).ceil_second().http_date();
    world.ok(Input::Announce(announce("longer", &["web1"], 61)));
    assert_eq!(not_before(&world, "web1"), in_s(&world, 61), "a longer notice stays");
    world.ok(Input::Announce(announce("elsewhere", &["alone"], 10)));
    assert_eq!(not_before(&world, "alone"), in_s(&world, 10), "the clock of another scope does not matter");
    world.ok(Input::Cancel { job: job("longer") });
    world.ok(Input::ClockVerified { job: job("first"), vm: vm("web0"), clock_step_ms: 0 });
    world.ok(Input::Announce(announce("after", &["web1"], 10)));
    assert_eq!(not_before(&world, "web1"), in_s(&world, 10), "verified");
}

#[test]
fn rule_41_a_deadline_ignores_steps_of_the_wall_clock_after_a_restart_too() {
    let mut world = World::new();
    world.poll_all();
    world.ok(Input::Announce(announce("j", &["alone"], 900)));
    world.tick(Duration::from_secs(300));
    world.restart();
    world.now.wall = world.now.wall + Duration::from_secs(7_200);
    assert!(!opened(&world.ok(Input::Tick)), "600 s of the notice are left, whatever the wall clock says");
    world.now.wall = UnixMs(START_MS + 300_000);
    assert!(!opened(&world.tick(Duration::from_secs(600) - MS)));
    assert!(opened(&world.tick(MS)));
}

#[test]
fn rule_43_a_foreign_id_and_an_unknown_one_are_refused_in_the_same_words() {
    let mut world = World::new();
    world.poll_all();
    let mut open = announce("open", &["alone"], 900);
    open.defer = DeferLimits { max_s: 600, max_count: 1 };
    world.ok(Input::Announce(open));
    world.ok(Input::Announce(announce("over", &["web0"], 900)));
    let (open, over) = (world.ids("alone")[0], world.ids("web0")[0]);
    world.ok(Input::Cancel { job: job("over") });
    let unknown = EventId::derived(uuid::Uuid::nil(), &"vm/other".parse().unwrap());
    let until = UnixMs(START_MS + 1_000_000);
    let mut words = |id: EventId| {
        let approve = world.approve("other", vec![id]).unwrap_err();
        let defer = world.go(Input::Defer { event: id, vm: vm("other"), until }).unwrap_err();
        [approve, defer].map(|refusal| refusal.to_string().replace(&id.to_string(), "ID"))
    };
    let said = words(unknown);
    assert!(said.iter().all(|text| text.contains("no event ID in this scope")), "{said:?}");
    assert_eq!(words(open), said, "open in another scope");
    assert_eq!(words(over), said, "over in another scope");
}

#[test]
fn rule_45_only_the_vms_that_are_paused_are_woken() {
    let mut world = World::new();
    world.ok(Input::Announce(announce("j", &["alone", "other"], 0)));
    world.ok(Input::Start { job: job("j") });
    world.tick(Duration::from_secs(5));
    let actions = world.ok(Input::Pausing { job: job("j"), vms: vec![vm("other")] });
    assert!(World::has(&actions, &Action::WakeWaiters { vms: vec![vm("other")] }));
    world.ok(Input::Resumed { job: job("j"), vm: vm("other"), paused_ms: 1 });
    let actions = world.ok(Input::Pausing { job: job("j"), vms: vec![] });
    assert!(World::has(&actions, &Action::WakeWaiters { vms: vec![vm("alone")] }), "the rest");
    let again = world.go(Input::Pausing { job: job("j"), vms: vec![vm("other")] });
    assert!(matches!(again, Err(Refusal::WrongPhase { .. })), "no VM is paused twice: {again:?}");
}

#[test]
fn a_deferral_is_refused_to_who_is_not_listed_too_late_or_in_the_past() {
    let mut world = World::new();
    world.poll_all();
    let mut deferrable = announce("j", &["web0"], 900);
    deferrable.defer = DeferLimits { max_s: 600, max_count: 2 };
    world.ok(Input::Announce(deferrable));
    world.ok(Input::Announce(announce("never", &["alone"], 900)));
    let (event, never) = (world.ids("web0")[0], world.ids("alone")[0]);
    let defer = |event, name: &str, s: i64| Input::Defer { event, vm: vm(name), until: UnixMs(START_MS + s * 1_000) };
    for refused in [defer(event, "web1", 1_000), defer(event, "web0", 0), defer(never, "alone", 901)] {
        assert!(matches!(world.go(refused.clone()), Err(Refusal::NotDeferrable { .. })), "{refused:?}");
    }
    world.approve("web1", vec![event]).unwrap();
    world.ok(defer(event, "web0", 1_000));
    assert!(world.go(Input::Start { job: job("j") }).is_err(), "another VM's approval does not lift it");
    world.tick(Duration::from_secs(999));
    assert!(world.go(Input::Start { job: job("j") }).is_err(), "NotBefore has passed, the deferral has not");
    assert!(opened(&world.tick(Duration::from_secs(1))));
    world.ok(Input::Start { job: job("j") });
    assert!(matches!(world.go(defer(event, "web0", 1_400)), Err(Refusal::NotDeferrable { .. })), "it has started");
}
