//! The state of all events of a host, and the one way to change it.
//!
//! Commands live in the modules below, one concern each: `inventory` (VMs, scopes, enablement), `announce`, `answer`
//! (approvals, deferrals), `progress` (start, pause, resume, end), `gate` (what may start, and the passing of time),
//! `durable` (records in and out). Each command checks everything first and changes something only when nothing is
//! refused, so a refusal leaves the state as it was.

mod announce;
mod answer;
mod durable;
mod gate;
mod inventory;
mod progress;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use fermata_model::{UpdateDomain, VmName};
use serde::{Deserialize, Serialize};

use crate::document::{NativeEvent, render, render_events};
use crate::event::{Event, EventId, Job, JobId};
use crate::history::{Outcome, Record};
use crate::input::{Action, Input, Lifecycle, Notice, Refusal};
use crate::scope::{ApprovalPolicy, Scope, ScopeId};
use crate::time::{Now, UnixMs};
use crate::version::ApiVersion;
use durable::Key;

/// `Started` is visible at least this long before a pause, whatever is configured: two periods of a 1 Hz poller.
pub const MIN_LEAD: Duration = Duration::from_secs(2);
/// A scope that made no request for this long is owed no notice.
pub const ENABLED_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// An event that is over can still be approved, without effect, for this long.
pub const TERMINAL_FOR: Duration = Duration::from_secs(24 * 60 * 60);
/// A guest whose clock may be behind by the pause gets no `NotBefore` nearer than this.
pub const UNVERIFIED_FLOOR: Duration = Duration::from_secs(60);
/// The protocol's number fits a 32-bit signed integer; at one change a second that is 68 years.
pub const INCARNATION_MAX: u32 = i32::MAX as u32;
/// The last request is written down again when the written one is older than this.
pub const POLL_GRAIN: Duration = Duration::from_secs(600);
/// Records kept per scope.
pub const HISTORY_PER_SCOPE: usize = 100;
/// Records kept in all.
pub const HISTORY_IN_ALL: usize = 5_000;

/// What an operator can set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How long `Started` is visible before a pause, in milliseconds, where the job does not say.
    pub lead_ms: u64,
    /// The notice of a scope that never asked, in seconds.
    pub unasked_notice_s: u32,
    /// Whose approvals count where no policy is set.
    pub policy: ApprovalPolicy,
}

impl Default for Config {
    fn default() -> Self {
        Self { lead_ms: 5_000, unasked_notice_s: 0, policy: ApprovalPolicy::AnyInScope }
    }
}

/// A VM of this host, as far as events go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// The scope it is in.
    pub scope: ScopeId,
    /// Its update domain, in a set.
    pub update_domain: Option<UpdateDomain>,
    /// The shortest notice it must be given, in seconds.
    pub min_notice_s: u32,
    /// The number of the document it sees.
    pub incarnation: u32,
    /// Its last request, as far as it was written down.
    pub last_poll: Option<UnixMs>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Over {
    scope: ScopeId,
    at: UnixMs,
}

/// All events of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    config: Config,
    epoch: u32,
    vms: BTreeMap<VmName, Vm>,
    scopes: BTreeMap<ScopeId, Scope>,
    jobs: BTreeMap<JobId, Job>,
    events: BTreeMap<EventId, Event>,
    over: BTreeMap<EventId, Over>,
    history: VecDeque<(u64, Record)>,
    next_record: u64,
    /// Scopes that were told to be enabled.
    enabled: BTreeSet<ScopeId>,
    /// What each scope with events shows; a change of it is a change of its members' documents.
    shown: BTreeMap<ScopeId, String>,
}

/// One application of an input: what it touched and what the shell is to do.
struct Txn {
    now: Now,
    dirty: BTreeSet<Key>,
    touched: BTreeSet<ScopeId>,
    changed: BTreeSet<VmName>,
    actions: Vec<Action>,
}

