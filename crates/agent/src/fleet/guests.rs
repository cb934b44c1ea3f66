//! Guests of this host and maintenance that concerns them: their own host's visits, and those of other hosts of their sets.
//!
//! A visit is announced under the names that its maintenances will have, so that a maintenance finds its own announcement, its gate open because the
//! notice is over or everybody approved, and tells `Started` at once. A visit that ends without its maintenances takes its
//! announcements back.
//!
//! Without a metadata service nobody is told, so nobody can approve: the gate of the link then waits for `NotBefore`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use fermata_controller::order::{Approved, Order, Scope, Task};
use fermata_controller::wire::Elsewhere;
use fermata_imds::fermata_events::{EventKind, JobId, Outcome, PauseBound, ScopeId, UnixMs};
use fermata_maintenance::order::{Gate, Keeper, Order as Maintenance};
use fermata_maintenance::time::Wall;
use jiff::Timestamp;

use super::updates;
use super::visit::{Tools, name, updates_of};
use crate::events::{Events, fleet, job};

/// The longest pause that is promised for a host that is not this one: nobody here knows its forecast.
const LONGEST: PauseBound = PauseBound::AtMostMs(30_000);

/// The way to the guests.
#[derive(Clone)]
pub(super) struct Guests {
    tools: Tools,
}

/// The jobs of an order: one for each update, by the name of its maintenance.
fn jobs(order: &Order) -> impl Iterator<Item = JobId> {
    let named = updates_of(order).iter().enumerate();
    named.filter_map(|(index, update)| name(update, order.generation, index).ok()).map(|id| job::id(&id))
}

impl Guests {
    pub(super) const fn new(tools: Tools) -> Self {
        Self { tools }
    }

    fn service(&self) -> Option<Arc<Events>> {
        self.tools.vms.events()
    }

    /// Tells the guests of this host. Told again, it changes nothing.
    pub(super) async fn announce(&self, order: &Order, not_before: Timestamp) {
        tracing::info!(rollout = %order.rollout, generation = %order.generation, %not_before, "a visit is announced");
        let Some(events) = self.service() else { return };
        if let Err(reason) = self.tell(&events, order, not_before).await {
            // The maintenance announces again, and is refused if that fails too: nobody is paused unannounced.
            tracing::warn!(rollout = %order.rollout, reason, "guests could not be told yet");
        }
    }

    async fn tell(&self, events: &Events, order: &Order, not_before: Timestamp) -> Result<(), String> {
        let notice = Duration::try_from(not_before.duration_since(Timestamp::now())).unwrap_or_default();
        for (index, update) in updates_of(order).iter().enumerate() {
            let id = name(update, order.generation, index).map_err(|error| error.to_string())?;
            let text = updates::get(&self.tools.folder, &self.tools.line, update).await;
            let text = text.map_err(|error| crate::chain(&error))?;
            let (mut update, choice) = self.tools.maintain.check(&text).await.map_err(|error| crate::chain(&error))?;
            update.notice = notice;
            let not_before = Wall(u64::try_from(not_before.as_microsecond()).unwrap_or_default());
            let gate = Gate { not_before, lead: events.lead(), keeper: Keeper::Events };
            let order = Maintenance::new(id, update, choice, gate).map_err(|error| error.to_string())?;
            if let Some(announcement) = job::announcement(&order, events.host(), events.defer_limits()) {
                events.announce(announcement).await.map_err(|error| crate::chain(&error))?;
            }
        }
        Ok(())
    }

    /// Takes back what was announced and not begun.
    pub(super) async fn withdraw(&self, order: &Order) {
        let Some(events) = self.service() else { return };
        for job in jobs(order) {
            if self.tools.maintain.report(&job.0).is_ok() {
                continue;
            }
            let ending = job::Ending { became: Vec::new(), outcome: Outcome::Cancelled };
            if let Err(error) = events.end(&job, ending).await {
                tracing::warn!(%job, error = crate::chain(&error), "its events could not be taken back");
            }
        }
    }

    /// Tells guests of visits to other hosts of their sets: the whole list; what is not in it any more is over.
    pub(super) async fn elsewhere(&self, visits: &[Elsewhere]) {
        let Some(events) = self.service() else { return };
        let visits: Vec<fleet::Visit> = visits.iter().flat_map(mirrored).collect();
        if let Err(error) = events.elsewhere(&visits).await {
            tracing::warn!(error = crate::chain(&error), "guests could not be told of visits elsewhere");
        }
    }

    /// Of these scopes, those whose guests here have approved the visit.
    pub(super) async fn approved(&self, order: &Order, scopes: &BTreeSet<Scope>) -> Approved {
        let Some(events) = self.service() else { return Approved::default() };
        if order.host.as_str() == events.host() && self.all_approved(&events, order).await {
            return Approved { scopes: scopes.clone(), by: BTreeMap::new() };
        }
        let mut approved = Approved::default();
        for scope in scopes {
            let Scope::Set(set) = scope else { continue };
            let (mut everywhere, mut who) = (false, BTreeMap::new());
            for job in jobs(order) {
                let by = events.approvals(order.host.as_str(), &job, set).await.unwrap_or_default();
                everywhere = !by.is_empty();
                if !everywhere {
                    break;
                }
                who.extend(by.into_iter().map(|vm| (vm, set.clone())));
            }
            if everywhere {
                approved.scopes.insert(scope.clone());
                approved.by.extend(who);
            }
        }
        approved
    }

