//! The ways back from a swap, and its end: which VMM is dead for certain when an act returns.
//!
//! Before the VM may have run in the new VMM, that one goes ([`Vms::take_back`], [`Vms::discard_new`]); after, the old one
//! ([`Vms::retire`], or with the VM itself when the new one died). Where that is not known, neither runs the VM again.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fermata_maintenance::witness;
use fermata_model::VmName;
use fermata_vault::process::Process;
use fermata_vault::tap::Queue;
use fermata_vmm::command::Paths;
use fermata_vmm::handover;
use fermata_vmm::qmp::{Qmp, Timestamp};
use tokio::sync::Mutex as AsyncMutex;

use super::super::live::Live;
use super::super::{Slot, VmError, Vms};
use super::{Beside, END_LIMIT, Gate, running};
use crate::inventory::{Runtime, VmRecord};
use crate::urgency;

impl Vms {
    /// The new VMM died when the VM may have run in it: the old one's picture of the VM is history and must never run. The VM is
    /// lost, as with any VMM that dies; what is left is cleaned up as after any.
    pub(super) async fn never_run_again(&self, slot: &Slot, record: &VmRecord) -> Result<(), VmError> {
        let name = &record.definition.name;
        if let Some(old) = slot.live() {
            let gone = old.process().kill_for_certain(END_LIMIT).await;
            gone.map_err(|source| VmError::Process { name: name.clone(), source })?;
        }
        slot.set_beside(None);
        if let Some(left) = &record.beside {
            self.tear_down_vmm(left).await?;
            self.note_beside(name, None).await?;
        }
        Ok(())
    }

    /// Ends whatever is under way: the new VMM is dead for certain, then the old one runs. When it ran again.
    ///
    /// # Errors
    /// [`VmError::TakeBack`]; [`VmError::Ran`] when there is no way back.
    pub(crate) async fn take_back(&self, name: &VmName, limit: Duration) -> Result<Option<Timestamp>, VmError> {
        let slot = self.slot(name);
        let _turn = slot.operation.lock().await;
        let record = self.record(name).await?;
        not_run_in(name, &record)?;
        // The journal lost more than the end of the pause: the VM has changed over, and its old VMM may be gone.
        let by = slot.maintenance();
        let changed =
            |live: &Arc<Live>| by.as_ref().is_some_and(|by| witness::may_have_run_by(&live.runtime().dir, by));
        if slot.live().as_ref().is_some_and(changed) {
            return Err(VmError::Ran(name.clone()));
        }
        let live = running(&slot, name, &record).await?;
        self.forget_saved(&record)?;
        let beside = slot.beside();
        if let Some(beside) = &beside {
            *beside.gate.lock().await = Gate::Shut;
        }
        let new = beside.as_ref().map(|b| &b.process);
        let resumed = handover::take_back(live.qmp(), new, limit).await;
        let resumed = resumed.map_err(|source| VmError::TakeBack { name: name.clone(), source })?;
        if let Some(haste) = beside.as_ref().and_then(|beside| beside.hurry(None)) {
            haste.returned();
        }
        let from = beside.as_ref().map_or(&[][..], |beside| &beside.runtime.taps);
        self.steer(from, &self.ways(&record, live.runtime())).await?;
        if let Some(beside) = &beside {
            self.give_frames_back(beside).await;
        }
        // The VM runs; what the dead one leaves can wait until here.
        if let Some(left) = record.beside.as_ref().filter(|b| b.generation > live.runtime().generation) {
            slot.set_beside(None);
            self.tear_down_vmm(left).await?;
            self.note_beside(name, None).await?;
        }
        Ok(resumed)
    }

    /// Makes certain that no VMM stands beside to take the VM over.
    ///
    /// # Errors
    /// [`VmError`].
    pub(crate) async fn discard_new(&self, name: &VmName) -> Result<(), VmError> {
        not_run_in(name, &self.record(name).await?)?;
        self.end_beside(name, |beside, runtime| beside.generation > runtime.generation).await
    }

