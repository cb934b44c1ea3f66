//! Every plan keeps every rule, for any fleet; and what `decide` lets start keeps them too.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use fermata_model::HostName;
use fermata_planner::check::{Visit, check_log, check_plan};
use fermata_planner::fleet::Sequencing;
use fermata_planner::generate::{Placement, Shape, fleet};
use fermata_planner::policy::{Stage, StageSize};
use fermata_planner::rollout::{HostFact, WaitReason};
use fermata_planner::{Effort, Facts, Fleet, Plan, PlanRequest, Policy, Verdict, decide, make};
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

fn start() -> Timestamp {
    "2026-11-23T08:00:00Z".parse().unwrap()
}

fn shapes() -> impl Strategy<Value = Shape> {
    let placement =
        prop_oneof![Just(Placement::Random), (0u16..2000).prop_map(|misplaced| Placement::Aligned { misplaced })];
    (1u32..60, 0u32..400, 1u32..30, placement, 0u32..2000, any::<u64>()).prop_map(
        |(hosts, vms, sets, placement, recovery_s, seed)| Shape { hosts, vms, sets, placement, recovery_s, seed },
    )
}

fn policies() -> impl Strategy<Value = Policy> {
    let limit = || proptest::option::of((1u32..6).prop_map(|n| NonZeroU32::new(n).unwrap()));
    let sequencing = prop_oneof![
        4 => Just(None),
        1 => Just(Some(Sequencing::FaultDomain)),
        1 => Just(Some(Sequencing::Zone)),
        1 => Just(Some(Sequencing::HostLabel("maintenance-class".to_owned()))),
        1 => Just(Some(Sequencing::HostLabel("absent".to_owned()))),
    ];
    let windows = proptest::option::of(Just(()));
    (limit(), limit(), 10u8..=100, 0u32..12, sequencing, 0usize..3, windows).prop_map(
        |(hosts, rack, share, below, sequencing, stages, windows)| {
            let mut policy = Policy { sequencing, ..Policy::default() };
            policy.limits.hosts = hosts;
            policy.limits.hosts_per_rack = rack;
            policy.limits.set_share_percent = share;
            policy.limits.one_by_one_below = below;
            policy.stages = [(StageSize::Hosts(2), 600), (StageSize::Percent(30), 60)]
                .into_iter()
                .take(stages)
                .zip(["canary", "wave"])
                .map(|((size, soak_s), name)| Stage { name: name.to_owned(), size, soak_s, approval: false })
                .collect();
            if windows.is_some() {
                let nightly =
                    r#"[{"from":"22:00:00","to":"04:00:00","time_zone":"Europe/Berlin"},{"days":["sat"],"from":"04:00:00","to":"09:00:00","time_zone":"UTC"}]"#;
                policy.windows = serde_json::from_str(nightly).unwrap();
            }
            policy
        },
    )
}

fn plan_for(fleet: &Fleet, policy: Policy, seed: u64) -> Plan {
    let request = PlanRequest { parent: None, policy, starts_at: start(), effort: Effort { steps: 4, seed } };
    make(fleet, &request, &mut || false).unwrap()
}

