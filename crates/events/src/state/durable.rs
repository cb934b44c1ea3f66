//! Records of the state, in and out. One record per thing, so that an approval writes a few hundred bytes whatever the
//! number of VMs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::time::Duration;

use fermata_model::VmName;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Config, State};
use crate::document::render_events;
use crate::event::{EventId, JobId, JobStage};
use crate::input::{Change, Refusal};
use crate::scope::ScopeId;
use crate::time::Now;
use crate::version::ApiVersion;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Vm(VmName),
    Scope(ScopeId),
    Job(JobId),
    Event(EventId),
    Over(EventId),
    History(u64),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm(vm) => write!(f, "vm/{vm}"),
            Self::Scope(scope) => write!(f, "scope/{scope}"),
            Self::Job(job) => write!(f, "job/{job}"),
            Self::Event(id) => write!(f, "event/{id}"),
            Self::Over(id) => write!(f, "over/{id}"),
            Self::History(number) => write!(f, "history/{number:020}"),
        }
    }
}

fn json<T: Serialize>(value: Option<&T>) -> Option<String> {
    value.map(|value| serde_json::to_string(value).expect("records have string keys and no fallible members"))
}

impl State {
    pub(super) fn change_of(&self, key: &Key) -> Change {
        let value = match key {
            Key::Vm(vm) => json(self.vms.get(vm)),
            Key::Scope(scope) => json(self.scopes.get(scope)),
            Key::Job(job) => json(self.jobs.get(job)),
            Key::Event(id) => json(self.events.get(id)),
            Key::Over(id) => json(self.over.get(id)),
            Key::History(number) => json(self.history.iter().find(|(n, _)| n == number).map(|(_, record)| record)),
        };
        Change { key: key.to_string(), value }
    }

    /// The state that `records` describe, as [`crate::Action::Persist`] wrote them. Deadlines are taken up again from the
    /// wall clock; gates and leads that were already told are told again, so whoever missed the word gets it.
    ///
    /// # Errors
    /// [`Refusal::Damaged`] names the record that cannot be read.
    pub fn load<'a>(
        config: Config,
        epoch: u32,
        records: impl IntoIterator<Item = (&'a str, &'a str)>,
        now: Now,
    ) -> Result<Self, Refusal> {
        let mut state = Self::new(config, epoch);
        let mut history = BTreeMap::new();
        for (key, value) in records {
            let damaged = |reason: &str| Refusal::Damaged { key: key.to_owned(), reason: reason.to_owned() };
            let (kind, name) = key.split_once('/').ok_or_else(|| damaged("the key has no `/`"))?;
            let bad_name = || damaged("the key's name is malformed");
            let id = || EventId::parse(name).ok_or_else(bad_name);
            match kind {
                "vm" => drop(state.vms.insert(name.parse().map_err(|_| bad_name())?, read(key, value)?)),
                "scope" => drop(state.scopes.insert(name.parse().map_err(|_| bad_name())?, read(key, value)?)),
                "job" => drop(state.jobs.insert(JobId(name.to_owned()), read(key, value)?)),
                "event" => drop(state.events.insert(id()?, read(key, value)?)),
                "over" => drop(state.over.insert(id()?, read(key, value)?)),
                "history" => drop(history.insert(name.parse::<u64>().map_err(|_| bad_name())?, read(key, value)?)),
                _ => return Err(damaged("the kind is unknown")),
            }
        }
        state.next_record = history.keys().next_back().map_or(0, |last| last + 1);
        state.history = history.into_iter().collect::<VecDeque<_>>();
        state.take_up(now);
        Ok(state)
    }

    fn take_up(&mut self, now: Now) {
        for event in self.events.values_mut() {
            event.deadline = now.mono + event.not_before.since(now.wall);
        }
        for job in self.jobs.values_mut() {
            if let JobStage::Started { pause_from, .. } = &mut job.stage {
                *pause_from = now.mono + Duration::from_millis(job.lead_ms);
            }
        }
        let scopes: BTreeSet<ScopeId> =
            self.vms.values().map(|vm| &vm.scope).chain(self.scopes.keys()).cloned().collect();
        self.enabled = scopes.into_iter().filter(|scope| self.enabled_at(scope, now.wall)).collect();
        let shown: BTreeSet<ScopeId> = self.events.values().map(|event| event.scope.clone()).collect();
        self.shown = shown
            .into_iter()
            .map(|scope| {
                let shows = render_events(ApiVersion::NEWEST, &self.events_of(&scope));
                (scope, shows)
            })
            .collect();
    }
}

fn read<T: DeserializeOwned>(key: &str, value: &str) -> Result<T, Refusal> {
    serde_json::from_str(value).map_err(|e| Refusal::Damaged { key: key.to_owned(), reason: e.to_string() })
}
