//! One visit: its updates one after the other, each a maintenance with a name that follows from the order.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fermata_controller::agent_link::Line;
use fermata_controller::order::{Generation, Order, Outcome, Scope, Task, UpdateRef};
use fermata_controller::wire::VisitProgress;
use fermata_maintenance::id::{IdError, MaintenanceId};
use fermata_maintenance::report::Report;

use super::{progress, updates};
use crate::api::types::VmView;
use crate::maintain::{Maintain, Terms};
use crate::vms::Vms;

/// The newest visit and what it has come to.
#[derive(Debug, Clone)]
pub(super) struct Visit {
    pub(super) progress: VisitProgress,
    pub(super) outcome: Option<Outcome>,
}

/// What a visit needs of the host.
#[derive(Clone)]
pub(super) struct Tools {
    pub(super) folder: PathBuf,
    pub(super) vms: Arc<Vms>,
    pub(super) maintain: Arc<Maintain>,
    pub(super) line: Arc<Line>,
    pub(super) newest: Arc<Mutex<Option<Visit>>>,
}

/// How often a maintenance is looked at while it goes on.
const LOOK: Duration = Duration::from_millis(300);

pub(super) fn updates_of(order: &Order) -> &[UpdateRef] {
    match &order.task {
        Task::Maintain(visit) => &visit.updates,
        Task::StandDown => &[],
    }
}

/// The name of the maintenance for the update at `index`: the same whenever it is asked.
pub(super) fn name(update: &UpdateRef, generation: Generation, index: usize) -> Result<MaintenanceId, IdError> {
    let head: String = update.name.chars().take(32).collect();
    let tail = if index == 0 { String::new() } else { format!(".{index}") };
    format!("{head}-g{generation}{tail}").parse()
}

impl Tools {
    /// Does a visit to its end; what was begun before a restart is found and waited for.
    pub(super) async fn conduct(&self, order: &Order) -> Outcome {
        let mut ended = Vec::new();
        let mut outcome = Outcome::Updated;
        if let Some(reason) = self.came_later(order).await {
            return Outcome::Refused(reason);
        }
        for (index, update) in updates_of(order).iter().enumerate() {
            match self.update(order, update, index, &ended).await {
                Ok(report) => {
                    let came_to = progress::outcome(&report);
                    ended.push(report);
                    if let Some(came_to) = came_to {
                        outcome = came_to;
                        break;
                    }
                }
                Err(reason) if ended.is_empty() => {
                    outcome = Outcome::Refused(reason);
                    break;
                }
                // Updates before it are in; the visit as a whole is not what was ordered.
                Err(reason) => {
                    outcome =
                        Outcome::Undone(format!("`{}` was refused after others were done: {reason}", update.name));
                    break;
                }
            }
        }
        outcome
    }

    /// Says that a visit is over, after everything about it is.
    pub(super) fn over(&self, order: &Order, outcome: Outcome) {
        tracing::info!(rollout = %order.rollout, generation = %order.generation, ?outcome, "the visit is over");
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(visit) = newest.as_mut().filter(|visit| visit.progress.generation == order.generation) {
            visit.outcome = Some(outcome);
        }
    }

    /// A VM that the order does not know: nobody has taken the lock of its set, nobody has told its guests.
    async fn came_later(&self, order: &Order) -> Option<String> {
        let Task::Maintain(visit) = &order.task else { return None };
        let first = updates_of(order).first()?;
        let begun = name(first, order.generation, 0).is_ok_and(|id| self.maintain.report(id.as_str()).is_ok());
        if begun {
            return None;
        }
        let views = match self.vms.list().await {
            Ok(views) => views,
            Err(error) => return Some(crate::chain(&error)),
        };
        let scope = |vm: &VmView| match &vm.definition.availability_set {
            Some(member) => Scope::Set(member.name.clone()),
            None => Scope::Vm(vm.name.clone()),
        };
        let stranger = views.iter().find(|vm| !visit.scopes.contains(&scope(vm)))?;
        Some(format!("VM {} came to the host after the visit was ordered; it will be ordered again", stranger.name))
    }

    async fn update(
        &self,
        order: &Order,
        update: &UpdateRef,
        index: usize,
        before: &[Report],
    ) -> Result<Report, String> {
        let id = name(update, order.generation, index).map_err(|error| error.to_string())?;
        if self.maintain.report(id.as_str()).is_err() {
            let text = updates::get(&self.folder, &self.line, update).await.map_err(|error| error.to_string())?;
            let terms = Terms { id: Some(id.clone()), noticed: true, harshest: Some(update.mechanism) };
            self.maintain.apply_as(&text, terms).await.map_err(|error| crate::chain(&error))?;
        }
        loop {
            // Read by the journal, so it goes on telling across restarts of the agent.
            let report = self.maintain.report(id.as_str()).map_err(|error| crate::chain(&error))?;
            let over = report.outcome.is_some();
            let so_far: Vec<Report> = before.iter().cloned().chain([report.clone()]).collect();
            self.note(order, &so_far, None);
            if over {
                return Ok(report);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What a visit has come to, from the journal alone: for one that ended before this agent began.
    pub(super) fn recall(&self, order: &Order) {
        let named = updates_of(order).iter().enumerate();
        let ids = named.filter_map(|(index, update)| name(update, order.generation, index).ok());
        let reports: Vec<Report> = ids.filter_map(|id| self.maintain.report(id.as_str()).ok()).collect();
        self.note(order, &reports, None);
    }

    pub(super) fn note(&self, order: &Order, reports: &[Report], outcome: Option<Outcome>) {
        let progress = VisitProgress {
            rollout: order.rollout.clone(),
            generation: order.generation,
            maintenances: reports.iter().map(progress::of).collect(),
        };
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(Visit { progress, outcome });
    }

    pub(super) fn newest(&self) -> Option<Visit> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fermata_model::Mechanism;

    #[test]
    fn a_maintenance_has_the_same_name_whenever_it_is_asked_and_another_in_every_visit() {
        let long = UpdateRef { name: "q".repeat(64), digest: String::new(), mechanism: Mechanism::Swap };
        let first = name(&long, Generation(7), 0).unwrap();
        assert_eq!(first, name(&long, Generation(7), 0).unwrap());
        assert_ne!(first, name(&long, Generation(8), 0).unwrap());
        assert_ne!(first, name(&long, Generation(7), 1).unwrap());
        assert!(name(&long, Generation(u64::MAX), 99).is_ok());
    }
}
