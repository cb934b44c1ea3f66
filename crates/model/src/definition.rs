//! A VM as it will be for life: a specification with every open question answered.
//!
//! The guest sees machine type, CPU model, TSC frequency and MAC addresses, so they are decided once, when the VM is
//! created, and never again. [`resolve`] is that moment; it is pure, the host's answers come in as [`HostDefaults`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::budget::PauseBudget;
use crate::domain::Membership;
use crate::mac::Mac;
use crate::name::{BridgeName, VmName};
use crate::size::Size;
use crate::spec::{Disk, Firmware, GuestOs, VmSpec};
use crate::vmm::{MachineType, VmmVersion};

/// What a host answers where a specification says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDefaults {
    /// The uuid to use when the specification has none.
    pub uuid: Uuid,
    /// The newest CPU model that every VMM of the host supports fully.
    pub cpu: String,
    /// The newest machine type that the host's oldest VMM knows.
    pub machine: MachineType,
    /// The VMM that VMs start on.
    pub vmm: VmmVersion,
    /// The frequency that KVM gives a guest's TSC, in kHz; `None` where KVM does not tell.
    pub tsc_khz: Option<u32>,
}

/// A VM with nothing left open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmDefinition {
    /// The VM's name.
    pub name: VmName,
    /// SMBIOS UUID.
    pub uuid: Uuid,
    /// Number of virtual CPUs.
    pub vcpus: u16,
    /// Guest memory.
    pub memory: Size,
    /// QEMU CPU model, with features after commas.
    pub cpu: String,
    /// The guest's TSC frequency in kHz; fixed so that no kernel's new calibration reaches the guest.
    pub tsc_khz: Option<u32>,
    /// Versioned machine type.
    pub machine: MachineType,
    /// The VMM that the VM starts on.
    pub vmm: VmmVersion,
    /// What runs inside.
    pub os: GuestOs,
    /// How the guest boots.
    pub firmware: Firmware,
    /// Start with the host.
    pub autostart: bool,
    /// A channel for qemu-guest-agent.
    pub guest_agent: bool,
    /// A vmclock device.
    pub vmclock: bool,
    /// The longest blackout this VM allows.
    pub pause_budget_ms: PauseBudget,
    /// The shortest notice of maintenance it is given once it asked for events, in seconds.
    #[serde(default)]
    pub min_notice_s: u32,
    /// The availability set the VM serves in.
    pub availability_set: Option<Membership>,
    /// Disks, in the guest's order.
    pub disks: Vec<Disk>,
    /// NICs, in the guest's order.
    pub nics: Vec<NicDefinition>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
}

/// A NIC with its address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicDefinition {
    /// The bridge its tap is attached to.
    pub bridge: BridgeName,
    /// The MAC address.
    pub mac: Mac,
}

/// Answers every open question of `spec` with the host's defaults.
#[must_use]
pub fn resolve(spec: VmSpec, host: &HostDefaults) -> VmDefinition {
    let firmware = spec.firmware();
    let uuid = spec.uuid.unwrap_or(host.uuid);
    let nics = (0u8..)
        .zip(spec.nics)
        .map(|(index, nic)| NicDefinition {
            bridge: nic.bridge,
            mac: nic.mac.unwrap_or_else(|| Mac::derived(uuid.into_bytes(), index)),
        })
        .collect();
    VmDefinition {
        name: spec.name,
        uuid,
        vcpus: spec.vcpus,
        memory: spec.memory,
        cpu: spec.cpu.unwrap_or_else(|| host.cpu.clone()),
        tsc_khz: host.tsc_khz,
        machine: spec.machine.unwrap_or(host.machine),
        vmm: spec.vmm.unwrap_or(host.vmm),
        os: spec.os,
        firmware,
        autostart: spec.autostart,
        guest_agent: spec.guest_agent,
        vmclock: spec.vmclock,
        pause_budget_ms: spec.pause_budget_ms,
        min_notice_s: spec.min_notice_s,
        availability_set: spec.availability_set,
        disks: spec.disks,
        nics,
        labels: spec.labels,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_sees_is_decided_once() {
        let host = HostDefaults {
            uuid: Uuid::from_u128(7),
            cpu: "EPYC-v4".to_owned(),
            machine: "pc-q35-10.0".parse().unwrap(),
            vmm: "10.0".parse().unwrap(),
            tsc_khz: Some(2_700_000),
        };
        let spec =
            VmSpec::from_toml("name = \"a\"\nvcpus = 1\nmemory = \"256MiB\"\n[[nic]]\nbridge = \"br0\"\n").unwrap();
        let first = resolve(spec.clone(), &host);
        assert_eq!(first, resolve(spec, &host));
        assert_eq!((first.cpu.as_str(), first.tsc_khz), ("EPYC-v4", Some(2_700_000)));
        assert_eq!(first.nics[0].mac, Mac::derived(first.uuid.into_bytes(), 0));
    }
}
