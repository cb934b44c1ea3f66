//! Dividing hosts over the stages of a rollout.

use std::collections::HashMap;

use crate::fleet::Fleet;
use crate::id::HostId;
use crate::plan::{PlanError, PlannedStage};
use crate::policy::{Policy, StageSize};
use crate::schedule::problem::Problem;

/// Sets the stage of every job. Canaries chosen by number are those that touch the fewest VMs of sets, so that a bad
/// update meets as little as possible; named hosts are taken first, whatever stage names them.
pub(super) fn assign(fleet: &Fleet, policy: &Policy, problem: &mut Problem) -> Result<Vec<PlannedStage>, PlanError> {
    let total = problem.jobs.len();
    let mut stage_of: Vec<Option<u32>> = vec![None; total];
    let job_of: HashMap<HostId, usize> = problem.jobs.iter().enumerate().map(|(job, j)| (j.host, job)).collect();
    for (number, stage) in (0u32..).zip(&policy.stages) {
        let StageSize::Named(names) = &stage.size else { continue };
        for name in names {
            let id = fleet.host_id(name).ok_or_else(|| PlanError::UnknownHost(name.clone()))?;
            // A named host that is excluded is reported among the excluded ones.
            if let Some(&job) = job_of.get(&id) {
                stage_of[job] = stage_of[job].or(Some(number));
            }
        }
    }
    let weight = |job: usize| problem.touches_of(job).iter().map(|t| t.vms).sum::<u32>();
    let mut free: Vec<usize> = (0..total).filter(|&job| stage_of[job].is_none()).collect();
    free.sort_by_key(|&job| (std::cmp::Reverse(weight(job)), std::cmp::Reverse(job)));
    for (number, stage) in (0u32..).zip(&policy.stages) {
        let wanted = match stage.size {
            StageSize::Named(_) => 0,
            StageSize::Hosts(count) => count as usize,
            StageSize::Percent(percent) => (total * usize::from(percent)).div_ceil(100),
        };
        for job in free.split_off(free.len().saturating_sub(wanted)) {
            stage_of[job] = Some(number);
        }
    }
    let last = policy.stages.len() as u32;
    let mut stages: Vec<PlannedStage> = policy
        .stages
        .iter()
        .map(|s| PlannedStage { name: s.name.clone(), hosts: 0, soak_s: s.soak_s, approval: s.approval })
        .collect();
    let rest = if stages.is_empty() { "all" } else { "rest" };
    stages.push(PlannedStage { name: rest.to_owned(), hosts: 0, soak_s: 0, approval: false });
    for (job, stage) in stage_of.into_iter().enumerate() {
        let stage = stage.unwrap_or(last);
        problem.jobs[job].stage = stage;
        stages[stage as usize].hosts += 1;
    }
    Ok(stages)
}
