//! What an operator reads: a plan, the explanation of a moment, move advice. Golden texts.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use fermata_planner::advice::{MoveSearch, moves, what_if_recovery};
use fermata_planner::check::check_plan;
use fermata_planner::fleet::from_csv;
use fermata_planner::plan::critical_path;
use fermata_planner::policy::{Stage, StageSize};
use fermata_planner::rollout::{Gate, Hold, HostFact, SetFact};
use fermata_planner::{Effort, Facts, Fleet, Plan, PlanRequest, Policy, decide, make};
use jiff::Timestamp;

/// Nine hosts in three classes, three sets with three update domains; db-2 stands where it should not, and h9 carries
/// two update domains.
const FLEET: &str = "\
host,rack,work_s,cordoned,vm,set,update_domain,set_update_domains,set_recovery_s
h1,r1,300,,web-0,web,0,3,900
h1,r1,300,,db-0,db,0,3,900
h2,r1,300,,web-1,web,1,,
h2,r1,300,,db-1,db,1,,
h3,r1,300,,web-2,web,2,,
h4,r2,240,,api-0,api,0,3,900
h4,r2,240,,db-2,db,2,,
h5,r2,240,,api-1,api,1,,
h6,r2,240,,api-2,api,2,,
h7,r3,180,yes,,,,,
h8,r3,180,,lone,,,,
h9,r3,200,,web-3,web,0,,
h9,r3,200,,web-4,web,1,,
";

fn fleet() -> Fleet {
    from_csv(FLEET, 12).unwrap()
}

fn request(policy: Policy) -> PlanRequest {
    let starts_at: Timestamp = "2026-11-23T08:00:00Z".parse().unwrap();
    PlanRequest { parent: None, policy, starts_at, effort: Effort { steps: 20, seed: 1 } }
}

fn staged() -> Policy {
    let canary = Stage { name: "canary".to_owned(), size: StageSize::Hosts(1), soak_s: 600, approval: true };
    Policy { stages: vec![canary], ..Policy::default() }
}

fn planned(fleet: &Fleet, policy: Policy) -> Plan {
    let plan = make(fleet, &request(policy), &mut || false).unwrap();
    let report = check_plan(&plan, fleet);
    assert!(report.is_clean(), "{report}");
    plan
}

#[test]
fn a_plan() {
    insta::assert_snapshot!(planned(&fleet(), staged()));
}

#[test]
fn a_plan_and_its_critical_path() {
    let fleet = fleet();
    let plan = planned(&fleet, Policy::default());
    let chain: Vec<String> = critical_path(&plan, &fleet).iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(format!("{plan}\nWhy so long:\n  {}\n", chain.join("\n  ")));
}

#[test]
fn an_explanation_of_every_host() {
    let fleet = fleet();
    let plan = planned(&fleet, Policy::default());
    let now = plan.at(400);
    let mut facts = Facts::default();
    let mut put = |host: &str, fact| facts.hosts.insert(host.parse().unwrap(), fact);
    put("h1", HostFact::Whole { started: plan.at(0), healthy: plan.at(310) });
    put("h5", HostFact::Broken { started: plan.at(0), reason: "VM api-1 does not answer".to_owned() });
    put("h8", HostFact::Held(Hold::Paused { by: "ann".to_owned(), reason: "backup runs".to_owned() }));
    let holder = SetFact { domain: None, vms: 1, holder: "rollout vmm-11.1".to_owned(), until: Some(plan.at(2000)) };
    facts.sets.insert("db".parse().unwrap(), vec![holder]);
    insta::assert_snapshot!(decide(&plan, &fleet, &facts, now));
}

#[test]
fn an_explanation_of_a_paused_rollout_and_of_a_stage_that_needs_a_go() {
    let fleet = fleet();
    let plan = planned(&fleet, staged());
    let mut facts = Facts::default();
    let canary = plan.hosts()[0].host.clone();
    facts.hosts.insert(canary, HostFact::Whole { started: plan.at(0), healthy: plan.at(200) });
    let waiting = decide(&plan, &fleet, &facts, plan.at(900)).to_string();
    facts.approved_stages.insert(0);
    let soaking = decide(&plan, &fleet, &facts, plan.at(300)).to_string();
    facts.gate = Gate::Paused { by: "ann".to_owned(), reason: "release freeze".to_owned() };
    let paused = decide(&plan, &fleet, &facts, plan.at(900)).to_string();
    insta::assert_snapshot!(format!("{waiting}\n{soaking}\n{paused}"));
}

#[test]
fn move_advice_and_what_if() {
    let fleet = fleet();
    let advice = moves(&fleet, &request(Policy::default()), MoveSearch::default()).unwrap();
    assert!(advice.gain_s() > 0, "{advice}");
    let what_if = what_if_recovery(&fleet, &request(Policy::default()), &[0, 300, 900, 1800], &mut || false).unwrap();
    let rows: Vec<String> = what_if.iter().map(|w| format!("{} s: {} s", w.recovery_s, w.makespan_s)).collect();
    insta::assert_snapshot!(format!("{advice}\n{}\n", rows.join("\n")));
}
