//! A VM is carried through a change of the host's kernel: its memory stays in the vault, the state of its devices is saved
//! beside it, and a VMM in the new kernel takes both up.
//!
//! ```text
//!  rehearse     VM runs      twins, with memory of their own: saved by the VMM in use, loaded by the one to be used
//!  save         VM stops     device state -> folder in memory -> vault, with its checksum
//!    ... jump ...
//!  restore      VM stands    vault -> folder in memory -> new VMM on the same memory
//!  run_restored VM runs      the saved state is given up first: from here on it is the past
//! ```
//!
//! Saved state and memory belong together only as long as no vCPU runs, so it is given up *before* a VM runs again, on
//! either side. As long as the vault keeps it, nothing else touches the VM's memory: not a start, not a clean-up after a
//! VMM that died, not a restart of the agent.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fermata_model::{VmDefinition, VmName, VmmVersion};
use fermata_vault::memory::{Kind, Memfd, Provider};
use fermata_vault::tap;
use fermata_vmm::command::{Paths, Role};
use fermata_vmm::handover;
use fermata_vmm::qmp::{self, Qmp, Timestamp};
use uuid::Uuid;

use super::live::{Lent, Live};
use super::start::{READY_LIMIT, make_dir, with_last_words};
use super::{VmError, Vms};
use crate::inventory::{Runtime, VmRecord};
use crate::links::Side;

/// How long an operator's second try may take.
const RESTORE_LIMIT: Duration = Duration::from_secs(60);
/// How long disks and bridges may take after a jump, in one attempt.
const FILES_LIMIT: Duration = Duration::from_secs(20);
/// Nothing announces them all, so they are looked at.
const FILES_LOOK: Duration = Duration::from_millis(20);

/// The file that a VMM writes its state to, in its own folder.
const STATE: &str = "state";

impl Vms {
    fn vault_failed(name: &VmName) -> impl Fn(String) -> VmError {
        move |reason| VmError::Vault { name: name.clone(), reason }
    }

    /// Rehearses a save and a load with twins. The VM is not touched.
    ///
    /// # Errors
    /// [`VmError`] with what the VMM said; nothing is left.
    pub(crate) async fn rehearse_carry(
        self: &Arc<Self>,
        name: &VmName,
        vmm: Option<VmmVersion>,
        limit: Duration,
    ) -> Result<(), VmError> {
        let (definition, live) = self.live(name).await?;
        let old = self.twin_runtime(&definition, live.runtime().vmm, 'o');
        let new = self.twin_runtime(&definition, vmm.unwrap_or(live.runtime().vmm), 'n');
        self.remove_twins(&old, &new).await?;
        let carry = async {
            let failed = |source| VmError::Handover { name: name.clone(), source };
            let asked = |source| VmError::Qmp { name: name.clone(), act: "rehearse", source };
            let memory = Memfd::default()
                .allocate(Uuid::new_v4(), definition.memory)
                .map_err(|source| VmError::Memory { name: name.clone(), source })?;
            let io = |source| VmError::Io { what: "copy the memory's descriptor for", path: new.dir.clone(), source };
            let again = memory.try_clone().map_err(io)?;
            self.start_twin(&definition, &old, Role::Run, memory).await?;
            let saver = Qmp::connect(&Paths::in_folder(&old.dir).qmp(), READY_LIMIT).await.map_err(asked)?;
            handover::prepare_save(&saver).await.map_err(failed)?;
            let state = old.dir.join(STATE);
            handover::save(&saver, &state, READY_LIMIT).await.map_err(failed)?;
            self.start_twin(&definition, &new, Role::IncomingDefer, again).await?;
            let loader = Qmp::connect(&Paths::in_folder(&new.dir).qmp(), READY_LIMIT).await.map_err(asked)?;
            handover::load(&loader, &state, READY_LIMIT).await.map_err(failed)
        };
        let rehearsed = tokio::time::timeout(limit, carry).await.unwrap_or_else(|_| {
            let what = "carry the twin over";
            Err(VmError::Handover { name: name.clone(), source: handover::HandoverError::Late { what, limit } })
        });
        let rehearsed = rehearsed.map_err(|error| with_last_words(error, &new.dir));
        self.remove_twins(&old, &new).await?;
        rehearsed
    }

    /// Stops a VM and saves the state of its devices into the vault. When its vCPUs stopped.
    ///
    /// # Errors
    /// [`VmError`]; then [`Self::take_back`].
    pub(crate) async fn save(self: &Arc<Self>, name: &VmName, limit: Duration) -> Result<Option<Timestamp>, VmError> {
        let slot = self.slot(name);
        let _turn = slot.operation.lock().await;
        let record = self.record(name).await?;
        let live = super::swap::running(&slot, name, &record).await?;
        let vault = Arc::clone(self.vaults.devdax().map_err(Self::vault_failed(name))?);
        let failed = |source| VmError::Handover { name: name.clone(), source };
        handover::prepare_save(live.qmp()).await.map_err(failed)?;
        let file = live.runtime().dir.join(STATE);
        let stopped = handover::save(live.qmp(), &file, limit).await.map_err(failed)?;
        let (vm, boot) = (record.definition.uuid, self.boot);
        let stopped_us = stopped.map_or_else(now_us, |at| at.as_micros().unsigned_abs());
        let kept = tokio::task::spawn_blocking(move || {
            let state = fs::read(&file).map_err(|e| format!("{}: {e}", file.display()))?;
            vault.save(vm, &state, boot, stopped_us).map_err(|e| crate::chain(&e))?;
            fs::remove_file(&file).map_err(|e| format!("{}: {e}", file.display()))
        });
        kept.await.map_err(|_| VmError::Inside)?.map_err(Self::vault_failed(name))?;
        Ok(stopped)
    }