    /// Tells the service of this host what was approved elsewhere, so that its gate opens and its history says by whom.
    pub(super) async fn tell_approved(&self, order: &Order) -> bool {
        let (Some(events), Task::Maintain(visit)) = (self.service(), &order.task) else { return true };
        for job in jobs(order) {
            for scope in &visit.approved {
                let by = visit.approvers.iter().filter(|(_, set)| *scope == Scope::Set((*set).clone()));
                let by = by.map(|(vm, _)| vm.clone()).collect();
                if let Err(error) = events.approved_elsewhere(&job, &event_scope(scope), by).await {
                    tracing::warn!(%job, %scope, error = crate::chain(&error), "an approval from elsewhere was not told yet");
                    return false;
                }
            }
        }
        true
    }

    /// Whether the service would let every job of the order begin.
    async fn all_approved(&self, events: &Events, order: &Order) -> bool {
        let Ok(open) = events.open_jobs().await else { return false };
        let waits: BTreeMap<&str, bool> =
            open.iter().map(|view| (view.job.id.0.as_str(), !view.waits.is_empty())).collect();
        let mut jobs = jobs(order).peekable();
        // A visit that nobody feels has no job, and nobody who could approve.
        jobs.peek().is_some() && jobs.all(|job| waits.get(job.0.as_str()) == Some(&false))
    }
}

fn event_scope(scope: &Scope) -> ScopeId {
    match scope {
        Scope::Set(set) => ScopeId::Set(set.clone()),
        Scope::Vm(vm) => ScopeId::Vm(vm.clone()),
    }
}

/// A visit elsewhere as guests here see it: one event for each of their sets.
fn mirrored(visit: &Elsewhere) -> Vec<fleet::Visit> {
    let order = &visit.order;
    let Task::Maintain(ordered) = &order.task else { return Vec::new() };
    let ms = |at: Timestamp| UnixMs(at.as_second() * 1_000);
    let notice = jiff::SignedDuration::try_from(ordered.notice).unwrap_or_default();
    let announced = ordered.not_before.checked_sub(notice).unwrap_or(ordered.not_before);
    let mut found = Vec::new();
    for (update, job) in updates_of(order).iter().zip(jobs(order)) {
        let Some(kind) = EventKind::of_impact(update.mechanism.impact()) else { continue };
        for (set, vms) in &visit.vms {
            found.push(fleet::Visit {
                host: order.host.to_string(),
                job: job.clone(),
                set: set.clone(),
                update_domain: None,
                kind,
                description: format!("{} on another host of the set", update.name),
                vms: vms.iter().map(|vm| (vm.clone(), LONGEST)).collect(),
                announced: ms(announced),
                not_before: ms(ordered.not_before),
                started: visit.started.map(ms),
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use fermata_controller::order::{Generation, UpdateRef, Visit};
    use fermata_model::Mechanism;

    fn elsewhere(mechanism: Mechanism) -> Elsewhere {
        let set: fermata_model::SetName = "web".parse().unwrap();
        let visit = Visit {
            updates: vec![UpdateRef { name: "qemu".into(), digest: String::new(), mechanism }],
            not_before: Timestamp::from_second(900).unwrap(),
            notice: Duration::from_secs(900),
            scopes: [Scope::Set(set.clone())].into(),
            approved: BTreeSet::new(),
            approvers: BTreeMap::new(),
        };
        let order = Order {
            host: "h2".parse().unwrap(),
            generation: Generation(3),
            rollout: "patch".into(),
            task: Task::Maintain(visit),
        };
        let vms = [(set.clone(), ["web-1".parse().unwrap()].into())].into();
        Elsewhere { order, scopes: [Scope::Set(set)].into(), vms, started: None }
    }

    #[test]
    fn a_visit_elsewhere_is_told_under_the_name_that_its_own_host_uses() {
        let visits = mirrored(&elsewhere(Mechanism::Swap));
        assert_eq!(visits.len(), 1);
        let expected = name(&updates_of(&elsewhere(Mechanism::Swap).order)[0], Generation(3), 0).unwrap();
        assert_eq!((visits[0].job.0.as_str(), visits[0].host.as_str()), (expected.as_str(), "h2"));
        assert_eq!((visits[0].announced, visits[0].not_before), (UnixMs(0), UnixMs(900_000)));
        assert!(visits[0].vms.contains_key(&"web-1".parse().unwrap()));
    }

    #[test]
    fn what_nobody_feels_is_told_to_nobody() {
        assert!(mirrored(&elsewhere(Mechanism::None)).is_empty());
    }
}
