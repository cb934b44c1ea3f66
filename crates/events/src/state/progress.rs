//! From Started to the end.

use std::time::Duration;

use fermata_model::VmName;

use super::durable::Key;
use super::{HISTORY_IN_ALL, HISTORY_PER_SCOPE, Over, State, Txn};
use crate::event::{EventId, EventStatus, Job, JobId, JobStage, Part, PauseBound, Phase};
use crate::history::{Outcome, Record};
use crate::input::{Action, Lifecycle, Refusal};

impl State {
    fn open_job(&self, id: &JobId) -> Result<&Job, Refusal> {
        self.jobs.get(id).ok_or_else(|| Refusal::UnknownJob(id.clone()))
    }

    pub(super) fn start(&mut self, txn: &mut Txn, id: &JobId) -> Result<(), Refusal> {
        let job = self.open_job(id)?;
        if !matches!(job.stage, JobStage::Waiting { .. }) {
            return Ok(());
        }
        match self.gate(id, txn.now).into_iter().next() {
            Some(why) => Err(Refusal::GateShut { job: id.clone(), why }),
            None => {
                self.publish_started(txn, id);
                Ok(())
            }
        }
    }

    pub(super) fn publish_started(&mut self, txn: &mut Txn, id: &JobId) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        job.stage = JobStage::Started { pause_from: txn.now.mono + Duration::from_millis(job.lead_ms), told: false };
        txn.dirty.insert(Key::Job(id.clone()));
        for event_id in job.events.clone() {
            if let Some(event) = self.events.get_mut(&event_id) {
                event.status = EventStatus::Started;
                event.started = Some(txn.now.wall);
                txn.dirty.insert(Key::Event(event_id));
                txn.touched.insert(event.scope.clone());
            }
            self.notify(txn, Lifecycle::Started, event_id, None, None);
        }
    }

    pub(super) fn pausing(&mut self, txn: &mut Txn, id: &JobId, vms: &[VmName]) -> Result<(), Refusal> {
        let job = self.open_job(id)?;
        match job.stage {
            JobStage::Waiting { .. } => {
                let (is, instead) = ("has not started", "start it and wait for the lead");
                return Err(Refusal::WrongStage { job: id.clone(), is, instead });
            }
            JobStage::Started { pause_from, .. } if txn.now.mono < pause_from => {
                let left = Duration::from_millis(pause_from.0 - txn.now.mono.0);
                return Err(Refusal::LeadNotOver { job: id.clone(), left });
            }
            JobStage::Started { .. } | JobStage::Paused => {}
        }
        for vm in vms {
            match self.part(id, vm)?.phase {
                Phase::Waiting | Phase::Paused => {}
                Phase::Resumed { .. } | Phase::Verified { .. } | Phase::RunsAgain { .. } | Phase::Gone => {
                    return Err(self.wrong(id, vm, "waiting for its pause"));
                }
            }
        }
        if vms.is_empty() {
            self.pause_all(txn, id);
        } else {
            self.pause(txn, id, vms.to_vec());
        }
        Ok(())
    }

    fn vms_of(&self, id: &JobId, wanted: impl Fn(Phase) -> bool) -> Vec<VmName> {
        let events = self.jobs.get(id).map_or(&[] as &[EventId], |job| &job.events);
        let parts = events.iter().filter_map(|event| self.events.get(event)).flat_map(|event| &event.resources);
        parts.filter(|(_, part)| wanted(part.phase)).map(|(vm, _)| vm.clone()).collect()
    }

    pub(super) fn pause_all(&mut self, txn: &mut Txn, id: &JobId) {
        let vms = self.vms_of(id, |phase| phase == Phase::Waiting);
        self.pause(txn, id, vms);
    }

    fn pause(&mut self, txn: &mut Txn, id: &JobId, vms: Vec<VmName>) {
        for vm in &vms {
            self.set_phase(txn, id, vm, Phase::Paused);
        }
        if let Some(job) = self.jobs.get_mut(id) {
            job.stage = JobStage::Paused;
            txn.dirty.insert(Key::Job(id.clone()));
        }
        txn.actions.push(Action::WakeWaiters { vms });
    }

    pub(super) fn resume_all(&mut self, txn: &mut Txn, id: &JobId, paused_ms: u64) {
        for vm in self.vms_of(id, |phase| phase == Phase::Paused) {
            self.set_phase(txn, id, &vm, Phase::Verified { paused_ms, clock_step_ms: 0 });
        }
    }

    fn part(&self, id: &JobId, vm: &VmName) -> Result<&Part, Refusal> {
        let job = self.open_job(id)?;
        let mut events = job.events.iter().filter_map(|event| self.events.get(event));
        events.find_map(|event| event.resources.get(vm)).ok_or_else(|| self.wrong(id, vm, "part of it"))
    }

    fn wrong(&self, id: &JobId, vm: &VmName, wanted: &'static str) -> Refusal {
        Refusal::WrongPhase { job: id.clone(), vm: vm.clone(), wanted }
    }

    fn set_phase(&mut self, txn: &mut Txn, id: &JobId, vm: &VmName, phase: Phase) -> Option<EventId> {
        let events = self.jobs.get(id)?.events.clone();
        let event = events
            .into_iter()
            .find(|event| self.events.get(event).is_some_and(|event| event.resources.contains_key(vm)))?;
        self.events.get_mut(&event)?.resources.get_mut(vm)?.phase = phase;
        txn.dirty.insert(Key::Event(event));
        Some(event)
    }

    pub(super) fn resumed(&mut self, txn: &mut Txn, id: &JobId, vm: &VmName, paused_ms: u64) -> Result<(), Refusal> {
        let part = self.part(id, vm)?;
        let bound = part.bound;
        match part.phase {
            Phase::Paused => {}
            Phase::Resumed { .. } | Phase::Verified { .. } | Phase::RunsAgain { .. } | Phase::Gone => return Ok(()),
            Phase::Waiting => return Err(self.wrong(id, vm, "paused")),
        }
        let event = self.set_phase(txn, id, vm, Phase::Resumed { paused_ms });
        let promised = match bound {
            PauseBound::None => 0,
            PauseBound::AtMostMs(ms) => ms,
            PauseBound::Unknown => u64::MAX,
        };
        if let Some(event) = event
            && paused_ms > promised
        {
            self.notify(txn, Lifecycle::Overrun, event, Some(vm), None);
        }
        Ok(())
    }

    pub(super) fn verified(&mut self, txn: &mut Txn, id: &JobId, vm: &VmName, step: i64) -> Result<(), Refusal> {
        match self.part(id, vm)?.phase {
            Phase::Resumed { paused_ms } => {
                self.set_phase(txn, id, vm, Phase::Verified { paused_ms, clock_step_ms: step });
                Ok(())
            }
            Phase::Verified { .. } | Phase::RunsAgain { .. } | Phase::Gone => Ok(()),
            Phase::Waiting | Phase::Paused => Err(self.wrong(id, vm, "executing again")),
        }
    }

    pub(super) fn runs_again(
        &mut self,
        txn: &mut Txn,
        id: &JobId,
        vm: &VmName,
        paused_ms: Option<u64>,
    ) -> Result<(), Refusal> {
        let known = match self.part(id, vm)?.phase {
            Phase::Paused => None,
            Phase::Resumed { paused_ms } => Some(paused_ms),
            Phase::Waiting | Phase::Verified { .. } | Phase::RunsAgain { .. } | Phase::Gone => return Ok(()),
        };
        self.set_phase(txn, id, vm, Phase::RunsAgain { paused_ms: known.or(paused_ms) });
        Ok(())
    }

    pub(super) fn cancel(&mut self, txn: &mut Txn, id: &JobId) -> Result<(), Refusal> {
        let job = self.open_job(id)?;
        if !matches!(job.stage, JobStage::Waiting { .. }) {
            let (is, instead) = ("has started", "finish it");
            return Err(Refusal::WrongStage { job: id.clone(), is, instead });
        }
        self.end(txn, id, Outcome::Cancelled);
        Ok(())
    }

    pub(super) fn finish(&mut self, txn: &mut Txn, id: &JobId, outcome: Outcome) -> Result<(), Refusal> {
        let stage = self.open_job(id)?.stage;
        if matches!(stage, JobStage::Waiting { .. }) {
            let (is, instead) = ("has not started", "cancel it");
            return Err(Refusal::WrongStage { job: id.clone(), is, instead });
        }
        if let Some(job) = self.jobs.get_mut(id) {
            job.finish = Some(outcome);
            txn.dirty.insert(Key::Job(id.clone()));
        }
        Ok(())
    }

    /// Removes the events of a job that is to end, once no VM of it is paused or has an unverified clock. The removal is
    /// the guests' signal to recover, so it must not come earlier.
    pub(super) fn end_if_allowed(&mut self, txn: &mut Txn, id: &JobId) {
        let Some(outcome) = self.jobs.get(id).and_then(|job| job.finish) else { return };
        if self.vms_of(id, |phase| !phase.may_end()).is_empty() {
            self.end(txn, id, outcome);
        }
    }

    fn end(&mut self, txn: &mut Txn, id: &JobId, outcome: Outcome) {
        let Some(job) = self.jobs.get(id) else { return };
        let simulated = job.simulation.is_some();
        for event_id in job.events.clone() {
            self.notify(txn, Lifecycle::Removed, event_id, None, Some(outcome));
            if let Some(event) = self.events.get(&event_id) {
                let record = Record::of(event, outcome, simulated, txn.now.wall);
                self.remember(txn, record);
            }
            self.drop_event(txn, event_id);
        }
        self.jobs.remove(id);
        txn.dirty.insert(Key::Job(id.clone()));
        txn.actions.push(Action::JobOver { job: id.clone(), outcome });
    }

    pub(super) fn drop_event(&mut self, txn: &mut Txn, id: EventId) {
        let Some(event) = self.events.remove(&id) else { return };
        txn.dirty.insert(Key::Event(id));
        txn.dirty.insert(Key::Over(id));
        txn.touched.insert(event.scope.clone());
        self.over.insert(id, Over { scope: event.scope, at: txn.now.wall });
    }

    fn remember(&mut self, txn: &mut Txn, record: Record) {
        let scope = record.scope.clone();
        txn.dirty.insert(Key::History(self.next_record));
        self.history.push_back((self.next_record, record));
        self.next_record += 1;
        let mut forget = |key: u64| txn.dirty.insert(Key::History(key));
        if self.history.iter().filter(|(_, r)| r.scope == scope).count() > HISTORY_PER_SCOPE
            && let Some(index) = self.history.iter().position(|(_, r)| r.scope == scope)
            && let Some((key, _)) = self.history.remove(index)
        {
            forget(key);
        }
        while self.history.len() > HISTORY_IN_ALL {
            if let Some((key, _)) = self.history.pop_front() {
                forget(key);
            }
        }
    }
}
