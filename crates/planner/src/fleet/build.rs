//! Building a fleet piece by piece: every rule of the inventory is checked here, whatever the pieces came from.

use std::collections::HashMap;

use fermata_model::{HostName, SetName, UpdateDomain, VmName};

use super::spec::{FleetSpec, HostSpec, PlacedVm, SetSpec};
use super::{AvailabilitySet, Fleet, Host, Member, Texts, Vm};
use crate::id::{HostId, SetId};
use crate::policy::WindowError;

/// Why a piece does not fit the fleet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PieceError {
    /// The same host twice.
    #[error("host `{0}` is listed twice; remove one of the two")]
    DuplicateHost(HostName),
    /// The same set twice.
    #[error("availability set `{0}` is listed twice; remove one of the two")]
    DuplicateSet(SetName),
    /// The same VM twice.
    #[error("VM `{vm}` is listed on host `{host}` and on host `{first}`; a VM runs on one host: remove one of the two")]
    DuplicateVm {
        /// The VM.
        vm: VmName,
        /// The host it was listed on first.
        first: HostName,
        /// The host it was listed on again.
        host: HostName,
    },
    /// A VM on a host that is not in the fleet.
    #[error("VM `{vm}` runs on host `{host}`, which is not in the fleet; add the host or correct its name")]
    UnknownHost {
        /// The VM.
        vm: VmName,
        /// The missing host.
        host: HostName,
    },
    /// A VM in a set that is not in the fleet.
    #[error("VM `{vm}` serves in availability set `{set}`, which is not in the fleet; add the set or correct its name")]
    UnknownSet {
        /// The VM.
        vm: VmName,
        /// The missing set.
        set: SetName,
    },
    /// An update domain for a VM without a set.
    #[error("VM `{vm}` has update domain {domain} but no availability set; name the set or drop the update domain")]
    DomainWithoutSet {
        /// The VM.
        vm: VmName,
        /// The update domain given.
        domain: UpdateDomain,
    },
    /// An update domain the set does not have.
    #[error(
        "VM `{vm}` has update domain {domain}, but availability set `{set}` has {count} (0 to {last}); use one of these, or leave it out for the next one round-robin",
        last = count - 1
    )]
    NoSuchDomain {
        /// The VM.
        vm: VmName,
        /// The set.
        set: SetName,
        /// The update domain given.
        domain: UpdateDomain,
        /// How many the set has.
        count: u8,
    },
    /// A number of domains that no set can have.
    #[error("availability set `{set}` has {given} {kind} domains; use 1 to {max} (fixed when the set is made)")]
    DomainCount {
        /// The set.
        set: SetName,
        /// `update` or `fault`.
        kind: &'static str,
        /// What was given.
        given: u8,
        /// The most there can be.
        max: u8,
    },
    /// A time out of range.
    #[error("{what} of `{name}` is {given} s; use {min} to {max}")]
    Seconds {
        /// Which time.
        what: &'static str,
        /// Whose.
        name: String,
        /// What was given.
        given: u32,
        /// Smallest accepted value.
        min: u32,
        /// Largest accepted value.
        max: u32,
    },
    /// A window that cannot be.
    #[error("window of `{name}`: {source}")]
    Window {
        /// Whose.
        name: String,
        /// What is wrong with it.
        source: WindowError,
    },
    /// More pieces than a 32-bit number counts.
    #[error("the fleet has more {0} than 4294967295; split it")]
    TooMany(&'static str),
}

/// A set, and the update domain a VM was told, if any.
type Wanted = (SetId, Option<UpdateDomain>);

/// Collects sets, hosts and VMs, in this order, into a [`Fleet`].
#[derive(Debug, Default)]
pub struct FleetBuilder {
    revision: u64,
    hosts: Vec<Host>,
    sets: Vec<AvailabilitySet>,
    vms: Vec<(VmName, HostId, Option<Wanted>)>,
    vm_by_name: HashMap<VmName, HostId>,
    host_by_name: HashMap<HostName, HostId>,
    set_by_name: HashMap<SetName, SetId>,
    texts: Texts,
}

