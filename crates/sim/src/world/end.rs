//! What must be true when a campaign is over.

use fermata_controller::lock::SetLock;
use fermata_controller::order::Slot;
use fermata_controller::records::{decode, log_prefix};
use fermata_controller::rollout::{Entry, replay};
use fermata_planner::check::{Visit, check_log};

use super::World;
use crate::judge::Violation;

impl World {
    /// Whether every rollout has ended, as one living controller knows.
    pub(super) fn over(&mut self) -> bool {
        if self.calm() {
            for controller in 0..self.controllers.len() {
                if self.controllers[controller].inbox.is_empty() && self.controllers[controller].up {
                    self.let_go_on(controller);
                }
            }
        }
        self.controllers
            .iter()
            .any(|controller| controller.up && controller.sessions.iter().all(|session| session.rollout().ended()))
    }

    pub(super) fn stuck(&self) -> Violation {
        let known = self.controllers.iter().flat_map(|controller| &controller.sessions);
        let furthest = known.filter(|session| !session.rollout().ended()).max_by_key(|session| session.next());
        match furthest {
            Some(session) => Violation::Stuck {
                rollout: session.rollout().definition().id.clone(),
                state: format!("{:?}", session.rollout().state()),
            },
            None => Violation::Stuck { rollout: self.rollouts[0].0.clone(), state: "all ended, nobody noticed".into() },
        }
    }

    pub(super) fn judge_the_end(&self) -> Result<(), Violation> {
        for row in self.store.range("set-lock/") {
            if decode::<SetLock>(row).is_ok_and(|lock| lock.open.is_some()) {
                return Err(Violation::Leaked { key: row.key.clone() });
            }
        }
        for row in self.store.range("slot/") {
            if decode::<Slot>(row).is_ok_and(|slot| slot.open.is_some()) {
                return Err(Violation::Leaked { key: row.key.clone() });
            }
        }
        for (number, (id, plan)) in self.rollouts.iter().enumerate() {
            let wrong = |reason: String| Violation::Log { rollout: id.clone(), reason };
            let rows = self.store.range(&log_prefix(id));
            let log: Result<Vec<Entry>, _> = rows.into_iter().map(decode).collect();
            let log = log.map_err(|error| wrong(error.to_string()))?;
            let definition = self.controllers[0].sessions[number].rollout().definition().clone();
            let derived = replay(definition, &log).map_err(|error| wrong(error.to_string()))?;
            if !derived.ended() {
                return Err(wrong("the log does not lead to the end".to_owned()));
            }
            let visits = self.judge.visits.iter().filter(|visit| visit.rollout == *id).map(|visit| Visit {
                host: visit.host.clone(),
                started: visit.begun,
                healthy: visit.healthy,
            });
            // Recovery is a matter of clocks, which are wrong here on purpose.
            let mut policy = plan.policy().clone();
            policy.recovery_s = Some(0);
            let report = check_log(&visits.collect::<Vec<_>>(), &self.fleet, &policy, self.begin);
            if !report.is_clean() {
                return Err(Violation::Checker { rollout: id.clone(), found: format!("{:?}", report.violations) });
            }
        }
        Ok(())
    }
}
