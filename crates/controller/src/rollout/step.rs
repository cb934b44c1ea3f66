//! One decision at a time.

use std::collections::{BTreeMap, BTreeSet};

use fermata_model::HostName;
use jiff::{SignedDuration, Timestamp};

use super::explain::Wait;
use super::state::{End, HostPhase, Phase, Refused, StageGate, VmTrouble};
use super::{Action, Input, Rollout, View};
use crate::order::{Generation, Order, Outcome, Report, Slot, Standing, Task, Visit};

/// Why an input was not taken; nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The rollout does not have this host.
    #[error("host {0} is not in this rollout; `rollout explain` lists its hosts")]
    UnknownHost(HostName),
    /// Not in this phase.
    #[error("cannot {what} while the rollout is {phase}; {way_out}")]
    Phase {
        /// What was asked.
        what: &'static str,
        /// The phase in one word.
        phase: &'static str,
        /// What can be done instead.
        way_out: &'static str,
    },
    /// Not for a host that stands there.
    #[error("cannot {what} host {host} while it is {phase}; {way_out}")]
    HostPhase {
        /// What was asked.
        what: &'static str,
        /// The host.
        host: HostName,
        /// Where it stands.
        phase: &'static str,
        /// What can be done instead.
        way_out: &'static str,
    },
    /// The host has to wait.
    #[error("host {host} has to wait: {wait}")]
    Wait {
        /// The host.
        host: HostName,
        /// For what.
        wait: Wait,
    },
    /// Nothing new: late, doubled, or already so.
    #[error("nothing new")]
    Nothing,
}

/// A time some duration later; the end of time when there is no such time.
pub(crate) fn after(now: Timestamp, duration: std::time::Duration) -> Timestamp {
    let duration = SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
    now.saturating_add(duration).unwrap_or(Timestamp::MAX)
}

impl Rollout {
    /// Takes an input.
    ///
    /// # Errors
    /// [`Refusal`]: the rollout is as it was.
    pub fn step(&mut self, input: &Input, view: &View, now: Timestamp) -> Result<Vec<Action>, Refusal> {
        if self.ended() {
            return Err(self.phase_refusal("do anything", "start a new rollout"));
        }
        if let Some(host) = input.host()
            && !self.state.hosts.contains_key(host)
        {
            return Err(Refusal::UnknownHost(host.clone()));
        }
        let mut actions = match input {
            Input::AskPreflight(host) => self.ask_preflight(host, view, now),
            Input::Preflight { host, asked, refusal } => self.preflight(host, *asked, refusal.as_deref(), view, now),
            Input::Recall(host) => self.recall(host, view, now),
            Input::Report(report) => self.report(report, view, now),
            Input::Health { host, unhealthy } => self.health(host, unhealthy, view, now),
            Input::Rest { unhealthy, checked } => self.rest(*unhealthy, *checked),
            Input::Tick => self.tick(now),
            Input::Start
            | Input::Pause
            | Input::Resume
            | Input::Abort
            | Input::Skip(_)
            | Input::Retry(_)
            | Input::Hold(_)
            | Input::Unhold(_)
            | Input::ApproveHost(_)
            | Input::ApproveStage
            | Input::ApproveVisit { .. }
            | Input::Merge { .. }
            | Input::GiveUp(_) => self.operator(input, view, now),
        }?;
        self.settle(now, &mut actions);
        Ok(actions)
    }

    fn ask_preflight(&mut self, host: &HostName, view: &View, now: Timestamp) -> Result<Vec<Action>, Refusal> {
        self.admit(host, view, now).map_err(|wait| Refusal::Wait { host: host.clone(), wait })?;
        self.set_host(host, HostPhase::Preflight { asked: now });
        Ok(Vec::new())
    }

    fn preflight(
        &mut self,
        host: &HostName,
        asked: Timestamp,
        refusal: Option<&str>,
        view: &View,
        now: Timestamp,
    ) -> Result<Vec<Action>, Refusal> {
        if self.state.hosts[host].phase != (HostPhase::Preflight { asked }) {
            return Err(Refusal::Nothing);
        }
        // The host itself must not be in its own way: it counts as waiting while it is looked at again.
        self.set_host(host, HostPhase::Waiting);
        if let Some(reason) = refusal {
            self.refused(host, reason, now);
            return Ok(Vec::new());
        }
        match self.admit(host, view, now) {
            Ok(()) => Ok(self.order(host, view, now)),
            // Somebody was faster, or a window closed. The host waits again; that is no failure.
            Err(_) => Ok(Vec::new()),
        }
    }

