//! What is told about VMs, and how their ports are wired. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use fermata_imds::dhcp::Offer;
use fermata_imds::instance::{Address, Instance, Interface, Subnet};
use fermata_imds::wire::{Bridge, Open, Wiring};
use fermata_imds::{Port, VmRecord};
use fermata_model::BridgeName;
use fermata_model::VmName;
use uuid::Uuid;

use crate::config::{BridgeConfig, ImdsConfig};
use crate::inventory::VmRecord as Vm;
use crate::inventory::ports::{GivenPort, WantedPort};
use crate::links::{self, Side};

/// The ports that VMs need.
#[must_use]
pub fn wanted(vms: &[Vm], bridges: &[BridgeConfig]) -> Vec<WantedPort> {
    let network = |name: &BridgeName| bridges.iter().find(|bridge| bridge.name == *name)?.address;
    vms.iter()
        .flat_map(|vm| {
            vm.definition.nics.iter().enumerate().map(|(nic, link)| WantedPort {
                vm: vm.definition.uuid,
                nic,
                mac: link.mac,
                network: network(&link.bridge),
            })
        })
        .collect()
}

/// VMs on record with their ports.
#[derive(Debug)]
pub struct Plan {
    /// The VMs.
    pub vms: Vec<Vm>,
    /// What each NIC has.
    pub ports: BTreeMap<(Uuid, usize), GivenPort>,
    /// The host's bridges.
    pub bridges: Vec<BridgeConfig>,
}

impl Plan {
    /// Names of VMs that have a VMM.
    pub fn running(&self) -> impl Iterator<Item = &VmName> {
        self.vms.iter().filter(|vm| vm.runtime.is_some()).map(|vm| &vm.definition.name)
    }

    /// Every bridge that a VM is on, and those that the agent makes.
    #[must_use]
    pub fn bridge_names(&self) -> BTreeSet<BridgeName> {
        let used = self.vms.iter().flat_map(|vm| vm.definition.nics.iter().map(|nic| nic.bridge.clone()));
        let made = self.bridges.iter().filter(|bridge| bridge.address.is_some()).map(|bridge| bridge.name.clone());
        used.chain(made).collect()
    }

    /// A NIC's port, once for each of the two taps it can have.
    fn taps(&self, vm: &Vm, nic: usize) -> Vec<Port> {
        let definition = &vm.definition;
        let (Some(link), Some(given)) = (definition.nics.get(nic), self.ports.get(&(definition.uuid, nic))) else {
            return Vec::new();
        };
        Side::BOTH
            .map(|side| Port {
                tap: links::tap_name(definition.uuid, nic, side).as_str().to_owned(),
                bridge: link.bridge.clone(),
                mac: link.mac,
                number: given.number,
            })
            .into()
    }

    /// How the host is to be wired, with the bridges that are there.
    #[must_use]
    pub fn wiring(&self, bridges: Vec<Bridge>, open: Vec<Open>) -> Wiring {
        let there = |port: &Port| bridges.iter().any(|bridge| bridge.name == port.bridge);
        let taps = self.vms.iter().flat_map(|vm| (0..vm.definition.nics.len()).flat_map(|nic| self.taps(vm, nic)));
        Wiring { ports: taps.filter(there).collect(), bridges, open }
    }

    /// What DHCP offers on each bridge that the agent makes.
    #[must_use]
    pub fn offers(&self, dns: &[Ipv4Addr]) -> BTreeMap<BridgeName, Offer> {
        let offer = |bridge: &BridgeConfig| {
            let network = bridge.address?;
            let leases = self.vms.iter().flat_map(|vm| {
                let name = vm.definition.name.to_string();
                vm.definition.nics.iter().enumerate().filter(|(_, nic)| nic.bridge == bridge.name).filter_map(
                    move |(index, nic)| {
                        let address = self.ports.get(&(vm.definition.uuid, index))?.address?;
                        Some((nic.mac, (address, name.clone())))
                    },
                )
            });
            let offer =
                Offer { router: network.address, prefix: network.prefix, dns: dns.to_vec(), leases: leases.collect() };
            Some((bridge.name.clone(), offer))
        };
        self.bridges.iter().filter_map(offer).collect()
    }

    /// What the service is told.
    #[must_use]
    pub fn records(&self, config: &ImdsConfig) -> Vec<VmRecord> {
        self.vms.iter().map(|vm| self.record(vm, config)).collect()
    }

    fn record(&self, vm: &Vm, config: &ImdsConfig) -> VmRecord {
        let definition = &vm.definition;
        let mut instance = Instance::of(definition);
        let settings = [
            (&mut instance.location, &config.location),
            (&mut instance.zone, &config.zone),
            (&mut instance.resource_group, &config.resource_group),
            (&mut instance.subscription_id, &config.subscription_id),
        ];
        for (field, given) in settings {
            if let Some(given) = given {
                field.clone_from(given);
            }
        }
        instance.interfaces = (0..definition.nics.len()).map(|nic| self.interface(vm, nic)).collect();
        VmRecord {
            membership: definition.availability_set.clone(),
            min_notice_s: definition.min_notice_s,
            instance,
            ports: (0..definition.nics.len()).flat_map(|nic| self.taps(vm, nic)).collect(),
            ..VmRecord::new(definition.name.clone())
        }
    }

    fn interface(&self, vm: &Vm, index: usize) -> Interface {
        let nic = &vm.definition.nics[index];
        let mut interface = Interface::new(nic.mac);
        let network = self.bridges.iter().find(|bridge| bridge.name == nic.bridge).and_then(|bridge| bridge.address);
        let given = self.ports.get(&(vm.definition.uuid, index)).and_then(|port| port.address);
        if let (Some(network), Some(private)) = (network, given) {
            let host = u32::MAX >> network.prefix;
            let address = Ipv4Addr::from_bits(network.address.to_bits() & !host);
            interface.ipv4 = vec![Address { private, public: None }];
            interface.subnets = vec![Subnet { address, prefix: network.prefix }];
        }
        interface
    }
}
