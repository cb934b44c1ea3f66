//! What operators, and guests through their agents, tell a rollout.

use std::collections::{BTreeMap, BTreeSet};

use fermata_model::{HostName, SetName, VmName};
use jiff::Timestamp;

use super::state::{End, HostPhase, Phase, StageGate};
use super::{Action, Input, Refusal, Rollout, View};
use crate::order::{Scope, Slot, Task};

impl Rollout {
    pub(super) fn operator(&mut self, input: &Input, view: &View, now: Timestamp) -> Result<Vec<Action>, Refusal> {
        match input {
            Input::Start => match self.state.phase {
                Phase::Planned => self.set_phase(Phase::Running),
                _ => return Err(self.phase_refusal("start", "it has been started; use resume if it is paused")),
            },
            Input::Pause => match self.state.phase {
                Phase::Running => self.set_phase(Phase::Paused),
                Phase::Paused => return Err(Refusal::Nothing),
                _ => return Err(self.phase_refusal("pause", "only a running rollout can be paused")),
            },
            Input::Resume => match self.state.phase {
                Phase::Paused => self.set_phase(Phase::Running),
                Phase::Running => return Err(Refusal::Nothing),
                _ => return Err(self.phase_refusal("resume", "only a paused rollout can be resumed")),
            },
            Input::Abort => match self.state.phase {
                Phase::Planned | Phase::Running | Phase::Paused => self.set_phase(Phase::Stopping(End::Aborted)),
                _ => return Err(self.phase_refusal("abort", "it stops already")),
            },
            Input::ApproveStage => {
                if self.state.gate != StageGate::Approval {
                    return Err(self.phase_refusal("approve the stage", "its hosts are not through yet"));
                }
                self.next_stage();
            }
            Input::Skip(host) => self.skip(host, now)?,
            Input::Retry(host) => self.retry(host)?,
            Input::Hold(host) => {
                self.change(host, |state| &mut state.held, true)?;
                if matches!(self.state.hosts[host].phase, HostPhase::Preflight { .. }) {
                    self.set_host(host, HostPhase::Waiting);
                }
            }
            Input::Unhold(host) => self.change(host, |state| &mut state.held, false)?,
            Input::ApproveHost(host) => self.change(host, |state| &mut state.approved, true)?,
            Input::ApproveVisit { host, scopes, by } => return self.approve_visit(host, scopes, by, view),
            Input::Merge { updates, hosts } => return self.merge(updates, hosts),
            Input::GiveUp(host) => return self.give_up(host, view, now),
            _ => return Err(Refusal::Nothing),
        }
        Ok(Vec::new())
    }

    /// Sets the rollout's phase; what was only asked and not ordered is forgotten unless it runs.
    pub(super) fn set_phase(&mut self, phase: Phase) {
        self.state.phase = phase;
        if self.state.phase == Phase::Running {
            return;
        }
        for host in self.state.in_flight.clone() {
            if matches!(self.state.hosts[&host].phase, HostPhase::Preflight { .. }) {
                self.set_host(&host, HostPhase::Waiting);
            }
        }
    }

    fn change(
        &mut self,
        host: &HostName,
        field: impl FnOnce(&mut super::HostState) -> &mut bool,
        value: bool,
    ) -> Result<(), Refusal> {
        let field = field(self.host_mut(host));
        if std::mem::replace(field, value) == value { Err(Refusal::Nothing) } else { Ok(()) }
    }

    fn host_refusal(&self, what: &'static str, host: &HostName, way_out: &'static str) -> Refusal {
        Refusal::HostPhase { what, host: host.clone(), phase: self.state.hosts[host].phase.word(), way_out }
    }

    fn skip(&mut self, host: &HostName, now: Timestamp) -> Result<(), Refusal> {
        match self.state.hosts[host].phase {
            HostPhase::Waiting | HostPhase::Preflight { .. } => self.set_host(host, HostPhase::Skipped { at: now }),
            HostPhase::Ordered { .. } | HostPhase::Announced { .. } => {
                self.change(host, |state| &mut state.skip, true)?;
            }
            HostPhase::Skipped { .. } => return Err(Refusal::Nothing),
            _ => return Err(self.host_refusal("skip", host, "what has begun is brought to an end first")),
        }
        Ok(())
    }

