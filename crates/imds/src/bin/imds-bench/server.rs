//! The service under load, as a process of its own.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::sync::Arc;

use fermata_events::{Affected, Announce, EventKind, EventSource, Input, JobId, PauseBound};
use fermata_imds::limits::Limits;
use fermata_imds::{BySource, Service, Settings, SqliteStore, SystemClock, VmRecord};

type Problem = Box<dyn std::error::Error + Send + Sync>;

/// The loopback address that stands for a VM.
pub(crate) fn address(vm: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 0)) + 256 * (vm / 250) + vm % 250 + 1)
}

/// Serves `vms` VMs, each with an open event, until standard input ends.
pub(crate) fn run(vms: u32, default_limits: bool) -> Result<(), Problem> {
    let limits = if default_limits { Limits::default() } else { Limits::none() };
    let hosts = vec!["169.254.169.254".to_owned()];
    let settings = Settings { limits, hosts, ..Settings::default() };
    let folder = std::env::temp_dir().join(format!("imds-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let result = serve(vms, settings, &folder.join("state.db"));
    std::fs::remove_dir_all(&folder)?;
    result
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn serve(vms: u32, settings: Settings, file: &std::path::Path) -> Result<(), Problem> {
    let service = Service::open(Box::new(SqliteStore::open(file)?), Arc::new(SystemClock::default()), settings)?;
    let callers = BySource::default();
    let mut affected = Vec::new();
    for number in 0..vms {
        let vm: fermata_model::VmName = format!("vm-{number}").parse()?;
        callers.set(address(number).into(), vm.clone());
        service.upsert(VmRecord::new(vm.clone())).await?;
        affected.push(Affected::new(vm, PauseBound::AtMostMs(6_000)));
    }
    let announce = Announce {
        job: JobId("bench".to_owned()),
        seed: uuid::Uuid::new_v4(),
        kind: EventKind::Freeze,
        source: EventSource::Platform,
        description: String::new(),
        reason: String::new(),
        affected,
        notice_s: 900,
        lead_ms: None,
        defer: fermata_events::event::DeferLimits::default(),
        simulate_pause_ms: None,
    };
    service.apply(Input::Announce(announce)).await?;
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    println!("{}", listener.local_addr()?.port());
    std::io::stdout().flush()?;
    let served = tokio::spawn(fermata_imds::serve(listener, service, Arc::new(callers)));
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
    served.abort();
    Ok(())
}
