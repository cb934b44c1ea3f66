//! VMs as the agent tells them, kept so that the service answers after a restart before the agent does.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use fermata_events::{Action, Change, Config, Input, Now, Refusal, State};
use fermata_model::{BridgeName, Mac, Membership, VmName};
use serde::{Deserialize, Serialize};

use super::writer::RecordChange;
use super::{ApplyError, OpenError, Service, Settings, Shared};
use crate::caller::{Caller, Documents};
use crate::instance::Instance;
use crate::limits::Limits;
use crate::slot::Slot;
use crate::store::Store;

/// Records of this service in the store; all others are the events core's.
const PREFIX: &str = "host/";

/// The wire a VM is on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// The tap device.
    pub tap: String,
    /// The bridge it is attached to.
    pub bridge: BridgeName,
    /// The MAC address of the VM's NIC.
    pub mac: Mac,
    /// The number of the port, from which its packet mark is made: 1 to 65,535, unique on the host.
    pub number: u16,
}

/// A VM of this host, as the agent tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmRecord {
    /// Its name.
    pub vm: VmName,
    /// The set and update domain it is in.
    #[serde(default)]
    pub membership: Option<Membership>,
    /// The shortest notice it must be given once it asked, in seconds.
    #[serde(default)]
    pub min_notice_s: u32,
    /// The highest incarnation it saw on another host.
    #[serde(default)]
    pub incarnation_floor: u32,
    /// What it can read about itself.
    #[serde(default)]
    pub instance: Instance,
    /// The wires it asks through.
    #[serde(default)]
    pub ports: Vec<Port>,
}

impl VmRecord {
    /// A VM of which only the name is known.
    #[must_use]
    pub fn new(vm: VmName) -> Self {
        let instance = Instance::default();
        Self { vm, membership: None, min_notice_s: 0, incarnation_floor: 0, instance, ports: Vec::new() }
    }

    fn input(&self) -> Input {
        Input::UpsertVm {
            vm: self.vm.clone(),
            set: self.membership.as_ref().map(|m| m.name.clone()),
            update_domain: self.membership.as_ref().and_then(|m| m.update_domain),
            min_notice_s: self.min_notice_s,
            incarnation_floor: self.incarnation_floor,
        }
    }

    fn change(&self) -> Change {
        let value = serde_json::to_string(self).expect("records have string keys and no fallible members");
        Change { key: format!("{PREFIX}{}", self.vm), value: Some(value) }
    }
}

pub(super) fn load(
    store: &mut dyn Store,
    settings: &Settings,
    epoch: u32,
    now: Now,
) -> Result<(BTreeMap<VmName, VmRecord>, State), OpenError> {
    let all = store.records()?;
    let (hosts, events): (Vec<_>, Vec<_>) = all.iter().partition(|(key, _)| key.starts_with(PREFIX));
    let config: Config = settings.events.clone();
    let state = State::load(config, epoch, events.into_iter().map(|(k, v)| (k.as_str(), v.as_str())), now)?;
    let mut records = BTreeMap::new();
    for (key, value) in hosts {
        let record: VmRecord =
            serde_json::from_str(value).map_err(|e| Refusal::Damaged { key: key.clone(), reason: e.to_string() })?;
        records.insert(record.vm.clone(), record);
    }
    Ok((records, state))
}

pub(super) fn slots(
    state: &State,
    records: &BTreeMap<VmName, VmRecord>,
    limits: Limits,
) -> BTreeMap<VmName, Arc<Slot>> {
    let slot = |record: &VmRecord| {
        let documents = Documents::render(state, &record.vm)?;
        let caller = Caller::new(record.vm.clone(), record.instance.clone());
        Some((record.vm.clone(), Arc::new(Slot::new(caller, documents, limits))))
    };
    records.values().filter_map(slot).collect()
}

pub(super) fn ports(records: &BTreeMap<VmName, VmRecord>) -> BTreeMap<u16, VmName> {
    records.values().flat_map(|record| record.ports.iter().map(|port| (port.number, record.vm.clone()))).collect()
}

impl Shared {
    /// Makes a record visible; called by the writer when it is durable.
    pub(super) fn show(&self, change: RecordChange, documents: Option<Documents>) {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let mut records = self.records.write().unwrap_or_else(PoisonError::into_inner);
        match change {
            RecordChange::Upsert(record) => {
                let caller = Caller::new(record.vm.clone(), record.instance.clone());
                match (slots.get(&record.vm), documents) {
                    (Some(slot), _) => slot.set_caller(caller),
                    (None, Some(documents)) => {
                        slots.insert(record.vm.clone(), Arc::new(Slot::new(caller, documents, self.settings.limits)));
                    }
                    (None, None) => {}
                }
                records.insert(record.vm.clone(), *record);
            }
            RecordChange::Remove(vm) => {
                slots.remove(&vm);
                records.remove(&vm);
            }
        }
        *self.ports.write().unwrap_or_else(PoisonError::into_inner) = ports(&records);
    }
}

impl Service {
    /// A VM exists, or changed.
    ///
    /// # Errors
    /// As [`Service::apply`].
    pub async fn upsert(&self, record: VmRecord) -> Result<Vec<Action>, ApplyError> {
        let (input, change) = (record.input(), RecordChange::Upsert(Box::new(record)));
        self.submit(input, Some(change))?.await.map_err(|_| ApplyError::Stopping)?
    }

    /// A VM is no longer on this host.
    ///
    /// # Errors
    /// As [`Service::apply`].
    pub async fn remove(&self, vm: VmName) -> Result<Vec<Action>, ApplyError> {
        let change = RecordChange::Remove(vm.clone());
        self.submit(Input::RemoveVm { vm }, Some(change))?.await.map_err(|_| ApplyError::Stopping)?
    }
}

impl RecordChange {
    pub(super) fn write(&self) -> Change {
        match self {
            Self::Upsert(record) => record.change(),
            Self::Remove(vm) => Change { key: format!("{PREFIX}{vm}"), value: None },
        }
    }

    pub(super) const fn vm(&self) -> &VmName {
        match self {
            Self::Upsert(record) => &record.vm,
            Self::Remove(vm) => vm,
        }
    }
}