    fn retry(&mut self, host: &HostName) -> Result<(), Refusal> {
        if !matches!(self.state.phase, Phase::Planned | Phase::Running | Phase::Paused) {
            return Err(self.phase_refusal("retry a host", "start a new rollout for what is left"));
        }
        match self.state.hosts[host].phase {
            HostPhase::Failed { .. } | HostPhase::Skipped { .. } => {}
            HostPhase::Waiting => {
                let refused = self.host_mut(host).refused.take();
                return refused.map(drop).ok_or(Refusal::Nothing);
            }
            _ => return Err(self.host_refusal("retry", host, "only a failed, skipped or waiting host can be retried")),
        }
        self.state.failures.remove(host);
        self.set_host(host, HostPhase::Waiting);
        let state = self.host_mut(host);
        (state.refused, state.skip) = (None, false);
        // A host of an earlier stage comes first again.
        let stage = self.definition.hosts[host].stage;
        if stage < self.state.stage {
            (self.state.stage, self.state.gate) = (stage, StageGate::Working);
        }
        Ok(())
    }

    fn approve_visit(
        &self,
        host: &HostName,
        scopes: &BTreeSet<Scope>,
        by: &BTreeMap<VmName, SetName>,
        view: &View,
    ) -> Result<Vec<Action>, Refusal> {
        let phase = &self.state.hosts[host].phase;
        let (HostPhase::Ordered { generation, .. } | HostPhase::Announced { generation, .. }) = phase else {
            return Err(self.host_refusal("approve the visit of", host, "only an announced visit can be approved"));
        };
        let mut slot: Slot = view.slot.clone();
        let Some(order) = slot.order.as_mut().filter(|order| order.generation == *generation) else {
            return Err(Refusal::Nothing);
        };
        let Task::Maintain(visit) = &mut order.task else { return Err(Refusal::Nothing) };
        let before = (visit.approved.len(), visit.approvers.len());
        visit.approved.extend(scopes.intersection(&visit.scopes).cloned());
        let asked = by.iter().filter(|(_, set)| visit.scopes.contains(&Scope::Set((*set).clone())));
        visit.approvers.extend(asked.map(|(vm, set)| (vm.clone(), set.clone())));
        if (visit.approved.len(), visit.approvers.len()) == before {
            return Err(Refusal::Nothing);
        }
        Ok(vec![Action::Slot { host: host.clone(), slot }])
    }

    fn merge(
        &mut self,
        updates: &[crate::order::UpdateRef],
        hosts: &std::collections::BTreeSet<HostName>,
    ) -> Result<Vec<Action>, Refusal> {
        if !matches!(self.state.phase, Phase::Planned | Phase::Running | Phase::Paused) {
            return Err(self.phase_refusal("merge an update", "start a rollout of its own"));
        }
        if let Some(unknown) = hosts.iter().find(|host| !self.state.hosts.contains_key(*host)) {
            return Err(Refusal::UnknownHost(unknown.clone()));
        }
        let begun = |host: &&HostName| {
            !matches!(self.state.hosts[*host].phase, HostPhase::Waiting | HostPhase::Preflight { .. })
        };
        if let Some(host) = hosts.iter().find(begun) {
            return Err(self.host_refusal(
                "merge an update into the visit of",
                host,
                "leave the host out of the merge",
            ));
        }
        let known = self.definition.updates.clone();
        for host in hosts {
            let merged = &mut self.host_mut(host).merged;
            for update in updates {
                if !known.contains(update) && !merged.contains(update) {
                    merged.push(update.clone());
                }
            }
        }
        Ok(Vec::new())
    }

    fn give_up(&mut self, host: &HostName, view: &View, now: Timestamp) -> Result<Vec<Action>, Refusal> {
        let Some(generation) = self.state.hosts[host].phase.generation() else {
            return Err(self.host_refusal("give up", host, "it holds no lock; skip it instead"));
        };
        let actions = self.release(host, generation, view, Some(now));
        let reason = "given up by an administrator; nobody knows what became of its VMs".to_owned();
        self.state.failures.insert(host.clone(), reason.clone());
        self.set_host(host, HostPhase::Failed { at: now, reason });
        Ok(actions)
    }
}
