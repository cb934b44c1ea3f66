//! State in a file, memory left where it is: for a host whose kernel is replaced, and for a swap between VMMs that do not
//! understand each other's cpr channel (11.1 to 10.0).

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use fermata_vault::process::Process;

use super::{HandedOver, HandoverError, arrived, sent, set_mode, watched};
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
    let stopped = write(vmm, file, limit).await?;
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

async fn write(vmm: &Qmp, file: &Path, limit: Duration) -> Result<Option<Timestamp>, HandoverError> {
    let mut events = vmm.events();
    let until = Instant::now() + limit;
    vmm.execute_within(&Migrate { channels: vec![Channel::file(file)] }, limit).await.map_err(HandoverError::Old)?;
    tokio::time::timeout_at(until, sent(vmm, &mut events))
        .await
        .map_err(|_| HandoverError::Late { what: "save the VM", limit })?
}

/// Hands a VM over through a file in memory (`file` should be on tmpfs), to a VMM started on the *same* memory to wait for
/// it ([`crate::command::Role::IncomingDefer`]), whose monitor is `monitor`. The old VMM must have been prepared with
/// [`prepare_save`]. Afterwards the VM stands still, whole, in the new VMM.
///
/// The VM stands while its state is written *and* loaded; [`super::hand_over`] overlaps the two and is to be preferred.
///
/// # Errors
/// [`HandoverError`]; then the VM's state is the old VMM's still: [`super::take_back`].
pub async fn hand_over_by_file(
    old: &Qmp,
    new: &Process,
    monitor: &Qmp,
    file: &Path,
    limit: Duration,
) -> Result<HandedOver, HandoverError> {
    let began = Instant::now();
    // What can be done while the VM runs is done while it runs.
    set_mode(monitor, Mode::CprReboot, true).await?;
    let stopped = write(old, file, limit).await?;
    let left = limit.saturating_sub(began.elapsed());
    watched(new, "take the VM over", left, take(monitor, file, left)).await??;
    Ok(HandedOver { new: monitor.clone(), stopped, took: began.elapsed() })
}

async fn take(vmm: &Qmp, file: &Path, limit: Duration) -> Result<(), HandoverError> {
    let incoming = MigrateIncoming { channels: vec![Channel::file(file)] };
    vmm.execute_within(&incoming, limit).await.map_err(HandoverError::New)?;
    arrived(vmm).await
}

/// Loads a VM from `file` into a VMM started to wait for it ([`crate::command::Role::IncomingDefer`]). It stands still
/// afterwards.
///
/// # Errors
/// [`HandoverError`]; the file is left as it is, for another try.
pub async fn load(vmm: &Qmp, file: &Path, limit: Duration) -> Result<(), HandoverError> {
    let until = Instant::now() + limit;
    set_mode(vmm, Mode::CprReboot, true).await?;
    tokio::time::timeout_at(until, take(vmm, file, limit))
        .await
        .map_err(|_| HandoverError::Late { what: "load the VM", limit })?
}
