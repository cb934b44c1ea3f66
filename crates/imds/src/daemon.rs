//! The service as a process of its own.
//!
//! It needs no privilege: the listening socket comes from systemd as standard input (`Accept=no`, `StandardInput=socket`),
//! reading a socket's mark needs none, and firewall, routes and addresses are the agent's work. It may write one folder.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, UnixListener};

use crate::caller_of::{ByMark, CallerOf};
use crate::clock::SystemClock;
use crate::service::{OpenError, Service, Settings};
use crate::store::{SqliteStore, StoreError};
use crate::{control, serve};

/// Connections that wait to be taken up, as in `fermata-imds.socket`.
const BACKLOG: i32 = 1_024;

/// Where things are.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Where to listen when standard input is not a listening socket.
    pub listen: SocketAddr,
    /// The file of the state.
    pub state: PathBuf,
    /// The agent's socket.
    pub control: PathBuf,
    /// What an operator can set.
    pub settings: Settings,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((crate::wire::ADDRESS, 80)),
            state: PathBuf::from("/var/lib/fermata-imds/state.db"),
            control: PathBuf::from("/run/fermata-imds/control.sock"),
            settings: Settings::default(),
        }
    }
}

impl Options {
    /// Reads them from a TOML file; what it does not say is as in [`Options::default`].
    ///
    /// # Errors
    /// Names the file and the line.
    pub fn read(path: &Path) -> Result<Self, DaemonError> {
        let failed = |reason: String| DaemonError::Options { path: path.to_owned(), reason };
        let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        toml::from_str(&text).map_err(|error| failed(error.to_string()))
    }
}

/// Why the process ends.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration.
    #[error("imds: configuration {path}: {reason}; correct it, or leave it away for the defaults")]
    Options {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state cannot be loaded.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The listener for guests.
    #[error("imds: cannot listen on {address}; has the agent put the address on `lo`, and is no other service there?")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The control socket.
    #[error("imds: cannot listen on {path}; does its folder exist, and may this user write it?")]
    Control {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A listener failed while running.
    #[error("imds: a listener failed")]
    Io(#[from] io::Error),
}

/// The listening socket that the service manager passed as standard input, if it did.
fn inherited() -> Option<TcpListener> {
    let input = io::stdin();
    if !rustix::net::sockopt::socket_acceptconn(input.as_fd()).unwrap_or(false) {
        return None;
    }
    let listener = std::net::TcpListener::from(input.as_fd().try_clone_to_owned().ok()?);
    listener.set_nonblocking(true).ok()?;
    TcpListener::from_std(listener).ok()
}

/// A listener for guests, for a service that may not open one itself. The address need not be there yet.
///
/// # Errors
/// [`DaemonError::Listen`].
pub fn listen(address: SocketAddr) -> Result<std::net::TcpListener, DaemonError> {
    let open = || {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.set_freebind_v4(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    open().map_err(|source| DaemonError::Listen { address, source })
}

async fn guests(address: SocketAddr) -> Result<TcpListener, DaemonError> {
    if let Some(listener) = inherited() {
        return Ok(listener);
    }
    TcpListener::bind(address).await.map_err(|source| DaemonError::Listen { address, source })
}

fn control_socket(path: &PathBuf) -> Result<UnixListener, DaemonError> {
    let failed = |source| DaemonError::Control { path: path.clone(), source };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(path, owner_only).map_err(failed)?;
    Ok(listener)
}

/// Runs until a listener fails. `callers` decides who asks; [`ByMark`] when absent.
///
/// # Errors
/// Names what could not be opened.
pub async fn run(options: Options, callers: Option<Arc<dyn CallerOf>>) -> Result<(), DaemonError> {
    let store = Box::new(SqliteStore::open(&options.state)?);
    let service = Service::open(store, Arc::new(SystemClock::default()), options.settings)?;
    let listener = guests(options.listen).await?;
    let orders = control_socket(&options.control)?;
    let callers = callers.unwrap_or_else(|| Arc::new(ByMark(service.clone())));
    // Absent outside systemd, which is no error.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    tokio::select! {
        ended = serve::serve(listener, service.clone(), callers) => ended?,
        ended = control::serve(orders, service.clone()) => ended?,
        () = service.run_timer() => {}
        () = service.run_webhooks() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_can_be_there_before_its_address() {
        let here = listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let again = listen(here.local_addr().unwrap()).unwrap_err();
        assert!(again.to_string().contains("no other service"), "{again}");
        assert_eq!(
            listen(SocketAddr::from(([192, 0, 2, 1], 0))).unwrap().local_addr().unwrap().ip().to_string(),
            "192.0.2.1"
        );
    }

    #[test]
    fn a_configuration_says_what_differs_and_nothing_unknown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("imds.toml");
        std::fs::write(
            &path,
            "[settings.limits]\nopen = 8\n[settings.events]\nlead_ms = 3000\n[settings.events.policy]\nwho = \"quorum\"\nneeded = 2\n[[settings.webhooks]]\nurl = \"http://h/x\"\nsecret = \"s\"\n",
        )
        .unwrap();
        let options = Options::read(&path).unwrap();
        assert_eq!((options.settings.limits.open, options.settings.events.lead_ms), (8, 3_000));
        assert_eq!(options.listen, Options::default().listen);
        std::fs::write(&path, "speed = 9\n").unwrap();
        let refusal = Options::read(&path).unwrap_err().to_string();
        assert!(refusal.contains("imds.toml") && refusal.contains("speed"), "{refusal}");
    }
}