    fn refused(&mut self, host: &HostName, reason: &str, now: Timestamp) {
        let again_at = after(now, self.definition.rules.preflight_retry);
        self.host_mut(host).refused = Some(Refused { reason: reason.to_owned(), again_at });
    }

    /// Takes the locks and orders the visit: one transaction, all or nothing.
    fn order(&mut self, host: &HostName, view: &View, now: Timestamp) -> Vec<Action> {
        let definition = std::sync::Arc::clone(&self.definition);
        let task = &definition.hosts[host];
        let generation = view.slot.generation.next();
        let mut actions = Vec::new();
        for (set, member) in &task.sets {
            let mut lock = view.locks.get(set).cloned().unwrap_or_default();
            let claim = self.claim(host, member, generation);
            lock.enter(&claim, now).expect("admission has just checked every lock of this view");
            actions.push(Action::Lock { set: set.clone(), lock });
        }
        let state = self.host_mut(host);
        state.refused = None;
        let updates = definition.updates.iter().chain(&state.merged).cloned().collect();
        let visit = Visit {
            updates,
            not_before: after(now, definition.rules.notice),
            notice: definition.rules.notice,
            scopes: task.scopes(),
            approved: BTreeSet::new(),
            approvers: BTreeMap::new(),
        };
        let order =
            Order { host: host.clone(), generation, rollout: definition.id.clone(), task: Task::Maintain(visit) };
        let slot = Slot { generation, open: Some(definition.id.clone()), order: Some(order) };
        actions.push(Action::Slot { host: host.clone(), slot });
        self.set_host(host, HostPhase::Ordered { generation, since: now });
        actions
    }

    fn recall(&mut self, host: &HostName, view: &View, now: Timestamp) -> Result<Vec<Action>, Refusal> {
        let state = &self.state.hosts[host];
        let (HostPhase::Ordered { generation: of, .. } | HostPhase::Announced { generation: of, .. }) = state.phase
        else {
            return Err(Refusal::Nothing);
        };
        if self.state.phase == Phase::Running && !state.held && !state.skip {
            return Err(Refusal::Nothing);
        }
        let generation = view.slot.generation.next();
        let mut actions = self.relock(host, view, |lock| {
            lock.renew(host, of, generation);
            true
        });
        let order =
            Order { host: host.clone(), generation, rollout: self.definition.id.clone(), task: Task::StandDown };
        let slot = Slot { generation, open: view.slot.open.clone(), order: Some(order) };
        actions.push(Action::Slot { host: host.clone(), slot });
        self.set_host(host, HostPhase::StandingDown { generation, of, since: now });
        Ok(actions)
    }

    fn report(&mut self, report: &Report, view: &View, now: Timestamp) -> Result<Vec<Action>, Refusal> {
        let host = &report.host;
        let phase = self.state.hosts[host].phase.clone();
        let ended_as = |of: Generation| match (&report.standing, &report.last) {
            (Standing::Finished(outcome), _) if report.generation == of => Some(outcome.clone()),
            (_, Some((generation, outcome))) if *generation == of => Some(outcome.clone()),
            _ => None,
        };
        match phase {
            HostPhase::Ordered { generation, since }
            | HostPhase::Announced { generation, since, .. }
            | HostPhase::InWork { generation, since } => {
                if let Some(outcome) = ended_as(generation) {
                    return Ok(self.ended_visit(host, generation, outcome, view, now));
                }
                if report.generation != generation {
                    return Err(Refusal::Nothing);
                }
                let next = match report.standing {
                    Standing::Announced { not_before } => HostPhase::Announced { generation, since, not_before },
                    Standing::InWork => HostPhase::InWork { generation, since: now },
                    Standing::Idle | Standing::Finished(_) | Standing::StoodDown => return Err(Refusal::Nothing),
                };
                // Reports may arrive in the wrong order; a host never goes back.
                let rank = |phase: &HostPhase| match phase {
                    HostPhase::Ordered { .. } => 0,
                    HostPhase::Announced { .. } => 1,
                    _ => 2,
                };
                if rank(&next) <= rank(&phase) {
                    return Err(Refusal::Nothing);
                }
                self.set_host(host, next);
                Ok(Vec::new())
            }
            HostPhase::StandingDown { generation, of, .. } => {
                if report.generation < generation || report.standing != Standing::StoodDown {
                    return Err(Refusal::Nothing);
                }
                if let Some(outcome) = ended_as(of) {
                    // The work had begun when the stand-down arrived.
                    return Ok(self.ended_visit(host, generation, outcome, view, now));
                }
                let actions = self.release(host, generation, view, None);
                let skip = std::mem::take(&mut self.host_mut(host).skip);
                self.set_host(host, if skip { HostPhase::Skipped { at: now } } else { HostPhase::Waiting });
                Ok(actions)
            }
            _ => Err(Refusal::Nothing),
        }
    }

