use std::time::Duration;

use fermata_model::Mechanism;
use proptest::prelude::*;

use super::*;
use crate::order::UpdateRef;

fn host() -> HostName {
    "h1".parse().unwrap()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn scope() -> Scope {
    Scope::Set("web".parse().unwrap())
}

fn visit(generation: u64, not_before: i64) -> Order {
    let update = UpdateRef { name: "qemu".into(), digest: "00".into(), mechanism: Mechanism::Swap };
    let visit = Visit {
        updates: vec![update],
        not_before: at(not_before),
        notice: Duration::from_secs(60),
        scopes: [scope()].into(),
        approved: BTreeSet::new(),
        approvers: std::collections::BTreeMap::new(),
    };
    Order { host: host(), generation: Generation(generation), rollout: "r".into(), task: Task::Maintain(visit) }
}

fn stand_down(generation: u64) -> Order {
    Order { task: Task::StandDown, ..visit(generation, 0) }
}

fn approved(mut order: Order) -> Order {
    if let Task::Maintain(visit) = &mut order.task {
        visit.approved.insert(scope());
    }
    order
}

#[test]
fn an_older_order_is_refused_with_the_generation_known() {
    let mut gate = OrderGate::new(host());
    gate.order(&visit(2, 100), at(0)).unwrap();
    let refusal = gate.order(&visit(1, 0), at(0)).unwrap_err();
    assert_eq!(refusal, GateRefusal::Old { known: Generation(2), found: Generation(1) });
    let other = Order { host: "h2".parse().unwrap(), ..visit(3, 0) };
    assert!(matches!(gate.order(&other, at(0)), Err(GateRefusal::OtherHost { .. })));
}

#[test]
fn the_notice_is_kept_by_the_hosts_own_clock() {
    let mut gate = OrderGate::new(host());
    // The controller's clock is an hour behind: its NotBefore has long passed here.
    gate.order(&visit(1, 60), at(3_600)).unwrap();
    assert_eq!(gate.tick(at(3_659)), None);
    assert!(matches!(gate.tick(at(3_660)), Some(Do::Begin(_))));
}

#[test]
fn approval_of_every_scope_starts_at_once_from_either_side() {
    let mut gate = OrderGate::new(host());
    gate.order(&visit(1, 100), at(0)).unwrap();
    gate.approve(&Scope::Vm("other".parse().unwrap()));
    assert_eq!(gate.tick(at(1)), None);
    let mut elsewhere = gate.clone();
    gate.approve(&scope());
    assert!(gate.tick(at(1)).is_some());
    elsewhere.order(&approved(visit(1, 100)), at(1)).unwrap();
    assert!(elsewhere.tick(at(1)).is_some());
}

#[test]
fn a_stand_down_before_the_start_cancels_and_after_it_waits_for_the_end() {
    let mut gate = OrderGate::new(host());
    gate.order(&visit(1, 100), at(0)).unwrap();
    let mut late = gate.clone();
    assert!(matches!(gate.order(&stand_down(2), at(1)).as_deref(), Ok([Do::Cancel(_)])));
    assert_eq!(gate.report().standing, Standing::StoodDown);
    assert!(gate.order(&visit(1, 100), at(200)).is_err(), "the order taken back comes again");

    late.tick(at(100)).unwrap();
    assert_eq!(late.order(&stand_down(2), at(101)).unwrap(), []);
    assert_eq!(late.report().standing, Standing::InWork);
    late.finished(Generation(1), Outcome::Updated);
    let report = late.report();
    assert_eq!((report.generation, report.standing), (Generation(2), Standing::StoodDown));
    assert_eq!(report.last, Some((Generation(1), Outcome::Updated)));
}

#[test]
fn a_finished_visit_is_not_done_again() {
    let mut gate = OrderGate::new(host());
    gate.order(&visit(1, 0), at(0)).unwrap();
    gate.tick(at(100)).unwrap();
    gate.finished(Generation(1), Outcome::Updated);
    assert_eq!(gate.order(&visit(1, 0), at(200)).unwrap(), []);
    assert_eq!(gate.tick(at(300)), None);
    assert_eq!(gate.report().standing, Standing::Finished(Outcome::Updated));
}

#[test]
fn a_newer_visit_waits_while_one_is_at_work() {
    let mut gate = OrderGate::new(host());
    gate.order(&visit(1, 0), at(0)).unwrap();
    gate.tick(at(100)).unwrap();
    assert!(matches!(gate.order(&visit(2, 0), at(101)), Err(GateRefusal::AtWork { .. })));
    gate.finished(Generation(9), Outcome::Updated);
    assert_eq!(gate.report().standing, Standing::InWork, "another generation's end is not this one's");
}

#[derive(Debug, Clone)]
enum Happening {
    Order(Order),
    Approve,
    Tick(i64),
    Finished(u64),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        (0..6u64, 0..300i64).prop_map(|(generation, at)| Happening::Order(visit(generation, at))),
        (0..6u64).prop_map(|generation| Happening::Order(stand_down(generation))),
        (0..6u64, 0..300i64).prop_map(|(generation, at)| Happening::Order(approved(visit(generation, at)))),
        Just(Happening::Approve),
        (0..120i64).prop_map(Happening::Tick),
        (0..6u64).prop_map(Happening::Finished),
    ]
}

proptest! {
    #[test]
    fn whatever_arrives_no_generation_is_begun_twice_or_after_a_higher_one_and_none_early(
        happenings in prop::collection::vec(happening(), 1..60)
    ) {
        let mut gate = OrderGate::new(host());
        let (mut now, mut begun, mut told) = (0, Generation(0), None);
        for happening in happenings {
            let before = gate.generation();
            let begin = match happening {
                Happening::Order(order) => {
                    let actions = gate.order(&order, at(now)).unwrap_or_default();
                    if let Some(Do::Announce { not_before, .. }) = actions.last() {
                        prop_assert!(*not_before >= at(now + 60));
                        told = Some(*not_before);
                    }
                    None
                }
                Happening::Approve => { gate.approve(&scope()); None }
                Happening::Tick(seconds) => { now += seconds; gate.tick(at(now)) }
                Happening::Finished(generation) => { gate.finished(Generation(generation), Outcome::Updated); None }
            };
            prop_assert!(gate.generation() >= before);
            if let Some(Do::Begin(order)) = begin {
                prop_assert!(order.generation > begun);
                prop_assert!(Some(at(now)) >= told || missing_approvals(&order).is_empty());
                begun = order.generation;
            }
        }
    }
}
