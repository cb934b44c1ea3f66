//! Where VMs of a set may stand: self-conflicts, the check of a placement, the alignment score.

use std::collections::BTreeMap;
use std::fmt;

use fermata_model::{HostName, SetName, UpdateDomain, VmName};
use serde::{Deserialize, Serialize};

use super::{Fleet, Sequencing};
use crate::id::{HostId, SetId};

/// A host that carries two update domains of one set: it cannot lawfully be maintained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfConflict {
    /// The host.
    pub host: HostName,
    /// The set.
    pub set: SetName,
    /// The set's VMs on the host, by update domain.
    pub domains: BTreeMap<UpdateDomain, Vec<VmName>>,
    /// The VMs whose migration to other hosts solves it: the fewest possible.
    pub to_move: Vec<VmName>,
}

impl fmt::Display for SelfConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, set, domains, to_move } = self;
        write!(f, "host {host} carries update domains ")?;
        list(f, domains.keys())?;
        write!(f, " of availability set {set}, so it cannot be maintained; move ")?;
        list(f, to_move)?;
        write!(f, " to another host")
    }
}

fn list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, items: impl IntoIterator<Item = T>) -> fmt::Result {
    for (index, item) in items.into_iter().enumerate() {
        write!(f, "{}{item}", if index == 0 { "" } else { ", " })?;
    }
    Ok(())
}

/// Why a VM of a set must not be placed on a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlacementRefusal {
    /// The host already carries another update domain of the set.
    #[error(
        "host `{host}` already carries update domain {there} of availability set `{set}` (VM `{vm}`), so with update domain {wanted} it could not be maintained; place the VM on another host, or give it update domain {there}"
    )]
    SecondDomain {
        /// The host.
        host: HostName,
        /// The set.
        set: SetName,
        /// The domain asked for.
        wanted: UpdateDomain,
        /// The domain already on the host.
        there: UpdateDomain,
        /// A VM of that domain.
        vm: VmName,
    },
    /// The set has no such update domain.
    #[error("availability set `{set}` has {count} update domains; use 0 to {last}", last = count - 1)]
    NoSuchDomain {
        /// The set.
        set: SetName,
        /// How many it has.
        count: u8,
    },
}

/// How well placement and update domains agree: with full agreement a whole class of hosts can be in work at once.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Alignment {
    /// VMs in sets that stand where their update domain says.
    pub aligned: u64,
    /// All VMs in sets.
    pub members: u64,
    /// Classes of hosts that the fleet falls into: the most update domains any set has.
    pub classes: u8,
}

impl Alignment {
    /// 0 to 1; 1 for a fleet without sets.
    #[must_use]
    pub fn score(&self) -> f64 {
        if self.members == 0 { 1.0 } else { self.aligned as f64 / self.members as f64 }
    }
}

impl Fleet {
    /// Every host that carries two update domains of one set, by host, then set. Sets sequenced by a property of the
    /// host have none.
    #[must_use]
    pub fn self_conflicts(&self) -> Vec<SelfConflict> {
        self.host_ids().flat_map(|host| self.self_conflicts_of(host)).collect()
    }

    /// The self-conflicts of one host, by set.
    #[must_use]
    pub fn self_conflicts_of(&self, host: HostId) -> Vec<SelfConflict> {
        let mut members: Vec<_> = self.vms_on(host).iter().filter_map(|vm| vm.member.map(|m| (m, &vm.name))).collect();
        members.sort();
        members
            .chunk_by(|a, b| a.0.set == b.0.set)
            .filter(|chunk| chunk.iter().any(|(m, _)| m.domain != chunk[0].0.domain))
            .filter(|chunk| self.set(chunk[0].0.set).spec.sequencing == Sequencing::UpdateDomain)
            .map(|chunk| {
                let mut domains: BTreeMap<UpdateDomain, Vec<VmName>> = BTreeMap::new();
                for (member, name) in chunk {
                    domains.entry(member.domain).or_default().push((*name).clone());
                }
                let keep = domains.iter().max_by_key(|(d, vms)| (vms.len(), std::cmp::Reverse(**d))).map(|(d, _)| *d);
                let to_move = domains.iter().filter(|(d, _)| Some(**d) != keep).flat_map(|(_, v)| v.clone()).collect();
                let set = self.set(chunk[0].0.set).spec.name.clone();
                SelfConflict { host: self.host(host).name.clone(), set, domains, to_move }
            })
            .collect()
    }

    /// Whether a VM of `set` in update domain `wanted` may be placed on `host`.
    ///
    /// # Errors
    /// [`PlacementRefusal`] with the reason and the way out; an operator may override it by name.
    pub fn check_placement(&self, host: HostId, set: SetId, wanted: UpdateDomain) -> Result<(), PlacementRefusal> {
        let spec = &self.set(set).spec;
        if wanted.index() >= spec.update_domains {
            return Err(PlacementRefusal::NoSuchDomain { set: spec.name.clone(), count: spec.update_domains });
        }
        if spec.sequencing != Sequencing::UpdateDomain {
            return Ok(());
        }
        let other = self.vms_on(host).iter().find_map(|vm| {
            vm.member.filter(|m| m.set == set && m.domain != wanted).map(|m| (m.domain, vm.name.clone()))
        });
        match other {
            None => Ok(()),
            Some((there, vm)) => Err(PlacementRefusal::SecondDomain {
                host: self.host(host).name.clone(),
                set: spec.name.clone(),
                wanted,
                there,
                vm,
            }),
        }
    }

    /// How well placement and update domains agree.
    #[must_use]
    pub fn alignment(&self) -> Alignment {
        let classes = self.class_count();
        let (mut aligned, mut members) = (0, 0);
        for host in self.host_ids() {
            let class = self.host_class(host, classes);
            for member in self.vms_on(host).iter().filter_map(|vm| vm.member) {
                members += 1;
                aligned += u64::from(self.fits_class(member.set, member.domain, class));
            }
        }
        Alignment { aligned, members, classes }
    }

    /// The most update domains that any set with VMs has.
    pub(crate) fn class_count(&self) -> u8 {
        self.sets.iter().filter(|s| s.vm_count > 0).map(|s| s.spec.update_domains).max().unwrap_or(1)
    }

    /// The class most of the host's VMs speak for. A VM in update domain `u` of a set with `k` speaks for the classes
    /// `u`, `u + k`, `u + 2k`, ...
    pub(crate) fn host_class(&self, host: HostId, classes: u8) -> u8 {
        let mut votes = [0u32; UpdateDomain::MAX_COUNT as usize];
        for member in self.vms_on(host).iter().filter_map(|vm| vm.member) {
            let step = usize::from(self.set(member.set).spec.update_domains);
            let first = usize::from(member.domain.index());
            votes[..usize::from(classes)].iter_mut().skip(first).step_by(step).for_each(|v| *v += 1);
        }
        (0..classes).max_by_key(|c| (votes[usize::from(*c)], std::cmp::Reverse(*c))).unwrap_or(0)
    }

    /// Whether a VM of this set and domain agrees with a host of this class.
    pub(crate) fn fits_class(&self, set: SetId, domain: UpdateDomain, class: u8) -> bool {
        class % self.set(set).spec.update_domains == domain.index()
    }
}
