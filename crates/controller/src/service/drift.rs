//! The inventory goes on changing after a plan was made. A rollout knows of each host what the plan knew; where that is not so any
//! more, locks and announcements would miss somebody, so the host is not begun.

use std::collections::{BTreeMap, BTreeSet};

use fermata_model::{HostName, SetName, UpdateDomain, VmName};
use fermata_planner::Plan;
use fermata_planner::plan::Exclusion;
use fermata_store::{Compare, Op, Txn};

use super::{Controller, ServiceError};
use crate::order::RolloutId;
use crate::records::{DOMAINS, decode, domain_key, encode, plan_key};
use crate::rollout::Definition;

impl Controller {
    /// Whether the plan of a rollout still fits the inventory.
    ///
    /// # Errors
    /// [`ServiceError::Bad`] with the way out when it does not.
    pub async fn check_plan(&self, id: &RolloutId) -> Result<(), ServiceError> {
        let Some(row) = self.store.get(&plan_key(id)).await? else { return Ok(()) };
        let plan: Plan = decode(&row)?;
        // A cordon is an order of its own: the rollout waits for it, whenever it was given.
        let left_out = plan.excluded().iter().filter(|host| host.why == Exclusion::Cordoned);
        let cordoned: BTreeSet<&HostName> = left_out.map(|host| &host.host).collect();
        plan.check_inputs(&self.fleet_with(|host, _| cordoned.contains(host)).await?).map_err(|stale| {
            ServiceError::Bad(format!(
                "{stale}: `fermata rollout plan ... --name {id} --replace {}`",
                String::from(plan.id())
            ))
        })
    }

    /// Why a host is not what the rollout planned for any more.
    pub(super) async fn drift(&self, id: &RolloutId, host: &HostName) -> Result<Option<String>, ServiceError> {
        let (definition, _) = self.state(id).await?;
        let Some(row) = self.store.get(&plan_key(id)).await? else { return Ok(None) };
        let plan: Plan = decode(&row)?;
        let fleet = match self.fleet().await {
            Ok(fleet) => fleet,
            Err(ServiceError::Bad(reason)) => return Ok(Some(reason)),
            Err(error) => return Err(error),
        };
        let Some(now) = fleet.host_id(host) else {
            return Ok(Some("it is not in the inventory any more; skip it".to_owned()));
        };
        let (planned, now) = (definition.hosts.get(host), Definition::task_of(&plan, &fleet, now, 0));
        let Some(planned) = planned else { return Ok(None) };
        let parts = |task: &crate::rollout::HostTask| -> BTreeMap<_, _> {
            task.sets.iter().map(|(set, member)| (set.clone(), member.part.clone())).collect()
        };
        let (planned_parts, parts) = (parts(planned), parts(&now));
        let strange = parts.iter().find(|(set, part)| planned_parts.get(*set) != Some(*part));
        let alone = now.alone.difference(&planned.alone).next();
        Ok(match (strange, alone) {
            (Some((set, part)), _) => Some(format!(
                "since the plan was made it carries part {part} of availability set {set}; skip it and plan a rollout for it, or move the VM away"
            )),
            (None, Some(vm)) => {
                Some(format!("since the plan was made VM {vm} came to it; skip it and plan a rollout for it"))
            }
            (None, None) => None,
        })
    }

    /// The update domains that VMs without one of their own were given: each once, for life, the set's emptiest at that time.
    pub(super) async fn domains(
        &self,
        members: &BTreeMap<(SetName, VmName), Option<UpdateDomain>>,
        counts: &BTreeMap<SetName, u8>,
    ) -> Result<BTreeMap<(SetName, VmName), UpdateDomain>, ServiceError> {
        let mut given = BTreeMap::new();
        for row in self.store.range(DOMAINS).await?.keys {
            let mut parts = row.key.strip_prefix(DOMAINS).unwrap_or_default().splitn(2, '/');
            let names = (parts.next().and_then(|set| set.parse().ok()), parts.next().and_then(|vm| vm.parse().ok()));
            if let (Some(set), Some(vm)) = names {
                given.insert((set, vm), decode::<UpdateDomain>(&row)?);
            }
        }
        let mut used: BTreeMap<(SetName, UpdateDomain), u32> = BTreeMap::new();
        for ((set, vm), own) in members {
            if let Some(domain) = own.or_else(|| given.get(&(set.clone(), vm.clone())).copied()) {
                *used.entry((set.clone(), domain)).or_insert(0) += 1;
            }
        }
        for (set, vm) in members.iter().filter(|(_, own)| own.is_none()).map(|(member, _)| member) {
            let key = (set.clone(), vm.clone());
            if given.contains_key(&key) {
                continue;
            }
            let count = u32::from(counts.get(set).copied().unwrap_or(fermata_planner::SetSpec::DEFAULT_UPDATE_DOMAINS));
            let domains = (0..count).filter_map(|domain| UpdateDomain::try_from(domain).ok());
            let emptiest = domains.min_by_key(|domain| used.get(&(set.clone(), *domain)).copied().unwrap_or(0));
            let Some(domain) = emptiest else { continue };
            let place = domain_key(set, vm);
            let txn = Txn {
                compares: vec![Compare::absent(&place)],
                success: vec![Op::put(&place, encode(&domain))],
                failure: vec![],
            };
            if self.store.txn(txn).await?.succeeded {
                *used.entry((set.clone(), domain)).or_insert(0) += 1;
                given.insert(key, domain);
            } else if let Some(row) = self.store.get(&place).await? {
                // Another controller was faster; its word counts.
                given.insert(key, decode(&row)?);
            }
        }
        Ok(given)
    }
}
