//! The agent of one host: which VMs there are, their life, their maintenance.
//!
//! | module | does |
//! |---|---|
//! | [`config`] | what the operator decides about a host |
//! | [`inventory`] | durable memory: VMs, and what was set up for each |
//! | [`vms`] | every operation on VMs |
//! | [`events`] | what guests are told, by the metadata service |
//! | [`maintain`] | updates under running VMs |
//! | [`fleet`] | orders of a controller, and reports to it |
//! | [`first`] | VMs first after a change of the kernel: before the service manager, and before everything else |
//! | [`units`] | systemd's transient units, and groups where there is no systemd yet |
//! | [`links`] | bridges and taps |
//! | [`setup`] | a host made ready for changes of its kernel |
//! | [`vaults`] | where VMs' memory comes from |
//! | [`users`] | the user that VMMs run as |
//! | [`host`] | facts read from the kernel |
//! | [`api`], [`client`] | HTTP on a unix socket, both sides |

pub mod api;
pub mod client;
pub mod config;
mod devices;
pub mod events;
pub mod first;
pub mod fleet;
pub mod host;
pub mod inventory;
mod jumped;
pub mod links;
pub mod maintain;
pub mod setup;
pub mod units;
pub(crate) mod urgency;
pub mod users;
pub mod vaults;
pub mod vms;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fermata_maintenance::authority::{Authority, AuthorityError};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use config::{Config, ConfigError};
use events::Events;
use inventory::{Inventory, InventoryError};
use links::{LinkError, Links};
use maintain::{Maintain, MaintainError};
use units::Units;
use vms::{VmError, Vms};

/// How long an agent waits for one that is on its way out, or for a dead-man that is freeing VMs.
const AUTHORITY_LIMIT: Duration = Duration::from_secs(30);

/// Why the agent could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data base.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// A bridge.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Taking up VMs.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// Maintenance that was under way.
    #[error(transparent)]
    Maintain(#[from] MaintainError),
    /// A file or socket of the agent's own.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The name by which the controller is to know this host.
    #[error(transparent)]
    Fleet(#[from] fleet::FleetError),
    /// Somebody else is in charge.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A task of the agent's own ended by a panic, which its log shows.
    #[error("the agent failed inside; its log says where")]
    Inside,
    /// Another agent is at work.
    #[error("{path}: another agent answers there; stop it first (`systemctl stop fermata-agent`)")]
    AlreadyRunning {
        /// Its socket.
        path: PathBuf,
    },
}

/// Runs the agent until it is told to end. VMs run on.
///
/// # Errors
/// [`AgentError`] when it cannot start, or its socket breaks.
pub async fn run(config_path: &Path) -> Result<(), AgentError> {
    run_with(Config::read(config_path)?).await
}

/// The same with a configuration that is read already.
///
/// # Errors
/// [`AgentError`].
pub async fn run_with(config: Config) -> Result<(), AgentError> {
    first::begin();
    for dir in [&config.state_dir, &config.run_dir] {
        fs::create_dir_all(dir).map_err(|source| AgentError::Io { path: dir.clone(), source })?;
    }
    let socket = config.socket();
    if tokio::net::UnixStream::connect(&socket).await.is_ok() {
        return Err(AgentError::AlreadyRunning { path: socket });
    }
    let _authority = Authority::take(&config.authority(), AUTHORITY_LIMIT).await?;
    let inventory = Inventory::open(&config.database())?;
    let links = Links::open()?;
    first::modules_are_there().await;
    for bridge in &config.bridges {
        links.ensure_bridge(bridge, &config.state_dir).await?;
    }
    let units = Units::open(&config.slice).await;
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| AgentError::Io { path, source }
    };
    let boot = fermata_vault::process::boot_id().map_err(io(Path::new("/proc/sys/kernel/random/boot_id")))?;
    let config = tokio::task::spawn_blocking(move || {
        if let Err(error) = devices::give_kvm_to_its_group() {
            tracing::debug!(%error, "/dev/kvm is left as it is");
        }
        vaults::Vaults::make_device(&config.vault);
        maintain::look_for_the_way_back(&config);
        config
    })
    .await
    .map_err(|_| AgentError::Inside)?;
    let events = Events::new(&config, inventory.clone(), links.clone());
    let vms = Arc::new(Vms::new(config, inventory, links, units, boot));
    if let Some(events) = events {
        // VMs that run are wired already: by an earlier agent, or before they started. Those that come back from a vault are
        // not, and what keeps them from being wired must not keep them from coming back; it is tried again.
        if let Err(error) = events.wire().await {
            tracing::error!(error = chain(&error), "guests are not wired to the metadata service");
            events.vms_changed();
        }
        first::metadata::listen();
        vms.set_events(events);
    }

    fs::remove_file(&socket).ok();
    let listener = UnixListener::bind(&socket).map_err(io(&socket))?;
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600)).map_err(io(&socket))?;
    let run_dir = vms.config().run_dir.clone();
    tokio::spawn(async move { vms::console::keep_bounded(&run_dir).await });
    vms.recover().await?;
    let maintain = Maintain::open(Arc::clone(&vms))?;
    maintain.recover().await?;
    if !maintain.is_at_work() {
        first::let_others_start("no maintenance is under way");
    }
    let (ask, after) = (Arc::clone(&vms), Arc::clone(&maintain));
    tokio::spawn(async move {
        // Starting every VMM once to ask what it is takes processor time that VMs which still stand need more.
        after.idle().await;
        ask.vmms().await;
    });
    tokio::spawn(Arc::clone(&maintain).run_events());
    vms.mark_boot()?;
    // A host is there for its controller when it has a service manager.
    let _member = if first::is_alone() { None } else { fleet::join_in(&vms, &maintain)? };
    // Under systemd this says that the agent is ready; elsewhere nobody listens.
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).ok();
    tracing::info!(socket = %socket.display(), "ready");

    let mut term = signal(SignalKind::terminate()).map_err(io(&socket))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io(&socket))?;
    let told_to_end = async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    axum::serve(listener, api::router(vms, maintain)).with_graceful_shutdown(told_to_end).await.map_err(io(&socket))
}

/// An error with everything that caused it, on one line, each cause once.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let more = next.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = next.source();
    }
    text
}
