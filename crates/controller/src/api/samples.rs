//! Complete values of everything that goes over the API, for its schemas. No `..`: a field that is added has to be added here.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::time::Duration;

use fermata_model::{FaultDomain, HostName, Mechanism, SetName, UpdateDomain, VmName};
use fermata_planner::fleet::Sequencing;
use fermata_planner::policy::{Limits, Stage, Window};
use fermata_planner::{FleetSpec, HostSpec, PlacedVm, Policy, SetSpec};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::schema::{self, Components};
use crate::health::{Check, HealthGate};
use crate::identity::{Identity, Role};
use crate::lock::SetLock;
use crate::order::{
    Approved, Generation, Order, Outcome, Report, RolloutId, Scope, Slot, Standing, Task, UpdateRef, Visit,
};
use crate::rollout::{
    Action, Author, Definition, Entry, Explanation, HostPhase, HostState, HostTask, Input, Member, Phase, Refused,
    Rules, StageGate, StageRule, State, View, VmTrouble, Wait,
};
use crate::wire::{
    Alarm, AlignmentView, Answer, CheckView, Command, Conflicts, Elsewhere, HostRecord, HostReport, JoinRequest,
    Joined, KeptUpdate, MaintenanceProgress, NewCertificate, NewJoin, NewRollout, NewToken, Planned, PlannedLine, Poll,
    PollReply, Question, Revoked, RolloutLine, RolloutView, Secret, StageTime, VisitProgress, VmProgress, VmReport,
};

/// The schema of a request or reply, by the name that the table of routes gives it; nothing for a name that is not known.
pub(super) fn schema(name: &str, all: &mut Components) -> Option<Value> {
    let text = || Some(json!({ "type": "string" }));
    Some(match name {
        "text" | "UpdateFile" | "Request" => return text(),
        "OpenApi" => json!({ "type": "object" }),
        "Nothing" => json!({ "type": "null" }),
        "JoinRequest" => schema::of(&JoinRequest { secret: word(), host: host(), request: word() }, all),
        "Joined" => schema::of(&Joined { certificate: word(), ca: word(), renew_at: now() }, all),
        "NewJoin" => schema::of(&NewJoin { seconds: Some(1), host: Some(host()) }, all),
        "Secret" => schema::of(&Secret { token: word() }, all),
        "NewToken" => schema::of(&NewToken { name: word(), role: Role::View }, all),
        "NewCertificate" => schema::of(&NewCertificate { name: word(), role: Role::View, request: word() }, all),
        "KeptUpdate" => schema::of(&KeptUpdate { update: update(), title: word(), notice_s: 1 }, all),
        "Identity" => one_of(&[Identity::Operator { name: word(), role: Role::View }, Identity::Agent(host())], all),
        "Revoked" => schema::of(&Revoked { revoked: 1 }, all),
        "Poll" => schema::of(&poll(), all),
        "PollReply" => schema::of(&poll_reply(), all),
        "Hosts" => schema::of(&BTreeMap::from([(host(), record())]), all),
        "HostRecord" => schema::of(&record(), all),
        "Sets" => schema::of(&BTreeMap::from([(set(), set_spec())]), all),
        "SetSpec" => schema::of(&set_spec(), all),
        "FleetSpec" => schema::of(&fleet(), all),
        "Alignment" => schema::of(&AlignmentView { alignment: 1.0, self_conflicts: vec![word()] }, all),
        "Conflicts" => schema::of(&Conflicts { self_conflicts: vec![word()] }, all),
        "NewRollout" => schema::of(&new_rollout(), all),
        "Planned" => schema::of(&planned(), all),
        "Rollouts" => schema::of(&[line()], all),
        "Rollout" => schema::of(&RolloutView { definition: &definition(), state: &state() }, all),
        "Explanations" => schema::of(&[explanation()], all),
        "Entries" => schema::of(&[entry()], all),
        "Measured" => schema::of(&BTreeMap::from([(host(), vec![visit_progress()])]), all),
        "Alarms" => schema::of(&BTreeMap::from([(word(), Alarm { since: now(), found: vec![word()] })]), all),
        "Check" => schema::of(&CheckView { clean: true, violations: vec![word()] }, all),
        "Command" => schema::of(&command(), all),
        "Phase" => one_of(&[Phase::Running, Phase::Ended(crate::rollout::End::Completed)], all),
        _ => return None,
    })
}

