//! VMs of this host: what exists, what runs, and every operation on them.
//!
//! ```text
//!            create             start                      VMM's process there, QMP answers
//!   (none) ---------> stopped --------> starting -----------------------------------------> running <--> paused
//!      ^                 |  ^               | fails: every trace removed                       |   pause/resume
//!      |     delete      |  '---------------'                                                  |
//!      '-----------------'  ^                                                                  |
//!                           '------- stop, guest shut itself down, or (failed) VMM died -------'
//! ```
//!
//! Invariants:
//! - One operation at a time per VM: each holds its slot's lock from check to last effect.
//! - The [`Runtime`] record is written before anything is set up and removed after everything is taken down, so
//!   [`recover`](Vms::recover) finds whatever a crash left.
//! - The VMM is no child of the agent. The agent's death changes nothing for it, and a new agent finds it by pid and
//!   start time, its sockets, and takes its descriptors back from it.

mod carry;
mod check;
pub(crate) mod console;
mod cpu;
mod error;
mod live;
mod recover;
mod rehearse;
mod start;
mod stop;
mod swap;
mod teardown;
mod view;
mod vmms;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use fermata_model::{VmDefinition, VmName, VmSpec, VmmVersion};
use tokio::sync::{Mutex as AsyncMutex, broadcast};
use uuid::Uuid;

use crate::api::types::VmView;
use crate::config::Config;
use crate::events::Events;
use crate::inventory::{Inventory, InventoryError, VmRecord};
use crate::links::Links;
use crate::units::Units;
use crate::users;
use crate::vaults::Vaults;

pub use error::VmError;
use live::Live;
use swap::Beside;
use vmms::Vmms;
pub use vmms::{FoundVmm, FoundVmms};

/// Everything operations on VMs need.
#[derive(Debug)]
pub struct Vms {
    config: Config,
    inventory: Inventory,
    links: Links,
    units: Units,
    vmms: Vmms,
    kvm: Result<(), String>,
    tsc_khz: Option<u32>,
    boot: Uuid,
    vaults: Vaults,
    /// The metadata service's end, where one is configured.
    events: OnceLock<Arc<Events>>,
    slots: Mutex<BTreeMap<VmName, Arc<Slot>>>,
    /// VMs that ended by themselves, with what is known, for whoever has them in a maintenance.
    gone: broadcast::Sender<(VmName, String)>,
}

/// The place of one VM: who may act on it now, and the VMM that runs it.
#[derive(Debug, Default)]
struct Slot {
    /// Held by the one operation that acts on the VM.
    operation: AsyncMutex<()>,
    /// The VMM that runs it.
    live: Mutex<Option<Arc<Live>>>,
    /// The VMM that stands beside it during a swap.
    beside: Mutex<Option<Arc<Beside>>>,
    /// The maintenance that has the VM; nobody else may act on it.
    maintenance: Mutex<Option<String>>,
}

impl Slot {
    fn live(&self) -> Option<Arc<Live>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn beside(&self) -> Option<Arc<Beside>> {
        self.beside.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_beside(&self, beside: Option<Arc<Beside>>) {
        *self.beside.lock().unwrap_or_else(PoisonError::into_inner) = beside;
    }

    /// The maintenance that has the VM.
    fn maintenance(&self) -> Option<String> {
        self.maintenance.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Refuses while a maintenance has the VM.
    fn check_free(&self, name: &VmName) -> Result<(), VmError> {
        match self.maintenance() {
            Some(maintenance) => Err(VmError::UnderMaintenance { name: name.clone(), maintenance }),
            None => Ok(()),
        }
    }

    fn set_live(&self, live: Option<Arc<Live>>) {
        *self.live.lock().unwrap_or_else(PoisonError::into_inner) = live;
    }
}

impl Vms {
    /// Gathers what operations need; nothing is touched yet.
    #[must_use]
    pub fn new(config: Config, inventory: Inventory, links: Links, units: Units, boot: Uuid) -> Self {
        let kvm = fermata_vault::kvm::usable().map_err(|e| e.to_string());
        let tsc_khz = fermata_vault::kvm::guest_tsc_khz();
        let (vmms, gone) = (Vmms::open(&config), broadcast::Sender::new(GONE_KEPT));
        let user = users::find(&config.vm_user).ok();
        let vaults = Vaults::open(&config.vault, user.as_ref());
        let (events, slots) = (OnceLock::new(), Mutex::default());
        Self { config, inventory, links, units, vmms, kvm, tsc_khz, boot, vaults, events, slots, gone }
    }

    /// Hears of VMs that end by themselves from now on.
    pub(crate) fn hear_of_ends(&self) -> broadcast::Receiver<(VmName, String)> {
        self.gone.subscribe()
    }

    /// Looks whether a VM that was let go on does so, and tells everybody who hears of ends when it does not: a vCPU that the
    /// kernel cannot run stops its VM without ending the process, and one that gives up restarts it.
    pub(crate) async fn look_after_resume(&self, name: &VmName, limit: Duration) -> Result<(), VmError> {
        let (_, live) = self.live(name).await?;
        let stands = matches!(live.run_state(limit).await, Ok(false));
        if !stands && !live.was_reset() {
            return Ok(());
        }
        let what = if stands { "it was let go on, but stands" } else { "its guest restarted right after the pause" };
        let why = live::last_words(&live.runtime().dir).unwrap_or_else(|| "see the kernel log".to_owned());
        // Nobody listens outside of a maintenance.
        let _ = self.gone.send((name.clone(), format!("{what}; {why}")));
        Ok(())
    }

    /// What the VMMs of this host are. Asking one takes a second or more, so it is done once per binary, and whoever needs
    /// the answer first waits for it; VMs that run never do.
    pub async fn vmms(&self) -> Arc<FoundVmms> {
        self.vmms.look().await
    }

    /// What a binary is that an update names for a version.
    pub(crate) async fn examine_vmm(&self, version: VmmVersion, binary: &Path) -> FoundVmm {
        self.vmms.examine(version, binary).await
    }

    /// Has the VMM of an update from now on.
    ///
    /// # Errors
    /// The state folder cannot be written; nothing has changed then.
    pub(crate) fn bring_vmm(&self, version: VmmVersion, binary: &Path) -> std::io::Result<()> {
        self.vmms.bring(version, binary)
    }

    /// The host's configuration.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// The boot this agent runs in.
    #[must_use]
    pub const fn boot(&self) -> Uuid {
        self.boot
    }

    /// Where VMs' memory comes from.
    #[must_use]
    pub const fn vaults(&self) -> &Vaults {
        &self.vaults
    }

    /// Guests are told from now on. Called once, before any VM is started.
    pub fn set_events(&self, events: Arc<Events>) {
        // A second one would be of the same configuration.
        self.events.set(events).ok();
    }

    /// The agent's end of the metadata service, where one is configured.
    #[must_use]
    pub fn events(&self) -> Option<Arc<Events>> {
        self.events.get().cloned()
    }

    /// The metadata service is to hear of a change; nobody waits for it.
    fn vms_changed(&self) {
        if let Some(events) = self.events.get() {
            events.vms_changed();
        }
    }

    /// Wires the ports of VMs on record to the metadata service.
    async fn wire(&self, name: &VmName) -> Result<(), VmError> {
        match self.events.get() {
            Some(events) => {
                events.wire().await.map_err(|source| VmError::Wire { name: name.clone(), source: Box::new(source) })
            }
            None => Ok(()),
        }
    }

    pub(crate) const fn units(&self) -> &Units {
        &self.units
    }

    /// The VMs that run now, with their VMMs.
    pub(crate) async fn running(&self) -> Result<Vec<(VmDefinition, Arc<Live>)>, VmError> {
        let records = self.db(Inventory::list).await?.into_iter();
        let with_live = records.filter_map(|r| Some((self.slot(&r.definition.name).live()?, r.definition)));
        Ok(with_live.map(|(live, definition)| (definition, live)).collect())
    }

    /// One VM that runs now, with its VMM.
    pub(crate) async fn live(&self, name: &VmName) -> Result<(VmDefinition, Arc<Live>), VmError> {
        let record = self.record(name).await?;
        let live = swap::running(&self.slot(name), name, &record).await?;
        Ok((record.definition, live))
    }

    fn slot(&self, name: &VmName) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(name.clone()).or_default())
    }

