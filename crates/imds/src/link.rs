//! The agent's side of a maintenance: VMs told, events driven, news heard, whatever restarts in between.
//!
//! [`Link`] keeps one connection for orders and one for news. Both are made again when they break; an order that was cut
//! off is sent again, which changes nothing if it had been applied, because the core's inputs can be repeated.
//!
//! ```text
//!  sync(VMs) ... announce -> [gate opened] -> start -> [may pause] -> pausing -> resumed, verified per VM -> finish
//! ```

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use fermata_events::event::DeferLimits;
use fermata_events::{Action, Affected, Announce, EventKind, EventSource, Input, JobId, Outcome};
use fermata_model::VmName;
use serde::de::DeserializeOwned;
use tokio::sync::{Mutex, mpsc};
use uuid::Uuid;

use crate::control::{Call, ControlClient, ControlError, JobView, News, Vms};
use crate::service::VmRecord;

/// How long a connection is tried again before an order fails.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// A line to the metadata service that outlives its restarts.
#[derive(Debug)]
pub struct Link {
    path: PathBuf,
    orders: Mutex<Option<ControlClient>>,
}

/// Where the ids of a job's events come from. Of the host and the job alone: an agent that restarts announces the same
/// events, not new ones, and other hosts can tell their ids.
#[must_use]
pub fn seed(host: &str, job: &JobId) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("fermata:{host}:{job}").as_bytes())
}

/// What is announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// The job; never used before for anything else.
    pub job: JobId,
    /// The host's name; two hosts may name their jobs alike.
    pub host: String,
    /// What it does, where a VM has nothing else.
    pub kind: EventKind,
    /// Who caused it.
    pub source: EventSource,
    /// A sentence for people in the guest; Azure's own when empty.
    pub description: String,
    /// A short code of the reason.
    pub reason: String,
    /// The notice that is asked for; a VM's own minimum can make it longer, and none is owed to VMs that never asked.
    pub notice: Duration,
    /// How long `Started` is visible before the pause.
    pub lead: Duration,
    /// How far guests may push it.
    pub defer: DeferLimits,
    /// The VMs, each with the forecast's upper bound of its pause.
    pub affected: Vec<Affected>,
}

/// What a maintenance waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Connected, again or for the first time: whatever happened before is in the state.
    Connected,
    /// Approved by all, or the notice is over: `start` will be accepted.
    GateOpened(JobId),
    /// `Started` was visible for the lead: `pausing` will be accepted.
    MayPause(JobId),
    /// All events have vanished.
    Over(JobId, Outcome),
    /// A VM of this host approved an event of another host; the controller forwards it.
    Approved(fermata_events::EventId, VmName),
}

