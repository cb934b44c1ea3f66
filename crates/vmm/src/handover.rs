//! A VM changes its VMM (*swap*), or leaves its state behind for the next kernel (*save* and *load*): small steps, each
//! with a time limit and a typed end. What may be done when is the maintenance state machine's to say.
//!
//! ```text
//!            swap                                         kexec
//!   prepare(old)      VM runs                     prepare_save(old)   VM runs
//!   ready(new)        VM runs                     save(old, file)     VM stops
//!   hand_over         VM stops                      ... jump ...
//!      |     \                                    load(new, file)     VM stopped
//!      |      take_back: new dead, old runs       resume(new)         VM runs
//!   resume(new)       VM runs
//!   retire(old)       VM runs
//! ```
//!
//! What QEMU does (10.0 to 11.1, seen and read in `migration/`):
//! - The successor blocks in its start until the predecessor connects to its cpr socket; devices and monitor are made
//!   only then, while the VM still runs.
//! - The predecessor stops the VM itself, sends the state, and ends in `postmigrate`, *also when the successor could not
//!   load it*: only the successor knows whether it has the VM.
//! - Locks on disks go free when the predecessor has sent its state; the successor takes them as it loads.
//! - `cont` on the predecessor takes disks and VM back, at any time, provided the successor is dead.
//!
//! Invariants: [`take_back`] never lets the old VMM run before the new one is certainly gone; nothing here ever lets the
//! new one run but [`resume`].
//!
//! Two VMMs that do not understand each other's cpr channel (an update taken back: 11.1 to 10.0) may still understand each
//! other's state: [`hand_over_by_file`] is the way then, at the price of a longer pause. A rehearsal of both tells which
//! [`Way`] works.
//!
//! A rehearsal is the same hand over between two twins ([`crate::command::Runtime::twin`]).

mod error;
mod state_file;
mod way;

use std::path::Path;
use std::time::Duration;

use fermata_vault::process::Process;
use tokio::time::Instant;

use crate::command::Paths;
use crate::qmp::{
    Capability, Channel, ChannelType, Cont, Event, EventKind, Events, Migrate, MigrateCancel, MigrateSetCapabilities,
    MigrateSetParameters, MigrationStatus, Mode, Qmp, QmpError, QueryMigrate, QueryStatus, Quit, RunState, Timestamp,
};

pub use error::{HandoverError, TakeBackError};
pub use state_file::{hand_over_by_file, load, prepare_save, save};
pub use way::Way;

/// How often something is looked at that nothing announces.
const LOOK: Duration = Duration::from_micros(500);

/// A VM that has been handed over and stands still in the new VMM.
#[derive(Debug)]
#[must_use]
pub struct HandedOver {
    /// The new VMM's monitor.
    pub new: Qmp,
    /// When the vCPUs stopped, by the old VMM; `None` for a VM that stood already.
    pub stopped: Option<Timestamp>,
    /// From the order to hand over until the new VMM had the state. The VM ran for most of it.
    pub took: Duration,
}

/// Makes a running VMM ready to hand over: the mode is set, and nothing is in the way.
///
/// # Errors
/// [`HandoverError::Blocked`] with QEMU's reasons.
pub async fn prepare(old: &Qmp) -> Result<(), HandoverError> {
    set_mode(old, Mode::CprTransfer, false).await
}

async fn set_mode(old: &Qmp, mode: Mode, ignore_shared: bool) -> Result<(), HandoverError> {
    old.execute(&MigrateSetParameters { mode: Some(mode) }).await.map_err(HandoverError::Old)?;
    let capabilities = vec![
        Capability { capability: "events", state: true },
        // Shared memory stays where it is; in a transfer it goes over as a descriptor by itself.
        Capability { capability: "x-ignore-shared", state: ignore_shared },
    ];
    old.execute(&MigrateSetCapabilities { capabilities }).await.map_err(HandoverError::Old)?;
    // Only now: what is in the way depends on the mode.
    let info = old.execute(&QueryMigrate {}).await.map_err(HandoverError::Old)?;
    if info.blocked_reasons.is_empty() { Ok(()) } else { Err(HandoverError::Blocked(info.blocked_reasons)) }
}

/// Waits until a successor that was just started can take a VM over, within `limit`.
///
/// # Errors
/// [`HandoverError::NewDied`] when it ended (its log says why), [`HandoverError::Late`] after `limit`.
pub async fn ready(new: &Process, paths: &Paths, limit: Duration) -> Result<(), HandoverError> {
    let socket = paths.incoming_cpr();
    let listens = async {
        // Connecting would use up the one connection that it accepts, and nothing announces that it listens.
        while !listens(&socket) {
            tokio::time::sleep(LOOK).await;
        }
    };
    watched(new, "listen for the VM", limit, listens).await
}