    fn forget_slot(&self, name: &VmName) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Runs a data base operation away from the async threads.
    async fn db<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Inventory) -> Result<T, InventoryError> + Send + 'static,
    ) -> Result<T, VmError> {
        let inventory = self.inventory.clone();
        let done = tokio::task::spawn_blocking(move || act(&inventory)).await.map_err(|_| VmError::Inside)?;
        Ok(done?)
    }

    pub(crate) async fn record(&self, name: &VmName) -> Result<VmRecord, VmError> {
        let key = name.clone();
        self.db(move |db| db.get(&key)).await?.ok_or_else(|| VmError::NoSuchVm(name.clone()))
    }

    /// Makes a VM from its specification, stopped.
    ///
    /// # Errors
    /// A refusal of [`VmError`] that has changed nothing.
    pub async fn create(&self, spec: VmSpec) -> Result<VmView, VmError> {
        let slot = self.slot(&spec.name);
        let _turn = slot.operation.lock().await;
        let records = self.db(Inventory::list).await?;
        let definition = check::new_vm(self, spec, records, Uuid::new_v4()).await?;
        let stored = definition.clone();
        self.db(move |db| db.insert(&stored)).await?;
        self.vms_changed();
        tracing::info!(vm = %definition.name, uuid = %definition.uuid, "created");
        self.view(&self.record(&definition.name).await?).await
    }

    /// Forgets a stopped VM and removes its firmware variables; disk images are the operator's.
    ///
    /// # Errors
    /// [`VmError::WrongState`] while it runs.
    pub async fn delete(&self, name: &VmName) -> Result<VmView, VmError> {
        let slot = self.slot(name);
        let _turn = slot.operation.lock().await;
        slot.check_free(name)?;
        let record = self.record(name).await?;
        let view = self.view(&record).await?;
        if record.runtime.is_some() {
            let (state, needed, act) = (view.state, "stopped", "be deleted");
            return Err(VmError::WrongState { name: name.clone(), state, needed, act });
        }
        teardown::remove_durable(&self.config, &record.definition)?;
        let key = name.clone();
        self.db(move |db| db.delete(&key)).await?;
        self.forget_slot(name);
        if let Err(error) = self.wire(name).await {
            tracing::warn!(error = crate::chain(&error), "its ports are still wired");
        }
        self.vms_changed();
        tracing::info!(vm = %name, "deleted");
        Ok(view)
    }

    /// All VMs by name.
    ///
    /// # Errors
    /// [`VmError::Inventory`].
    pub async fn list(&self) -> Result<Vec<VmView>, VmError> {
        let mut views = Vec::new();
        for record in self.db(Inventory::list).await? {
            views.push(self.view(&record).await?);
        }
        Ok(views)
    }

    /// One VM.
    ///
    /// # Errors
    /// [`VmError::NoSuchVm`].
    pub async fn show(&self, name: &VmName) -> Result<VmView, VmError> {
        self.view(&self.record(name).await?).await
    }
}

/// Ends that are kept for a listener that is busy.
const GONE_KEPT: usize = 256;
