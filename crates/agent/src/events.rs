//! Guests told: what the agent does with the metadata service of its host.
//!
//! ```text
//!  VMs on record --> records (who is at which port) --> service        VMs made, started, stopped, deleted
//!             '----> wiring (nft, ip), DHCP         --> kernel         at the agent's start and when VMs change
//!  maintenance   --> announce, start, pausing, end  --> service
//!  service       --> gate opened, cancelled         --> maintenance
//! ```
//!
//! | module | concern |
//! |---|---|
//! | [`records`] | pure: what is told about VMs, and how their ports are wired |
//! | [`job`] | pure: a maintenance as the service knows it |
//! | [`fleet`] | events of VMs on other hosts, for the controller |
//! | [`restart`] | a VM started anew because its owner wants it |
//!
//! Invariants:
//! - A VM's ports are wired before its first tap is attached to a bridge; if that fails, the VM does not start.
//! - Both taps that a NIC can have are wired all the time, so that a change of VMM needs no change of the wiring.
//! - What the service could not be told is told when it is back; no VM waits for that.

pub mod fleet;
pub mod job;
pub mod records;
pub mod restart;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use fermata_imds::VmRecord;
use fermata_imds::control::{Call, ControlError, JobView, Vms};
use fermata_imds::dhcp::{self, Offer};
use fermata_imds::fermata_events::event::DeferLimits;
use fermata_imds::fermata_events::{Action, Input, JobId, Outcome};
use fermata_imds::link::{Announcement, Link, Told};
use fermata_imds::wire::{Wiring, apply};
use fermata_model::{BridgeName, VmName};
use tokio::sync::{Mutex as AsyncMutex, Notify, mpsc, watch};

use crate::config::{Config, ImdsConfig};
use crate::inventory::{Inventory, InventoryError};
use crate::links::{LinkError, Links};

/// Why guests cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// The data base.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// Firewall and routes.
    #[error(transparent)]
    Wire(#[from] apply::WireError),
    /// A bridge.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The service.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A task of the agent ended without an answer.
    #[error("the agent could not finish a task of its own; see its log")]
    Inside,
}

/// The agent's end of the metadata service.
#[derive(Debug)]
pub struct Events {
    config: ImdsConfig,
    bridges: Vec<crate::config::BridgeConfig>,
    host: String,
    inventory: Inventory,
    links: Links,
    link: Link,
    /// What the kernel has; held while it is changed.
    wired: AsyncMutex<Option<Wiring>>,
    /// What the service was told.
    told: AsyncMutex<BTreeMap<VmName, VmRecord>>,
    offers: RwLock<BTreeMap<BridgeName, Offer>>,
    /// Something changed that the service is to be told.
    changed: Notify,
    /// Counts news of the service; whoever waits for something looks again.
    news: watch::Sender<u64>,
    /// Restarts under way, by their job.
    restarts: Mutex<BTreeSet<JobId>>,
}

/// What became of a gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gate {
    /// Approved, or the notice is over.
    Open {
        /// Who approved, or that nobody had to.
        by: String,
    },
    /// The job was cancelled.
    Cancelled,
}

