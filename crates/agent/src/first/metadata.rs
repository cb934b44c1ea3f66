//! The metadata service before there is a service manager: guests that run again ask it, and the host's own comes half a minute later
//! where processors are few.
//!
//! ```text
//!  guests are wired ─► address taken: who asks waits
//!  no VM stands ─► `fermata imds-first`: own folders alone writable, a user without privileges ─► answers guests
//!                                       lives on when the agent ends and systemd comes
//!  fermata-imds.socket, before it takes the address ─► kills the group, waits until it is empty ─► fermata-imds.service
//! ```
//!
//! Invariants: it is started when no VM is on its way, so it takes nothing from a VM that stands; two services never have the state at
//! once, as the one that comes later is started after the other is gone. Its folders are those that the service manager gave the
//! service in the kernel before (`DynamicUser=`), under their names and with their owner, who is not root; a host that never had the
//! service up has none, and waits for the service manager.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};

use fermata_imds::daemon::{self, DaemonError, Options};
use tokio::process::Command;
use tokio::sync::OnceCell;

use super::{ALONE, UNITS};
use crate::urgency;

/// The unit that it stands in for.
const UNIT: &str = "fermata-imds.service";
/// What that unit reads.
const CONFIG: &str = "/etc/fermata/imds.toml";
/// Its control group, by the name that the unit of the socket ends it by.
const GROUP: &str = "/sys/fs/cgroup/system.slice/fermata-imds-first.scope";
/// Where `DynamicUser=` keeps folders out of the reach of others (systemd.exec(5)).
const PRIVATE: &str = "private";

static BEGUN: OnceCell<()> = OnceCell::const_new();
static LISTENER: Mutex<Option<TcpListener>> = Mutex::new(None);

/// Takes the address, where the service will be started: a guest that runs while another one still stands waits for its answer instead
/// of being turned away.
pub(crate) fn listen() {
    if super::is_alone() && is_enabled(&UNITS.map(Path::new)) {
        match options().and_then(|options| daemon::listen(options.listen)) {
            Ok(listener) => *LISTENER.lock().unwrap_or_else(PoisonError::into_inner) = Some(listener),
            // Tried once more at its start.
            Err(error) => tracing::warn!(%error, "guests that ask now are turned away"),
        }
    }
}

fn options() -> Result<Options, DaemonError> {
    let config = Path::new(CONFIG);
    if config.exists() { Options::read(config) } else { Ok(Options::default()) }
}

/// Starts it, once, where the host has it; whoever comes second waits for the first. What keeps it from starting is in the log, and
/// guests wait for the service manager's.
pub(super) async fn begin() {
    if super::is_alone() && is_enabled(&UNITS.map(Path::new)) {
        BEGUN.get_or_init(start_and_tell).await;
    }
}

async fn start_and_tell() {
    match tokio::task::spawn_blocking(start).await {
        Ok(Ok(())) => tracing::info!("guests are answered before the host's own metadata service is there"),
        Ok(Err(error)) => tracing::warn!(%error, "guests wait for the host's own metadata service"),
        Err(error) => tracing::error!(%error, "guests wait for the host's own metadata service"),
    }
}

/// Whether some unit of the host wants it.
fn is_enabled(units: &[&Path]) -> bool {
    let folders =
        units.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten().map(|entry| entry.path());
    let mut wants = folders.filter(|path| path.extension() == Some(OsStr::new("wants")));
    wants.any(|folder| folder.join(UNIT).symlink_metadata().is_ok())
}

