//! From a job to its events.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fermata_model::{UpdateDomain, VmName};

use super::durable::Key;
use super::{MIN_LEAD, State, Txn, UNVERIFIED_FLOOR};
use crate::event::{
    Event, EventId, EventKind, EventSource, EventStatus, Job, JobStage, Origin, Part, Phase, Simulation,
};
use crate::input::{Announce, Lifecycle, Refusal};
use crate::scope::ScopeId;
use crate::time::{MonoMs, UnixMs};

/// The VMs of one scope, and the domain they share.
struct Group {
    kind: EventKind,
    update_domain: Option<UpdateDomain>,
    parts: BTreeMap<VmName, Part>,
}

impl State {
    pub(super) fn announce(&mut self, txn: &mut Txn, announce: Announce) -> Result<(), Refusal> {
        self.create(txn, announce, EventStatus::Scheduled)
    }

    pub(super) fn fail(&mut self, txn: &mut Txn, announce: Announce) -> Result<(), Refusal> {
        self.create(txn, announce, EventStatus::Started)
    }

    fn create(&mut self, txn: &mut Txn, announce: Announce, status: EventStatus) -> Result<(), Refusal> {
        let groups = self.grouped(&announce, status)?;
        let ids: Vec<EventId> = groups.keys().map(|scope| EventId::derived(announce.seed, scope)).collect();
        if let Some(open) = self.jobs.get(&announce.job) {
            let same = open.events.iter().collect::<BTreeSet<_>>() == ids.iter().collect();
            return if same { Ok(()) } else { Err(Refusal::JobExists(announce.job)) };
        }
        let known = |id: &EventId| {
            // What is too old to be approved is remembered by the history for longer.
            let over = self.over.contains_key(id) || self.history.iter().any(|(_, record)| record.event_id == *id);
            over || self.events.contains_key(id)
        };
        if ids.iter().any(known) {
            return Err(Refusal::JobExists(announce.job));
        }
        let failed = status == EventStatus::Started;
        let wall = txn.now.wall;
        let describe = |kind| match announce.description.trim() {
            "" => default_description(kind, announce.source, failed).to_owned(),
            given => given.to_owned(),
        };
        for ((scope, group), id) in groups.into_iter().zip(&ids) {
            let (not_before, deadline) =
                if failed { (wall, txn.now.mono) } else { self.promise(txn, &scope, &group, announce.notice_s) };
            let event = Event {
                id: *id,
                policy: self.policy_of(&scope),
                origin: Origin::Here { job: announce.job.clone() },
                status,
                kind: group.kind,
                source: announce.source,
                description: describe(group.kind),
                resources: group.parts,
                update_domain: group.update_domain,
                not_before,
                deadline,
                announced: wall,
                started: failed.then_some(wall),
                approvals: BTreeMap::new(),
                operator: None,
                deferral: None,
                deferrals: 0,
                scope: scope.clone(),
            };
            txn.dirty.insert(Key::Event(*id));
            txn.touched.insert(scope);
            self.events.insert(*id, event);
        }
        let minimum = u64::try_from(MIN_LEAD.as_millis()).unwrap_or(u64::MAX);
        let job = Job {
            id: announce.job.clone(),
            events: ids.clone(),
            stage: if failed { JobStage::Paused } else { JobStage::Waiting { told: false } },
            lead_ms: announce.lead_ms.unwrap_or(self.config.lead_ms).max(minimum),
            reason: announce.reason,
            defer: announce.defer,
            simulation: announce.simulate_pause_ms.map(|pause_ms| Simulation { pause_ms, until: None }),
            finish: None,
        };
        txn.dirty.insert(Key::Job(announce.job.clone()));
        self.jobs.insert(announce.job, job);
        for id in ids {
            let step = if failed { Lifecycle::Started } else { Lifecycle::Scheduled };
            self.notify(txn, step, id, None, None);
        }
        Ok(())
    }

