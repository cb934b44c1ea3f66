//! Taking down what a start set up. Every step is idempotent and none depends on another, so a teardown that was cut
//! short is simply run again.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::chown;
use std::path::PathBuf;

use fermata_model::{VmDefinition, VmName};

use super::{VmError, Vms};
use crate::config::Config;
use crate::inventory::Runtime;

impl Vms {
    /// Ends a VM's unit and removes everything that was set up for it; the record goes last.
    pub(super) async fn tear_down(&self, name: &VmName, runtime: &Runtime) -> Result<(), VmError> {
        self.tear_down_vmm(runtime).await?;
        for owner in &runtime.owners {
            match chown(&owner.path, Some(owner.uid), Some(owner.gid)) {
                Ok(()) => {}
                // The operator moved or removed the image meanwhile: nothing to put back.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(source) => {
                    return Err(VmError::Io { what: "put back the owner of", path: owner.path.clone(), source });
                }
            }
        }
        // The VM's folder above goes with its last generation.
        if let Some(parent) = runtime.dir.parent() {
            remove_dir(parent)?;
        }
        // Only now is its VMM certainly gone.
        self.vaults.free(runtime.vault, self.record(name).await?.definition.uuid);
        let key = name.clone();
        self.db(move |db| db.set_runtime(&key, None)).await
    }

    /// Ends a VMM's unit and removes what only this VMM had: its taps, sockets and log.
    pub(super) async fn tear_down_vmm(&self, runtime: &Runtime) -> Result<(), VmError> {
        self.units.stop(&runtime.unit).await?;
        for (nic, tap) in runtime.taps.iter().enumerate() {
            self.links.remove(tap.as_str()).await.map_err(|source| VmError::Nic { nic, source })?;
        }
        remove_dir(&runtime.dir)
    }
}

/// Where a VM's firmware variables are kept.
pub(super) fn nvram(config: &Config, definition: &VmDefinition) -> PathBuf {
    config.state_dir.join("nvram").join(format!("{}.fd", definition.uuid))
}

/// Removes what a VM keeps while it is stopped.
pub(super) fn remove_durable(config: &Config, definition: &VmDefinition) -> Result<(), VmError> {
    let path = nvram(config, definition);
    match fs::remove_file(&path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(source) => Err(VmError::Io { what: "remove", path, source }),
    }
}

pub(super) fn remove_dir(path: &std::path::Path) -> Result<(), VmError> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(source) => Err(VmError::Io { what: "remove", path: path.to_owned(), source }),
    }
}
