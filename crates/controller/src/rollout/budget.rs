//! The failure budget: when a rollout has to stop, and what was seen.

use jiff::Timestamp;

use super::state::{End, Evidence, HostPhase, Phase};
use super::step::after;
use super::{Action, Refusal, Rollout};

impl Rollout {
    /// VMs of hosts that were visited, and those of them that are unhealthy for longer than the limit allows.
    fn updated(&self, now: Timestamp) -> (u32, Vec<super::VmTrouble>) {
        let mut unhealthy = Vec::new();
        let mut vms = 0;
        for (host, state) in &self.state.hosts {
            let late = match &state.phase {
                HostPhase::Checking { since, .. } => now >= after(*since, self.definition.rules.health_limit),
                HostPhase::Soaking { .. } => true,
                HostPhase::Done { .. } => false,
                _ => continue,
            };
            vms += self.definition.hosts[host].vms();
            if late {
                unhealthy.extend(state.unhealthy.iter().cloned());
            }
        }
        (vms, unhealthy)
    }

    pub(super) fn check_budget(&mut self, now: Timestamp, actions: &mut Vec<Action>) {
        if !matches!(self.state.phase, Phase::Running | Phase::Paused) {
            return;
        }
        let rules = &self.definition.rules;
        let failed = u32::try_from(self.state.failures.len()).unwrap_or(u32::MAX);
        let troubled = self.state.in_flight.iter().any(|host| !self.state.hosts[host].unhealthy.is_empty());
        if failed <= rules.max_failed_hosts && !troubled {
            return;
        }
        let (updated_vms, unhealthy) = self.updated(now);
        let share = unhealthy.len() as u64 * 100;
        let limit = if failed > rules.max_failed_hosts {
            format!("{failed} hosts failed, {} may", rules.max_failed_hosts)
        } else if share > u64::from(rules.max_unhealthy_percent) * u64::from(updated_vms) {
            format!(
                "{} of {updated_vms} updated VMs are unhealthy, {} % may be",
                unhealthy.len(),
                rules.max_unhealthy_percent
            )
        } else {
            return;
        };
        self.stop(Evidence { limit, failed: self.state.failures.clone(), unhealthy, updated_vms, rest: None }, actions);
    }

    /// Compares the updated hosts with the rest of the fleet.
    pub(super) fn rest(&mut self, unhealthy: u32, checked: u32) -> Result<Vec<Action>, Refusal> {
        if !matches!(self.state.phase, Phase::Running | Phase::Paused) || checked == 0 {
            return Err(Refusal::Nothing);
        }
        let (updated_vms, troubled) = self.updated(Timestamp::MAX);
        let share = |count: u64, of: u32| if of == 0 { 0 } else { count * 100 / u64::from(of) };
        let (ours, theirs) = (share(troubled.len() as u64, updated_vms), share(u64::from(unhealthy), checked));
        let allowed = u64::from(self.definition.rules.max_worse_than_rest_percent);
        if ours <= theirs + allowed {
            return Err(Refusal::Nothing);
        }
        let limit =
            format!("{ours} % of the updated VMs are unhealthy, {theirs} % of the others; {allowed} more may be");
        let failed = self.state.failures.clone();
        let rest = Some((unhealthy, checked));
        let mut actions = Vec::new();
        self.stop(Evidence { limit, failed, unhealthy: troubled, updated_vms, rest }, &mut actions);
        Ok(actions)
    }

    fn stop(&mut self, evidence: Evidence, actions: &mut Vec<Action>) {
        let text = format!("the rollout stops: {}; see `rollout report`", evidence.limit);
        actions.push(Action::Alarm { host: None, text });
        self.set_phase(Phase::Stopping(End::Failed(evidence)));
    }
}
