//! What a rollout needs next. It is derived from the state alone, so a controller that was killed knows it again.

use fermata_model::HostName;
use jiff::Timestamp;

use super::step::after;
use super::{HostPhase, Input, Phase, Rollout, StageGate};

/// Something a controller should do for a rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// Give this input, with a fresh view.
    Give(Input),
    /// Ask the host for a preflight and give its answer.
    Preflight {
        /// The host.
        host: HostName,
        /// The question.
        asked: Timestamp,
    },
    /// Ask the host for its VMs' health and give the answer.
    Health(HostName),
}

impl Rollout {
    /// What is needed at `now`, most urgent first. `most` bounds how many waiting hosts are tried.
    #[must_use]
    pub fn agenda(&self, now: Timestamp, most: usize) -> Vec<Need> {
        let mut needs = Vec::new();
        let mut tick = match &self.state.gate {
            StageGate::Soaking { until } => now >= *until,
            StageGate::Working | StageGate::Approval => false,
        };
        let rules = &self.definition.rules;
        for host in &self.state.in_flight {
            let state = &self.state.hosts[host];
            let silent = |since: &Timestamp| now >= after(*since, rules.stop_after);
            match &state.phase {
                HostPhase::Preflight { asked } => {
                    tick |= now >= after(*asked, rules.preflight_limit);
                    needs.push(Need::Preflight { host: host.clone(), asked: *asked });
                }
                HostPhase::Ordered { since, .. } | HostPhase::Announced { not_before: since, .. } => {
                    if self.state.phase != Phase::Running || state.held || state.skip {
                        needs.push(Need::Give(Input::Recall(host.clone())));
                    }
                    tick |= silent(since);
                }
                HostPhase::InWork { since, .. } | HostPhase::StandingDown { since, .. } => tick |= silent(since),
                HostPhase::Checking { since, .. } => {
                    tick |= now >= after(*since, rules.health_limit) && !state.unhealthy.is_empty();
                    needs.push(Need::Health(host.clone()));
                }
                HostPhase::Soaking { until } => {
                    tick |= now >= *until;
                    needs.push(Need::Health(host.clone()));
                }
                _ => {}
            }
        }
        if tick {
            needs.push(Need::Give(Input::Tick));
        }
        if self.state.phase == Phase::Running {
            let waiting = self.definition.order.iter().filter(|host| self.admit_by_rollout(host, now).is_ok());
            needs.extend(waiting.take(most).map(|host| Need::Give(Input::AskPreflight(host.clone()))));
        }
        needs
    }
}
