//! A small world: a state, two clocks that only the test moves, and a log of every action.
#![allow(clippy::unwrap_used, clippy::needless_pass_by_value, reason = "test support: a failure is a failed test")]
#![allow(dead_code, reason = "each binary uses its part")]

use std::collections::BTreeMap;
use std::time::Duration;

use fermata_events::*;
use fermata_model::VmName;
use serde_json::Value;
use uuid::Uuid;

/// Wed, 31 May 2023 16:44:00 GMT.
pub(crate) const START_MS: i64 = 1_685_551_440_000;

pub(crate) struct World {
    config: Config,
    pub(crate) state: State,
    pub(crate) now: Now,
    pub(crate) disk: BTreeMap<String, String>,
    pub(crate) log: Vec<Action>,
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
        seed: Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()),
        kind: EventKind::Freeze,
        source: EventSource::Platform,
        description: String::new(),
        reason: "kernel".to_owned(),
        affected: vms.iter().map(|v| Affected::new(vm(v), PauseBound::AtMostMs(6_000))).collect(),
        notice_s,
        lead_ms: None,
        defer: Default::default(),
        simulate_pause_ms: None,
    }
}

pub(crate) fn by_vm(name: &str) -> Approver {
    Approver::Vm { vm: vm(name), from: None, agent: "test/1".to_owned() }
}

impl World {
    /// `alone` and `other` stand alone; `web0` and `web1` (domains 0 and 1) and `web2` (domain 0) form set `web`.
    pub(crate) fn new() -> Self {
        Self::with(Config::default())
    }

    pub(crate) fn with(config: Config) -> Self {
        let mut world = Self {
            state: State::new(config.clone(), 7),
            config,
            now: Now { wall: UnixMs(START_MS), mono: MonoMs(1_000_000) },
            disk: BTreeMap::new(),
            log: Vec::new(),
        };
        for name in ["alone", "other"] {
            world.upsert(name, None);
        }
        for (name, domain) in [("web0", 0), ("web1", 1), ("web2", 0)] {
            world.upsert(name, Some(domain));
        }
        world
    }

    pub(crate) fn upsert(&mut self, name: &str, domain: Option<u32>) {
        self.ok(Input::UpsertVm {
            vm: vm(name),
            set: domain.map(|_| "web".parse().unwrap()),
            update_domain: domain.map(|d| d.try_into().unwrap()),
            min_notice_s: 0,
            incarnation_floor: 0,
        });
    }

    pub(crate) fn poll_all(&mut self) {
        let vms: Vec<_> = self.state.vms().map(|(vm, _)| vm.clone()).collect();
        for vm in vms {
            self.ok(Input::Polled { vm });
        }
    }

    pub(crate) fn go(&mut self, input: Input) -> Result<Vec<Action>, Refusal> {
        let before = self.state.clone();
        let result = self.state.apply(input, self.now);
        match &result {
            Ok(actions) => {
                for action in actions {
                    if let Action::Persist { changes } = action {
                        for change in changes {
                            match &change.value {
                                Some(value) => drop(self.disk.insert(change.key.clone(), value.clone())),
                                None => drop(self.disk.remove(&change.key)),
                            }
                        }
                    }
                }
                self.log.extend(actions.iter().cloned());
            }
            Err(refusal) => assert_eq!(self.state, before, "a refusal changed the state: {refusal}"),
        }
        result
    }

    pub(crate) fn ok(&mut self, input: Input) -> Vec<Action> {
        self.go(input.clone()).unwrap_or_else(|refusal| panic!("{input:?}: {refusal}"))
    }

    pub(crate) fn tick(&mut self, by: Duration) -> Vec<Action> {
        self.now = self.now.later(by);
        self.ok(Input::Tick)
    }

    /// The host restarts: the monotonic clock begins anew, only the disk survives.
    pub(crate) fn restart(&mut self) {
        self.now.mono = MonoMs(5_000);
        let records = self.disk.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        self.state = State::load(self.config.clone(), 7, records, self.now).unwrap();
    }

    pub(crate) fn doc(&self, name: &str) -> Value {
        self.doc_of(name, ApiVersion::NEWEST)
    }

    pub(crate) fn doc_of(&self, name: &str, version: ApiVersion) -> Value {
        serde_json::from_str(&self.state.document(&vm(name), version).unwrap()).unwrap()
    }

    pub(crate) fn incarnation(&self, name: &str) -> u64 {
        self.doc(name)["DocumentIncarnation"].as_u64().unwrap()
    }

    pub(crate) fn ids(&self, name: &str) -> Vec<EventId> {
        let doc = self.doc(name);
        let events = doc["Events"].as_array().unwrap();
        events.iter().map(|e| EventId::parse(e["EventId"].as_str().unwrap()).unwrap()).collect()
    }

    pub(crate) fn status(&self, name: &str) -> Vec<String> {
        let doc = self.doc(name);
        doc["Events"].as_array().unwrap().iter().map(|e| e["EventStatus"].as_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn approve(&mut self, by: &str, events: Vec<EventId>) -> Result<Vec<Action>, Refusal> {
        self.go(Input::Approve { events, by: by_vm(by) })
    }

    /// The approvals that an event has, as operators read them.
    pub(crate) fn approvals(&self, id: EventId) -> Vec<Value> {
        let events = serde_json::to_value(self.state.all_native_events(self.now)).unwrap();
        let mut events = events.as_array().unwrap().iter();
        let event = events.find(|event| event["eventId"] == id.to_string()).unwrap();
        event["approvals"].as_array().unwrap().clone()
    }

    pub(crate) fn steps(&self) -> Vec<Lifecycle> {
        let notice = |action: &Action| if let Action::Notify { notice } = action { Some(notice.step) } else { None };
        self.log.iter().filter_map(notice).collect()
    }

    pub(crate) fn has(actions: &[Action], wanted: &Action) -> bool {
        actions.contains(wanted)
    }

    /// Drives a started job through pause, resume and clock.
    pub(crate) fn pause_and_resume(&mut self, name: &str, vms: &[&str], paused_ms: u64) {
        self.tick(Duration::from_secs(5));
        self.ok(Input::Pausing { job: job(name), vms: vec![] });
        self.tick(Duration::from_millis(paused_ms));
        for v in vms {
            self.ok(Input::Resumed { job: job(name), vm: vm(v), paused_ms });
        }
    }
}