fn start() -> io::Result<()> {
    // Closed when anything fails, so that nobody waits in vain.
    let listener = LISTENER.lock().unwrap_or_else(PoisonError::into_inner).take();
    let options = options().map_err(io::Error::other)?;
    let folder_of = |path: &Path| path.parent().map_or_else(PathBuf::new, Path::to_owned);
    let (state, run) = (folder_of(&options.state), folder_of(&options.control));
    let state = state.canonicalize().map_err(named(&state))?;
    let owner = state.metadata().map_err(named(&state))?;
    if owner.uid() == 0 {
        return Err(named(&state)(io::Error::other("belongs to root, as whom guests are not answered without a unit")));
    }
    let run = make(&run, is_private(&state), (owner.uid(), owner.gid())).map_err(named(&run))?;
    let listener: OwnedFd =
        listener.map_or_else(|| daemon::listen(options.listen), Ok).map_err(io::Error::other)?.into();
    fs::create_dir_all(GROUP).map_err(named(Path::new(GROUP)))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("fermata").arg("imds-first").args(["--group", GROUP]);
    command.arg(format!("--user={}:{}", owner.uid(), owner.gid())).arg("--own").arg(state).arg("--own").arg(run);
    if Path::new(CONFIG).exists() {
        command.args(["--config", CONFIG]);
    }
    command.env_remove(ALONE).stdin(Stdio::from(listener)).stdout(Stdio::null());
    let mut child = command.spawn()?;
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        urgency::ends(pid);
    }
    // Collected here as long as this agent runs, by the first program afterwards.
    tokio::spawn(async move { child.wait().await });
    Ok(())
}

/// An error that says which file it is about.
fn named(path: &Path) -> impl FnOnce(io::Error) -> io::Error + '_ {
    move |error| io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn is_private(folder: &Path) -> bool {
    folder.parent().and_then(Path::file_name) == Some(OsStr::new(PRIVATE))
}

/// The folder of its socket as the service manager will make it, or finds it; where it is.
fn make(named: &Path, private: bool, (uid, gid): (u32, u32)) -> io::Result<PathBuf> {
    let (Some(parent), Some(name)) = (named.parent(), named.file_name()) else {
        return Err(io::Error::other("no folder"));
    };
    let closed = |path: &Path| fs::DirBuilder::new().mode(0o700).create(path);
    let there = |error: io::Error| if error.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(error) };
    let place = if private { parent.join(PRIVATE).join(name) } else { named.to_owned() };
    if private {
        closed(&parent.join(PRIVATE)).or_else(there)?;
        symlink(Path::new(PRIVATE).join(name), named).or_else(there)?;
    }
    closed(&place).or_else(there)?;
    chown(&place, Some(uid), Some(gid))?;
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_is_enabled_when_another_one_wants_it() {
        let units = tempfile::tempdir().unwrap();
        let wants = units.path().join("fermata-others.service.wants");
        fs::create_dir(&wants).unwrap();
        assert!(!is_enabled(&[units.path(), Path::new("/nowhere")]));
        symlink(Path::new("/nowhere").join(UNIT), wants.join(UNIT)).unwrap();
        assert!(is_enabled(&[Path::new("/nowhere"), units.path()]));
    }

    #[test]
    fn the_units_know_it_by_the_same_names() {
        let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/tree/usr/lib/systemd/system");
        let says = |unit: &str, what: &str| fs::read_to_string(units.join(unit)).unwrap().contains(what);
        assert!(says("fermata-imds.socket", GROUP));
        assert!(says(UNIT, CONFIG));
    }

    #[test]
    fn its_folders_are_as_the_service_manager_makes_them() {
        let run = tempfile::tempdir().unwrap();
        let me = run.path().metadata().map(|meta| (meta.uid(), meta.gid())).unwrap();
        let named = run.path().join("fermata-imds");
        for _ in 0..2 {
            let place = make(&named, true, me).unwrap();
            assert_eq!(place, run.path().join("private/fermata-imds"));
            assert_eq!(
                (place.metadata().unwrap().mode() & 0o777, fs::read_link(&named).unwrap().to_str().unwrap()),
                (0o700, "private/fermata-imds")
            );
            assert_eq!(run.path().join("private").metadata().unwrap().mode() & 0o777, 0o700);
        }
        let plain = run.path().join("plain");
        assert_eq!(make(&plain, false, me).unwrap(), plain);
        assert!(is_private(Path::new("/var/lib/private/x")) && !is_private(Path::new("/var/lib/x")));
    }
}
