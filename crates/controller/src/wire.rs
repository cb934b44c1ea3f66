//! What goes over the API: requests and replies, as JSON.

use std::collections::{BTreeMap, BTreeSet};

use fermata_model::{FaultDomain, HostName, SetName, UpdateDomain, VmName};
use fermata_planner::Policy;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::health::HealthGate;
use crate::order::{Approved, Generation, Order, Report, RolloutId, Scope, UpdateRef};
use crate::rollout::{Rules, VmTrouble};

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Place, reason, way out.
    pub error: String,
}

/// `POST /v1/join`: a host lets itself be known.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The token's secret.
    pub secret: String,
    /// The host.
    pub host: HostName,
    /// A certificate signing request, PEM.
    pub request: String,
}

/// The answer to joining and renewing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Joined {
    /// The host's certificate, PEM.
    pub certificate: String,
    /// The CA's, PEM.
    pub ca: String,
    /// From then on the host should ask for a new one; by the controller's clock.
    pub renew_at: Timestamp,
}

/// A VM as its host reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmReport {
    /// Its name.
    pub name: VmName,
    /// Its set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<SetName>,
    /// Its update domain; the next one round-robin when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_domain: Option<UpdateDomain>,
    /// The version of the VMM that runs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm: Option<String>,
}

/// A host as it reports itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    /// The rack it stands in.
    #[serde(default)]
    pub rack: Option<String>,
    /// The zone it stands in.
    #[serde(default)]
    pub zone: Option<String>,
    /// What it fails with.
    #[serde(default)]
    pub fault_domain: Option<FaultDomain>,
    /// Free labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Running kernel.
    #[serde(default)]
    pub kernel: String,
    /// VMM versions.
    #[serde(default)]
    pub vmms: Vec<String>,
    /// Vault provider.
    #[serde(default)]
    pub vault: String,
    /// Version of its agent.
    #[serde(default)]
    pub agent: String,
    /// Its VMs.
    #[serde(default)]
    pub vms: Vec<VmReport>,
    /// VMs that are meant to run and do not.
    #[serde(default)]
    pub troubles: Vec<VmTrouble>,
}

/// What an agent is asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Could these updates be done right now?
    Preflight {
        /// For this rollout.
        rollout: RolloutId,
        /// Names the question.
        asked: Timestamp,
        /// The updates.
        updates: Vec<UpdateRef>,
        /// Gates that VMs must pass before the visit too: one that never passes could not tell anything afterwards.
        #[serde(default)]
        gates: Vec<HealthGate>,
    },
    /// Are all VMs healthy?
    Health {
        /// For this rollout.
        rollout: RolloutId,
        /// What is looked at.
        #[serde(default)]
        gates: Vec<HealthGate>,
    },
}

/// What an agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To a preflight.
    Preflight {
        /// For this rollout.
        rollout: RolloutId,
        /// The question.
        asked: Timestamp,
        /// Why not; nothing when it could.
        refusal: Option<String>,
    },
    /// To a question for health.
    Health {
        /// For this rollout.
        rollout: RolloutId,
        /// VMs that do not pass.
        unhealthy: Vec<VmTrouble>,
    },
}

/// A visit elsewhere of which this host's guests are told, because they serve in the same set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elsewhere {
    /// The visited host's order.
    pub order: Order,
    /// Sets that have guests here.
    pub scopes: BTreeSet<Scope>,
    /// Of each of these sets, the VMs on the visited host.
    #[serde(default)]
    pub vms: BTreeMap<SetName, BTreeSet<VmName>>,
    /// When the work began, once it has.
    #[serde(default)]
    pub started: Option<Timestamp>,
}