impl FleetBuilder {
    /// An empty fleet at `revision` of the inventory.
    #[must_use]
    pub fn new(revision: u64) -> Self {
        Self { revision, ..Self::default() }
    }

    /// Adds a set.
    ///
    /// # Errors
    /// [`PieceError`] with the name, the reason and the way out.
    pub fn add_set(&mut self, set: SetSpec) -> Result<(), PieceError> {
        let domains = |kind, given, max| {
            if (1..=max).contains(&given) {
                return Ok(());
            }
            Err(PieceError::DomainCount { set: set.name.clone(), kind, given, max })
        };
        domains("update", set.update_domains, UpdateDomain::MAX_COUNT)?;
        domains("fault", set.fault_domains, fermata_model::FaultDomain::MAX_COUNT)?;
        in_range("recovery time", set.name.as_str(), set.recovery_s, 0, SetSpec::MAX_RECOVERY_S)?;
        check_windows(set.name.as_str(), &set.windows)?;
        if self.set_by_name.contains_key(&set.name) {
            return Err(PieceError::DuplicateSet(set.name));
        }
        let id = SetId(u32::try_from(self.sets.len()).map_err(|_| PieceError::TooMany("sets"))?);
        self.set_by_name.insert(set.name.clone(), id);
        self.sets.push(AvailabilitySet { spec: set, vm_count: 0 });
        Ok(())
    }

    /// Adds a host.
    ///
    /// # Errors
    /// [`PieceError`] with the name, the reason and the way out.
    pub fn add_host(&mut self, host: HostSpec) -> Result<(), PieceError> {
        in_range("work time", host.name.as_str(), host.work_s, 1, HostSpec::MAX_WORK_S)?;
        check_windows(host.name.as_str(), &host.windows)?;
        if self.host_by_name.contains_key(&host.name) {
            return Err(PieceError::DuplicateHost(host.name));
        }
        let id = HostId(u32::try_from(self.hosts.len()).map_err(|_| PieceError::TooMany("hosts"))?);
        self.host_by_name.insert(host.name.clone(), id);
        let texts = &mut self.texts;
        self.hosts.push(Host {
            rack: host.rack.as_deref().map(|text| texts.intern(text)),
            zone: host.zone.as_deref().map(|text| texts.intern(text)),
            labels: host.labels.iter().map(|(key, value)| (texts.intern(key), texts.intern(value))).collect(),
            name: host.name,
            fault_domain: host.fault_domain,
            work_s: host.work_s,
            cordoned: host.cordoned,
            windows: host.windows.into_boxed_slice(),
            room: host.room,
        });
        Ok(())
    }

    /// Whether a set of this name has been added.
    #[must_use]
    pub fn has_set(&self, name: &SetName) -> bool {
        self.set_by_name.contains_key(name)
    }

    /// Adds a VM on a host, and in a set, that have been added before.
    ///
    /// # Errors
    /// [`PieceError`] with the name, the reason and the way out.
    pub fn add_vm(&mut self, vm: PlacedVm) -> Result<(), PieceError> {
        let PlacedVm { name, host: host_name, set, update_domain } = vm;
        let Some(&host) = self.host_by_name.get(&host_name) else {
            return Err(PieceError::UnknownHost { vm: name, host: host_name });
        };
        let member = match (set, update_domain) {
            (None, None) => None,
            (None, Some(domain)) => return Err(PieceError::DomainWithoutSet { vm: name, domain }),
            (Some(set), domain) => {
                let Some(&id) = self.set_by_name.get(&set) else {
                    return Err(PieceError::UnknownSet { vm: name, set });
                };
                let count = self.sets[id.index()].spec.update_domains;
                if let Some(domain) = domain.filter(|d| d.index() >= count) {
                    return Err(PieceError::NoSuchDomain { vm: name, set, domain, count });
                }
                Some((id, domain))
            }
        };
        if let Some(first) = self.vm_by_name.insert(name.clone(), host) {
            let first = self.hosts[first.index()].name.clone();
            return Err(PieceError::DuplicateVm { vm: name, first, host: host_name });
        }
        if self.vms.len() >= u32::MAX as usize {
            return Err(PieceError::TooMany("VMs"));
        }
        self.vms.push((name, host, member));
        Ok(())
    }