fn one_of<T: serde::Serialize>(values: &[T], all: &mut Components) -> Value {
    schema::of(values, all)["items"].take()
}

fn word() -> String {
    String::from("text")
}

fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

fn host() -> HostName {
    "h1".parse().expect("a host's name")
}

fn vm() -> VmName {
    "web-0".parse().expect("a VM's name")
}

fn set() -> SetName {
    "web".parse().expect("a set's name")
}

fn id() -> RolloutId {
    RolloutId(word())
}

fn domain() -> UpdateDomain {
    UpdateDomain::try_from(0).expect("the first domain")
}

fn fault_domain() -> FaultDomain {
    FaultDomain::try_from(0).expect("the first domain")
}

fn update() -> UpdateRef {
    UpdateRef { name: word(), digest: word(), mechanism: Mechanism::Swap }
}

fn gate() -> HealthGate {
    let check = Check::Http { port: 80, path: word(), status: Some(200) };
    HealthGate { check, vms: [vm()].into(), sets: [set()].into(), timeout_ms: 1 }
}

fn gates() -> Vec<HealthGate> {
    let checks = [Check::GuestAgent, Check::Tcp { port: 22 }, Check::Command { argv: vec![word()] }];
    checks.map(|check| HealthGate { check, ..gate() }).into_iter().chain([gate()]).collect()
}

fn order() -> Order {
    let scopes: BTreeSet<Scope> = [Scope::Set(set()), Scope::Vm(vm())].into();
    let visit = Visit {
        updates: vec![update()],
        not_before: now(),
        notice: Duration::ZERO,
        scopes: scopes.clone(),
        approved: scopes,
        approvers: [(vm(), set())].into(),
    };
    Order { host: host(), generation: Generation(1), rollout: id(), task: Task::Maintain(visit) }
}

fn trouble() -> VmTrouble {
    VmTrouble { vm: vm(), seen: word() }
}

fn report() -> Report {
    let last = Some((Generation(1), Outcome::Undone(word())));
    Report { host: host(), generation: Generation(1), standing: Standing::Announced { not_before: now() }, last }
}

fn host_report() -> HostReport {
    HostReport {
        rack: Some(word()),
        zone: Some(word()),
        fault_domain: Some(fault_domain()),
        labels: [(word(), word())].into(),
        kernel: word(),
        vmms: vec![word()],
        vault: word(),
        agent: word(),
        vms: vec![VmReport { name: vm(), set: Some(set()), update_domain: Some(domain()), vmm: Some(word()) }],
        troubles: vec![trouble()],
    }
}

fn record() -> HostRecord {
    HostRecord { report: host_report(), seen: Some(now()), skew_ms: 0, cordoned: false }
}

fn visit_progress() -> VisitProgress {
    let vm = VmProgress {
        vm: vm(),
        mechanism: Mechanism::Swap,
        forecast_us: 1,
        host_blackouts_us: vec![1],
        may_have_stood_us: Some(1),
        guest_blackout_us: Some(1),
        clock: Some(word()),
        end: word(),
    };
    let maintenance = MaintenanceProgress {
        id: word(),
        update: word(),
        stage: word(),
        outcome: Some(word()),
        trouble: Some(word()),
        stages: vec![StageTime { stage: word(), took_us: 1 }],
        vms: vec![vm],
    };
    VisitProgress { rollout: id(), generation: Generation(1), maintenances: vec![maintenance] }
}