    /// A visit is over for good.
    fn ended_visit(
        &mut self,
        host: &HostName,
        generation: Generation,
        outcome: Outcome,
        view: &View,
        now: Timestamp,
    ) -> Vec<Action> {
        match &outcome {
            Outcome::Refused(reason) => {
                let actions = self.release(host, generation, view, None);
                self.set_host(host, HostPhase::Waiting);
                self.refused(host, reason, now);
                return actions;
            }
            Outcome::Undone(reason) | Outcome::Lost(reason) => {
                self.state.failures.insert(host.clone(), reason.clone());
            }
            Outcome::Updated => drop(self.state.failures.remove(host)),
        }
        self.set_host(host, HostPhase::Checking { generation, since: now, outcome });
        Vec::new()
    }

    fn health(
        &mut self,
        host: &HostName,
        unhealthy: &[VmTrouble],
        view: &View,
        now: Timestamp,
    ) -> Result<Vec<Action>, Refusal> {
        let phase = self.state.hosts[host].phase.clone();
        if !matches!(phase, HostPhase::Checking { .. } | HostPhase::Soaking { .. }) {
            return Err(Refusal::Nothing);
        }
        let before = std::mem::replace(&mut self.host_mut(host).unhealthy, unhealthy.to_vec());
        let HostPhase::Checking { generation, outcome, .. } = phase else {
            return if before == unhealthy { Err(Refusal::Nothing) } else { Ok(Vec::new()) };
        };
        if !unhealthy.is_empty() {
            return if before == unhealthy { Err(Refusal::Nothing) } else { Ok(Vec::new()) };
        }
        let actions = self.release(host, generation, view, Some(now));
        let next = match outcome {
            Outcome::Updated if self.definition.rules.host_soak.is_zero() => HostPhase::Done { at: now },
            Outcome::Updated => HostPhase::Soaking { until: after(now, self.definition.rules.host_soak) },
            Outcome::Undone(reason) | Outcome::Lost(reason) | Outcome::Refused(reason) => {
                HostPhase::Failed { at: now, reason }
            }
        };
        self.set_host(host, next);
        Ok(actions)
    }

    /// Gives the locks and the slot back. `touched` is when the VMs were healthy again.
    pub(super) fn release(
        &mut self,
        host: &HostName,
        generation: Generation,
        view: &View,
        touched: Option<Timestamp>,
    ) -> Vec<Action> {
        let definition = std::sync::Arc::clone(&self.definition);
        let mut actions = Vec::new();
        for (set, member) in &definition.hosts[host].sets {
            let mut lock = view.locks.get(set).cloned().unwrap_or_default();
            if lock.leave(host, generation, touched.map(|at| after(at, member.recovery))) {
                actions.push(Action::Lock { set: set.clone(), lock });
            }
        }
        if view.slot.open.as_ref() == Some(&definition.id) {
            let slot = Slot { open: None, ..view.slot.clone() };
            actions.push(Action::Slot { host: host.clone(), slot });
        }
        actions
    }

    fn relock(
        &self,
        host: &HostName,
        view: &View,
        mut change: impl FnMut(&mut crate::lock::SetLock) -> bool,
    ) -> Vec<Action> {
        let sets = self.definition.hosts[host].sets.keys();
        sets.filter_map(|set| {
            let mut lock = view.locks.get(set).cloned().unwrap_or_default();
            change(&mut lock).then(|| Action::Lock { set: set.clone(), lock })
        })
        .collect()
    }

