//! Making a plan: problem, orders, the best schedule found, and what it is measured against.

use fermata_model::HostName;
use jiff::Timestamp;

use super::{Content, ExcludedHost, Plan, PlanId, PlannedHost, inputs_digest, stage};
use crate::fleet::Fleet;
use crate::policy::{Policy, WindowError};
use crate::schedule::problem::Problem;
use crate::schedule::search;

/// How long to look for a better plan: in steps, not in seconds, so that equal input gives equal output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Effort {
    /// Rounds of improvement after the first schedules. One takes about 0.3 s for 100,000 hosts.
    pub steps: u32,
    /// Decides which ones.
    pub seed: u64,
}

impl Effort {
    /// As many steps as take a few seconds for fleets of any size.
    #[must_use]
    pub fn for_hosts(hosts: usize) -> Self {
        let steps = 2_400_000 / u32::try_from(hosts.max(1)).unwrap_or(u32::MAX);
        Self { steps: steps.clamp(24, 120), seed: 1 }
    }
}

/// What to plan.
#[derive(Debug, Clone)]
pub struct PlanRequest {
    /// The plan to be replaced.
    pub parent: Option<PlanId>,
    /// What is asked for.
    pub policy: Policy,
    /// When the first host may start.
    pub starts_at: Timestamp,
    /// How long to look.
    pub effort: Effort,
}

/// Why there is no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A host is named that the fleet does not have.
    #[error("host `{0}` is not in the fleet; correct its name or import the inventory again")]
    UnknownHost(HostName),
    /// A share that leaves nothing to do, or is more than everything.
    #[error("{what} is {given} %; use 1 to 100")]
    Percent {
        /// What was given.
        what: &'static str,
        /// The number.
        given: u8,
    },
    /// A window that cannot be.
    #[error("window of the rollout: {0}")]
    Window(#[from] WindowError),
    /// A work time of nothing.
    #[error("work time of the update is 0 s; give at least 1 s")]
    NoWork,
}

/// Makes a plan. `should_stop` is asked between steps and ends the search early, with the best plan so far; only then
/// may equal input give different plans.
///
/// # Errors
/// [`PlanError`] with the place, the reason and the way out. Hosts that cannot be maintained are no error: they are in
/// [`Plan::excluded`].
pub fn make(fleet: &Fleet, request: &PlanRequest, should_stop: &mut dyn FnMut() -> bool) -> Result<Plan, PlanError> {
    let policy = &request.policy;
    check(fleet, policy)?;
    let hosts =
        fleet.host_ids().filter(|h| policy.only.as_ref().is_none_or(|only| only.contains(&fleet.host(*h).name)));
    let mut problem = Problem::new(fleet, policy, hosts, request.starts_at);
    let stages = stage::assign(fleet, policy, &mut problem)?;
    let soaks: Vec<u32> = stages.iter().map(|s| s.soak_s).collect();
    let found = search::best(fleet, &problem, policy, &soaks, request.effort, should_stop);

    let mut hosts: Vec<PlannedHost> = problem
        .jobs
        .iter()
        .zip(&found.spans)
        .map(|(job, span)| PlannedHost {
            host: fleet.host(job.host).name.clone(),
            start_s: span.start,
            end_s: span.end,
            stage: job.stage,
        })
        .collect();
    hosts.sort_by(|a, b| (a.start_s, &a.host).cmp(&(b.start_s, &b.host)));
    let excluded = problem
        .excluded
        .iter()
        .map(|(host, why)| ExcludedHost { host: fleet.host(*host).name.clone(), why: why.clone() })
        .collect();
    Ok(Plan::seal(Content {
        parent: request.parent,
        inventory_revision: fleet.revision(),
        inputs: inputs_digest(fleet),
        policy: policy.clone(),
        starts_at: request.starts_at,
        stages,
        hosts,
        excluded,
        bounds: found.bounds,
        strategy: found.strategy,
        steps: found.steps,
        seed: request.effort.seed,
    }))
}

fn check(fleet: &Fleet, policy: &Policy) -> Result<(), PlanError> {
    let named = policy.only.iter().flatten().chain(&policy.allow_self_conflict);
    if let Some(unknown) = named.into_iter().find(|name| fleet.host_id(name).is_none()) {
        return Err(PlanError::UnknownHost(unknown.clone()));
    }
    let percent =
        |what, given| if (1..=100).contains(&given) { Ok(()) } else { Err(PlanError::Percent { what, given }) };
    percent("the share of a set's VMs in work at once", policy.limits.set_share_percent)?;
    for stage in &policy.stages {
        if let crate::policy::StageSize::Percent(given) = stage.size {
            percent("the share of a stage", given)?;
        }
    }
    if policy.work_s == Some(0) {
        return Err(PlanError::NoWork);
    }
    policy.windows.iter().try_for_each(crate::policy::Window::check)?;
    Ok(())
}