    /// Makes certain that the VMM that ran the VM before is gone.
    ///
    /// # Errors
    /// [`VmError`].
    pub(crate) async fn retire(&self, name: &VmName) -> Result<(), VmError> {
        self.end_beside(name, |beside, runtime| beside.generation < runtime.generation).await
    }

    async fn end_beside(&self, name: &VmName, meant: impl FnOnce(&Runtime, &Runtime) -> bool) -> Result<(), VmError> {
        let slot = self.slot(name);
        let _turn = slot.operation.lock().await;
        let record = self.record(name).await?;
        let (Some(beside), Some(runtime)) = (&record.beside, &record.runtime) else { return Ok(()) };
        if !meant(beside, runtime) {
            return Ok(());
        }
        if let Some(standing) = slot.beside() {
            let gone = handover::retire(standing.qmp().as_ref(), &standing.process, END_LIMIT).await;
            gone.map_err(|source| VmError::Process { name: name.clone(), source })?;
        }
        slot.set_beside(None);
        self.tear_down_vmm(beside).await?;
        self.note_beside(name, None).await
    }

    /// Finds the VMM that stood beside when an agent ended, or removes what is left of it.
    pub(in crate::vms) async fn recover_beside(&self, slot: &Slot, record: &VmRecord) -> Result<(), VmError> {
        let Some(runtime) = &record.beside else { return Ok(()) };
        let name = &record.definition.name;
        let found = match runtime.process {
            Some(identity) if runtime.boot == self.boot => {
                Process::find(identity).map_err(|source| VmError::Process { name: name.clone(), source })?
            }
            _ => None,
        };
        let Some(process) = found else {
            if let (Some(old), Err(_)) = (slot.live(), not_run_in(name, record)) {
                // It died after the VM ran in it: the old one's picture of the VM is history.
                let gone = old.process().kill_for_certain(END_LIMIT).await;
                gone.map_err(|source| VmError::Process { name: name.clone(), source })?;
            }
            self.tear_down_vmm(runtime).await?;
            return self.note_beside(name, None).await;
        };
        let mut queues = Vec::new();
        for (nic, tap_name) in runtime.taps.iter().enumerate() {
            let fd = process
                .take_fd(fermata_vmm::command::tap(nic))
                .map_err(|source| VmError::Process { name: name.clone(), source })?;
            queues.push(Queue::adopt(tap_name, fd).map_err(|source| VmError::Tap { nic, source })?);
        }
        // A successor that waits has no monitor yet; one that stands has answered long before this limit.
        let monitor = Paths::in_folder(&runtime.dir).qmp();
        let qmp = Qmp::connect(&monitor, Duration::from_millis(500)).await.ok();
        // The agent before may have ended in the pause.
        urgency::ends(process.pid());
        let successor = record.runtime.as_ref().is_some_and(|runs| runtime.generation > runs.generation);
        slot.set_beside(Some(Arc::new(Beside {
            process,
            runtime: runtime.clone(),
            queues,
            qmp: Mutex::new(qmp),
            // A maintenance that goes on may still hand the VM over; one that goes back shuts the gate first.
            gate: AsyncMutex::new(if successor { Gate::Open } else { Gate::Shut }),
            // What the agent before did with it is not known here.
            may_have_run: AtomicBool::new(true),
            haste: Mutex::new(None),
        })));
        Ok(())
    }
}

/// Refuses where the VM may have run in the VMM that was to take it over.
fn not_run_in(name: &VmName, record: &VmRecord) -> Result<(), VmError> {
    let (Some(beside), Some(runtime)) = (&record.beside, &record.runtime) else { return Ok(()) };
    let ran = beside.generation > runtime.generation && witness::may_have_run(&beside.dir);
    if ran { Err(VmError::Ran(name.clone())) } else { Ok(()) }
}
