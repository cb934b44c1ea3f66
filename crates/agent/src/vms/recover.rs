//! Finding VMs again after the agent was restarted, killed or upgraded, or the host rebooted.
//!
//! For each [`Runtime`] on record: if its process still is the one on record and its monitor answers, the agent takes
//! the VM up where it was, descriptors included. Otherwise whatever was set up is taken down, and the VM is started
//! if it is set to start with the host and the host has booted since.

use std::sync::Arc;

use fermata_vault::memory::Kind;

use super::live::Live;
use super::{VmError, Vms};
use crate::inventory::{Inventory, Runtime, VmRecord};

/// What became of one VM on record.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// Still running, taken up again.
    Alive,
    /// Its host boot is over.
    Rebooted,
    /// It ended while no agent looked.
    Gone(String),
}

impl Vms {
    /// Takes up every VM that still runs, removes the traces of those that do not, starts those that shall start with
    /// the host. A VM that cannot be brought back is logged and keeps its reason; it never holds up the others.
    ///
    /// # Errors
    /// [`VmError::Inventory`] when the data base cannot be read.
    pub async fn recover(self: &Arc<Self>) -> Result<(), VmError> {
        for record in self.db(Inventory::list).await? {
            let name = record.definition.name.clone();
            if let Err(error) = self.recover_one(record).await {
                tracing::error!(vm = %name, error = crate::chain(&error), "not recovered");
            }
        }
        Ok(())
    }

    async fn recover_one(self: &Arc<Self>, record: VmRecord) -> Result<(), VmError> {
        let name = record.definition.name.clone();
        let slot = self.slot(&name);
        let turn = slot.operation.lock().await;
        if let Some(runtime) = &record.runtime
            && (self.vaults.keeps(record.definition.uuid) || self.may_be_kept(runtime))
        {
            return self.recover_kept(&record, runtime).await;
        }
        if !matches!(&record.runtime, Some(runtime) if runtime.boot == self.boot) {
            self.recover_beside(&slot, &record).await?;
        }
        let first_boot = match &record.runtime {
            Some(runtime) => match self.find(&record, runtime).await {
                Found::Alive => return self.recover_beside(&slot, &record).await,
                Found::Rebooted => {
                    self.tear_down(&name, runtime).await?;
                    true
                }
                Found::Gone(reason) => {
                    tracing::warn!(vm = %name, reason, "ended while no agent looked");
                    self.tear_down(&name, runtime).await?;
                    let key = name.clone();
                    self.db(move |db| db.set_failure(&key, Some(&reason))).await?;
                    false
                }
            },
            None => self.is_first_run_of_boot(),
        };
        drop(turn);
        if first_boot && record.definition.autostart {
            tracing::info!(vm = %name, "starts with the host");
            if let Err(error) = self.start(&name).await {
                let reason = crate::chain(&error);
                tracing::error!(vm = %name, error = reason, "did not start with the host");
                self.db(move |db| db.set_failure(&name, Some(&reason))).await?;
            }
        }
        Ok(())
    }

    /// Whether a VM may be kept in a vault that cannot be looked into now: after a jump, or after it was tried to be restored. What is
    /// known of it must not be forgotten then: the vault may be mended.
    fn may_be_kept(&self, runtime: &Runtime) -> bool {
        let from_here = runtime.boot == self.boot || crate::jumped::from() == Some(runtime.boot);
        runtime.vault == Kind::Devdax && from_here && self.vaults.devdax().is_err()
    }

    async fn find(self: &Arc<Self>, record: &VmRecord, runtime: &Runtime) -> Found {
        if runtime.boot != self.boot {
            return Found::Rebooted;
        }
        match Live::find(&record.definition, runtime, &self.vaults).await {
            Ok(live) => {
                tracing::info!(vm = %record.definition.name, unit = runtime.unit, "found again");
                live.is_not_urgent();
                self.take_up(&record.definition.name, live);
                Found::Alive
            }
            Err(reason) => Found::Gone(reason),
        }
    }

    /// Whether no agent has run since the host booted: the run folder is emptied by a boot, so its mark is not there.
    fn is_first_run_of_boot(&self) -> bool {
        !self.config.run_dir.join(BOOT_MARK).exists()
    }

    /// Leaves the mark that an agent has run in this boot.
    ///
    /// # Errors
    /// [`VmError::Io`].
    pub fn mark_boot(&self) -> Result<(), VmError> {
        let path = self.config.run_dir.join(BOOT_MARK);
        std::fs::write(&path, self.boot.to_string()).map_err(|source| VmError::Io { what: "write", path, source })
    }
}

const BOOT_MARK: &str = "booted";