    fn tick(&mut self, now: Timestamp) -> Result<Vec<Action>, Refusal> {
        let rules = self.definition.rules.clone();
        let mut changed = false;
        for host in self.state.in_flight.clone() {
            let state = &self.state.hosts[&host];
            match &state.phase {
                HostPhase::Preflight { asked } if now >= after(*asked, rules.preflight_limit) => {
                    self.set_host(&host, HostPhase::Waiting);
                    self.refused(&host, "the agent did not answer; see that it runs and can reach the controller", now);
                    changed = true;
                }
                HostPhase::Soaking { until } if now >= *until && state.unhealthy.is_empty() => {
                    self.set_host(&host, HostPhase::Done { at: now });
                    changed = true;
                }
                HostPhase::Ordered { since, .. }
                | HostPhase::Announced { not_before: since, .. }
                | HostPhase::InWork { since, .. }
                | HostPhase::StandingDown { since, .. }
                    if now >= after(*since, rules.stop_after) && !self.state.failures.contains_key(&host) =>
                {
                    let text = format!("{} since {since}; the host does not come back", state.phase.word());
                    self.state.failures.insert(host.clone(), text);
                    changed = true;
                }
                _ => {}
            }
        }
        let before = (self.state.stage, self.state.gate.clone(), self.state.phase.clone());
        let mut actions = Vec::new();
        self.settle(now, &mut actions);
        changed |= before != (self.state.stage, self.state.gate.clone(), self.state.phase.clone());
        if changed { Ok(actions) } else { Err(Refusal::Nothing) }
    }

    /// What follows by itself from any step: budget, stages, the end.
    fn settle(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        self.check_budget(now, actions);
        if matches!(self.state.phase, Phase::Running | Phase::Paused) {
            self.settle_stage(now);
        }
        match &self.state.phase {
            Phase::Running | Phase::Paused if self.state.stage >= self.definition.stages.len() => {
                self.state.phase = Phase::Ended(End::Completed);
            }
            Phase::Stopping(end) if self.state.in_flight.is_empty() => self.state.phase = Phase::Ended(end.clone()),
            _ => {}
        }
    }

    fn settle_stage(&mut self, now: Timestamp) {
        while let Some(rule) = self.definition.stages.get(self.state.stage) {
            if self.state.open[self.state.stage] > 0 {
                self.state.gate = StageGate::Working;
                return;
            }
            let empty = self.state.stage + 1 == self.definition.stages.len();
            match &self.state.gate {
                StageGate::Working if !rule.soak.is_zero() => {
                    self.state.gate = StageGate::Soaking { until: after(now, rule.soak) };
                    return;
                }
                StageGate::Soaking { until } if now < *until => return,
                // Nothing comes after the last stage that could be approved.
                StageGate::Working | StageGate::Soaking { .. } if rule.approval && !empty => {
                    self.state.gate = StageGate::Approval;
                    return;
                }
                StageGate::Approval => return,
                StageGate::Working | StageGate::Soaking { .. } => self.next_stage(),
            }
        }
    }

    pub(super) fn next_stage(&mut self) {
        self.state.stage += 1;
        self.state.gate = StageGate::Working;
    }

    pub(super) fn host_mut(&mut self, host: &HostName) -> &mut super::HostState {
        self.state.hosts.get_mut(host).expect("step has looked the host up")
    }

    pub(super) fn set_host(&mut self, host: &HostName, phase: HostPhase) {
        let stage = self.definition.hosts[host].stage;
        let was_at_end = self.host_mut(host).phase.at_end();
        match (was_at_end, phase.at_end()) {
            (false, true) => self.state.open[stage] -= 1,
            (true, false) => self.state.open[stage] += 1,
            _ => {}
        }
        if phase.at_end() || phase == HostPhase::Waiting {
            self.state.in_flight.remove(host);
        } else {
            self.state.in_flight.insert(host.clone());
        }
        self.host_mut(host).phase = phase;
    }

    pub(super) const fn phase_refusal(&self, what: &'static str, way_out: &'static str) -> Refusal {
        Refusal::Phase { what, phase: self.phase_word(), way_out }
    }

    /// The rollout's phase in one word.
    #[must_use]
    pub const fn phase_word(&self) -> &'static str {
        match &self.state.phase {
            Phase::Planned => "planned",
            Phase::Running => "running",
            Phase::Paused => "paused",
            Phase::Stopping(End::Aborted) => "aborting",
            Phase::Stopping(_) => "failing",
            Phase::Ended(End::Completed) => "completed",
            Phase::Ended(End::Aborted) => "aborted",
            Phase::Ended(End::Failed(_)) => "failed",
        }
    }
}