impl Events {
    /// The agent's end of the service, where one is configured. Nothing is touched yet.
    #[must_use]
    pub fn new(config: &Config, inventory: Inventory, links: Links) -> Option<Arc<Self>> {
        let imds = config.imds.clone()?;
        Some(Arc::new(Self {
            link: Link::new(imds.control.clone()),
            config: imds,
            bridges: config.bridges.clone(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            inventory,
            links,
            wired: AsyncMutex::default(),
            told: AsyncMutex::default(),
            offers: RwLock::default(),
            changed: Notify::new(),
            news: watch::Sender::new(0),
            restarts: Mutex::default(),
        }))
    }

    /// How long `Started` is visible before a pause.
    #[must_use]
    pub const fn lead(&self) -> Duration {
        Duration::from_millis(self.config.lead_ms)
    }

    /// Brings firewall, routes and addresses to the VMs on record. Returns at once when nothing changed.
    ///
    /// # Errors
    /// [`EventsError`]: a VM that is not wired must not be attached to a bridge.
    pub async fn wire(&self) -> Result<(), EventsError> {
        let mut wired = self.wired.lock().await;
        let plan = self.plan().await?;
        let bridges = self.look_at_bridges(&plan).await?;
        let wiring = plan.wiring(bridges, self.config.open.clone());
        *self.offers.write().unwrap_or_else(PoisonError::into_inner) = plan.offers(&self.config.dns);
        if wired.as_ref() == Some(&wiring) {
            return Ok(());
        }
        let wanted = wiring.clone();
        tokio::task::spawn_blocking(move || apply::apply(&wanted)).await.map_err(|_| EventsError::Inside)??;
        *wired = Some(wiring);
        Ok(())
    }

    /// The service is to be told that VMs changed. Does not wait for it.
    pub fn vms_changed(&self) {
        self.changed.notify_one();
    }

    async fn plan(&self) -> Result<records::Plan, EventsError> {
        let (inventory, bridges) = (self.inventory.clone(), self.bridges.clone());
        let read = move || {
            let vms = inventory.list()?;
            let ports = inventory.ports(&records::wanted(&vms, &bridges))?;
            Ok::<_, InventoryError>(records::Plan { vms, ports, bridges })
        };
        Ok(tokio::task::spawn_blocking(read).await.map_err(|_| EventsError::Inside)??)
    }

    async fn look_at_bridges(&self, plan: &records::Plan) -> Result<Vec<fermata_imds::wire::Bridge>, EventsError> {
        let mut found = Vec::new();
        for name in plan.bridge_names() {
            // A bridge that is not there has no guests on it either.
            let Some(mac) = self.links.pin_address(&name).await? else { continue };
            let made = self.bridges.iter().any(|bridge| bridge.name == name && bridge.address.is_some());
            found.push(fermata_imds::wire::Bridge { name, mac, dhcp: made && self.config.dhcp });
        }
        Ok(found)
    }

    /// Tells the service what it does not know yet.
    async fn tell(&self) -> Result<(), EventsError> {
        let plan = self.plan().await?;
        let mut told = self.told.lock().await;
        let known: Vms = self.link.call(Call::Vms).await?;
        let records = plan.records(&self.config);
        for record in &records {
            if told.get(&record.vm) != Some(record) || !known.contains_key(&record.vm) {
                let upsert = Call::Upsert { record: Box::new(record.clone()) };
                match self.link.call::<Vec<Action>>(upsert).await {
                    Ok(_) => drop(told.insert(record.vm.clone(), record.clone())),
                    // Its set changed while an event is open: told again when that is over.
                    Err(ControlError::Refused(reason)) => tracing::warn!(vm = %record.vm, reason, "not told of"),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        let gone: Vec<VmName> = known.into_keys().filter(|vm| !records.iter().any(|record| record.vm == *vm)).collect();
        for vm in gone {
            let _: Vec<Action> = self.link.call(Call::Remove { vm: vm.clone() }).await?;
            told.remove(&vm);
        }
        drop(told);
        self.end_for_those_that_run(&plan).await
    }

    /// A VM that was left down by its maintenance and runs again now: its event may end.
    async fn end_for_those_that_run(&self, plan: &records::Plan) -> Result<(), EventsError> {
        let ended: Vec<JobView> =
            self.link.jobs().await?.into_iter().filter(|view| view.job.finish.is_some()).collect();
        let running: Vec<VmName> = plan.running().cloned().collect();
        for view in ended {
            for vm in running.clone() {
                self.say(Input::RunsAgain { job: view.job.id.clone(), vm, paused_ms: None }).await?;
            }
        }
        Ok(())
    }

    /// Applies an input whose refusal means that it was not needed.
    async fn say(&self, input: Input) -> Result<(), EventsError> {
        match self.link.apply(input).await {
            Ok(_) => Ok(()),
            Err(ControlError::Refused(reason)) => {
                tracing::debug!(reason, "the metadata service had no use for it");
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps the service informed and hears its news until the task is dropped. `found` is told whenever the service is
    /// there, again or for the first time.
    pub async fn run(self: Arc<Self>, found: Arc<Notify>) {
        let made = self.bridges.iter().filter(|bridge| self.config.dhcp && bridge.address.is_some());
        for bridge in made.map(|bridge| bridge.name.clone()) {
            tokio::spawn(Arc::clone(&self).offer_addresses(bridge));
        }
        let telling = tokio::spawn(Arc::clone(&self).keep_told());
        let (to, mut told) = mpsc::unbounded_channel();
        let hearing = self.link.listen(to);
        let sorting = async {
            while let Some(news) = told.recv().await {
                match news {
                    Told::Connected => {
                        self.changed.notify_one();
                        found.notify_one();
                    }
                    // All of these are read from the state by whoever waits for them.
                    Told::GateOpened(_) | Told::MayPause(_) | Told::Over(..) | Told::Approved(..) => {}
                }
                self.news.send_modify(|count| *count += 1);
            }
        };
        tokio::join!(hearing, sorting);
        telling.abort();
    }

    async fn keep_told(self: Arc<Self>) {
        loop {
            self.changed.notified().await;
            while let Err(error) = self.wire_and_tell().await {
                tracing::warn!(error = crate::chain(&error), "the metadata service was not told of VMs; trying again");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    async fn wire_and_tell(&self) -> Result<(), EventsError> {
        self.wire().await?;
        self.tell().await
    }

    async fn offer_addresses(self: Arc<Self>, bridge: BridgeName) {
        let socket = match dhcp::bind(&bridge) {
            Ok(socket) => socket,
            Err(error) => return tracing::warn!(%bridge, %error, "no DHCP; does another server have the port?"),
        };
        let offer = || self.offers.read().unwrap_or_else(PoisonError::into_inner).get(&bridge).cloned();
        if let Err(error) = dhcp::serve(socket, offer).await {
            tracing::error!(%bridge, %error, "DHCP stopped");
        }
    }

    /// The name that this host announces under.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// How far guests may push a maintenance.
    #[must_use]
    pub const fn defer_limits(&self) -> DeferLimits {
        self.config.defer
    }

    /// Announces; the same announcement again changes nothing. The service knows all VMs of it afterwards.
    ///
    /// # Errors
    /// The service's refusal, or its absence.
    pub async fn announce(&self, announcement: Announcement) -> Result<(), EventsError> {
        self.tell().await?;
        Ok(self.link.announce(announcement).await?)
    }

    /// A restart is under way until what this returns is dropped.
    pub(crate) fn restarting(self: &Arc<Self>, job: &JobId) -> Restarting {
        self.restarts.lock().unwrap_or_else(PoisonError::into_inner).insert(job.clone());
        Restarting { events: Arc::clone(self), job: job.clone() }
    }

    /// Ends restarts that an earlier agent began and nobody goes on with.
    ///
    /// # Errors
    /// The service's absence.
    pub async fn end_left_restarts(&self) -> Result<(), EventsError> {
        let plan = self.plan().await?;
        for view in self.open_jobs().await? {
            let job = &view.job.id;
            let ours = self.restarts.lock().unwrap_or_else(PoisonError::into_inner).contains(job);
            if restart::is_restart(job) && !ours && view.job.finish.is_none() {
                let runs_again = |vm: &VmName| Input::RunsAgain { job: job.clone(), vm: vm.clone(), paused_ms: None };
                let became = plan.running().map(runs_again).collect();
                self.end(job, job::Ending { became, outcome: Outcome::Failed }).await?;
            }
        }
        Ok(())
    }

    /// Waits until a job may start, or is cancelled.
    pub async fn gate(&self, job: &JobId) -> Gate {
        let mut news = self.news.subscribe();
        loop {
            news.mark_unchanged();
            if let Ok(jobs) = self.link.jobs().await {
                match jobs.iter().find(|view| view.job.id == *job) {
                    None => return Gate::Cancelled,
                    Some(view) if view.waits.is_empty() => return Gate::Open { by: self.who_approved(job).await },
                    Some(_) => {}
                }
            }
            // News may be missed while the service restarts; then the state says it.
            tokio::time::timeout(Duration::from_secs(5), news.changed()).await.ok();
        }
    }

    async fn who_approved(&self, job: &JobId) -> String {
        let events = self.link.events().await.unwrap_or_default();
        let of_job = events.iter().filter(|event| event["hostJob"] == job.0.as_str());
        let approvals = of_job.flat_map(|event| event["approvals"].as_array().into_iter().flatten());
        let names: BTreeSet<&str> = approvals.filter_map(|approval| approval["by"].as_str()).collect();
        match names.is_empty() {
            true => "the notice is over".to_owned(),
            false => names.into_iter().collect::<Vec<_>>().join(", "),
        }
    }

    /// Publishes `Started`, as soon as the gate is open.
    ///
    /// # Errors
    /// The service's refusal, or its absence.
    pub async fn start(&self, job: &JobId) -> Result<(), EventsError> {
        if self.gate(job).await == Gate::Cancelled {
            return Err(ControlError::Refused(format!("the events of {job} were cancelled")).into());
        }
        self.link.apply(Input::Start { job: job.clone() }).await?;
        Ok(())
    }

    /// VMs are about to be paused: long polls are answered. Best effort within `limit`, as `Started` was seen long ago and
    /// a pause does not wait for a connection.
    pub async fn pausing(&self, job: &JobId, vms: Vec<VmName>, limit: Duration) {
        let told = self.say(Input::Pausing { job: job.clone(), vms });
        match tokio::time::timeout(limit, told).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%job, error = crate::chain(&error), "guests' waits were not ended"),
            Err(_) => tracing::warn!(%job, "guests' waits were not ended in time"),
        }
    }

    /// Says what became of VMs, in order; refusals mean that it was known.
    ///
    /// # Errors
    /// The service's absence.
    pub async fn became(&self, inputs: Vec<Input>) -> Result<(), EventsError> {
        for input in inputs {
            self.say(input).await?;
        }
        Ok(())
    }

    /// Ends a job: its events vanish as soon as every VM of it runs again. A job that has not started is cancelled.
    ///
    /// # Errors
    /// The service's absence.
    pub async fn end(&self, job: &JobId, ending: job::Ending) -> Result<(), EventsError> {
        use fermata_imds::fermata_events::event::JobStage;
        let open = self.link.jobs().await?.into_iter().find(|view| view.job.id == *job);
        let Some(view) = open else { return Ok(()) };
        if matches!(view.job.stage, JobStage::Waiting { .. }) {
            return self.say(Input::Cancel { job: job.clone() }).await;
        }
        self.became(ending.became).await?;
        self.say(Input::Finish { job: job.clone(), outcome: ending.outcome }).await
    }

    /// Jobs that are open in the service and are not simulations.
    ///
    /// # Errors
    /// The service's absence.
    pub async fn open_jobs(&self) -> Result<Vec<JobView>, EventsError> {
        let jobs = self.link.jobs().await?;
        Ok(jobs.into_iter().filter(|view| view.job.simulation.is_none()).collect())
    }
}

/// A restart under way.
#[derive(Debug)]
pub(crate) struct Restarting {
    events: Arc<Events>,
    job: JobId,
}

impl Drop for Restarting {
    fn drop(&mut self) {
        self.events.restarts.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.job);
    }
}
