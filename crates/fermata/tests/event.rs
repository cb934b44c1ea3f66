//! `fermata event` against a real service: what operators see and decide, and simulations.
#![allow(clippy::unwrap_used, reason = "test support: a failure is a failed test")]

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use fermata_imds::fermata_events::event::DeferLimits;
use fermata_imds::fermata_events::{Affected, Announce, EventKind, EventSource, Input, JobId, PauseBound};
use fermata_imds::link;
use fermata_imds::{Service, Settings, SqliteStore, SystemClock, VmRecord, control};
use serde_json::Value;
use tokio::net::UnixListener;

struct Host {
    service: Service,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl Host {
    /// A service that knows the VMs `web` and `db`; both have asked for their events.
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control.sock");
        let store = Box::new(SqliteStore::in_memory().unwrap());
        let service = Service::open(store, Arc::new(SystemClock::default()), Settings::default()).unwrap();
        for name in ["web", "db"] {
            service.upsert(VmRecord::new(name.parse().unwrap())).await.unwrap();
            service.apply(Input::Polled { vm: name.parse().unwrap() }).await.unwrap();
        }
        tokio::spawn(control::serve(UnixListener::bind(&socket).unwrap(), service.clone()));
        let timer = service.clone();
        tokio::spawn(async move { timer.run_timer().await });
        Self { service, socket, _folder: folder }
    }

    async fn announce(&self, job: &str, vm: &str) {
        let announce = Announce {
            job: JobId(job.to_owned()),
            seed: link::seed("host1", &JobId(job.to_owned())),
            kind: EventKind::Freeze,
            source: EventSource::Platform,
            description: String::new(),
            reason: "kernel".to_owned(),
            affected: vec![Affected::new(vm.parse().unwrap(), PauseBound::AtMostMs(2_000))],
            notice_s: 900,
            lead_ms: None,
            defer: DeferLimits::default(),
            simulate_pause_ms: None,
        };
        self.service.apply(Input::Announce(announce)).await.unwrap();
    }

    /// Runs `fermata event ...`; gives whether it succeeded, and what it said.
    async fn event(&self, words: &str) -> (bool, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fermata"));
        command.arg("event").arg("--imds-socket").arg(&self.socket).args(words.split(' ')).env("USER", "ann");
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    }

    async fn json(&self, words: &str) -> Value {
        let (ok, text) = self.event(&format!("--json {words}")).await;
        assert!(ok, "{words}: {text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words}: {error}: {text}"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn operators_list_show_approve_and_cancel_events() {
    let host = Host::new().await;
    assert_eq!(host.event("list").await, (true, "no open event".to_owned()));
    host.announce("m-1", "web").await;
    host.announce("m-2", "db").await;
    let events = host.json("list").await;
    let of = |vm: &str| events.as_array().unwrap().iter().find(|event| event["resources"][0]["vm"] == vm).unwrap();
    let [web, db] = ["web", "db"].map(|vm| of(vm)["eventId"].as_str().unwrap().to_owned());
    let (_, table) = host.event("list").await;
    assert!(table.contains(&web) && table.contains(&db) && table.contains("waiting notice"), "{table}");
    assert_eq!(host.json(&format!("show {}", web.to_lowercase())).await, *of("web"), "in whatever case");

    let (ok, said) = host.event(&format!("approve {web}")).await;
    assert_eq!((ok, said.as_str()), (true, "approved; the maintenance may start"));
    let (ok, said) = host.event(&format!("approve {web}")).await;
    assert!(ok && said.starts_with("nothing changed"), "{said}");
    let shown = host.json(&format!("show {web}")).await;
    assert_eq!((&shown["approvals"][0]["by"], &shown["gate"]["state"]), (&"operator".into(), &"open".into()));

    assert_eq!(host.event(&format!("cancel {db}")).await, (true, "cancelled".to_owned()));
    let (ok, said) = host.event(&format!("show {db}")).await;
    assert!(!ok && said.contains("is not open"), "{said}");
    let (ok, said) = host.event(&format!("cancel {db}")).await;
    assert!(!ok && said.contains("no event"), "{said}");
    host.service.apply(Input::Start { job: JobId("m-1".to_owned()) }).await.unwrap();
    let (ok, said) = host.event(&format!("cancel {web}")).await;
    assert!(!ok && said.contains("has started"), "{said}");
    let (ok, said) = host.event("approve web").await;
    assert!(!ok && said.contains("is no event id"), "{said}");
    let (_, history) = host.event("history").await;
    assert!(history.contains(&db) && history.contains("cancelled") && !history.contains("simulated"), "{history}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_simulation_goes_its_whole_way_by_itself_and_says_that_it_is_one() {
    let host = Host::new().await;
    let played = host.json("simulate web db --notice 600 --pause-ms 1").await;
    let ids: Vec<String> =
        played["events"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 2, "one event per VM that stands alone");
    let (_, table) = host.event("list").await;
    assert_eq!(table.matches("Freeze (simulated)").count(), 2, "{table}");
    assert_eq!(host.json(&format!("show {}", ids[0])).await["status"], "Scheduled");
    host.event(&format!("approve {}", ids[0])).await;
    assert_eq!(host.json(&format!("show {}", ids[0])).await["status"], "Scheduled", "rule 40: the other has not");
    let mut news = host.service.feed();
    host.event(&format!("approve {}", ids[1])).await;
    assert_eq!(host.json(&format!("show {}", ids[0])).await["status"], "Started");
    let over =
        async { while !matches!(news.recv().await.unwrap(), fermata_imds::fermata_events::Action::JobOver { .. }) {} };
    tokio::time::timeout(std::time::Duration::from_secs(30), over).await.expect("it ends by itself");
    assert_eq!(host.event("list").await, (true, "no open event".to_owned()));
    let (_, history) = host.event("history").await;
    assert_eq!(history.matches("Freeze (simulated)").count(), 2, "{history}");
    let (_, metrics) = host.event("metrics").await;
    assert!(metrics.contains("fermata_events_pause_seconds_count 0"), "{metrics}");
    let (ok, said) = host.event("simulate nobody").await;
    assert!(!ok && said.contains("no VM `nobody`"), "{said}");
    let (ok, said) = host.event("simulate web --kind Nap").await;
    assert!(!ok && said.contains("no kind of event"), "{said}");
}
