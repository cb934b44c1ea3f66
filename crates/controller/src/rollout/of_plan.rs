//! From an immutable plan and the inventory it was made for to what a rollout is to do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fermata_model::SetName;
use fermata_planner::fleet::Sequencing;
use fermata_planner::plan::StalePlan;
use fermata_planner::{Fleet, HostId, Plan};

use super::definition::{Definition, HostTask, Member, Rules, StageRule};
use crate::order::{Part, RolloutId, UpdateRef};

impl Definition {
    /// What a rollout by `plan` is to do. Limits, windows and stages are the plan's; `rules` adds the rest.
    ///
    /// # Errors
    /// [`StalePlan`] when the inventory has changed since the plan was made in a way that matters to it.
    pub fn of_plan(
        id: RolloutId,
        reason: String,
        updates: Vec<UpdateRef>,
        plan: &Plan,
        fleet: &Fleet,
        rules: &Rules,
    ) -> Result<Self, StalePlan> {
        plan.check_inputs(fleet)?;
        let policy = plan.policy();
        let seconds = |number: u32| Duration::from_secs(u64::from(number));
        let mut hosts = BTreeMap::new();
        let mut order = Vec::new();
        for planned in plan.hosts() {
            // The plan was made from this very inventory, so every host of it is there.
            let Some(host) = fleet.host_id(&planned.host) else { continue };
            order.push(planned.host.clone());
            hosts.insert(planned.host.clone(), task(plan, fleet, host, planned.stage as usize));
        }
        let stages = plan.stages().iter().map(|stage| StageRule {
            name: stage.name.clone(),
            soak: seconds(stage.soak_s),
            approval: stage.approval,
        });
        let windows_end_at =
            policy.windows_end_after_s.map(|after| super::step::after(plan.starts_at(), seconds(after)));
        Ok(Self {
            id,
            reason,
            plan: String::from(plan.id()),
            updates,
            order,
            hosts,
            stages: stages.collect(),
            rules: Rules { limits: policy.limits.clone(), windows_end_at, ..rules.clone() },
        })
    }
}

impl Definition {
    /// What a rollout by `plan` would know of a host as the fleet is now.
    #[must_use]
    pub fn task_of(plan: &Plan, fleet: &Fleet, id: HostId, stage: usize) -> HostTask {
        task(plan, fleet, id, stage)
    }
}

fn task(plan: &Plan, fleet: &Fleet, id: HostId, stage: usize) -> HostTask {
    let policy = plan.policy();
    let host = fleet.host(id);
    let mut parts: BTreeMap<SetName, (BTreeSet<String>, Member)> = BTreeMap::new();
    let mut alone = BTreeSet::new();
    let mut windows = vec![policy.windows.clone(), host.windows.to_vec()];
    for vm in fleet.vms_on(id) {
        let Some(member) = vm.member else {
            alone.insert(vm.name.clone());
            continue;
        };
        let set = fleet.set(member.set);
        let (found, entry) = parts.entry(set.spec.name.clone()).or_insert_with(|| {
            windows.push(set.spec.windows.clone());
            let recovery = Duration::from_secs(u64::from(policy.recovery_s.unwrap_or(set.spec.recovery_s)));
            (BTreeSet::new(), Member { part: Part(String::new()), vms: 0, of: set.vm_count, recovery })
        });
        entry.vms += 1;
        found.insert(match policy.sequencing.as_ref().unwrap_or(&set.spec.sequencing) {
            Sequencing::UpdateDomain => member.domain.to_string(),
            Sequencing::FaultDomain => host.fault_domain.map_or_else(|| only(host), |domain| domain.to_string()),
            Sequencing::Zone => host.zone.map_or_else(|| only(host), |zone| fleet.text(zone).to_owned()),
            Sequencing::HostLabel(key) => fleet.label(id, key).map_or_else(|| only(host), str::to_owned),
        });
    }
    let sets = parts.into_iter().map(|(set, (found, member))| {
        // More than one part only where an administrator allowed it by name: such a host shares its set with no other part.
        let part = Part(found.into_iter().collect::<Vec<_>>().join("+"));
        (set, Member { part, ..member })
    });
    let sets = sets.collect();
    windows.retain(|group| !group.is_empty());
    let rack = host.rack.map(|rack| fleet.text(rack).to_owned());
    let work = Duration::from_secs(u64::from(policy.work_s.unwrap_or(host.work_s)));
    HostTask { stage, rack, sets, alone, work, windows }
}

/// A host without the property that separates its set is a part of its own.
fn only(host: &fermata_planner::fleet::Host) -> String {
    format!("host {}", host.name)
}