impl Link {
    /// A line to the service at `path`. Connects when it is first used.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, orders: Mutex::new(None) }
    }

    /// Makes a call, connecting again for up to ten seconds if the service is restarting.
    ///
    /// # Errors
    /// The service's refusal, or its absence.
    pub async fn call<T: DeserializeOwned>(&self, call: Call) -> Result<T, ControlError> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut orders = self.orders.lock().await;
        loop {
            let failed = match self.once(&mut orders, call.clone()).await {
                Err(error @ (ControlError::Unreachable(_) | ControlError::Closed)) => error,
                other => return other,
            };
            *orders = None;
            if tokio::time::Instant::now() >= deadline {
                return Err(failed);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn once<T: DeserializeOwned>(
        &self,
        orders: &mut Option<ControlClient>,
        call: Call,
    ) -> Result<T, ControlError> {
        let client = match orders {
            Some(client) => client,
            None => orders.insert(ControlClient::connect(&self.path).await?),
        };
        client.call(call).await
    }

    /// Applies an input.
    ///
    /// # Errors
    /// As [`Link::call`].
    pub async fn apply(&self, input: Input) -> Result<Vec<Action>, ControlError> {
        self.call(Call::Apply { input }).await
    }

    /// Brings the service's VMs to exactly `records`.
    ///
    /// # Errors
    /// As [`Link::call`]; what was already told stays.
    pub async fn sync(&self, records: Vec<VmRecord>) -> Result<(), ControlError> {
        let known: Vms = self.call(Call::Vms).await?;
        let wanted: BTreeSet<VmName> = records.iter().map(|record| record.vm.clone()).collect();
        for record in records {
            let _: Vec<Action> = self.call(Call::Upsert { record: Box::new(record) }).await?;
        }
        for vm in known.into_keys().filter(|vm| !wanted.contains(vm)) {
            let _: Vec<Action> = self.call(Call::Remove { vm }).await?;
        }
        Ok(())
    }

    /// Announces something that will be done to VMs of this host. The same announcement again changes nothing.
    ///
    /// # Errors
    /// As [`Link::call`].
    pub async fn announce(&self, what: Announcement) -> Result<(), ControlError> {
        let announce = Announce {
            seed: seed(&what.host, &what.job),
            job: what.job,
            kind: what.kind,
            source: what.source,
            description: what.description,
            reason: what.reason,
            affected: what.affected,
            notice_s: u32::try_from(what.notice.as_secs()).unwrap_or(u32::MAX),
            lead_ms: Some(u64::try_from(what.lead.as_millis()).unwrap_or(u64::MAX)),
            defer: what.defer,
            simulate_pause_ms: None,
        };
        self.apply(Input::Announce(announce)).await.map(drop)
    }

    /// Open events, as operators see them.
    ///
    /// # Errors
    /// As [`Link::call`].
    pub async fn events(&self) -> Result<Vec<serde_json::Value>, ControlError> {
        self.call(Call::Events).await
    }

    /// The open jobs and what their gates wait for: what an agent reads when it starts.
    ///
    /// # Errors
    /// As [`Link::call`].
    pub async fn jobs(&self) -> Result<Vec<JobView>, ControlError> {
        self.call(Call::Jobs).await
    }

    /// Sends what is told to `to`, until its receiver is dropped. After every connection, gates that are open are told
    /// again, so nothing that happened in between is missed; receivers take repetitions.
    pub async fn listen(&self, to: mpsc::UnboundedSender<Told>) {
        let mut said = None;
        while !to.is_closed() {
            if let Err(error) = self.hear(&to).await {
                // Said once, not twenty times a second for as long as it lasts.
                let words = error.to_string();
                if said.as_ref() != Some(&words) {
                    tracing::info!(%error, "news of the metadata service stopped; connecting again");
                }
                said = Some(words);
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    async fn hear(&self, to: &mpsc::UnboundedSender<Told>) -> Result<(), ControlError> {
        let mut client = ControlClient::connect(&self.path).await?;
        let () = client.call(Call::Subscribe).await?;
        let _ = to.send(Told::Connected);
        loop {
            let jobs: Vec<JobView> = client.call(Call::Jobs).await?;
            for view in jobs.iter().filter(|view| view.waits.is_empty() && is_waiting(view)) {
                let _ = to.send(Told::GateOpened(view.job.id.clone()));
            }
            loop {
                let news = tokio::select! {
                    news = client.news() => news?,
                    () = to.closed() => return Ok(()),
                };
                match news {
                    News::Action(action) => {
                        if let Some(told) = told(action) {
                            let _ = to.send(told);
                        }
                    }
                    // Too slow: the state says what was missed.
                    News::Lost(_) => break,
                }
            }
        }
    }
}

fn is_waiting(view: &JobView) -> bool {
    matches!(view.job.stage, fermata_events::event::JobStage::Waiting { .. })
}

fn told(action: Action) -> Option<Told> {
    match action {
        Action::GateOpened { job } => Some(Told::GateOpened(job)),
        Action::MayPause { job } => Some(Told::MayPause(job)),
        Action::JobOver { job, outcome } => Some(Told::Over(job, outcome)),
        Action::ForwardApproval { event, vm } => Some(Told::Approved(event, vm)),
        Action::Persist { .. }
        | Action::DocumentsChanged { .. }
        | Action::WakeWaiters { .. }
        | Action::Enabled { .. }
        | Action::Disabled { .. }
        | Action::Notify { .. } => None,
    }
}
