//! The rehearsal of a swap: two twins of the VM, with the same hardware but memory of their own and no disk, are handed
//! over from the VMM in use to the one to be used. What cannot load is found out here, while the VM runs.

use std::sync::Arc;
use std::time::Duration;

use fermata_model::{VmDefinition, VmName, VmmVersion};
use fermata_vault::memory::{Kind, Memfd, Provider};
use fermata_vault::process::Process;
use fermata_vault::tap::{self, TapName};
use fermata_vmm::command::{Paths, Role};
use fermata_vmm::handover::{self, Way};
use fermata_vmm::qmp::Qmp;
use uuid::Uuid;

use super::live::Lent;
use super::start::{READY_LIMIT, make_dir, with_last_words};
use super::{VmError, Vms};
use crate::inventory::Runtime;

impl Vms {
    /// Rehearses the swap of a VM to a VMM and tells which way works; the better one is tried first. The VM is not touched.
    ///
    /// # Errors
    /// [`VmError::NoWay`] with what the VMMs said to each; nothing is left.
    pub(crate) async fn rehearse(
        self: &Arc<Self>,
        name: &VmName,
        vmm: VmmVersion,
        limit: Duration,
    ) -> Result<Way, VmError> {
        let (definition, live) = self.live(name).await?;
        let from = live.runtime().vmm;
        let mut refused = Vec::new();
        for way in Way::ALL {
            let old = self.twin_runtime(&definition, from, 'o');
            let new = self.twin_runtime(&definition, vmm, 'n');
            // Of an attempt that was cut short.
            self.remove_twins(&old, &new).await?;
            let rehearsed = tokio::time::timeout(limit / 2, self.hand_twin_over(&definition, way, &old, &new)).await;
            let rehearsed = rehearsed.unwrap_or_else(|_| {
                let what = "take the twin over";
                let source = handover::HandoverError::Late { what, limit: limit / 2 };
                Err(VmError::Handover { name: name.clone(), source })
            });
            let rehearsed = rehearsed.map_err(|error| with_last_words(error, &new.dir));
            self.remove_twins(&old, &new).await?;
            match rehearsed {
                Ok(()) => return Ok(way),
                Err(error @ (VmError::Handover { .. } | VmError::VmmRefused { .. })) => {
                    tracing::info!(vm = %name, %way, reason = crate::chain(&error), "this way does not work");
                    refused.push(format!("by {way}: {}", crate::chain(&error)));
                }
                Err(error) => return Err(error),
            }
        }
        Err(VmError::NoWay { name: name.clone(), from, to: vmm, tried: refused.join("; ") })
    }

    pub(super) fn twin_runtime(&self, definition: &VmDefinition, vmm: VmmVersion, side: char) -> Runtime {
        let (head, ..) = definition.uuid.as_fields();
        let tap = |nic: usize| -> TapName {
            format!("vm{head:08x}-{nic}{side}").parse().expect("as short as the VM's own taps, and of the same letters")
        };
        Runtime {
            generation: 0,
            unit: format!("fermata-twin-{}-{side}.service", definition.name),
            vmm,
            boot: self.boot,
            process: None,
            dir: self.config.run_dir.join("twin").join(definition.name.as_str()).join(side.to_string()),
            taps: (0..definition.nics.len()).map(tap).collect(),
            owners: Vec::new(),
            vault: Kind::Memfd,
        }
    }

    /// Makes certain that no twin of a VM is left. None is no error.
    ///
    /// # Errors
    /// [`VmError`].
    pub(crate) async fn end_twins(&self, name: &VmName) -> Result<(), VmError> {
        let definition = self.record(name).await?.definition;
        let [old, new] = ['o', 'n'].map(|side| self.twin_runtime(&definition, definition.vmm, side));
        self.remove_twins(&old, &new).await
    }

    pub(super) async fn remove_twins(&self, old: &Runtime, new: &Runtime) -> Result<(), VmError> {
        self.tear_down_vmm(old).await?;
        self.tear_down_vmm(new).await?;
        if let Some(parent) = new.dir.parent() {
            super::teardown::remove_dir(parent)?;
        }
        Ok(())
    }

    async fn hand_twin_over(
        &self,
        definition: &VmDefinition,
        way: Way,
        old: &Runtime,
        new: &Runtime,
    ) -> Result<(), VmError> {
        let failed = |source| VmError::Handover { name: definition.name.clone(), source };
        let memory = Memfd::default()
            .allocate(Uuid::new_v4(), definition.memory)
            .map_err(|source| VmError::Memory { name: definition.name.clone(), source })?;
        let again = memory.try_clone().map_err(|source| VmError::Io {
            what: "copy the memory's descriptor for",
            path: new.dir.clone(),
            source,
        })?;
        self.start_twin(definition, old, Role::Run, memory).await?;
        let monitor = Paths::in_folder(&old.dir).qmp();
        let old_qmp = Qmp::connect(&monitor, READY_LIMIT).await.map_err(|source| VmError::Qmp {
            name: definition.name.clone(),
            act: "rehearse",
            source,
        })?;
        let process = self.start_twin(definition, new, way.role(), again).await?;
        let paths = Paths::in_folder(&new.dir);
        let monitor = way.ready(&process, &paths, READY_LIMIT).await.map_err(failed)?;
        way.prepare(&old_qmp).await.map_err(failed)?;
        // The twin stands in the new VMM: that is all that was to be shown.
        let _stands = way.hand_over(&old_qmp, &process, monitor.as_ref(), &paths, READY_LIMIT).await.map_err(failed)?;
        Ok(())
    }

    pub(super) async fn start_twin(
        &self,
        definition: &VmDefinition,
        runtime: &Runtime,
        role: Role,
        memory: fermata_vault::memory::Region,
    ) -> Result<Process, VmError> {
        let user = self.vm_user()?;
        make_dir(&runtime.dir, &user)?;
        let mut queues = Vec::new();
        for (nic, name) in runtime.taps.iter().enumerate() {
            // On no bridge and down: a twin hears and says nothing.
            queues.push(tap::create(name, Some(user.uid)).map_err(|source| VmError::Tap { nic, source })?);
        }
        self.launch_vmm(definition, runtime, role, true, &Lent { memory, queues }).await
    }
}