impl State {
    /// An empty state. `epoch` distinguishes this store from any earlier one in entity tags; random is best.
    #[must_use]
    pub fn new(config: Config, epoch: u32) -> Self {
        Self {
            config,
            epoch,
            vms: BTreeMap::new(),
            scopes: BTreeMap::new(),
            jobs: BTreeMap::new(),
            events: BTreeMap::new(),
            over: BTreeMap::new(),
            history: VecDeque::new(),
            next_record: 0,
            enabled: BTreeSet::new(),
            shown: BTreeMap::new(),
        }
    }

    /// Applies one input.
    ///
    /// The actions are in order; perform them in order.
    ///
    /// # Errors
    /// A [`Refusal`] names the reason; the state is then unchanged.
    pub fn apply(&mut self, input: Input, now: Now) -> Result<Vec<Action>, Refusal> {
        let mut txn = Txn {
            now,
            dirty: BTreeSet::new(),
            touched: BTreeSet::new(),
            changed: BTreeSet::new(),
            actions: Vec::new(),
        };
        let polled = matches!(input, Input::Polled { .. });
        match input {
            Input::UpsertVm { vm, set, update_domain, min_notice_s, incarnation_floor } => {
                self.upsert_vm(&mut txn, vm, set, update_domain, min_notice_s, incarnation_floor)?;
            }
            Input::RemoveVm { vm } => self.remove_vm(&mut txn, &vm)?,
            Input::SetPolicy { scope, policy } => self.set_policy(&mut txn, scope, policy),
            Input::PeerPolled { set, at } => self.peer_polled(&mut txn, set, at),
            Input::Polled { vm } => self.polled(&mut txn, &vm)?,
            Input::Announce(announce) => self.announce(&mut txn, announce)?,
            Input::Fail(announce) => self.fail(&mut txn, announce)?,
            Input::Approve { events, by } => self.approve(&mut txn, &events, &by)?,
            Input::Defer { event, vm, until } => self.defer(&mut txn, event, &vm, until)?,
            Input::Cancel { job } => self.cancel(&mut txn, &job)?,
            Input::Start { job } => self.start(&mut txn, &job)?,
            Input::Pausing { job, vms } => self.pausing(&mut txn, &job, &vms)?,
            Input::Resumed { job, vm, paused_ms } => self.resumed(&mut txn, &job, &vm, paused_ms)?,
            Input::ClockVerified { job, vm, clock_step_ms } => self.verified(&mut txn, &job, &vm, clock_step_ms)?,
            Input::RunsAgain { job, vm, paused_ms } => self.runs_again(&mut txn, &job, &vm, paused_ms)?,
            Input::Finish { job, outcome } => self.finish(&mut txn, &job, outcome)?,
            Input::Mirror { event } => self.mirror(&mut txn, *event),
            Input::Unmirror { event } => self.unmirror(&mut txn, event),
            Input::Tick => self.expire(&mut txn),
        }
        if !polled {
            self.advance(&mut txn);
        }
        Ok(self.commit(txn))
    }

    /// Counts incarnations up where documents changed, and puts the write in front of everything else.
    fn commit(&mut self, mut txn: Txn) -> Vec<Action> {
        for scope in std::mem::take(&mut txn.touched) {
            let shows = render_events(ApiVersion::NEWEST, &self.events_of(&scope));
            let before = self.shown.get(&scope).map_or("[]", String::as_str);
            if before == shows {
                continue;
            }
            let members: Vec<VmName> = self.members(&scope).map(|(vm, _)| vm.clone()).collect();
            for vm in members {
                self.bump(&mut txn, &vm);
            }
            if shows == "[]" {
                self.shown.remove(&scope);
            } else {
                self.shown.insert(scope, shows);
            }
        }
        let mut actions = Vec::with_capacity(txn.actions.len() + 2);
        if !txn.dirty.is_empty() {
            actions.push(Action::Persist { changes: txn.dirty.iter().map(|key| self.change_of(key)).collect() });
        }
        if !txn.changed.is_empty() {
            actions.push(Action::DocumentsChanged { vms: txn.changed.into_iter().collect() });
        }
        actions.append(&mut txn.actions);
        actions
    }