/// `POST /v1/agent/poll`: everything an agent has to say; the answer waits until there is something to say back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Poll {
    /// The host's clock.
    pub clock: Timestamp,
    /// Where it stands.
    pub report: Report,
    /// The host and its VMs, when they changed.
    #[serde(default)]
    pub host: Option<HostReport>,
    /// Answers to earlier questions.
    #[serde(default)]
    pub answers: Vec<Answer>,
    /// Approvals of visits elsewhere by guests here: the visited host, and who approved.
    #[serde(default)]
    pub approvals: BTreeMap<HostName, Approved>,
    /// The newest visit, when there is news of it.
    #[serde(default)]
    pub visit: Option<VisitProgress>,
    /// The newest order known here, so that the answer can wait for a change.
    #[serde(default)]
    pub known: Option<Order>,
    /// How long the answer may wait, in milliseconds; at most 10,000.
    #[serde(default)]
    pub wait_ms: u64,
}

/// One visit as the host measures it; sent while it goes on and kept with the rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VisitProgress {
    /// The rollout.
    pub rollout: RolloutId,
    /// The order's.
    pub generation: Generation,
    /// One maintenance per update, in order.
    pub maintenances: Vec<MaintenanceProgress>,
}

/// One update of a visit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaintenanceProgress {
    /// Its name on the host: `fermata maintenance show` tells more there.
    pub id: String,
    /// The update.
    pub update: String,
    /// Where it stands, or stood last.
    pub stage: String,
    /// How it ended: done, failed or aborted.
    #[serde(default)]
    pub outcome: Option<String>,
    /// What went wrong first.
    #[serde(default)]
    pub trouble: Option<String>,
    /// How long each stage took, in order.
    #[serde(default)]
    pub stages: Vec<StageTime>,
    /// Its VMs.
    #[serde(default)]
    pub vms: Vec<VmProgress>,
}

/// A stage of a maintenance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageTime {
    /// Which.
    pub stage: String,
    /// How long it took, in microseconds.
    pub took_us: u64,
}

/// What an update did to a VM: measured, but for the forecast.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmProgress {
    /// The VM.
    pub vm: VmName,
    /// How the update reached it.
    pub mechanism: fermata_model::Mechanism,
    /// The longest blackout that was expected, in microseconds.
    pub forecast_us: u64,
    /// Every pause as the host measured it, in microseconds.
    pub host_blackouts_us: Vec<u64>,
    /// Where nobody knows whether it was paused: the longest that it may have been, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub may_have_stood_us: Option<u64>,
    /// The longest blackout by the guest's own clock, in microseconds.
    #[serde(default)]
    pub guest_blackout_us: Option<u64>,
    /// What came of its clock, in words.
    #[serde(default)]
    pub clock: Option<String>,
    /// How it is now, in words.
    pub end: String,
}

/// `POST /v1/updates`: an update file that the controller keeps for its hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptUpdate {
    /// How orders name it.
    pub update: UpdateRef,
    /// One line for people.
    pub title: String,
    /// The notice that the file promises to guests, in seconds.
    pub notice_s: u64,
}

/// What the controller says back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PollReply {
    /// The newest order of this host.
    pub order: Option<Order>,
    /// Questions.
    pub questions: Vec<Question>,
    /// Visits of other hosts to announce here.
    pub elsewhere: Vec<Elsewhere>,
}

/// `POST /v1/rollouts`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewRollout {
    /// Its name; one is made up when absent.
    #[serde(default)]
    pub id: Option<RolloutId>,
    /// The digest of the plan that this one takes the place of; the rollout must not have been started.
    #[serde(default)]
    pub parent: Option<String>,
    /// Why it is done.
    pub reason: String,
    /// The updates.
    pub updates: Vec<UpdateRef>,
    /// Hosts, limits, stages, windows.
    #[serde(default)]
    pub policy: Policy,
    /// Notice, gates' limits, failure budget.
    #[serde(default)]
    pub rules: Rules,
    /// Only show the plan.
    #[serde(default)]
    pub dry_run: bool,
}