/// Runs a plan with work times of `percent` of the planned ones, letting start what `decide` lets start, and returns
/// the log. Panics when it does not end.
fn drive(plan: &Plan, fleet: &Fleet, percent: u32) -> Vec<Visit> {
    let mut facts = Facts::default();
    let mut now = start();
    let mut running: BTreeMap<(Timestamp, HostName), Timestamp> = BTreeMap::new();
    let mut log = Vec::new();
    for _ in 0..20 * plan.hosts().len() + 20 {
        let decision = decide(plan, fleet, &facts, now);
        for host in decision.starts() {
            let work = i64::from(fleet.host(fleet.host_id(host).unwrap()).work_s) * i64::from(percent) / 100;
            running.insert((now + SignedDuration::from_secs(work.max(1)), host.clone()), now);
            facts.hosts.insert(host.clone(), HostFact::InWork { started: now });
        }
        let next_start = decision.hosts.iter().filter_map(|h| match &h.verdict {
            Verdict::Wait { earliest, .. } => *earliest,
            _ => None,
        });
        let next_end = running.keys().map(|(end, _)| *end);
        let Some(next) = next_start.chain(next_end).filter(|t| *t > now).min() else { break };
        now = next;
        while let Some(entry) = running.first_entry().filter(|e| e.key().0 <= now) {
            let ((healthy, host), started) = entry.remove_entry();
            facts.hosts.insert(host.clone(), HostFact::Whole { started, healthy });
            log.push(Visit { host, started, healthy: Some(healthy) });
        }
    }
    assert_eq!(log.len(), plan.hosts().len(), "the rollout got stuck at {now}");
    log
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn every_plan_keeps_every_rule(shape in shapes(), policy in policies()) {
        let fleet = fleet(&shape).unwrap();
        let plan = plan_for(&fleet, policy, shape.seed);
        let report = check_plan(&plan, &fleet);
        prop_assert!(report.is_clean(), "{report}");
        prop_assert!(plan.makespan_s() >= plan.bounds().best_s(), "{:?} {}", plan.bounds(), plan.makespan_s());
    }

    #[test]
    fn equal_seeds_give_equal_plans_and_a_stored_plan_reads_back(shape in shapes(), policy in policies()) {
        let fleet = fleet(&shape).unwrap();
        let plan = plan_for(&fleet, policy.clone(), 7);
        prop_assert_eq!(&plan, &plan_for(&fleet, policy, 7));
        let stored = serde_json::to_string(&plan).unwrap();
        prop_assert_eq!(serde_json::from_str::<Plan>(&stored).unwrap(), plan);
    }

    #[test]
    fn what_may_start_keeps_every_rule_whether_hosts_are_quick_or_slow(
        shape in shapes(), policy in policies(), percent in 30u32..100,
    ) {
        let fleet = fleet(&shape).unwrap();
        let plan = plan_for(&fleet, policy, 1);
        let log = drive(&plan, &fleet, percent);
        let report = check_log(&log, &fleet, plan.policy(), start());
        prop_assert!(report.is_clean(), "{report}");
    }

    #[test]
    fn a_rollout_on_time_is_the_plan(shape in shapes(), policy in policies()) {
        let fleet = fleet(&shape).unwrap();
        let plan = plan_for(&fleet, policy, 1);
        let by_host = plan.by_host();
        for visit in drive(&plan, &fleet, 100) {
            prop_assert!(visit.started <= plan.at(by_host[&visit.host].start_s), "{} is late", visit.host);
        }
    }

    #[test]
    fn a_host_that_waits_for_a_rule_would_break_it(shape in shapes(), at in 0u32..20_000) {
        let fleet = fleet(&shape).unwrap();
        let plan = plan_for(&fleet, Policy::default(), 1);
        let now = plan.at(at);
        let mut facts = Facts::default();
        let mut log = Vec::new();
        for host in plan.hosts().iter().filter(|h| h.start_s < at) {
            let started = plan.at(host.start_s);
            let over = host.end_s <= at;
            let healthy = plan.at(host.end_s);
            log.push(Visit { host: host.host.clone(), started, healthy: over.then_some(healthy) });
            let fact = if over { HostFact::Whole { started, healthy } } else { HostFact::InWork { started } };
            facts.hosts.insert(host.host.clone(), fact);
        }
        let decision = decide(&plan, &fleet, &facts, now);
        let started: Vec<Visit> =
            decision.starts().map(|h| Visit { host: h.clone(), started: now, healthy: None }).collect();
        let together: Vec<Visit> = log.iter().chain(&started).cloned().collect();
        let report = check_log(&together, &fleet, plan.policy(), start());
        prop_assert!(report.is_clean(), "{report}");
        for host in &decision.hosts {
            let Verdict::Wait { reason, earliest } = &host.verdict else { continue };
            prop_assert!(earliest.is_some_and(|e| e > now));
            let (WaitReason::Set { holder, .. } | WaitReason::Share { holder, .. }) = reason else { continue };
            // Whoever comes first in the plan is not in the log; everybody else is, and is in the way.
            if matches!(holder, fermata_planner::rollout::Holder::Planned(_)) {
                continue;
            }
            let visit = Visit { host: host.host.clone(), started: now, healthy: None };
            let forced: Vec<Visit> = together.iter().cloned().chain([visit]).collect();
            prop_assert!(!check_log(&forced, &fleet, plan.policy(), start()).is_clean(), "{}: {reason}", host.host);
        }
    }
}

#[test]
fn the_checker_finds_what_a_plan_that_breaks_a_rule_breaks() {
    let shape = Shape { hosts: 60, vms: 400, sets: 30, placement: Placement::Random, recovery_s: 600, seed: 3 };
    let fleet = fleet(&shape).unwrap();
    let plan = plan_for(&fleet, Policy::default(), 1);
    let good: Vec<Visit> = plan
        .hosts()
        .iter()
        .map(|h| Visit { host: h.host.clone(), started: plan.at(h.start_s), healthy: Some(plan.at(h.end_s)) })
        .collect();
    assert!(check_log(&good, &fleet, plan.policy(), start()).is_clean());
    // Starting a host that waits for a set one second earlier breaks a rule, for every such host.
    let mut broken = 0;
    for (index, visit) in good.iter().enumerate().filter(|(_, v)| v.started > start()) {
        let mut bad = good.clone();
        bad[index].started = visit.started - SignedDuration::from_secs(1);
        let report = check_log(&bad, &fleet, plan.policy(), start());
        assert!(!report.is_clean(), "{} could have started earlier than planned", visit.host);
        broken += 1;
    }
    assert!(broken > 20, "{broken}");
    // A host that is lost keeps its sets closed for good.
    let mut lost = good;
    lost[0].healthy = None;
    assert!(!check_log(&lost, &fleet, plan.policy(), start()).is_clean());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn more_recovery_never_gives_a_shorter_rollout(shape in shapes(), policy in policies()) {
        let fleet = fleet(&shape).unwrap();
        let request = PlanRequest { parent: None, policy, starts_at: start(), effort: Effort { steps: 2, seed: 1 } };
        let answers =
            fermata_planner::advice::what_if_recovery(&fleet, &request, &[900, 0, 60, 3600], &mut || false).unwrap();
        prop_assert_eq!(answers.iter().map(|a| a.recovery_s).collect::<Vec<_>>(), vec![0, 60, 900, 3600]);
        prop_assert!(answers.windows(2).all(|pair| pair[0].makespan_s <= pair[1].makespan_s), "{:?}", answers);
    }

    #[test]
    fn move_advice_is_true_and_keeps_every_set_apart(shape in shapes()) {
        let fleet = fleet(&shape).unwrap();
        let request =
            PlanRequest { parent: None, policy: Policy::default(), starts_at: start(), effort: Effort { steps: 2, seed: 1 } };
        let search = fermata_planner::advice::MoveSearch { moves: 3, plans: 20 };
        let advice = fermata_planner::advice::moves(&fleet, &request, search).unwrap();
        let mut seen = advice.before_s;
        for (index, m) in advice.moves.iter().enumerate() {
            prop_assert!(m.from != m.to);
            if index + 1 == advice.moves.len() {
                prop_assert!(m.makespan_s < seen);
                seen = m.makespan_s;
            }
        }
        prop_assert_eq!(seen, advice.after_s);
    }
}
