//! A fleet as it is written down: the shape of the JSON file and of the controller's records.

use std::collections::BTreeMap;

use fermata_model::{FaultDomain, HostName, SetName, UpdateDomain, VmName};
use serde::{Deserialize, Serialize};

use crate::policy::Window;

/// Which property separates the parts of a set that must not be in work together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sequencing {
    /// The VM's update domain.
    #[default]
    UpdateDomain,
    /// The host's fault domain.
    FaultDomain,
    /// The host's zone.
    Zone,
    /// The value of this label of the host.
    HostLabel(String),
}

/// A host, as far as planning needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostSpec {
    /// The host's name.
    pub name: HostName,
    /// The rack it stands in; limits per rack count by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    /// The zone it stands in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// The part of the fleet it fails with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault_domain: Option<FaultDomain>,
    /// Free labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How long one maintenance of the host takes, from its start to healthy VMs, in seconds.
    #[serde(default = "HostSpec::default_work_s")]
    pub work_s: u32,
    /// Not to be maintained until uncordoned.
    #[serde(default)]
    pub cordoned: bool,
    /// When the host may be in work; empty: at any time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Window>,
    /// How many more VMs the host can take; unknown when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub room: Option<u32>,
}

impl HostSpec {
    /// The work time of a host that nobody has measured yet, in seconds.
    pub const DEFAULT_WORK_S: u32 = 300;
    /// The longest work time accepted: a week, in seconds.
    pub const MAX_WORK_S: u32 = 7 * 86_400;

    const fn default_work_s() -> u32 {
        Self::DEFAULT_WORK_S
    }

    /// A host with nothing but a name.
    #[must_use]
    pub const fn new(name: HostName) -> Self {
        Self {
            name,
            rack: None,
            zone: None,
            fault_domain: None,
            labels: BTreeMap::new(),
            work_s: Self::DEFAULT_WORK_S,
            cordoned: false,
            windows: Vec::new(),
            room: None,
        }
    }
}

/// An availability set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetSpec {
    /// The set's name.
    pub name: SetName,
    /// Number of update domains, 1 to 20.
    #[serde(default = "SetSpec::default_update_domains")]
    pub update_domains: u8,
    /// Number of fault domains, 1 to 3.
    #[serde(default = "SetSpec::default_fault_domains")]
    pub fault_domains: u8,
    /// Rest between two update domains, counted from the last VM's health, in seconds.
    #[serde(default = "SetSpec::default_recovery_s")]
    pub recovery_s: u32,
    /// What separates the parts of the set.
    #[serde(default)]
    pub sequencing: Sequencing,
    /// When the set's VMs may be touched; empty: at any time.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Window>,
}

impl SetSpec {
    /// Update domains of a set that says nothing, as on Azure.
    pub const DEFAULT_UPDATE_DOMAINS: u8 = 5;
    /// Rest between update domains for pauses of seconds.
    pub const DEFAULT_RECOVERY_S: u32 = 300;
    /// The longest recovery time accepted: a week, in seconds.
    pub const MAX_RECOVERY_S: u32 = 7 * 86_400;

    const fn default_update_domains() -> u8 {
        Self::DEFAULT_UPDATE_DOMAINS
    }

    const fn default_fault_domains() -> u8 {
        1
    }

    const fn default_recovery_s() -> u32 {
        Self::DEFAULT_RECOVERY_S
    }

    /// A set with defaults for everything but the name.
    #[must_use]
    pub const fn new(name: SetName) -> Self {
        Self {
            name,
            update_domains: Self::DEFAULT_UPDATE_DOMAINS,
            fault_domains: 1,
            recovery_s: Self::DEFAULT_RECOVERY_S,
            sequencing: Sequencing::UpdateDomain,
            windows: Vec::new(),
        }
    }
}

/// A VM and where it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacedVm {
    /// The VM's name.
    pub name: VmName,
    /// The host it runs on.
    pub host: HostName,
    /// The availability set it serves in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<SetName>,
    /// Its update domain; the next one round-robin when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_domain: Option<UpdateDomain>,
}

/// A whole fleet.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FleetSpec {
    /// Counts changes of the inventory.
    #[serde(default)]
    pub revision: u64,
    /// Availability sets.
    #[serde(default)]
    pub sets: Vec<SetSpec>,
    /// Hosts.
    #[serde(default)]
    pub hosts: Vec<HostSpec>,
    /// VMs.
    #[serde(default)]
    pub vms: Vec<PlacedVm>,
}