    fn bump(&mut self, txn: &mut Txn, vm: &VmName) {
        if txn.changed.contains(vm) {
            return;
        }
        if let Some(record) = self.vms.get_mut(vm) {
            record.incarnation = record.incarnation.saturating_add(1).min(INCARNATION_MAX);
            txn.dirty.insert(Key::Vm(vm.clone()));
            txn.changed.insert(vm.clone());
        }
    }

    fn members<'a>(&'a self, scope: &'a ScopeId) -> impl Iterator<Item = (&'a VmName, &'a Vm)> {
        self.vms.iter().filter(move |(_, vm)| vm.scope == *scope)
    }

    /// The events of a scope in the order of their announcement; ties by id, so that a restart changes no byte.
    fn events_of(&self, scope: &ScopeId) -> Vec<&Event> {
        let mut events: Vec<&Event> = self.events.values().filter(|event| event.scope == *scope).collect();
        events.sort_by_key(|event| (event.announced, event.id));
        events
    }

    /// The VM's record.
    #[must_use]
    pub fn vm(&self, vm: &VmName) -> Option<&Vm> {
        self.vms.get(vm)
    }

    /// All VMs.
    pub fn vms(&self) -> impl Iterator<Item = (&VmName, &Vm)> {
        self.vms.iter()
    }

    /// All open events.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.events.values()
    }

    /// An open event.
    #[must_use]
    pub fn event(&self, id: EventId) -> Option<&Event> {
        self.events.get(&id)
    }

    /// An open job.
    #[must_use]
    pub fn job(&self, id: &JobId) -> Option<&Job> {
        self.jobs.get(id)
    }

    /// All open jobs.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    /// The epoch in entity tags.
    #[must_use]
    pub const fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The document that `vm` sees in `version`; `None` when there is no such VM.
    #[must_use]
    pub fn document(&self, vm: &VmName, version: ApiVersion) -> Option<String> {
        let record = self.vms.get(vm)?;
        Some(render(version, record.incarnation, &self.events_of(&record.scope)))
    }

    /// The events that `vm` sees, in the native form.
    #[must_use]
    pub fn native_events(&self, vm: &VmName, now: Now) -> Option<Vec<NativeEvent>> {
        let record = self.vms.get(vm)?;
        Some(self.events_of(&record.scope).into_iter().map(|event| self.native(event, now)).collect())
    }

    /// Every open event in the native form, for operators.
    #[must_use]
    pub fn all_native_events(&self, now: Now) -> Vec<NativeEvent> {
        let mut events: Vec<&Event> = self.events.values().collect();
        events.sort_by_key(|event| (event.announced, event.id));
        events.into_iter().map(|event| self.native(event, now)).collect()
    }

    fn native(&self, event: &Event, now: Now) -> NativeEvent {
        let job = event.job().and_then(|id| self.jobs.get(id));
        NativeEvent::new(event, job, &self.waits_of(event, now), now.wall)
    }

    /// What is over in the scope of `vm`, oldest first, ended after `since`.
    #[must_use]
    pub fn history(&self, vm: &VmName, since: UnixMs) -> Option<Vec<&Record>> {
        let scope = &self.vms.get(vm)?.scope;
        Some(self.history.iter().map(|(_, r)| r).filter(|r| r.scope == *scope && r.ended_unix_ms > since).collect())
    }

    /// Everything that is over, oldest first, for operators.
    pub fn all_history(&self) -> impl Iterator<Item = &Record> {
        self.history.iter().map(|(_, record)| record)
    }

    fn notify(&self, txn: &mut Txn, step: Lifecycle, event: EventId, about: Option<&VmName>, outcome: Option<Outcome>) {
        let Some(event) = self.events.get(&event) else { return };
        let simulated = event.job().and_then(|id| self.jobs.get(id)).is_some_and(|job| job.simulation.is_some());
        txn.actions.push(Action::Notify {
            notice: Notice {
                step,
                at_unix_ms: txn.now.wall,
                event_id: event.id,
                job: event.job().cloned(),
                scope: event.scope.clone(),
                event_type: event.kind,
                resources: event.resources.keys().cloned().collect(),
                not_before_unix_ms: event.not_before,
                duration_in_seconds: event.duration_in_seconds(),
                outcome,
                vm: about.cloned(),
                simulated,
            },
        });
    }
}
