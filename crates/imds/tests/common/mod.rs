//! A real service on a real socket, with a clock that the test moves and a client that sends exact bytes.
#![allow(
    clippy::unwrap_used,
    dead_code,
    reason = "test support: a failure is a failed test; each binary uses its part"
)]

#[cfg(feature = "system-tests")]
pub(crate) mod net;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fermata_events::*;
use fermata_imds::limits::Limits;
use fermata_imds::store::{Outgoing, StoreError};
use fermata_imds::*;
use fermata_model::VmName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Wed, 31 May 2023 16:44:00 GMT.
pub(crate) const START_MS: i64 = 1_685_551_440_000;

#[derive(Clone)]
pub(crate) struct HandClock(Arc<Mutex<Now>>);

impl HandClock {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Now { wall: UnixMs(START_MS), mono: MonoMs(1_000_000) })))
    }

    pub(crate) fn pass(&self, by: Duration) {
        let mut now = self.0.lock().unwrap();
        *now = now.later(by);
    }
}

impl Clock for HandClock {
    fn now(&self) -> Now {
        *self.0.lock().unwrap()
    }
}

pub(crate) fn vm(name: &str) -> VmName {
    name.parse().unwrap()
}

pub(crate) fn job(name: &str) -> JobId {
    JobId(name.to_owned())
}

pub(crate) fn announce(name: &str, vms: &[&str], notice_s: u32) -> Announce {
    Announce {
        job: job(name),
        seed: uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, name.as_bytes()),
        kind: EventKind::Freeze,
        source: EventSource::Platform,
        description: String::new(),
        reason: "kernel".to_owned(),
        affected: vms.iter().map(|v| Affected::new(vm(v), PauseBound::AtMostMs(6_000))).collect(),
        notice_s,
        lead_ms: None,
        defer: fermata_events::event::DeferLimits { max_s: 600, max_count: 2 },
        simulate_pause_ms: None,
    }
}

/// One VM's view of a running service.
pub(crate) struct Guest {
    pub(crate) address: SocketAddr,
}

pub(crate) struct Host {
    pub(crate) service: Service,
    pub(crate) clock: HandClock,
}

pub(crate) fn settings() -> Settings {
    Settings { limits: Limits::none(), ..Settings::default() }
}

impl Host {
    /// A service whose VMs are `alone`, `other`, and the set `web` of `web0` (domain 0) and `web1` (domain 1).
    pub(crate) async fn new(settings: Settings) -> Self {
        Self::with(Box::new(SqliteStore::in_memory().unwrap()), settings).await
    }

    pub(crate) async fn with(store: Box<dyn Store>, settings: Settings) -> Self {
        let clock = HandClock::new();
        let service = Service::open(store, Arc::new(clock.clone()), settings).unwrap();
        for (name, domain) in [("alone", None), ("other", None), ("web0", Some(0u32)), ("web1", Some(1))] {
            let membership = domain.map(|domain| fermata_model::Membership {
                name: "web".parse().unwrap(),
                update_domain: Some(domain.try_into().unwrap()),
            });
            service.upsert(VmRecord { membership, ..VmRecord::new(vm(name)) }).await.unwrap();
        }
        Self { service, clock }
    }

