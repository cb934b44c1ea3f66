//! The host as the link needs it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fermata_controller::agent_link::{HostWork, Line, Work};
use fermata_controller::health::HealthGate;
use fermata_controller::order::{Approved, Generation, Order, Outcome, Scope, UpdateRef};
use fermata_controller::rollout::VmTrouble;
use fermata_controller::wire::{Elsewhere, HostReport, VisitProgress, VmReport};
use jiff::Timestamp;

use super::guests::Guests;
use super::visit::{Tools, Visit};
use super::{FleetConfig, health, updates};
use crate::api::types::VmView;
use crate::maintain::Maintain;
use crate::vms::{VmError, Vms};

/// How old a report may be: the link asks several times a second while a visit goes on.
const FRESH: Duration = Duration::from_secs(3);

/// This host, for [`fermata_controller::agent_link::Link`].
pub(super) struct FleetHost {
    config: FleetConfig,
    vms: Arc<Vms>,
    tools: Tools,
    guests: Guests,
    seen: Mutex<Option<(Instant, HostReport)>>,
    begun: Mutex<Option<Generation>>,
}

impl FleetHost {
    /// The host; what its last visit came to is read from the journal.
    pub(super) fn new(
        folder: PathBuf,
        config: FleetConfig,
        vms: Arc<Vms>,
        maintain: Arc<Maintain>,
        line: Arc<Line>,
    ) -> Self {
        let tools = Tools { folder, vms: Arc::clone(&vms), maintain, line, newest: Arc::default() };
        let last = fs::read(tools.folder.join(LAST)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        if let Some(order) = last {
            tools.recall(&order);
        }
        let guests = Guests::new(tools.clone());
        Self { config, vms, tools, guests, seen: Mutex::default(), begun: Mutex::default() }
    }

    async fn report(&self) -> Result<HostReport, VmError> {
        let (host, views) = (self.vms.host().await?, self.vms.list().await?);
        let vm = |vm: &VmView| VmReport {
            name: vm.name.clone(),
            set: vm.definition.availability_set.as_ref().map(|member| member.name.clone()),
            update_domain: vm.definition.availability_set.as_ref().and_then(|member| member.update_domain),
            vmm: vm.process.as_ref().map(|process| process.vmm.to_string()),
        };
        Ok(HostReport {
            rack: self.config.rack.clone(),
            zone: self.config.zone.clone(),
            fault_domain: self.config.fault_domain,
            labels: self.config.labels.clone(),
            kernel: host.kernel,
            vmms: host.vmms.iter().filter(|vmm| vmm.found.is_ok()).map(|vmm| vmm.version.to_string()).collect(),
            vault: host.vault,
            agent: host.agent,
            vms: views.iter().map(vm).collect(),
            troubles: health::not_running(&views),
        })
    }

    /// Whether the visit goes on: nobody should ask VMMs for their state then.
    fn at_work(&self) -> bool {
        let begun = *self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = self.tools.newest();
        begun.is_some() && newest.is_none_or(|visit| visit.outcome.is_none())
    }

    async fn could(&self, updates: &[UpdateRef], gates: &[HealthGate]) -> Result<(), String> {
        let (tools, maintain) = (&self.tools, &self.tools.maintain);
        let known = maintain.list().map_err(|error| crate::chain(&error))?;
        if let Some(other) = known.iter().find(|known| known.outcome.is_none()) {
            return Err(format!(
                "maintenance {} is under way on the host; wait for its end, or abort it there",
                other.id
            ));
        }
        for (number, wanted) in updates.iter().enumerate() {
            let text = updates::get(&tools.folder, &tools.line, wanted).await.map_err(|error| crate::chain(&error))?;
            let (update, choice) = maintain.check(&text).await.map_err(|error| crate::chain(&error))?;
            if let Some(other) = known.iter().find(|known| known.update == update.id && known.digest != update.digest) {
                return Err(format!(
                    "update `{}` was done here before from a file with the digest {}; give a changed file another id",
                    update.id, other.digest
                ));
            }
            if let Some(refusal) = choice.refusals.first() {
                return Err(refusal.to_string());
            }
            if number == 0 {
                // What comes later may be brought by what comes first.
                maintain.foresee(&update, &choice).await.map_err(|error| crate::chain(&error))?;
            }
            let needed = choice.mechanism();
            if needed > wanted.mechanism.min(update.harshest) {
                return Err(format!(
                    "update `{}` would need \"{needed}\", allowed is \"{}\" at most",
                    update.id,
                    wanted.mechanism.min(update.harshest)
                ));
            }
        }
        match self.unhealthy(gates).await.first() {
            Some(trouble) => Err(format!(
                "VM {} {} already before the visit; repair it, or leave it out of the gate",
                trouble.vm, trouble.seen
            )),
            None => Ok(()),
        }
    }

    async fn unhealthy(&self, gates: &[HealthGate]) -> Vec<VmTrouble> {
        match self.vms.list().await {
            Ok(views) => health::ask(&self.vms, &views, gates).await,
            Err(error) => {
                tracing::error!(error = crate::chain(&error), "VMs cannot be listed, so none counts as healthy");
                let seen = "could not be looked at; see the agent's log".to_owned();
                let reported = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let known = reported.into_iter().flat_map(|(_, report)| report.vms);
                known.map(|vm| VmTrouble { vm: vm.name, seen: seen.clone() }).collect()
            }
        }
    }
}

/// The order of the last visit, so that an agent that is started again can tell of it.
const LAST: &str = "last-visit.json";

impl HostWork for FleetHost {
    fn host(&self) -> Work<'_, HostReport> {
        Box::pin(async move {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some((at, report)) = &seen
                && (at.elapsed() < FRESH || self.at_work())
            {
                return report.clone();
            }
            match self.report().await {
                Ok(report) => {
                    let now = Some((Instant::now(), report.clone()));
                    *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = now;
                    report
                }
                Err(error) => {
                    tracing::warn!(
                        error = crate::chain(&error),
                        "the host cannot be looked at; the last report stands"
                    );
                    seen.map(|(_, report)| report).unwrap_or_default()
                }
            }
        })
    }

