//! What may start, and what the passing of time brings.

use std::time::Duration;

use super::durable::Key;
use super::{State, TERMINAL_FOR, Txn};
use crate::event::{Event, EventId, EventStatus, JobId, JobStage};
use crate::history::Outcome;
use crate::input::{Action, GateWait};
use crate::scope::ScopeId;
use crate::time::{MonoMs, Now};

/// The longest a shell sleeps, so that a stepped wall clock is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

impl State {
    /// What the gate of one event waits for; empty when it is open.
    pub(super) fn waits_of(&self, event: &Event, now: Now) -> Vec<GateWait> {
        let mut waits = Vec::new();
        if event.status == EventStatus::Started {
            return waits;
        }
        // Both clocks must agree: a wall clock that jumps forward must not shorten a notice.
        let over = now.wall >= event.not_before && now.mono >= event.deadline;
        if !over && !event.approved() {
            waits.push(GateWait::Notice { scope: event.scope.clone(), not_before: event.not_before });
        }
        if let Some(until) = event.held_until(now.wall) {
            waits.push(GateWait::Deferral { scope: event.scope.clone(), until });
        }
        if let Some(other) = self.other_domain(event) {
            waits.push(GateWait::OtherDomain { scope: event.scope.clone(), other: other.update_domain });
        }
        waits
    }

    /// A Started event of another update domain of the same set (rule 39).
    fn other_domain(&self, event: &Event) -> Option<&Event> {
        if !matches!(event.scope, ScopeId::Set(_)) {
            return None;
        }
        self.events.values().find(|other| {
            other.scope == event.scope
                && other.status == EventStatus::Started
                && other.update_domain != event.update_domain
                && (other.job().is_none() || other.job() != event.job())
        })
    }

    /// What the gate of a job waits for: the waits of all its events (rule 40).
    #[must_use]
    pub fn gate(&self, job: &JobId, now: Now) -> Vec<GateWait> {
        let events = self.jobs.get(job).map_or(&[] as &[EventId], |job| &job.events);
        events.iter().filter_map(|id| self.events.get(id)).flat_map(|event| self.waits_of(event, now)).collect()
    }

    /// Moves everything that is due: gates, leads, simulations, endings.
    pub(super) fn advance(&mut self, txn: &mut Txn) {
        let jobs: Vec<JobId> = self.jobs.keys().cloned().collect();
        for id in jobs {
            self.end_if_allowed(txn, &id);
            self.advance_gate(txn, &id);
            self.advance_lead(txn, &id);
            self.advance_simulation(txn, &id);
        }
    }

    fn advance_gate(&mut self, txn: &mut Txn, id: &JobId) {
        let open = self.gate(id, txn.now).is_empty();
        let Some(job) = self.jobs.get_mut(id) else { return };
        let JobStage::Waiting { told } = &mut job.stage else { return };
        if !open || *told {
            return;
        }
        *told = true;
        let simulated = job.simulation.is_some();
        txn.actions.push(Action::GateOpened { job: id.clone() });
        if simulated {
            self.publish_started(txn, id);
        }
    }

    fn advance_lead(&mut self, txn: &mut Txn, id: &JobId) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let JobStage::Started { pause_from, told } = &mut job.stage else { return };
        if *told || txn.now.mono < *pause_from || job.finish.is_some() {
            return;
        }
        *told = true;
        let simulated = job.simulation.is_some();
        txn.actions.push(Action::MayPause { job: id.clone() });
        if simulated {
            self.pause_all(txn, id);
        }
    }

    fn advance_simulation(&mut self, txn: &mut Txn, id: &JobId) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        let (Some(simulation), JobStage::Paused) = (&mut job.simulation, job.stage) else { return };
        let pause_ms = simulation.pause_ms;
        let until = *simulation.until.get_or_insert(txn.now.mono + Duration::from_millis(pause_ms));
        if txn.now.mono < until {
            return;
        }
        self.resume_all(txn, id, pause_ms);
        if let Some(job) = self.jobs.get_mut(id) {
            job.finish.get_or_insert(Outcome::Done);
        }
        self.end_if_allowed(txn, id);
    }

    /// What only time brings: enablement and finished ids run out.
    pub(super) fn expire(&mut self, txn: &mut Txn) {
        let wall = txn.now.wall;
        let silent: Vec<ScopeId> = self.enabled.iter().filter(|s| !self.enabled_at(s, wall)).cloned().collect();
        for scope in silent {
            self.enabled.remove(&scope);
            txn.actions.push(Action::Disabled { scope });
        }
        let old: Vec<EventId> =
            self.over.iter().filter(|(_, over)| wall.since(over.at) > TERMINAL_FOR).map(|(id, _)| *id).collect();
        for id in old {
            self.over.remove(&id);
            txn.dirty.insert(Key::Over(id));
        }
    }

    /// How long the shell may sleep before the next [`crate::Input::Tick`].
    #[must_use]
    pub fn sleep(&self, now: Now) -> Duration {
        let mono = |at: MonoMs| Duration::from_millis(at.0.saturating_sub(now.mono.0));
        let mut sleep = LONGEST_SLEEP;
        for job in self.jobs.values() {
            let due = match job.stage {
                JobStage::Waiting { told: true } | JobStage::Started { told: true, .. } => None,
                JobStage::Waiting { told: false } => job
                    .events
                    .iter()
                    .filter_map(|id| self.events.get(id))
                    .flat_map(|event| {
                        let held = event.held_until(now.wall).map(|until| until.since(now.wall));
                        let notice = mono(event.deadline).max(event.not_before.since(now.wall));
                        held.into_iter().chain((!event.approved()).then_some(notice))
                    })
                    .filter(|left| !left.is_zero())
                    .min(),
                JobStage::Started { pause_from, told: false } => Some(mono(pause_from)),
                JobStage::Paused => job.simulation.and_then(|simulation| simulation.until).map(mono),
            };
            sleep = sleep.min(due.unwrap_or(LONGEST_SLEEP));
        }
        sleep
    }
}
