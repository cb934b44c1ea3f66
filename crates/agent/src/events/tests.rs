use std::collections::{BTreeMap, BTreeSet};

use fermata_imds::wire::Open;
use fermata_model::definition::{HostDefaults, resolve};
use fermata_model::{Mac, VmSpec};
use uuid::Uuid;

use super::records::{Plan, wanted};
use crate::config::{BridgeConfig, ImdsConfig};
use crate::inventory::ports::GivenPort;
use crate::inventory::{VmRecord, Wanted};
use crate::links;

fn vm(name: &str, id: u128, more: &str) -> VmRecord {
    let spec = format!("name = \"{name}\"\nvcpus = 1\nmemory = \"64MiB\"\n{more}[[nic]]\nbridge = \"br0\"\n");
    let host = HostDefaults {
        uuid: Uuid::from_u128(id << 96),
        cpu: "max".to_owned(),
        machine: "pc-q35-10.0".parse().unwrap(),
        vmm: "10.0".parse().unwrap(),
        tsc_khz: None,
    };
    let definition = resolve(VmSpec::from_toml(&spec).unwrap(), &host);
    VmRecord { definition, wanted: Wanted::Stopped, runtime: None, beside: None, last_failure: None }
}

fn plan() -> Plan {
    let vms = vec![vm("a", 1, "min_notice_s = 60\n"), vm("b", 2, "")];
    let bridges = vec![BridgeConfig { name: "br0".parse().unwrap(), address: Some("10.77.0.1/24".parse().unwrap()) }];
    let ports = wanted(&vms, &bridges)
        .into_iter()
        .zip(1u8..)
        .map(|(port, n)| {
            let address = Some(std::net::Ipv4Addr::new(10, 77, 0, n + 10));
            ((port.vm, port.nic), GivenPort { number: n.into(), address })
        })
        .collect();
    Plan { vms, ports, bridges }
}

fn bridge() -> fermata_imds::wire::Bridge {
    fermata_imds::wire::Bridge { name: "br0".parse().unwrap(), mac: Mac::derived([0; 16], 0), dhcp: true }
}

#[test]
fn a_swap_finds_the_tap_to_come_wired_already() {
    let plan = plan();
    let wiring = plan.wiring(vec![bridge()], vec![Open::Udp(53)]);
    let taps: BTreeMap<&str, u16> = wiring.ports.iter().map(|port| (port.tap.as_str(), port.number)).collect();
    for vm in &plan.vms {
        let numbers: BTreeSet<u16> =
            (1..=6).map(|generation| taps[links::tap_name(vm.definition.uuid, 0, generation).as_str()]).collect();
        assert_eq!(numbers.len(), 1, "whichever VMM runs {}, it is the same guest", vm.definition.name);
    }
    assert_eq!((taps.len(), taps.values().collect::<BTreeSet<_>>().len()), (4, 2));
}

#[test]
fn ports_on_a_bridge_that_is_not_there_are_left_out() {
    assert!(plan().wiring(vec![], vec![]).ports.is_empty());
}

#[test]
fn a_guest_reads_the_address_that_it_is_offered() {
    let plan = plan();
    let config: ImdsConfig = toml::from_str("location = \"rack7\"").unwrap();
    let records = plan.records(&config);
    let offers = plan.offers(&[]);
    let offer = offers.values().next().unwrap();
    for record in &records {
        let interface = &record.instance.interfaces[0];
        assert_eq!(offer.leases[&interface.mac].0, interface.ipv4[0].private);
        assert_eq!((interface.subnets[0].address.to_string().as_str(), interface.subnets[0].prefix), ("10.77.0.0", 24));
        assert_eq!(record.instance.location, "rack7");
    }
    assert_eq!(records.iter().map(|record| record.min_notice_s).collect::<Vec<_>>(), [60, 0]);
}