/// Whether a process of this network namespace listens on a unix socket at `path`.
fn listens(path: &Path) -> bool {
    // linux/net.h: __SO_ACCEPTCON, the flag of a socket that listens.
    const LISTENING: &str = "00010000";
    let Some(path) = path.to_str() else { return false };
    std::fs::read_to_string("/proc/net/unix").is_ok_and(|table| {
        table
            .lines()
            .any(|line| line.strip_suffix(path).is_some_and(|rest| rest.ends_with(' ') && rest.contains(LISTENING)))
    })
}

/// Hands the VM over: afterwards it stands still, whole, in the new VMM, and the old one has let go of its disks.
///
/// # Errors
/// [`HandoverError`]; then the VM's state is the old VMM's still: [`take_back`].
pub async fn hand_over(old: &Qmp, new: &Process, paths: &Paths, limit: Duration) -> Result<HandedOver, HandoverError> {
    hand_over_through(old, new, paths, &paths.incoming_cpr(), limit).await
}

/// As [`hand_over`], with the old VMM's descriptors sent to `cpr`, from where somebody passes them on to the new one: a
/// [`fermata_vault::relay::Relay`] sees by this when the VM is about to stop.
///
/// # Errors
/// As [`hand_over`].
pub async fn hand_over_through(
    old: &Qmp,
    new: &Process,
    paths: &Paths,
    cpr: &Path,
    limit: Duration,
) -> Result<HandedOver, HandoverError> {
    let began = Instant::now();
    let until = began + limit;
    let left = || until.saturating_duration_since(Instant::now());
    // QEMU 11.1 that finds nobody at the other end of its channel crashes (seen: SIGSEGV after "Unable to write to socket"), and the VM with it.
    if !new.is_alive() {
        return Err(HandoverError::NewDied { pid: new.pid(), what: "take the VM over" });
    }
    let mut events = old.events();
    let channels = vec![Channel::unix(ChannelType::Main, &paths.incoming()), Channel::unix(ChannelType::Cpr, cpr)];
    old.execute_within(&Migrate { channels }, left()).await.map_err(HandoverError::Old)?;
    let monitor = paths.qmp();
    let arrival = async {
        // Both sides at once: the new one's monitor comes to life while the old one still sends.
        let (sent, new) = tokio::join!(sent(old, &mut events), Qmp::connect(&monitor, left()));
        let stopped = sent?;
        let new = new.map_err(HandoverError::New)?;
        arrived(&new).await?;
        Ok((new, stopped))
    };
    match watched(new, "take the VM over", limit, arrival).await? {
        Ok((monitor, stopped)) => Ok(HandedOver { new: monitor, stopped, took: began.elapsed() }),
        // A monitor closes when its VMM ends; that it ended says more.
        Err(HandoverError::New(error)) => watched(new, "take the VM over", left(), std::future::pending::<()>())
            .await
            .and(Err(HandoverError::New(error))),
        Err(error) => Err(error),
    }
}

/// Waits until the old VMM has sent everything; when the VM stopped.
async fn sent(old: &Qmp, events: &mut Events) -> Result<Option<Timestamp>, HandoverError> {
    let mut stopped = None;
    loop {
        let Some(event) = events.next().await else {
            return Err(HandoverError::Old(QmpError::Closed { command: "migrate" }));
        };
        match event.kind {
            EventKind::Stop => stopped = Some(event.at),
            EventKind::Migration(MigrationStatus::Completed) => return Ok(stopped),
            EventKind::Migration(MigrationStatus::Failed | MigrationStatus::Cancelled) => {
                let info = old.execute(&QueryMigrate {}).await.map_err(HandoverError::Old)?;
                return Err(HandoverError::Failed(info.error_desc.unwrap_or_else(|| "it gives no reason".to_owned())));
            }
            _ => {}
        }
    }
}

/// Waits until the new VMM has loaded everything.
async fn arrived(new: &Qmp) -> Result<(), HandoverError> {
    loop {
        let status = new.execute(&QueryStatus {}).await.map_err(HandoverError::New)?.status;
        match status {
            // `-S`: it stands as a VM that was paused, or never started (a twin).
            RunState::Paused | RunState::Prelaunch => return Ok(()),
            RunState::Inmigrate => tokio::time::sleep(LOOK).await,
            other => return Err(HandoverError::OddState(other)),
        }
    }
}

