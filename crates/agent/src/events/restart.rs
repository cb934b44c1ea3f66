//! A VM started anew because its owner wants it: guests are told, as they are of everything that ends them.
//!
//! ```text
//!  announce (Reboot, User) -> [approved or notice over] -> Started, lead -> shut down -> start -> event ends
//! ```

use std::sync::Arc;
use std::time::Duration;

use fermata_imds::fermata_events::event::DeferLimits;
use fermata_imds::fermata_events::{Affected, EventKind, EventSource, Input, JobId, Outcome, PauseBound};
use fermata_imds::link::Announcement;
use fermata_model::VmName;

use super::{Events, EventsError, Gate, job};
use crate::api::types::{RestartRequest, StopRequest, VmView};
use crate::vms::{VmError, Vms};

/// The beginning of every restart's job.
const PREFIX: &str = "restart-";

/// Whether a job is a restart of some agent.
#[must_use]
pub fn is_restart(job: &JobId) -> bool {
    job.0.starts_with(PREFIX)
}

/// Why a VM was not restarted.
#[derive(Debug, thiserror::Error)]
pub enum RestartError {
    /// Its guests could not be told, or refused to be.
    #[error(transparent)]
    Events(#[from] EventsError),
    /// Shutting down or starting.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// Withdrawn while guests had their notice.
    #[error("the restart of VM `{0}` was cancelled (`fermata event cancel`); nothing was done")]
    Cancelled(VmName),
}

/// Restarts a VM, after telling its guests where there is a metadata service.
///
/// # Errors
/// [`RestartError`]. After an announcement, its events have ended.
pub async fn restart(vms: &Arc<Vms>, name: &VmName, request: RestartRequest) -> Result<VmView, RestartError> {
    let stop = StopRequest { timeout_s: request.timeout_s, force: request.force };
    let known = vms.show(name).await?;
    let Some(events) = vms.events().filter(|_| known.process.is_some()) else {
        vms.stop(name, stop).await?;
        return Ok(vms.start(name).await?);
    };
    let job = JobId(format!("{PREFIX}{}", uuid::Uuid::new_v4()));
    let _open = events.restarting(&job);
    let done = announced(vms, &events, name, request, &job).await;
    let outcome = if done.is_ok() { Outcome::Done } else { Outcome::Failed };
    // A VM that is down keeps its event until it runs again.
    let runs = vms.show(name).await.is_ok_and(|view| view.process.is_some());
    let again = Input::RunsAgain { job: job.clone(), vm: name.clone(), paused_ms: None };
    let became = if runs { vec![again] } else { Vec::new() };
    events.end(&job, job::Ending { became, outcome }).await?;
    done
}

async fn announced(
    vms: &Arc<Vms>,
    events: &Arc<Events>,
    name: &VmName,
    request: RestartRequest,
    job: &JobId,
) -> Result<VmView, RestartError> {
    let announcement = Announcement {
        job: job.clone(),
        host: events.host().to_owned(),
        kind: EventKind::Reboot,
        source: EventSource::User,
        description: String::new(),
        reason: "restart".to_owned(),
        notice: Duration::from_secs(u64::from(request.notice_s)),
        lead: events.lead(),
        defer: DeferLimits::default(),
        affected: vec![Affected::new(name.clone(), PauseBound::Unknown)],
    };
    events.announce(announcement).await?;
    if events.gate(job).await == Gate::Cancelled {
        return Err(RestartError::Cancelled(name.clone()));
    }
    events.start(job).await?;
    tokio::time::sleep(events.lead()).await;
    events.pausing(job, vec![name.clone()], Duration::from_secs(2)).await;
    vms.stop(name, StopRequest { timeout_s: request.timeout_s, force: request.force }).await?;
    Ok(vms.start(name).await?)
}