/// A plan, for people.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Planned {
    /// The rollout; nothing after a dry run.
    pub rollout: Option<RolloutId>,
    /// The plan's digest.
    pub plan: String,
    /// Hosts in order, with their forecast start and end.
    pub hosts: Vec<PlannedLine>,
    /// Hosts left out, with the reason.
    pub excluded: BTreeMap<HostName, String>,
    /// When the last host should be healthy: a forecast.
    pub eta: Timestamp,
    /// What no plan can beat, in seconds.
    pub lower_bound_s: u32,
    /// What the bound rests on.
    pub lower_bound_by: String,
    /// From the start to the last healthy host, in seconds: a forecast.
    pub makespan_s: u32,
}

/// A host in a plan.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlannedLine {
    /// The host.
    pub host: HostName,
    /// Its stage.
    pub stage: String,
    /// Forecast start.
    pub start: Timestamp,
    /// Forecast end.
    pub end: Timestamp,
}

/// What an operator orders about a rollout: `POST /v1/rollouts/{id}/{verb}`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// Why; goes to the audit log.
    #[serde(default)]
    pub reason: String,
    /// The host, for orders about one.
    #[serde(default)]
    pub host: Option<HostName>,
    /// Updates to merge.
    #[serde(default)]
    pub updates: Vec<UpdateRef>,
    /// Hosts to merge them into.
    #[serde(default)]
    pub hosts: BTreeSet<HostName>,
}

/// A host in the inventory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostRecord {
    /// As it reported itself.
    pub report: HostReport,
    /// When it was heard last, by the controller's clock.
    pub seen: Option<Timestamp>,
    /// How far its clock is ahead of the controller's, in milliseconds; the way there and back is in it.
    pub skew_ms: i64,
    /// Not to be maintained.
    #[serde(default)]
    pub cordoned: bool,
}

/// A rollout in a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RolloutLine {
    /// Its name.
    pub id: RolloutId,
    /// Its phase in one word.
    pub phase: String,
    /// Why it is done.
    pub reason: String,
    /// How many hosts stand where.
    pub hosts: BTreeMap<String, u32>,
    /// What the independent check found; empty when no promise was broken.
    #[serde(default)]
    pub alarms: Vec<String>,
}

/// What the independent check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// When it was first raised.
    pub since: Timestamp,
    /// Every broken promise.
    pub found: Vec<String>,
}

/// `POST /v1/tokens`: a token for an operator.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// For whom.
    pub name: String,
    /// What it may do.
    pub role: crate::identity::Role,
}

/// `POST /v1/certificates`: a certificate for an operator.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewCertificate {
    /// For whom.
    pub name: String,
    /// What it may do.
    pub role: crate::identity::Role,
    /// A certificate signing request, PEM.
    pub request: String,
}

/// `POST /v1/joins`: a token with which hosts can join.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewJoin {
    /// How long it is good for, in seconds; a day when absent.
    #[serde(default)]
    pub seconds: Option<u32>,
    /// Only this host.
    #[serde(default)]
    pub host: Option<HostName>,
}

/// Where a rollout stands: `GET /v1/rollouts/{id}`.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename = "Rollout")]
pub struct RolloutView<'a> {
    /// What it is to do.
    pub definition: &'a crate::rollout::Definition,
    /// Where it stands.
    pub state: &'a crate::rollout::State,
}

/// What the independent checker finds in a log.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename = "Check")]
pub struct CheckView {
    /// Whether it found nothing.
    pub clean: bool,
    /// Every broken promise.
    pub violations: Vec<String>,
}

/// How well a fleet is placed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename = "Alignment")]
pub struct AlignmentView {
    /// 1 when all hosts carry matching update domains.
    pub alignment: f64,
    /// Hosts that carry two parts of a set, each with the VM to move.
    pub self_conflicts: Vec<String>,
}

/// What is wrong with a fleet that was taken in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Conflicts {
    /// Hosts that carry two parts of a set, each with the VM to move.
    pub self_conflicts: Vec<String>,
}

/// How much was shut out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Revoked {
    /// Certificates and tokens that are void now.
    pub revoked: usize,
}

/// A secret that is shown once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Secret {
    /// The secret.
    pub token: String,
}