    /// The fleet. VMs of a set that were not told an update domain get the next one round-robin: the set's emptiest,
    /// the lowest first; but where a host already carries the set, its domain, so that no self-conflict is made here.
    #[must_use]
    pub fn build(self) -> Fleet {
        let Self { revision, hosts, mut sets, vms, host_by_name, set_by_name, texts, .. } = self;
        let mut in_domain = vec![[0u32; UpdateDomain::MAX_COUNT as usize]; sets.len()];
        let mut on_host: HashMap<(HostId, SetId), UpdateDomain> = HashMap::new();
        let any_open = vms.iter().any(|(_, _, member)| matches!(member, Some((_, None))));
        for &(_, host, member) in &vms {
            if let Some((set, Some(domain))) = member {
                in_domain[set.index()][usize::from(domain.index())] += 1;
                if any_open {
                    on_host.insert((host, set), domain);
                }
            }
        }
        let mut vms: Vec<Vm> = vms
            .into_iter()
            .map(|(name, host, member)| {
                let member = member.map(|(set, domain)| {
                    let spec = &sets[set.index()].spec;
                    let domain = domain.unwrap_or_else(|| {
                        let counts = &mut in_domain[set.index()];
                        let next = *on_host
                            .entry((host, set))
                            .or_insert_with(|| next_update_domain(&counts[..usize::from(spec.update_domains)]));
                        counts[usize::from(next.index())] += 1;
                        next
                    });
                    sets[set.index()].vm_count += 1;
                    Member { set, domain }
                });
                Vm { name, host, member }
            })
            .collect();
        vms.sort_by(|a, b| (a.host, &a.name).cmp(&(b.host, &b.name)));
        let first_vm = super::first_vms(&vms, hosts.len());
        Fleet { revision, hosts, sets, vms, first_vm, host_by_name, set_by_name, texts }
    }
}

/// The update domain a new VM of a set gets: the emptiest, the lowest first. `vms_in_domain` has one entry per update
/// domain of the set. Without removals this is plain round-robin.
///
/// # Panics
/// When `vms_in_domain` is empty or longer than 20: no set has so many update domains.
#[must_use]
pub fn next_update_domain(vms_in_domain: &[u32]) -> UpdateDomain {
    let (index, _) = vms_in_domain
        .iter()
        .enumerate()
        .min_by_key(|&(index, count)| (*count, index))
        .expect("a set has at least one update domain");
    let index = u32::try_from(index).expect("a set has at most 20 update domains");
    UpdateDomain::try_from(index).expect("a set has at most 20 update domains")
}

impl TryFrom<FleetSpec> for Fleet {
    type Error = PieceError;

    fn try_from(spec: FleetSpec) -> Result<Self, PieceError> {
        let mut builder = FleetBuilder::new(spec.revision);
        spec.sets.into_iter().try_for_each(|set| builder.add_set(set))?;
        spec.hosts.into_iter().try_for_each(|host| builder.add_host(host))?;
        spec.vms.into_iter().try_for_each(|vm| builder.add_vm(vm))?;
        Ok(builder.build())
    }
}

fn in_range(what: &'static str, name: &str, given: u32, min: u32, max: u32) -> Result<(), PieceError> {
    if (min..=max).contains(&given) {
        return Ok(());
    }
    Err(PieceError::Seconds { what, name: name.to_owned(), given, min, max })
}

fn check_windows(name: &str, windows: &[crate::policy::Window]) -> Result<(), PieceError> {
    windows
        .iter()
        .try_for_each(crate::policy::Window::check)
        .map_err(|source| PieceError::Window { name: name.to_owned(), source })
}
