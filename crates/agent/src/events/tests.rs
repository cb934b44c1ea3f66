use std::collections::{BTreeMap, BTreeSet};

use fermata_imds::wire::Open;
use fermata_model::definition::{HostDefaults, resolve};
use fermata_model::{Mac, VmSpec};
use uuid::Uuid;

use super::records::{Plan, wanted};
use crate::config::{BridgeConfig, ImdsConfig};
use crate::inventory::ports::GivenPort;
use crate::inventory::{VmRecord, Wanted};
use crate::links::{self, Side};

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
            Side::BOTH.map(|side| taps[links::tap_name(vm.definition.uuid, 0, side).as_str()]).into();
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

mod with_a_service {
    use std::sync::Arc;
    use std::time::Duration;

    use fermata_imds::fermata_events::event::DeferLimits;
    use fermata_imds::fermata_events::{Affected, EventKind, EventSource, Input, JobId, Outcome, PauseBound};
    use fermata_imds::link::Announcement;
    use fermata_imds::{Service, Settings, SqliteStore, SystemClock, control};
    use tokio::sync::Notify;

    use super::vm;
    use crate::config::Config;
    use crate::events::{Events, Gate, job::Ending};
    use crate::inventory::Inventory;
    use crate::links::Links;

    /// An agent's end with VMs `a` and `b` on record, and the service it speaks to.
    fn host(folder: &std::path::Path) -> (Arc<Events>, Service) {
        let socket = folder.join("control.sock");
        let text =
            format!("[vmm.\"10.0\"]\nbinary = \"/q\"\n[imds]\ncontrol = \"{}\"\ndhcp = false\n", socket.display());
        let config: Config = toml::from_str(&text).unwrap();
        let inventory = Inventory::open(&folder.join("agent.db")).unwrap();
        for record in [vm("a", 1, ""), vm("b", 2, "")] {
            inventory.insert(&record.definition).unwrap();
        }
        let store = Box::new(SqliteStore::in_memory().unwrap());
        let service = Service::open(store, Arc::new(SystemClock::default()), Settings::default()).unwrap();
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        tokio::spawn(control::serve(listener, service.clone()));
        (Events::new(&config, inventory, Links::open().unwrap()).unwrap(), service)
    }

    fn announcement(name: &str) -> Announcement {
        Announcement {
            job: JobId(name.to_owned()),
            host: "host1".to_owned(),
            kind: EventKind::Freeze,
            source: EventSource::Platform,
            description: String::new(),
            reason: "test".to_owned(),
            notice: Duration::from_secs(900),
            lead: Duration::from_secs(2),
            defer: DeferLimits::default(),
            affected: vec![Affected::new("a".parse().unwrap(), PauseBound::AtMostMs(1_000))],
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_maintenance_goes_from_its_announcement_to_the_removal_of_its_event() {
        let folder = tempfile::tempdir().unwrap();
        let (events, service) = host(folder.path());
        tokio::spawn(Arc::clone(&events).run(Arc::new(Notify::new())));
        let job = JobId("m".to_owned());
        let a: fermata_model::VmName = "a".parse().unwrap();
        // Somebody in it listens, so the notice is owed.
        events.tell().await.unwrap();
        service.apply(Input::Polled { vm: a.clone() }).await.unwrap();
        events.announce(announcement("m")).await.unwrap();
        events.announce(announcement("m")).await.expect("an agent that restarts announces the same again");
        let waiting = tokio::spawn({
            let (events, job) = (Arc::clone(&events), job.clone());
            async move { events.gate(&job).await }
        });
        let id = service.read(|state, _| state.events().next().unwrap().id);
        let by = fermata_imds::fermata_events::Approver::Vm { vm: a.clone(), from: None, agent: String::new() };
        service.apply(Input::Approve { events: vec![id], by }).await.unwrap();
        assert_eq!(waiting.await.unwrap(), Gate::Open { by: "a".to_owned() });
        events.start(&job).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2_010)).await;
        events.pausing(&job, vec![a.clone()], Duration::from_secs(1)).await;
        // The VM is left down: the event outlives the maintenance, until the VM is told to run again.
        events.end(&job, Ending { became: vec![], outcome: Outcome::Failed }).await.unwrap();
        assert_eq!(service.read(|state, _| state.events().count()), 1);
        let again = Input::RunsAgain { job: job.clone(), vm: a, paused_ms: None };
        events.became(vec![again]).await.unwrap();
        assert_eq!(service.read(|state, _| state.events().count()), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_cancelled_or_left_by_a_dead_agent_does_not_stay() {
        let folder = tempfile::tempdir().unwrap();
        let (events, service) = host(folder.path());
        events.announce(announcement("m")).await.unwrap();
        events.end(&JobId("m".to_owned()), Ending { became: vec![], outcome: Outcome::Undone }).await.unwrap();
        assert_eq!(events.gate(&JobId("m".to_owned())).await, Gate::Cancelled);
        let left = JobId("restart-0".to_owned());
        events.announce(Announcement { job: left.clone(), ..announcement("x") }).await.unwrap();
        let open = events.restarting(&left);
        events.end_left_restarts().await.unwrap();
        assert_eq!(service.read(|state, _| state.events().count()), 1, "this agent is at it");
        drop(open);
        events.end_left_restarts().await.unwrap();
        assert_eq!(service.read(|state, _| state.events().count()), 0);
    }
}