    fn grouped(&self, announce: &Announce, status: EventStatus) -> Result<BTreeMap<ScopeId, Group>, Refusal> {
        if announce.affected.is_empty() {
            return Err(Refusal::NothingAffected(announce.job.clone()));
        }
        let phase = if status == EventStatus::Started { Phase::Paused } else { Phase::Waiting };
        let mut groups: BTreeMap<ScopeId, Group> = BTreeMap::new();
        for affected in &announce.affected {
            let vm = &affected.vm;
            let record = self.vms.get(vm).ok_or_else(|| Refusal::UnknownVm(vm.clone()))?;
            let busy = self
                .events
                .values()
                .any(|event| event.job().is_some_and(|job| *job != announce.job) && event.resources.contains_key(vm));
            if busy && status == EventStatus::Scheduled {
                return Err(Refusal::VmBusy { vm: vm.clone() });
            }
            let kind = affected.kind.unwrap_or(announce.kind);
            let new = || Group { kind, update_domain: record.update_domain, parts: BTreeMap::new() };
            let group = groups.entry(record.scope.clone()).or_insert_with(new);
            group.kind = group.kind.max(kind);
            // A failure hits whom it hits; only what is planned can be split.
            if let (ScopeId::Set(set), EventStatus::Scheduled) = (&record.scope, status)
                && group.update_domain != record.update_domain
            {
                return Err(Refusal::SeveralUpdateDomains {
                    set: set.clone(),
                    first: group.update_domain,
                    second: record.update_domain,
                });
            }
            if group.parts.insert(vm.clone(), Part { bound: affected.pause, phase }).is_some() {
                return Err(Refusal::VmBusy { vm: vm.clone() });
            }
        }
        Ok(groups)
    }

    /// `NotBefore` of a scope, on both clocks.
    fn promise(&self, txn: &Txn, scope: &ScopeId, group: &Group, asked_s: u32) -> (UnixMs, MonoMs) {
        let now = txn.now;
        let enabled = self.enabled_at(scope, now.wall);
        let minimum = group.parts.keys().filter_map(|vm| self.vms.get(vm)).map(|vm| vm.min_notice_s).max();
        let mut notice = Duration::from_secs(u64::from(match enabled {
            true => asked_s.max(minimum.unwrap_or(0)),
            false => self.config.unasked_notice_s,
        }));
        if enabled && self.has_unverified_clock(scope) {
            notice = notice.max(UNVERIFIED_FLOOR);
        }
        if notice.is_zero() {
            // Nothing is owed: the whole second that has begun, so that nobody waits for the next one.
            return (UnixMs(now.wall.0.div_euclid(1000) * 1000), now.mono);
        }
        let not_before = (now.wall + notice).ceil_second();
        (not_before, now.mono + not_before.since(now.wall))
    }

    fn has_unverified_clock(&self, scope: &ScopeId) -> bool {
        self.events.values().filter(|event| event.scope == *scope).any(|event| {
            event.resources.values().any(|part| matches!(part.phase, Phase::Paused | Phase::Resumed { .. }))
        })
    }

    pub(super) fn mirror(&mut self, txn: &mut Txn, mut event: Event) {
        event.origin = Origin::Elsewhere;
        event.deadline = txn.now.mono;
        if let Some(known) = self.events.get(&event.id) {
            if known.job().is_some() {
                // Our own event, coming back: this host is the one that knows.
                return;
            }
            // What comes late, or after the work, never leads back to Scheduled.
            if known.status == EventStatus::Started {
                event.status = EventStatus::Started;
                event.started = known.started.or(event.started);
            }
            for (vm, approval) in &known.approvals {
                event.approvals.entry(vm.clone()).or_insert_with(|| approval.clone());
            }
        }
        txn.dirty.insert(Key::Event(event.id));
        txn.touched.insert(event.scope.clone());
        self.events.insert(event.id, event);
    }

    pub(super) fn unmirror(&mut self, txn: &mut Txn, id: EventId) {
        if self.events.get(&id).is_some_and(|event| event.job().is_none()) {
            self.drop_event(txn, id);
        }
    }
}

const fn default_description(kind: EventKind, source: EventSource, failed: bool) -> &'static str {
    match (failed, source, kind) {
        (true, _, _) => "Virtual machine has encountered a failure.",
        (_, EventSource::User, EventKind::Redeploy) => {
            "Virtual machine is going to be redeployed as requested by authorized user."
        }
        (_, EventSource::User, _) => "Virtual machine is going to be restarted as requested by authorized user.",
        (_, EventSource::Platform, _) => "Host server is undergoing maintenance.",
    }
}