    fn preflight<'a>(&'a self, updates: &'a [UpdateRef], gates: &'a [HealthGate]) -> Work<'a, Result<(), String>> {
        Box::pin(self.could(updates, gates))
    }

    fn announce<'a>(&'a self, order: &'a Order, not_before: Timestamp) -> Work<'a, ()> {
        Box::pin(async move { self.guests.announce(order, not_before).await })
    }

    fn cancel<'a>(&'a self, order: &'a Order) -> Work<'a, ()> {
        Box::pin(async move { self.guests.withdraw(order).await })
    }

    fn elsewhere<'a>(&'a self, visits: &'a [Elsewhere]) -> Work<'a, ()> {
        Box::pin(async move { self.guests.elsewhere(visits).await })
    }

    fn approved<'a>(&'a self, order: &'a Order, scopes: &'a BTreeSet<Scope>) -> Work<'a, Approved> {
        Box::pin(async move { self.guests.approved(order, scopes).await })
    }

    fn tell_approved<'a>(&'a self, order: &'a Order) -> Work<'a, bool> {
        Box::pin(async move { self.guests.tell_approved(order).await })
    }

    fn begin<'a>(&'a self, order: &'a Order) -> Work<'a, ()> {
        Box::pin(async move {
            {
                let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
                if *begun == Some(order.generation) {
                    return;
                }
                *begun = Some(order.generation);
            }
            let kept = serde_json::to_vec(order).expect("an order is plain data");
            if let Err(error) = fs::write(self.tools.folder.join(LAST), kept) {
                // Only a report after a restart is lost by this; the gate's journal has the order.
                tracing::warn!(%error, "the order could not be noted");
            }
            self.tools.note(order, &[], None);
            let (tools, guests, order) = (self.tools.clone(), self.guests.clone(), order.clone());
            tokio::spawn(async move {
                let outcome = tools.conduct(&order).await;
                guests.withdraw(&order).await;
                tools.over(&order, outcome);
            });
        })
    }

    fn outcome(&self, generation: Generation) -> Work<'_, Option<Outcome>> {
        Box::pin(async move {
            let newest: Option<Visit> = self.tools.newest().filter(|visit| visit.progress.generation == generation);
            newest.and_then(|visit| visit.outcome)
        })
    }

    fn health<'a>(&'a self, gates: &'a [HealthGate]) -> Work<'a, Vec<VmTrouble>> {
        Box::pin(self.unhealthy(gates))
    }

    fn progress(&self) -> Work<'_, Option<VisitProgress>> {
        Box::pin(async move { self.tools.newest().map(|visit| visit.progress) })
    }
}
