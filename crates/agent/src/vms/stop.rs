//! Stopping, pausing and resuming VMs, and noticing that one ended by itself.

use std::sync::Arc;
use std::time::Duration;

use fermata_model::VmName;
use tokio::time::timeout;

use super::live::Live;
use super::{VmError, Vms, view};
use crate::api::types::{StopRequest, VmView};
use crate::inventory::{Inventory, VmRecord, Wanted};

/// How long a VMM may take to end after it was told to, before it is killed.
const QUIT_LIMIT: Duration = Duration::from_secs(5);

impl Vms {
    /// Stops a VM: asks the guest and waits, or ends the VMM at once. Stopping a stopped VM is no error.
    ///
    /// # Errors
    /// [`VmError::GuestWouldNot`]: the guest runs on.
    pub async fn stop(&self, name: &VmName, request: StopRequest) -> Result<VmView, VmError> {
        let slot = self.slot(name);
        let _turn = slot.operation.lock().await;
        slot.check_free(name)?;
        let record = self.record(name).await?;
        if let Some(runtime) = &record.runtime {
            if let Some(live) = slot.live() {
                self.end_vmm(name, &live, request).await?;
            }
            slot.set_live(None);
            self.tear_down(name, runtime).await?;
            tracing::info!(vm = %name, force = request.force, "stopped");
        }
        let key = name.clone();
        self.db(move |db| {
            db.set_wanted(&key, Wanted::Stopped)?;
            db.set_failure(&key, None)
        })
        .await?;
        self.view(&self.record(name).await?).await
    }

    async fn end_vmm(&self, name: &VmName, live: &Live, request: StopRequest) -> Result<(), VmError> {
        if request.force {
            // A monitor that does not answer is no reason to keep the VM: the unit is killed below.
            live.quit().await.ok();
            if timeout(QUIT_LIMIT, live.ended()).await.is_err() {
                self.units.kill(live.unit()).await?;
                live.ended().await;
            }
            return Ok(());
        }
        let limit = Duration::from_secs(request.timeout_s);
        live.ask_to_shut_down().await.map_err(|source| VmError::Qmp {
            name: name.clone(),
            act: "ask the guest to shut down",
            source,
        })?;
        timeout(limit, live.ended())
            .await
            .map_err(|_| VmError::GuestWouldNot { name: name.clone(), seconds: request.timeout_s })
    }

    /// Shuts every VM down in parallel for the host's own shutdown. A guest that will not end in time is ended.
    ///
    /// # Errors
    /// [`VmError::Inventory`].
    pub async fn stop_all(&self, limit: Duration) -> Result<Vec<VmView>, VmError> {
        let records = self.db(Inventory::list).await?;
        let running: Vec<VmRecord> = records.into_iter().filter(|r| r.runtime.is_some()).collect();
        let ended = running.iter().map(|record| self.stop_for_shutdown(&record.definition.name, limit));
        for (record, result) in running.iter().zip(futures_util::future::join_all(ended).await) {
            if let Err(error) = result {
                tracing::error!(vm = %record.definition.name, error = crate::chain(&error), "not stopped");
            }
        }
        let mut views = Vec::new();
        for record in running {
            views.push(self.show(&record.definition.name).await?);
        }
        Ok(views)
    }

    /// Shuts a guest down for a maintenance: asked, and given `limit`. It is not ended by force.
    ///
    /// # Errors
    /// [`VmError::GuestWouldNot`]: it runs on.
    pub(crate) async fn shut_down(&self, name: &VmName, limit: Duration) -> Result<(), VmError> {
        // A little is kept for taking down what was set up.
        let seconds = limit.saturating_sub(Duration::from_secs(10)).as_secs();
        self.stop(name, StopRequest { timeout_s: seconds, force: false }).await.map(drop)
    }

