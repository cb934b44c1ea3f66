//! The inventory, as planning sees it: hosts, VMs and availability sets, compact enough for a million VMs.
//!
//! A [`Fleet`] is built once ([`FleetBuilder`], [`FleetSpec`], [`from_json`], [`from_csv`]) and never changes; a new
//! revision of the inventory is a new fleet. Invariants, all checked by the builder: names are unique, every VM's host
//! and set exist, every update domain is one its set has. That a host carries two update domains of one set is *not*
//! refused here, because reality may be so: [`Fleet::self_conflicts`] names them, and no plan touches such a host.

mod build;
mod import_csv;
mod import_json;
mod placement;
mod spec;

use std::collections::HashMap;

use fermata_model::{FaultDomain, HostName, SetName, UpdateDomain, VmName};

pub use build::{FleetBuilder, PieceError, next_update_domain};
pub use import_csv::from_csv;
pub use import_json::from_json;
pub use placement::{Alignment, PlacementRefusal, SelfConflict};
pub use spec::{FleetSpec, HostSpec, PlacedVm, Sequencing, SetSpec};

use crate::id::{HostId, SetId, TextId, VmId};
use crate::policy::Window;

/// Why a fleet file was refused: always with the place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, {field}: {reason}")]
pub struct ImportError {
    /// The line of the file, from 1.
    pub line: u64,
    /// The entry or column, like `vms[3]` or `update_domain`.
    pub field: String,
    /// What is wrong, and the way out.
    pub reason: String,
}

/// A host.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its name.
    pub name: HostName,
    /// Its rack.
    pub rack: Option<TextId>,
    /// Its zone.
    pub zone: Option<TextId>,
    /// Its fault domain.
    pub fault_domain: Option<FaultDomain>,
    /// Free labels, sorted by key.
    labels: Box<[(TextId, TextId)]>,
    /// How long one maintenance takes, in seconds.
    pub work_s: u32,
    /// Not to be maintained.
    pub cordoned: bool,
    /// When it may be in work; empty: at any time.
    pub windows: Box<[Window]>,
    /// How many more VMs it can take, if known.
    pub room: Option<u32>,
}

/// An availability set.
#[derive(Debug, Clone)]
pub struct AvailabilitySet {
    /// Its definition.
    pub spec: SetSpec,
    /// How many VMs serve in it.
    pub vm_count: u32,
}

/// A VM's place in a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    /// The set.
    pub set: SetId,
    /// The update domain.
    pub domain: UpdateDomain,
}

/// A VM.
#[derive(Debug, Clone)]
pub struct Vm {
    /// Its name.
    pub name: VmName,
    /// The host it runs on.
    pub host: HostId,
    /// Its place in a set.
    pub member: Option<Member>,
}

/// An immutable inventory.
#[derive(Debug, Clone)]
pub struct Fleet {
    revision: u64,
    hosts: Vec<Host>,
    sets: Vec<AvailabilitySet>,
    /// Sorted by host, then by name.
    vms: Vec<Vm>,
    /// `vms[first_vm[h]..first_vm[h + 1]]` run on host `h`.
    first_vm: Vec<u32>,
    host_by_name: HashMap<HostName, HostId>,
    set_by_name: HashMap<SetName, SetId>,
    texts: Texts,
}

impl Fleet {
    /// The revision of the inventory this was read at.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// All hosts, in the order they were added.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// All host ids.
    pub fn host_ids(&self) -> impl Iterator<Item = HostId> + use<> {
        (0..self.hosts.len() as u32).map(HostId)
    }

    /// A host.
    #[must_use]
    pub fn host(&self, id: HostId) -> &Host {
        &self.hosts[id.index()]
    }

    /// The host of this name.
    #[must_use]
    pub fn host_id(&self, name: &HostName) -> Option<HostId> {
        self.host_by_name.get(name).copied()
    }

    /// All sets, in the order they were added.
    #[must_use]
    pub fn sets(&self) -> &[AvailabilitySet] {
        &self.sets
    }

    /// A set.
    #[must_use]
    pub fn set(&self, id: SetId) -> &AvailabilitySet {
        &self.sets[id.index()]
    }

    /// The set of this name.
    #[must_use]
    pub fn set_id(&self, name: &SetName) -> Option<SetId> {
        self.set_by_name.get(name).copied()
    }

    /// All VMs, sorted by host.
    #[must_use]
    pub fn vms(&self) -> &[Vm] {
        &self.vms
    }

    /// A VM.
    #[must_use]
    pub fn vm(&self, id: VmId) -> &Vm {
        &self.vms[id.index()]
    }

    /// The VMs of a host, sorted by name.
    #[must_use]
    pub fn vms_on(&self, host: HostId) -> &[Vm] {
        let range = self.first_vm[host.index()] as usize..self.first_vm[host.index() + 1] as usize;
        &self.vms[range]
    }

    /// The text behind an interned rack, zone or label.
    #[must_use]
    pub fn text(&self, id: TextId) -> &str {
        self.texts.get(id)
    }

    /// The value of a host's label.
    #[must_use]
    pub fn label(&self, host: HostId, key: &str) -> Option<&str> {
        self.label_id(host, key).map(|id| self.texts.get(id))
    }

    /// A host's labels with their values, by key.
    pub fn labels(&self, host: HostId) -> impl Iterator<Item = (&str, &str)> {
        self.host(host).labels.iter().map(|(key, value)| (self.texts.get(*key), self.texts.get(*value)))
    }

    /// The interned value of a host's label.
    #[must_use]
    pub(crate) fn label_id(&self, host: HostId, key: &str) -> Option<TextId> {
        let key = self.texts.find(key)?;
        self.host(host).labels.iter().find(|(k, _)| *k == key).map(|(_, value)| *value)
    }

    /// The same fleet with one VM on another host.
    pub(crate) fn with_move(&self, vm: &VmName, to: HostId) -> Self {
        let mut moved = self.clone();
        if let Some(vm) = moved.vms.iter_mut().find(|v| v.name == *vm) {
            vm.host = to;
        }
        moved.vms.sort_by(|a, b| (a.host, &a.name).cmp(&(b.host, &b.name)));
        moved.first_vm = first_vms(&moved.vms, moved.hosts.len());
        moved
    }
}

/// Where each host's VMs begin in a list sorted by host.
fn first_vms(vms: &[Vm], hosts: usize) -> Vec<u32> {
    let mut first = vec![0u32; hosts + 1];
    for vm in vms {
        first[vm.host.index() + 1] += 1;
    }
    for i in 1..first.len() {
        first[i] += first[i - 1];
    }
    first
}

/// Interned texts.
#[derive(Debug, Clone, Default)]
struct Texts {
    all: Vec<Box<str>>,
    by_text: HashMap<Box<str>, TextId>,
}

impl Texts {
    fn intern(&mut self, text: &str) -> TextId {
        if let Some(id) = self.by_text.get(text) {
            return *id;
        }
        // Fewer texts than label entries, and those are counted by hosts, of which there are at most u32::MAX.
        let id = TextId(self.all.len() as u32);
        self.all.push(text.into());
        self.by_text.insert(text.into(), id);
        id
    }

    fn find(&self, text: &str) -> Option<TextId> {
        self.by_text.get(text).copied()
    }

    fn get(&self, id: TextId) -> &str {
        &self.all[id.index()]
    }
}
