//! May a host be begun now? If not: what is in the way, and until when at least.

use fermata_model::HostName;
use jiff::Timestamp;

use super::definition::Member;
use super::explain::Wait;
use super::state::{HostPhase, Phase, StageGate};
use super::step::after;
use super::{Rollout, View};
use crate::lock::{Blocked, Claim};
use crate::order::Generation;

impl Rollout {
    pub(super) fn claim<'a>(&'a self, host: &'a HostName, member: &'a Member, generation: Generation) -> Claim<'a> {
        Claim { rollout: &self.definition.id, host, part: &member.part, generation, vms: member.vms }
    }

    /// Whether a waiting host may be begun at `now`.
    pub(super) fn admit(&self, host: &HostName, view: &View, now: Timestamp) -> Result<(), Wait> {
        self.admit_by_rollout(host, now)?;
        self.admit_by_host(host, view, now)?;
        self.admit_by_limits(host)?;
        self.admit_by_sets(host, view, now)
    }

    /// Everything that can be said without looking into the store.
    pub(super) fn admit_by_rollout(&self, host: &HostName, now: Timestamp) -> Result<(), Wait> {
        let state = &self.state.hosts[host];
        if state.phase != HostPhase::Waiting {
            return Err(Wait::NotWaiting { phase: state.phase.word().to_owned() });
        }
        if self.state.phase != Phase::Running {
            return Err(Wait::Rollout { phase: self.phase_word().to_owned() });
        }
        let stage = self.definition.hosts[host].stage;
        if stage > self.state.stage {
            let rule = &self.definition.stages[self.state.stage];
            return Err(match &self.state.gate {
                StageGate::Working => {
                    Wait::Stage { stage: rule.name.clone(), hosts_left: self.state.open[self.state.stage] }
                }
                StageGate::Soaking { until } => Wait::StageSoaks { stage: rule.name.clone(), until: *until },
                StageGate::Approval => Wait::StageApproval { stage: rule.name.clone() },
            });
        }
        if state.held {
            return Err(Wait::Held);
        }
        if self.definition.rules.approve_each_host && !state.approved {
            return Err(Wait::HostApproval);
        }
        match &state.refused {
            Some(refused) if now < refused.again_at => {
                Err(Wait::Preflight { reason: refused.reason.clone(), again_at: refused.again_at })
            }
            _ => Ok(()),
        }
    }

    fn admit_by_host(&self, host: &HostName, view: &View, now: Timestamp) -> Result<(), Wait> {
        if view.cordoned {
            return Err(Wait::Cordoned);
        }
        if let Some(rollout) = &view.slot.open {
            return Err(Wait::HostBusy { rollout: rollout.clone() });
        }
        let task = &self.definition.hosts[host];
        if self.definition.rules.windows_end_at.is_some_and(|end| now >= end) {
            return Ok(());
        }
        let end = after(after(now, self.definition.rules.notice), task.work);
        for group in &task.windows {
            if !group.is_empty()
                && !group.iter().any(|window| window.close_of_opening_at(now).is_some_and(|close| end <= close))
            {
                let windows = group.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                return Err(Wait::Window { windows });
            }
        }
        Ok(())
    }

    fn admit_by_limits(&self, host: &HostName) -> Result<(), Wait> {
        let limits = &self.definition.rules.limits;
        let rack = self.definition.hosts[host].rack.as_ref();
        let (mut hosts, mut in_rack) = (0, 0);
        for (other, state) in self.state.in_flight.iter().map(|other| (other, &self.state.hosts[other])) {
            if state.phase.in_work() {
                hosts += 1;
                in_rack += u32::from(rack.is_some() && self.definition.hosts[other].rack.as_ref() == rack);
            }
        }
        if let Some(limit) = limits.hosts.filter(|limit| hosts >= limit.get()) {
            return Err(Wait::Limit { what: "hosts at once".to_owned(), limit: limit.get(), in_work: hosts });
        }
        match (limits.hosts_per_rack, rack) {
            (Some(limit), Some(rack)) if in_rack >= limit.get() => {
                Err(Wait::Limit { what: format!("hosts at once in rack {rack}"), limit: limit.get(), in_work: in_rack })
            }
            _ => Ok(()),
        }
    }

    fn admit_by_sets(&self, host: &HostName, view: &View, now: Timestamp) -> Result<(), Wait> {
        for (set, member) in &self.definition.hosts[host].sets {
            let Some(lock) = view.locks.get(set) else { continue };
            let claim = self.claim(host, member, view.slot.generation.next());
            lock.check(&claim, now).map_err(|blocked| match blocked {
                Blocked::InWork { part, owner, hosts } => Wait::SetInWork { set: set.clone(), part, owner, hosts },
                Blocked::Recovering { part, until } => Wait::SetRecovers { set: set.clone(), part, until },
            })?;
            let (in_work, limit) = (lock.vms_in_work(), self.definition.rules.limits.set_quota(member.of));
            if in_work > 0 && in_work + member.vms > limit {
                return Err(Wait::SetShare { set: set.clone(), limit, in_work, vms: member.vms });
            }
        }
        Ok(())
    }
}