/// Does something that needs `new` alive, within `limit`.
async fn watched<T>(
    new: &Process,
    what: &'static str,
    limit: Duration,
    work: impl Future<Output = T>,
) -> Result<T, HandoverError> {
    tokio::select! {
        // Its end explains a failure of the work: look there first.
        biased;
        ended = new.exited() => {
            ended.map_err(HandoverError::Process)?;
            Err(HandoverError::NewDied { pid: new.pid(), what })
        }
        done = tokio::time::timeout(limit, work) => done.map_err(|_| HandoverError::Late { what, limit }),
    }
}

/// Lets the VM run. When it ran again, by the VMM's clock; `None` when it ran already.
///
/// # Errors
/// [`QmpError`].
pub async fn resume(vmm: &Qmp, limit: Duration) -> Result<Option<Timestamp>, QmpError> {
    resume_noting(vmm, limit, || {}).await
}

/// [`resume`], which calls `before` right before the VMM is told to run the VM: as long as it was not called, the VM's vCPUs have not
/// run in this VMM.
///
/// # Errors
/// As [`resume`].
pub async fn resume_noting(
    vmm: &Qmp,
    limit: Duration,
    before: impl FnOnce() + Send,
) -> Result<Option<Timestamp>, QmpError> {
    let until = Instant::now() + limit;
    let left = || until.saturating_duration_since(Instant::now());
    let mut events = vmm.events();
    if vmm.execute_within(&QueryStatus {}, left()).await?.running {
        return Ok(None);
    }
    before();
    vmm.execute_within(&Cont {}, left()).await?;
    let is_resume = |event: &Event| (event.kind == EventKind::Resume).then_some(event.at);
    match tokio::time::timeout(left(), events.find(is_resume)).await {
        Ok(Some(at)) => Ok(Some(at)),
        Ok(None) => Err(QmpError::Closed { command: "cont" }),
        Err(_) => Err(QmpError::Timeout { command: "cont", limit }),
    }
}

/// Ends a hand over at any point: the new VMM is dead for certain, then the old one runs. When it ran again; `None` when
/// it never stopped.
///
/// # Errors
/// [`TakeBackError`]: the VM does not run, or runs already but this could not be seen.
pub async fn take_back(old: &Qmp, new: Option<&Process>, limit: Duration) -> Result<Option<Timestamp>, TakeBackError> {
    let until = Instant::now() + limit;
    let left = || until.saturating_duration_since(Instant::now());
    let events = old.events();
    if let Some(new) = new {
        new.kill_for_certain(left()).await.map_err(TakeBackError::NewLives)?;
    }
    settle(old, left()).await?;
    match resume(old, left()).await {
        // QEMU itself continues a VM whose hand over failed: then the event is in the past of `resume`.
        Ok(None) => Ok(last_resume(events)),
        other => other.map_err(TakeBackError::Old),
    }
}

/// Gives up a hand over that is still under way, and waits until it is.
async fn settle(old: &Qmp, limit: Duration) -> Result<(), TakeBackError> {
    let settled = async {
        let mut cancelled = false;
        loop {
            let info = old.execute(&QueryMigrate {}).await?;
            match info.status {
                None
                | Some(
                    MigrationStatus::None
                    | MigrationStatus::Completed
                    | MigrationStatus::Failed
                    | MigrationStatus::Cancelled,
                ) => return Ok(()),
                Some(_) if !cancelled => {
                    old.execute(&MigrateCancel {}).await?;
                    cancelled = true;
                }
                Some(_) => tokio::time::sleep(LOOK).await,
            }
        }
    };
    match tokio::time::timeout(limit, settled).await {
        Ok(result) => result.map_err(TakeBackError::Old),
        Err(_) => Err(TakeBackError::Old(QmpError::Timeout { command: "migrate_cancel", limit })),
    }
}

fn last_resume(mut events: Events) -> Option<Timestamp> {
    std::iter::from_fn(|| events.waiting())
        .filter_map(|event| (event.kind == EventKind::Resume).then_some(event.at))
        .last()
}

/// Ends a VMM that is not needed any more: asked first, killed after half of `limit`, certainly gone afterwards.
///
/// # Errors
/// [`fermata_vault::process::ProcessError::StillAlive`] when it is not gone within `limit`.
pub async fn retire(
    vmm: Option<&Qmp>,
    process: &Process,
    limit: Duration,
) -> Result<(), fermata_vault::process::ProcessError> {
    let half = limit / 2;
    let asked = async {
        if let Some(vmm) = vmm {
            // A refusal or a hang is answered by the kill below.
            let _ = vmm.execute_within(&Quit {}, half).await;
            process.exited().await
        } else {
            Ok(())
        }
    };
    // Late or failed is the same: the kill decides.
    let _ = tokio::time::timeout(half, asked).await;
    process.kill_for_certain(half).await
}
