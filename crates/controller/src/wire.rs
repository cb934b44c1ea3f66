//! What goes over the API: requests and replies, as JSON.

use std::collections::{BTreeMap, BTreeSet};

use fermata_model::{FaultDomain, HostName, SetName, UpdateDomain, VmName};
use fermata_planner::Policy;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::order::{Order, Report, RolloutId, Scope, UpdateRef};
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
}

/// A host as it reports itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Its VMs.
    #[serde(default)]
    pub vms: Vec<VmReport>,
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
    },
    /// Are all VMs healthy?
    Health {
        /// For this rollout.
        rollout: RolloutId,
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
    pub approvals: BTreeMap<HostName, BTreeSet<Scope>>,
    /// The newest order known here, so that the answer can wait for a change.
    #[serde(default)]
    pub known: Option<Order>,
    /// How long the answer may wait, in milliseconds; at most 10,000.
    #[serde(default)]
    pub wait_ms: u64,
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

/// A secret that is shown once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Secret {
    /// The secret.
    pub token: String,
}