fn poll() -> Poll {
    let answers = vec![
        Answer::Preflight { rollout: id(), asked: now(), refusal: Some(word()) },
        Answer::Health { rollout: id(), unhealthy: vec![trouble()] },
    ];
    Poll {
        clock: now(),
        report: report(),
        host: Some(host_report()),
        answers,
        approvals: [(host(), Approved { scopes: [Scope::Set(set())].into(), by: [(vm(), set())].into() })].into(),
        visit: Some(visit_progress()),
        known: Some(order()),
        wait_ms: 1,
    }
}

fn poll_reply() -> PollReply {
    let questions = vec![
        Question::Preflight { rollout: id(), asked: now(), updates: vec![update()], gates: gates() },
        Question::Health { rollout: id(), gates: gates() },
    ];
    let elsewhere = vec![Elsewhere {
        order: order(),
        scopes: [Scope::Set(set())].into(),
        vms: [(set(), [vm()].into())].into(),
        started: Some(now()),
    }];
    PollReply { order: Some(order()), questions, elsewhere }
}

/// A value whose fields cannot be made from outside its crate, from the JSON that people write.
fn read<T: for<'de> Deserialize<'de>>(value: Value) -> T {
    serde_json::from_value(value).expect("a sample is read by the type it is a sample of; a test reads all of them")
}

fn window() -> Window {
    read(json!({ "days": ["sat"], "from": "22:00:00", "to": "04:00:00", "time_zone": "UTC" }))
}

fn set_spec() -> SetSpec {
    SetSpec {
        name: set(),
        update_domains: 5,
        fault_domains: 2,
        recovery_s: 300,
        sequencing: Sequencing::UpdateDomain,
        windows: vec![window()],
    }
}

fn fleet() -> FleetSpec {
    let of_fleet = HostSpec {
        name: host(),
        rack: Some(word()),
        zone: Some(word()),
        fault_domain: Some(fault_domain()),
        labels: [(word(), word())].into(),
        work_s: 1,
        cordoned: false,
        windows: vec![window()],
        room: Some(1),
    };
    let placed = PlacedVm { name: vm(), host: host(), set: Some(set()), update_domain: Some(domain()) };
    FleetSpec { revision: 1, sets: vec![set_spec()], hosts: vec![of_fleet], vms: vec![placed] }
}

fn limits() -> Limits {
    let some = NonZeroU32::new(1);
    Limits { hosts: some, hosts_per_rack: some, set_share_percent: 20, one_by_one_below: 10 }
}

fn rules() -> Rules {
    Rules {
        limits: limits(),
        notice: Duration::ZERO,
        host_soak: Duration::ZERO,
        health_limit: Duration::ZERO,
        preflight_limit: Duration::ZERO,
        preflight_retry: Duration::ZERO,
        stop_after: Duration::ZERO,
        warn_after: Duration::ZERO,
        max_failed_hosts: 0,
        max_unhealthy_percent: 20,
        max_worse_than_rest_percent: 20,
        approve_each_host: false,
        gates: gates(),
        windows_end_at: Some(now()),
    }
}

fn new_rollout() -> NewRollout {
    let stage: Stage = read(json!({ "name": "canary", "size": { "hosts": 1 }, "soak_s": 60, "approval": true }));
    let policy = Policy {
        limits: limits(),
        stages: vec![stage],
        windows: vec![window()],
        windows_end_after_s: Some(1),
        sequencing: Some(Sequencing::UpdateDomain),
        recovery_s: Some(1),
        work_s: Some(1),
        order_label: Some(word()),
        allow_self_conflict: [host()].into(),
        only: Some([host()].into()),
    };
    NewRollout {
        id: Some(id()),
        parent: Some(word()),
        reason: word(),
        updates: vec![update()],
        policy,
        rules: rules(),
        dry_run: false,
    }
}

fn planned() -> Planned {
    Planned {
        rollout: Some(id()),
        plan: word(),
        hosts: vec![PlannedLine { host: host(), stage: word(), start: now(), end: now() }],
        excluded: [(host(), word())].into(),
        eta: now(),
        lower_bound_s: 1,
        lower_bound_by: word(),
        makespan_s: 1,
    }
}