    /// Gives up what was saved of a VM that is about to run on the VMM it has. Nothing to give up is no error.
    pub(super) fn forget_saved(&self, record: &VmRecord) -> Result<(), VmError> {
        let name = &record.definition.name;
        if !self.vaults.keeps(record.definition.uuid) {
            return Ok(());
        }
        let vault = self.vaults.devdax().map_err(Self::vault_failed(name))?;
        vault.forget_state(record.definition.uuid).map_err(|e| Self::vault_failed(name)(crate::chain(&e)))
    }

    /// Whether the vault keeps the state of a VM's devices.
    pub(crate) async fn keeps(&self, name: &VmName) -> bool {
        self.record(name).await.is_ok_and(|record| self.vaults.keeps(record.definition.uuid))
    }

    /// Starts a VMM on what the vault keeps of a VM and loads it; the VM stands still afterwards.
    ///
    /// # Errors
    /// [`VmError`]; memory and saved state are as they were.
    pub(crate) async fn restore(
        self: &Arc<Self>,
        name: &VmName,
        vmm: Option<VmmVersion>,
        limit: Duration,
    ) -> Result<(), VmError> {
        // From here on: another VM that waits for its disk must not send away the agent that has this one in hand.
        crate::first::departs(name);
        let restored = self.restore_now(name, vmm, limit).await;
        if restored.is_err() {
            crate::first::arrives(name);
            crate::first::let_others_start("a VM could not be restored at once");
        }
        restored
    }

    async fn restore_now(
        self: &Arc<Self>,
        name: &VmName,
        vmm: Option<VmmVersion>,
        limit: Duration,
    ) -> Result<(), VmError> {
        let slot = self.slot(name);
        let _turn = slot.operation.lock().await;
        if slot.live().is_some() {
            // An earlier attempt, whose answer was late, brought it here.
            return Ok(());
        }
        let record = self.record(name).await?;
        let was = record.runtime.clone().ok_or_else(|| Self::vault_failed(name)("nothing on record".to_owned()))?;
        if was.boot == self.boot {
            self.tear_down_vmm(&was).await?;
        }
        let vmm = vmm.unwrap_or(was.vmm);
        let mut runtime = self
            .next_runtime(&record.definition, vmm, Kind::Devdax, Side::beside(&was.taps), was.owners.clone())
            .await?;
        self.note_runtime(name, &runtime).await?;
        let restored = tokio::time::timeout(limit, self.load_from_vault(&record, &mut runtime)).await;
        let restored = restored.unwrap_or_else(|_| {
            let what = "load the VM";
            Err(VmError::Handover { name: name.clone(), source: handover::HandoverError::Late { what, limit } })
        });
        match restored {
            Ok(live) => {
                self.take_up(name, live);
                Ok(())
            }
            Err(error) => {
                let error = with_last_words(error, &runtime.dir);
                self.tear_down_vmm(&runtime).await?;
                let reason = format!("kept in the vault, not running: {}", crate::chain(&error));
                let key = name.clone();
                self.db(move |db| db.set_failure(&key, Some(&reason))).await?;
                Err(error)
            }
        }
    }

    /// Takes up what the vault keeps of a VM that no maintenance has, and lets it run: an operator's second try.
    ///
    /// # Errors
    /// [`VmError`]; it is kept still.
    pub async fn restore_kept(self: &Arc<Self>, name: &VmName) -> Result<crate::api::types::VmView, VmError> {
        self.slot(name).check_free(name)?;
        let record = self.record(name).await?;
        if !self.vaults.keeps(record.definition.uuid) {
            return Err(Self::vault_failed(name)(
                "nothing of it is kept in the vault; `fermata vm start` it".to_owned(),
            ));
        }
        self.restore(name, None, RESTORE_LIMIT).await?;
        self.run_restored(name, READY_LIMIT).await?;
        self.show(name).await
    }

    async fn note_runtime(&self, name: &VmName, runtime: &Runtime) -> Result<(), VmError> {
        let (key, stored) = (name.clone(), runtime.clone());
        self.db(move |db| db.set_runtime(&key, Some(&stored))).await
    }

