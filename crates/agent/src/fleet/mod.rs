//! This host in a fleet: joins a controller, reports itself, and does the visits that it orders.
//!
//! ```text
//!  controller <--poll, long--> Link (gate, journal) --> HostWork: work.rs
//!                                                         |  preflight   updates.rs (file by digest), health.rs, Maintain::check
//!                                                         |  begin       visit.rs: one maintenance per update, by Maintain
//!                                                         |  progress    progress.rs: what the journal tells, as it is told
//!                                                         '  announce    guests.rs: Scheduled Events
//! ```
//!
//! The gate decides when VMs may be touched and has every change on the disk first; a visit's maintenances have names that follow from the order,
//! so a restart of the agent finds them instead of beginning them again. The controller is not needed from the moment a visit
//! begins: the update files were fetched at the preflight.

mod config;
mod guests;
mod health;
mod progress;
mod updates;
mod visit;
mod work;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fermata_controller::agent_link::{self, Journal, Line, Link, LinkError};
use fermata_controller::client::ClientError;
use fermata_model::HostName;
use tokio::task::JoinHandle;

pub use config::FleetConfig;

use crate::host;
use crate::maintain::Maintain;
use crate::vms::Vms;
use work::FleetHost;

/// Why a host cannot be part of a fleet.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// What the kernel calls the host cannot be its name in a fleet.
    #[error("fleet: the host calls itself `{name}`: {source}; give it another name with `name` under [fleet]")]
    Name {
        /// The name.
        name: String,
        /// Why not.
        source: fermata_model::NameError,
    },
}

/// The task that keeps the line to the controller; dropping it ends the task.
#[derive(Debug)]
pub struct Member(JoinHandle<()>);

impl Drop for Member {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Everything that the line needs to begin.
struct Place {
    folder: PathBuf,
    address: String,
    host: HostName,
    config: FleetConfig,
}

/// Joins in, when the configuration names a controller; goes on where an earlier agent was.
///
/// # Errors
/// [`FleetError`]: a mistake in the configuration. What comes later is told in the log, and tried again.
pub fn join_in(vms: &Arc<Vms>, maintain: &Arc<Maintain>) -> Result<Option<Member>, FleetError> {
    let config = vms.config().fleet.clone();
    let Some(address) = config.controller.clone() else { return Ok(None) };
    let name = config.name.clone().unwrap_or_else(host::name);
    let host = name.parse().map_err(|source| FleetError::Name { name, source })?;
    let place = Place { folder: vms.config().state_dir.join("fleet"), address, host, config };
    let (vms, maintain) = (Arc::clone(vms), Arc::clone(maintain));
    Ok(Some(Member(tokio::spawn(async move { stay(place, vms, maintain).await }))))
}

/// The pause after a try that failed for a reason that may pass.
const AGAIN: Duration = Duration::from_secs(2);
/// The pause after one that only a person can change.
const REFUSED: Duration = Duration::from_secs(30);

async fn stay(place: Place, vms: Arc<Vms>, maintain: Arc<Maintain>) {
    let mut said = String::new();
    loop {
        let error = match link(&place, &vms, &maintain).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        let text = crate::chain(&error);
        if text != said {
            tracing::error!(controller = place.address, error = text, "not in the fleet; VMs are not touched by it");
            said = text;
        }
        let passes = matches!(error, LinkError::Client(ClientError::Unreachable { .. }));
        tokio::time::sleep(if passes { AGAIN } else { REFUSED }).await;
    }
}

async fn link(place: &Place, vms: &Arc<Vms>, maintain: &Arc<Maintain>) -> Result<std::convert::Infallible, LinkError> {
    if !agent_link::is_joined(&place.folder) {
        let token = place.config.join_token().map_err(|(path, source)| LinkError::Io { path, source })?;
        agent_link::join(&place.folder, &place.address, &place.host, &token).await?;
        tracing::info!(controller = place.address, host = %place.host, "joined");
    }
    let line = Arc::new(Line::open(&place.folder, &place.address)?);
    let (vms, maintain) = (Arc::clone(vms), Arc::clone(maintain));
    let work = FleetHost::new(place.folder.clone(), place.config.clone(), vms, maintain, Arc::clone(&line));
    let link = Link::resume(&place.host, Journal::new(&place.folder), Arc::new(work)).await?;
    tracing::info!(controller = place.address, host = %place.host, "in the fleet");
    agent_link::run(&line, link).await
}
