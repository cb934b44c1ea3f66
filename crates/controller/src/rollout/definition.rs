//! What a rollout is to do: fixed when it is planned.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fermata_model::{HostName, SetName, VmName};
use fermata_planner::policy::{Limits, Window};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::health::HealthGate;
use crate::order::{Part, RolloutId, Scope, UpdateRef};

/// Everything about a rollout that does not change while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// Its name.
    pub id: RolloutId,
    /// Why it is done; guests and operators read it.
    pub reason: String,
    /// The plan it follows: its digest.
    pub plan: String,
    /// The updates, in order; all in one visit per host.
    pub updates: Vec<UpdateRef>,
    /// Its hosts, in the order of the plan.
    pub order: Vec<HostName>,
    /// What is known of each host.
    pub hosts: BTreeMap<HostName, HostTask>,
    /// Its stages, in order; each host names one.
    pub stages: Vec<StageRule>,
    /// What holds while it runs.
    pub rules: Rules,
}

/// What a rollout knows of one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostTask {
    /// Position of its stage.
    pub stage: usize,
    /// Its rack, for limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    /// The sets it carries VMs of.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sets: BTreeMap<SetName, Member>,
    /// Its VMs that stand alone.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub alone: BTreeSet<VmName>,
    /// How long a visit takes, for windows.
    pub work: Duration,
    /// Groups of windows (rollout, host, each set); a visit must fit into one of each group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Vec<Window>>,
}

/// A host's part of a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The part.
    pub part: Part,
    /// How many of the set's VMs are on the host.
    pub vms: u32,
    /// How many VMs the set has.
    pub of: u32,
    /// Rest of the set between two parts.
    pub recovery: Duration,
}

impl HostTask {
    /// Who has to be told of a visit, and asked.
    #[must_use]
    pub fn scopes(&self) -> BTreeSet<Scope> {
        let sets = self.sets.keys().cloned().map(Scope::Set);
        sets.chain(self.alone.iter().cloned().map(Scope::Vm)).collect()
    }

    /// How many VMs the host has, as planned.
    #[must_use]
    pub fn vms(&self) -> u32 {
        let alone = u32::try_from(self.alone.len()).unwrap_or(u32::MAX);
        self.sets.values().map(|member| member.vms).sum::<u32>().saturating_add(alone)
    }
}

/// A stage's rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageRule {
    /// What operators call it: `canary`, `wave 1`.
    pub name: String,
    /// How long it is watched after its last host is done.
    pub soak: Duration,
    /// Whether an operator must say go before the next stage.
    pub approval: bool,
}

/// What holds while a rollout runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rules {
    /// Limits at every instant.
    pub limits: Limits,
    /// The notice guests get.
    pub notice: Duration,
    /// How long a host's VMs are watched after they are healthy, before the host is done.
    pub host_soak: Duration,
    /// How long VMs may take to be healthy after a visit before they count as unhealthy.
    pub health_limit: Duration,
    /// How long an agent may take to answer a preflight.
    pub preflight_limit: Duration,
    /// How long a host rests after a refused preflight before the next try.
    pub preflight_retry: Duration,
    /// How long a host may be silent or at work before it counts as failed.
    pub stop_after: Duration,
    /// When there is a warning about it.
    pub warn_after: Duration,
    /// Most hosts that may fail; one more stops the rollout.
    pub max_failed_hosts: u32,
    /// Most updated VMs that may be unhealthy, in percent of those updated; more stops the rollout.
    pub max_unhealthy_percent: u8,
    /// How many percentage points more of the updated VMs than of the others may be unhealthy when a stage ends.
    pub max_worse_than_rest_percent: u8,
    /// An operator must approve every single host.
    pub approve_each_host: bool,
    /// What VMs must pass after a visit, and before it; that they run is asked in any case.
    pub gates: Vec<HealthGate>,
    /// From then on windows do not count any more.
    pub windows_end_at: Option<Timestamp>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            notice: Duration::from_mins(15),
            host_soak: Duration::ZERO,
            health_limit: Duration::from_mins(5),
            preflight_limit: Duration::from_mins(1),
            preflight_retry: Duration::from_mins(1),
            stop_after: Duration::from_mins(30),
            warn_after: Duration::from_mins(10),
            max_failed_hosts: 0,
            max_unhealthy_percent: 20,
            max_worse_than_rest_percent: 20,
            approve_each_host: false,
            gates: Vec::new(),
            windows_end_at: None,
        }
    }
}

/// Why a definition cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionError {
    /// A host of the order is not described, or the other way round.
    #[error("host {0} is in the order or among the hosts, but not in both; plan again")]
    Hosts(HostName),
    /// A host names a stage that is not there.
    #[error("host {0} is in a stage that the rollout does not have; plan again")]
    Stage(HostName),
    /// Nothing to do.
    #[error("the rollout has no update; name at least one update file")]
    NoUpdate,
    /// A health gate that cannot tell anything.
    #[error(transparent)]
    Gate(#[from] crate::health::GateError),
    /// A host twice.
    #[error("host {0} is twice in the order; plan again")]
    Twice(HostName),
}

impl Definition {
    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`DefinitionError`] with the first thing found.
    pub fn check(&self) -> Result<(), DefinitionError> {
        if self.updates.is_empty() {
            return Err(DefinitionError::NoUpdate);
        }
        for gate in &self.rules.gates {
            gate.validate()?;
        }
        let mut seen = BTreeSet::new();
        for host in &self.order {
            if !seen.insert(host) {
                return Err(DefinitionError::Twice(host.clone()));
            }
            if !self.hosts.contains_key(host) {
                return Err(DefinitionError::Hosts(host.clone()));
            }
        }
        for (host, task) in &self.hosts {
            if !seen.contains(host) {
                return Err(DefinitionError::Hosts(host.clone()));
            }
            if task.stage >= self.stages.len() {
                return Err(DefinitionError::Stage(host.clone()));
            }
        }
        Ok(())
    }
}