    /// A listener on which every connection is `name`'s.
    pub(crate) async fn guest(&self, name: &str) -> Guest {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, self.service.clone(), Arc::new(ByListener(vm(name)))));
        Guest { address }
    }

    pub(crate) async fn ok(&self, input: Input) -> Vec<Action> {
        self.service.apply(input).await.unwrap()
    }

    pub(crate) async fn pass(&self, by: Duration) -> Vec<Action> {
        self.clock.pass(by);
        self.ok(Input::Tick).await
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// An open connection.
pub(crate) struct Wire(pub(crate) TcpStream);

impl Wire {
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// The next answer, by its own length.
    pub(crate) async fn answer(&mut self) -> Answer {
        let mut bytes = Vec::new();
        loop {
            let head = bytes.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4);
            if let Some(head) = head {
                let text = String::from_utf8(bytes[..head].to_vec()).unwrap();
                let status: u16 = text[9..12].parse().unwrap();
                let answer = Answer { status, head: text, body: String::new() };
                let length = answer.header("Content-Length").map_or(0, |l| l.parse::<usize>().unwrap());
                if bytes.len() >= head + length {
                    assert_eq!(
                        bytes.len(),
                        head + length,
                        "bytes after the answer: {:?}",
                        bytes.escape_ascii().to_string()
                    );
                    return Answer { body: String::from_utf8(bytes[head..].to_vec()).unwrap(), ..answer };
                }
            }
            let mut more = [0; 4096];
            let count = self.0.read(&mut more).await.unwrap();
            assert!(count > 0, "closed after {:?}", bytes.escape_ascii().to_string());
            bytes.extend_from_slice(&more[..count]);
        }
    }

    /// Sends and reads to the end of the connection; what came before a reset counts.
    pub(crate) async fn exchange_all(&mut self, request: &str) -> String {
        let mut bytes = Vec::new();
        if self.0.write_all(request.as_bytes()).await.is_ok() {
            let mut more = [0; 4096];
            while let Ok(count @ 1..) = self.0.read(&mut more).await {
                bytes.extend_from_slice(&more[..count]);
            }
        }
        String::from_utf8(bytes).unwrap()
    }

    /// Whether the server closes now.
    pub(crate) async fn closed(&mut self) -> bool {
        matches!(self.0.read(&mut [0; 1]).await, Ok(0) | Err(_))
    }
}

impl Guest {
    pub(crate) async fn connect(&self) -> Wire {
        let stream = TcpStream::connect(self.address).await.unwrap();
        // What is sent in parts is to leave in parts, at once: no clock of a test waits for the acknowledgement of the first.
        stream.set_nodelay(true).unwrap();
        Wire(stream)
    }

    /// One request on its own connection; `lines` are header lines with their line ends.
    pub(crate) async fn ask(&self, first: &str, lines: &str, body: &[u8]) -> Answer {
        let mut wire = self.connect().await;
        let mut bytes = format!("{first} HTTP/1.1\r\nHost: 169.254.169.254\r\n{lines}\r\n").into_bytes();
        bytes.extend_from_slice(body);
        wire.send(bytes).await;
        wire.answer().await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask(&format!("GET {path}"), "Metadata: true\r\n", b"").await
    }

    pub(crate) async fn get_with(&self, path: &str, lines: &str) -> Answer {
        self.ask(&format!("GET {path}"), &format!("Metadata: true\r\n{lines}"), b"").await
    }

    pub(crate) async fn events(&self) -> Answer {
        self.get("/metadata/scheduledevents?api-version=2020-07-01").await
    }

    pub(crate) async fn post(&self, body: &[u8]) -> Answer {
        let lines = format!("Metadata: true\r\nContent-Length: {}\r\n", body.len());
        self.ask("POST /metadata/scheduledevents?api-version=2020-07-01", &lines, body).await
    }

    pub(crate) async fn approve(&self, id: &str) -> Answer {
        self.post(format!(r#"{{"StartRequests":[{{"EventId":"{id}"}}]}}"#).as_bytes()).await
    }

    pub(crate) async fn ids(&self) -> Vec<String> {
        let document = self.events().await.json();
        document["Events"].as_array().unwrap().iter().map(|e| e["EventId"].as_str().unwrap().to_owned()).collect()
    }

    pub(crate) async fn statuses(&self) -> Vec<String> {
        let document = self.events().await.json();
        document["Events"].as_array().unwrap().iter().map(|e| e["EventStatus"].as_str().unwrap().to_owned()).collect()
    }
}

/// A store that can be made to fail.
pub(crate) struct Fragile {
    pub(crate) inner: SqliteStore,
    pub(crate) broken: Arc<AtomicBool>,
}

impl Store for Fragile {
    fn records(&mut self) -> Result<std::collections::BTreeMap<String, String>, StoreError> {
        self.inner.records()
    }
    fn commit(&mut self, changes: &[Change], outgoing: &[(String, String)]) -> Result<(), StoreError> {
        if self.broken.load(Ordering::Acquire) {
            Err(StoreError::Refused)
        } else {
            self.inner.commit(changes, outgoing)
        }
    }
    fn epoch(&mut self, fresh: u32) -> Result<u32, StoreError> {
        self.inner.epoch(fresh)
    }
    fn outbox(&mut self, limit: u32) -> Result<Vec<Outgoing>, StoreError> {
        self.inner.outbox(limit)
    }
    fn delivered(&mut self, id: i64) -> Result<(), StoreError> {
        self.inner.delivered(id)
    }
}