fn line() -> RolloutLine {
    RolloutLine { id: id(), phase: word(), reason: word(), hosts: [(word(), 1)].into(), alarms: vec![word()] }
}

fn definition() -> Definition {
    let member = Member { part: "0".into(), vms: 1, of: 2, recovery: Duration::ZERO };
    let task = HostTask {
        stage: 0,
        rack: Some(word()),
        sets: [(set(), member)].into(),
        alone: [vm()].into(),
        work: Duration::ZERO,
        windows: vec![vec![window()]],
    };
    Definition {
        id: id(),
        reason: word(),
        plan: word(),
        updates: vec![update()],
        order: vec![host()],
        hosts: [(host(), task)].into(),
        stages: vec![StageRule { name: word(), soak: Duration::ZERO, approval: true }],
        rules: rules(),
    }
}

fn host_state(phase: HostPhase) -> HostState {
    HostState {
        phase,
        held: false,
        approved: false,
        skip: false,
        merged: vec![update()],
        refused: Some(Refused { reason: word(), again_at: now() }),
        unhealthy: vec![trouble()],
    }
}

fn phases() -> Vec<HostPhase> {
    let generation = Generation(1);
    vec![
        HostPhase::Waiting,
        HostPhase::Preflight { asked: now() },
        HostPhase::Ordered { generation, since: now() },
        HostPhase::Announced { generation, since: now(), not_before: now() },
        HostPhase::InWork { generation, since: now() },
        HostPhase::StandingDown { generation, of: generation, since: now() },
        HostPhase::Checking { generation, since: now(), outcome: Outcome::Updated },
        HostPhase::Soaking { until: now() },
        HostPhase::Done { at: now() },
        HostPhase::Failed { at: now(), reason: word() },
        HostPhase::Skipped { at: now() },
    ]
}

fn state() -> State {
    let named = (1..).zip(phases()).map(|(number, phase)| {
        let name = format!("h{number}").parse().expect("a host's name");
        (name, host_state(phase))
    });
    State {
        phase: Phase::Running,
        hosts: named.collect(),
        stage: 0,
        gate: StageGate::Soaking { until: now() },
        in_flight: [host()].into(),
        open: vec![1],
        failures: [(host(), word())].into(),
    }
}

fn explanation() -> Explanation {
    Explanation {
        host: host(),
        phase: HostPhase::Waiting,
        wait: Some(Wait::Cordoned),
        earliest: Some(now()),
        warning: Some(word()),
    }
}

fn entry() -> Entry {
    let slot = Slot { generation: Generation(1), open: Some(id()), order: Some(order()) };
    let lock = SetLock { open: None, recovering: None };
    Entry {
        number: 1,
        at: now(),
        author: Author::Operator(word()),
        reason: word(),
        input: Input::Report(report()),
        view: View { locks: [(set(), lock.clone())].into(), slot: slot.clone(), cordoned: false },
        actions: vec![
            Action::Lock { set: set(), lock },
            Action::Slot { host: host(), slot },
            Action::Alarm { host: Some(host()), text: word() },
        ],
    }
}

fn command() -> Command {
    Command { reason: word(), host: Some(host()), updates: vec![update()], hosts: [host()].into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ROUTES;

    #[test]
    fn every_request_and_reply_has_a_schema_with_its_fields() {
        let mut all = Components::new();
        for (_, _, _, request, reply) in ROUTES.iter().flat_map(|route| route.methods) {
            for name in request.iter().chain([reply]) {
                assert!(schema(name, &mut all).is_some(), "`{name}` is in the table of routes and has no sample");
            }
        }
        assert_eq!(all["Poll"]["properties"]["clock"]["type"], "string");
        assert_eq!(all["Poll"]["properties"]["wait_ms"]["minimum"], 0);
        let references = serde_json::to_string(&all).unwrap();
        for (_, name) in references.match_indices("#/components/schemas/").map(|(at, head)| {
            let rest = &references[at + head.len()..];
            (at, rest.split('"').next().unwrap())
        }) {
            assert!(all.contains_key(name), "{name} is referred to and not there");
        }
    }
}
