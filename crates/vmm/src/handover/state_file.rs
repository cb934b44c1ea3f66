//! State in a file, memory left where it is: for a host whose kernel is replaced.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::{HandoverError, arrived, sent, set_mode};
use crate::qmp::{Channel, Migrate, MigrateIncoming, Mode, Qmp, Timestamp};

/// Makes a running VMM ready to save: the mode is set, and nothing is in the way.
///
/// # Errors
/// [`HandoverError::Blocked`] with QEMU's reasons.
pub async fn prepare_save(vmm: &Qmp) -> Result<(), HandoverError> {
    set_mode(vmm, Mode::CprReboot, true).await
}

/// Stops the VM and saves its devices' state to `file`, which is on the disk when this returns. Memory stays in the
/// vault. When the vCPUs stopped; `None` for a VM that stood already.
///
/// # Errors
/// [`HandoverError`]; then [`super::take_back`] without a new VMM.
pub async fn save(vmm: &Qmp, file: &Path, limit: Duration) -> Result<Option<Timestamp>, HandoverError> {
    let mut events = vmm.events();
    let until = Instant::now() + limit;
    vmm.execute_within(&Migrate { channels: vec![Channel::file(file)] }, limit).await.map_err(HandoverError::Old)?;
    let stopped = tokio::time::timeout_at(until, sent(vmm, &mut events))
        .await
        .map_err(|_| HandoverError::Late { what: "save the VM", limit })??;
    let path = file.to_owned();
    // QEMU closes the file without syncing it.
    let synced = tokio::task::spawn_blocking(move || std::fs::File::open(path)?.sync_all()).await;
    synced.unwrap_or_else(|panic| Err(std::io::Error::other(panic))).map_err(|source| HandoverError::File {
        path: file.to_owned(),
        what: "sync it",
        source,
    })?;
    Ok(stopped)
}

/// Loads a VM from `file` into a VMM started to wait for it ([`crate::command::Role::IncomingDefer`]). It stands still
/// afterwards.
///
/// # Errors
/// [`HandoverError`]; the file is left as it is, for another try.
pub async fn load(vmm: &Qmp, file: &Path, limit: Duration) -> Result<(), HandoverError> {
    let until = Instant::now() + limit;
    set_mode(vmm, Mode::CprReboot, true).await?;
    let incoming = MigrateIncoming { channels: vec![Channel::file(file)] };
    vmm.execute_within(&incoming, limit).await.map_err(HandoverError::New)?;
    tokio::time::timeout_at(until, arrived(vmm))
        .await
        .map_err(|_| HandoverError::Late { what: "load the VM", limit })?
}