    /// Waits until the VM's own disks and bridges are there: right after a jump they may be on their way.
    async fn files_there(&self, definition: &VmDefinition) -> Result<(), VmError> {
        let until = tokio::time::Instant::now() + FILES_LIMIT;
        loop {
            match super::check::check_files(definition, self) {
                Err(error) if tokio::time::Instant::now() < until => {
                    crate::first::arrives(&definition.name);
                    crate::first::let_others_start(&error.to_string());
                    tokio::time::sleep(FILES_LOOK).await;
                }
                there => return there,
            }
        }
    }

    async fn load_from_vault(&self, record: &VmRecord, runtime: &mut Runtime) -> Result<Live, VmError> {
        let definition = &record.definition;
        let name = &definition.name;
        let vault = Arc::clone(self.vaults.devdax().map_err(Self::vault_failed(name))?);
        let memory = self
            .vaults
            .reclaim(Kind::Devdax, definition, None)
            .map_err(|source| VmError::Memory { name: name.clone(), source })?;
        let saved_in = vault.saved(definition.uuid).map(|saved| saved.boot);
        if saved_in.is_some_and(|boot| boot != self.boot && crate::jumped::from() != Some(boot)) {
            return Err(VmError::NotTrusted { name: name.clone() });
        }
        let state = vault.load(definition.uuid).map_err(|e| Self::vault_failed(name)(crate::chain(&e)))?;
        self.files_there(definition).await?;
        crate::first::departs(name);
        let user = self.vm_user()?;
        make_dir(&runtime.dir, &user)?;
        let file = runtime.dir.join(STATE);
        let io = |source| VmError::Io { what: "write", path: file.clone(), source };
        fs::write(&file, &state).map_err(io)?;
        std::os::unix::fs::chown(&file, Some(user.uid), Some(user.gid)).map_err(io)?;
        let mut queues = Vec::new();
        for (nic, (tap_name, link)) in runtime.taps.iter().zip(&definition.nics).enumerate() {
            let queue = tap::create(tap_name, Some(user.uid)).map_err(|source| VmError::Tap { nic, source })?;
            self.links.attach(tap_name.as_str(), &link.bridge).await.map_err(|source| VmError::Nic { nic, source })?;
            queues.push(queue);
        }
        let lent = Lent { memory, queues };
        let process = self.launch_vmm(definition, runtime, Role::IncomingDefer, false, &lent).await?;
        runtime.process = Some(process.identity());
        self.note_runtime(name, runtime).await?;
        let monitor = Paths::in_folder(&runtime.dir).qmp();
        let asked = |source| VmError::Qmp { name: name.clone(), act: "take up what was kept", source };
        let qmp = self.answering(&process, &monitor).await.map_err(asked)?;
        handover::load(&qmp, &file, READY_LIMIT)
            .await
            .map_err(|source| VmError::Handover { name: name.clone(), source })?;
        fs::remove_file(&file).ok();
        Ok(Live::new(process, qmp, runtime.clone(), lent))
    }

    /// Lets a restored VM run. When its vCPUs ran again, and when they had stopped (microseconds since 1970, by the clock of
    /// the kernel before).
    ///
    /// # Errors
    /// [`VmError`].
    pub(crate) async fn run_restored(
        &self,
        name: &VmName,
        limit: Duration,
    ) -> Result<(Option<Timestamp>, Option<u64>), VmError> {
        let slot = self.slot(name);
        let _turn = slot.operation.lock().await;
        let record = self.record(name).await?;
        let live = super::swap::running(&slot, name, &record).await?;
        let saved = self.vaults.devdax().ok().and_then(|vault| vault.saved(record.definition.uuid));
        self.forget_saved(&record)?;
        let failed = |source| VmError::Qmp { name: name.clone(), act: "run again", source };
        let resumed = handover::resume(live.qmp(), limit).await.map_err(failed)?;
        live.is_not_urgent();
        let announce = qmp::AnnounceSelf { initial: 50, max: 550, rounds: 5, step: 50 };
        if let Err(error) = live.qmp().execute(&announce).await {
            tracing::warn!(vm = %name, error = crate::chain(&error), "not announced to the switches");
        }
        let key = name.clone();
        self.db(move |db| db.set_failure(&key, None)).await?;
        Ok((resumed, saved.map(|saved| saved.stopped_us)))
    }

    /// What to do with a VM on record whose devices' state the vault keeps, when an agent starts: its VMM, when it is there,
    /// is taken up; nothing is given up. Who runs it is the journal's to say, or the operator's.
    pub(super) async fn recover_kept(self: &Arc<Self>, record: &VmRecord, runtime: &Runtime) -> Result<(), VmError> {
        let name = &record.definition.name;
        if runtime.boot != self.boot {
            tracing::info!(vm = %name, "kept in the vault");
            return Ok(());
        }
        match Live::find(&record.definition, runtime, &self.vaults).await {
            Ok(live) => {
                if live.run_state(READY_LIMIT).await.unwrap_or(false) {
                    self.forget_saved(record)?;
                    live.is_not_urgent();
                }
                self.take_up(name, live);
                Ok(())
            }
            Err(reason) => {
                tracing::warn!(vm = %name, reason, "kept in the vault; its VMM is gone");
                self.tear_down_vmm(runtime).await
            }
        }
    }
}

fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}
