//! What the agent tells about a VM.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use fermata_model::spec::GuestOs;
use fermata_model::{FaultDomain, Mac, UpdateDomain, VmDefinition};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What a VM can read about itself. Everything but the id has a default, so an agent tells what it knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Instance {
    /// `vmId`: the SMBIOS UUID.
    pub vm_id: Uuid,
    /// `location`: where the host is.
    pub location: String,
    /// `azEnvironment`; clients mostly test that it is not empty.
    pub environment: String,
    /// `provider`.
    pub provider: String,
    /// `subscriptionId`.
    pub subscription_id: String,
    /// `resourceGroupName`.
    pub resource_group: String,
    /// `vmSize`.
    pub vm_size: String,
    /// `osType`.
    pub os: GuestOs,
    /// `publisher` of the image.
    pub publisher: String,
    /// `offer` of the image.
    pub offer: String,
    /// `sku` of the image.
    pub sku: String,
    /// `version` of the image.
    pub version: String,
    /// `zone`.
    pub zone: String,
    /// `physicalZone`.
    pub physical_zone: String,
    /// `platformUpdateDomain`.
    pub update_domain: Option<UpdateDomain>,
    /// `platformFaultDomain`.
    pub fault_domain: Option<FaultDomain>,
    /// `placementGroupId`.
    pub placement_group: String,
    /// `tags` and `tagsList`.
    pub tags: BTreeMap<String, String>,
    /// `osProfile.adminUsername`.
    pub admin_user: String,
    /// `osProfile.computerName`; the VM's name when empty.
    pub computer_name: String,
    /// `osProfile.disablePasswordAuthentication`.
    pub disable_password: bool,
    /// `publicKeys`.
    pub public_keys: Vec<PublicKey>,
    /// `userData`, in base64.
    pub user_data: String,
    /// `securityProfile.secureBootEnabled`.
    pub secure_boot: bool,
    /// `securityProfile.virtualTpmEnabled`.
    pub virtual_tpm: bool,
    /// `storageProfile.osDisk.diskSizeGB`.
    pub os_disk_gb: u64,
    /// `storageProfile.dataDisks`.
    pub data_disks: Vec<DataDisk>,
    /// `network.interface`, in the guest's order; the first is the primary one.
    pub interfaces: Vec<Interface>,
}

impl Default for Instance {
    fn default() -> Self {
        Self {
            vm_id: Uuid::nil(),
            location: "local".to_owned(),
            environment: "AzurePublicCloud".to_owned(),
            provider: "Microsoft.Compute".to_owned(),
            subscription_id: Uuid::nil().to_string(),
            resource_group: "fermata".to_owned(),
            vm_size: "Fermata".to_owned(),
            os: GuestOs::Linux,
            publisher: String::new(),
            offer: String::new(),
            sku: String::new(),
            version: String::new(),
            zone: String::new(),
            physical_zone: String::new(),
            update_domain: None,
            fault_domain: None,
            placement_group: String::new(),
            tags: BTreeMap::new(),
            admin_user: String::new(),
            computer_name: String::new(),
            disable_password: true,
            public_keys: Vec::new(),
            user_data: String::new(),
            secure_boot: false,
            virtual_tpm: false,
            os_disk_gb: 0,
            data_disks: Vec::new(),
            interfaces: Vec::new(),
        }
    }
}

impl Instance {
    /// What a definition tells; addresses are not in it, so interfaces have their MAC alone.
    #[must_use]
    pub fn of(definition: &VmDefinition) -> Self {
        Self {
            vm_id: definition.uuid,
            vm_size: format!("Fermata_{}vcpu_{}MiB", definition.vcpus, definition.memory.mib()),
            os: definition.os,
            update_domain: definition.availability_set.as_ref().and_then(|set| set.update_domain),
            tags: definition.labels.clone(),
            interfaces: definition.nics.iter().map(|nic| Interface::new(nic.mac)).collect(),
            data_disks: definition
                .disks
                .iter()
                .skip(1)
                .enumerate()
                .map(|(lun, _)| DataDisk { lun: u16::try_from(lun).unwrap_or(u16::MAX), ..DataDisk::default() })
                .collect(),
            ..Self::default()
        }
    }
}

/// A key that may log in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PublicKey {
    /// The key in OpenSSH form.
    pub key_data: String,
    /// Where it belongs in the guest.
    pub path: String,
}

/// A data disk.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataDisk {
    /// Its logical unit number.
    pub lun: u16,
    /// Its name.
    pub name: String,
    /// Its size in GB.
    pub size_gb: u64,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Its MAC address.
    pub mac: Mac,
    /// Its IPv4 addresses.
    #[serde(default)]
    pub ipv4: Vec<Address>,
    /// Its IPv4 subnets.
    #[serde(default)]
    pub subnets: Vec<Subnet>,
    /// Its IPv6 addresses.
    #[serde(default)]
    pub ipv6: Vec<Ipv6Addr>,
}

impl Interface {
    /// An interface of which only the MAC address is known.
    #[must_use]
    pub const fn new(mac: Mac) -> Self {
        Self { mac, ipv4: Vec::new(), subnets: Vec::new(), ipv6: Vec::new() }
    }
}

/// An IPv4 address, and the one it is seen under outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Address {
    /// The address the guest has.
    pub private: Ipv4Addr,
    /// The public address, if there is one.
    #[serde(default)]
    pub public: Option<Ipv4Addr>,
}

/// An IPv4 subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subnet {
    /// The network's address.
    pub address: Ipv4Addr,
    /// The length of its prefix.
    pub prefix: u8,
}