    async fn stop_for_shutdown(&self, name: &VmName, limit: Duration) -> Result<(), VmError> {
        let gently = StopRequest { timeout_s: limit.as_secs(), force: false };
        match self.stop(name, gently).await {
            Err(VmError::GuestWouldNot { .. } | VmError::Qmp { .. }) => {
                tracing::warn!(vm = %name, "would not shut down in time; ended");
                self.stop(name, StopRequest { timeout_s: 0, force: true }).await.map(|_| ())
            }
            other => other.map(|_| ()),
        }
    }

    /// Stops a VM's vCPUs. Pausing a paused VM is no error.
    ///
    /// # Errors
    /// [`VmError::WrongState`] when no VMM runs it.
    pub async fn pause(&self, name: &VmName) -> Result<VmView, VmError> {
        self.set_running(name, false, "be paused").await
    }

    /// Lets a paused VM go on. Resuming a running VM is no error.
    ///
    /// # Errors
    /// [`VmError::WrongState`] when no VMM runs it.
    pub async fn resume(&self, name: &VmName) -> Result<VmView, VmError> {
        self.set_running(name, true, "be resumed").await
    }

    async fn set_running(&self, name: &VmName, run: bool, act: &'static str) -> Result<VmView, VmError> {
        let slot = self.slot(name);
        let _turn = slot.operation.lock().await;
        slot.check_free(name)?;
        let record = self.record(name).await?;
        let Some(live) = slot.live() else {
            let state = view::state(&slot, &record).await;
            return Err(VmError::WrongState { name: name.clone(), state, needed: "running or paused", act });
        };
        let source = if run { live.cont().await } else { live.pause().await };
        source.map_err(|source| VmError::Qmp { name: name.clone(), act, source })?;
        self.view(&record).await
    }

    /// Keeps a VMM that is known to run, and watches for its end.
    pub(super) fn take_up(self: &Arc<Self>, name: &VmName, live: Live) {
        let live = Arc::new(live);
        self.slot(name).set_live(Some(Arc::clone(&live)));
        tokio::spawn(Arc::clone(self).adopt(name.clone(), Arc::clone(&live)));
        let (vms, name) = (Arc::clone(self), name.clone());
        tokio::spawn(async move {
            live.ended().await;
            if let Err(error) = vms.note_end(&name, &live).await {
                tracing::error!(vm = %name, error = crate::chain(&error), "its VMM ended; not cleaned up");
            }
        });
    }

    /// Cleans up after a VMM that ended without the agent ending it: the guest shut itself down, or the VMM died.
    async fn note_end(&self, name: &VmName, live: &Arc<Live>) -> Result<(), VmError> {
        let slot = self.slot(name);
        let is_current = || slot.live().is_some_and(|current| Arc::ptr_eq(&current, live));
        if is_current() {
            // Told at once: an act on the VM may hold its turn and wait for a VMM that will never answer.
            let reason = live.failure(&live.runtime().dir).unwrap_or_else(|| "the guest shut itself down".to_owned());
            self.gone.send((name.clone(), reason)).ok();
        }
        let _turn = slot.operation.lock().await;
        if !is_current() {
            return Ok(());
        }
        let record = self.record(name).await?;
        let Some(runtime) = &record.runtime else { return Ok(()) };
        let failure = live.failure(&runtime.dir);
        slot.set_live(None);
        if self.vaults.keeps(record.definition.uuid) {
            tracing::error!(vm = %name, reason = failure, "its VMM ended; memory and state are kept in the vault");
            return self.tear_down_vmm(runtime).await;
        }
        self.tear_down(name, runtime).await?;
        match &failure {
            None => tracing::info!(vm = %name, "the guest shut itself down"),
            Some(reason) => tracing::error!(vm = %name, reason, "its VMM died"),
        }
        let (key, wanted_off) = (name.clone(), failure.is_none());
        self.db(move |db| {
            if wanted_off {
                db.set_wanted(&key, Wanted::Stopped)?;
            }
            db.set_failure(&key, failure.as_deref())
        })
        .await
    }
}
