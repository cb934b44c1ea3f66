//! The service: the events core, its store, and what every connection shares.
//!
//! ```text
//!   connections, control, timer --apply(input)--> [state lock] --job--> writer thread
//!                                                   actions             one commit for all jobs in the queue,
//!                                                   documents           then, job by job: documents, wake-ups,
//!                                                                       feed, reply
//! ```
//!
//! A job's effects (documents a guest can read, the answer 200) happen only after its writes are durable. The writer takes
//! every job that waits into one commit, so a thousand VMs asking for the first time cost a few syncs, not a thousand. If
//! a commit fails, all jobs of the queue are refused and the state is read back from the store.

mod inventory;
mod writer;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, mpsc};
use std::time::Duration;

use fermata_events::input::GateWait;
use fermata_events::{Action, Config, Input, JobId, Now, Record, Refusal, State, UnixMs};
use fermata_model::VmName;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, broadcast, oneshot};

use crate::clock::Clock;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::slot::Slot;
use crate::store::{Store, StoreError};
use crate::webhook::Target;

pub use inventory::{Port, VmRecord};

/// What an operator can set.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The events core.
    pub events: Config,
    /// Limits of each VM.
    pub limits: Limits,
    /// Names that may stand in `Host`.
    pub hosts: Vec<String>,
    /// Whether the native extensions are served.
    pub extensions: bool,
    /// Who is told of every step in an event's life.
    pub webhooks: Vec<Target>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            events: Config::default(),
            limits: Limits::default(),
            hosts: vec!["169.254.169.254".to_owned()],
            extensions: true,
            webhooks: Vec::new(),
        }
    }
}

/// Why an input was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The core refused it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It could not be made durable; nothing happened.
    #[error("imds: the state could not be made durable ({0}); free disk space and try again")]
    NotDurable(String),
    /// The service is going down.
    #[error("imds: the service is stopping; try again in a second")]
    Stopping,
}

struct Core {
    state: State,
    jobs: mpsc::Sender<writer::Job>,
}

pub(crate) struct Shared {
    core: Mutex<Core>,
    slots: RwLock<BTreeMap<VmName, Arc<Slot>>>,
    records: RwLock<BTreeMap<VmName, VmRecord>>,
    /// Which VM is at a port.
    ports: RwLock<BTreeMap<u16, VmName>>,
    pub(crate) store: Mutex<Box<dyn Store>>,
    pub(crate) settings: Settings,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Metrics,
    feed: broadcast::Sender<Action>,
    changed: Notify,
    pub(crate) outgoing: Notify,
    loading: AtomicBool,
}

/// A handle on the service; clones share it.
#[derive(Clone)]
pub struct Service {
    pub(crate) shared: Arc<Shared>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").finish_non_exhaustive()
    }
}

impl Service {
    /// Loads the state from `store` and starts the writer. Works without a runtime; [`Service::run_timer`] and the
    /// listeners need one.
    ///
    /// # Errors
    /// When the store cannot be read or holds a damaged record.
    pub fn open(mut store: Box<dyn Store>, clock: Arc<dyn Clock>, settings: Settings) -> Result<Self, OpenError> {
        let epoch = store.epoch(uuid::Uuid::new_v4().as_fields().0)?;
        let (records, state) = inventory::load(store.as_mut(), &settings, epoch, clock.now())?;
        let (jobs, queue) = mpsc::channel();
        let slots = inventory::slots(&state, &records, settings.limits);
        let ports = inventory::ports(&records);
        let shared = Arc::new(Shared {
            core: Mutex::new(Core { state, jobs }),
            slots: RwLock::new(slots),
            records: RwLock::new(records),
            ports: RwLock::new(ports),
            store: Mutex::new(store),
            settings,
            clock,
            metrics: Metrics::default(),
            feed: broadcast::Sender::new(1024),
            changed: Notify::new(),
            outgoing: Notify::new(),
            loading: AtomicBool::new(false),
        });
        writer::spawn(Arc::downgrade(&shared), queue);
        Ok(Self { shared })
    }

    /// While set, every guest is answered 410: try again.
    pub fn set_loading(&self, loading: bool) {
        self.shared.loading.store(loading, Ordering::Release);
    }

    pub(crate) fn loading(&self) -> bool {
        self.shared.loading.load(Ordering::Acquire)
    }

    /// Both clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        self.shared.clock.now()
    }

    /// Applies one input. When this returns, its writes are durable and its documents are visible.
    ///
    /// # Errors
    /// The core's refusal, or that the state could not be made durable. Nothing has changed then.
    pub async fn apply(&self, input: Input) -> Result<Vec<Action>, ApplyError> {
        self.submit(input, None)?.await.map_err(|_| ApplyError::Stopping)?
    }

    /// [`Service::apply`] for callers outside a runtime.
    ///
    /// # Errors
    /// As [`Service::apply`].
    pub fn apply_blocking(&self, input: Input) -> Result<Vec<Action>, ApplyError> {
        self.submit(input, None)?.blocking_recv().map_err(|_| ApplyError::Stopping)?
    }

    fn submit(
        &self,
        input: Input,
        record: Option<writer::RecordChange>,
    ) -> Result<oneshot::Receiver<Result<Vec<Action>, ApplyError>>, ApplyError> {
        let mut core = self.lock();
        let actions = core.state.apply(input, self.now())?;
        let (reply, answer) = oneshot::channel();
        let job = writer::Job::new(&core.state, &self.shared.settings, actions, record, reply);
        // Sent under the lock: the queue has the order in which the state changed.
        core.jobs.send(job).map_err(|_| ApplyError::Stopping)?;
        Ok(answer)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Core> {
        self.shared.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the state. Do not block inside.
    pub fn read<T>(&self, look: impl FnOnce(&State, Now) -> T) -> T {
        let now = self.now();
        look(&self.lock().state, now)
    }

    /// What the gate of `job` waits for; empty when it is open or there is no such job.
    #[must_use]
    pub fn gate(&self, job: &JobId) -> Vec<GateWait> {
        self.read(|state, now| state.gate(job, now))
    }

    /// What is over, oldest first, ended after `since`.
    #[must_use]
    pub fn history(&self, since: UnixMs) -> Vec<Record> {
        self.read(|state, _| state.all_history().filter(|r| r.ended_unix_ms > since).cloned().collect())
    }

    /// Every action from now on, in order. A reader that is too slow loses the oldest ones and is told so; it then reads
    /// the state.
    #[must_use]
    pub fn feed(&self) -> broadcast::Receiver<Action> {
        self.shared.feed.subscribe()
    }

    pub(crate) fn slot(&self, vm: &VmName) -> Option<Arc<Slot>> {
        self.shared.slots.read().unwrap_or_else(PoisonError::into_inner).get(vm).cloned()
    }

    pub(crate) fn vm_at(&self, port: u16) -> Option<VmName> {
        self.shared.ports.read().unwrap_or_else(PoisonError::into_inner).get(&port).cloned()
    }

    /// Waits until no long poll of `vms` is open, `longest` at most.
    pub async fn waiters_gone(&self, vms: &[VmName], longest: Duration) {
        let all = async {
            for slot in vms.iter().filter_map(|vm| self.slot(vm)) {
                slot.waiters_gone().await;
            }
        };
        let _ = tokio::time::timeout(longest, all).await;
    }

    /// Counters for Prometheus.
    #[must_use]
    pub fn metrics_text(&self) -> String {
        self.read(|state, _| {
            let history: Vec<Record> = state.all_history().cloned().collect();
            self.shared.metrics.text(state.vms().count(), state.events().count(), &history)
        })
    }

    /// What the agent told about each VM.
    #[must_use]
    pub fn records(&self) -> BTreeMap<VmName, VmRecord> {
        self.shared.records.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Delivers what only time brings, until the task is dropped.
    pub async fn run_timer(&self) {
        loop {
            let sleep = self.read(State::sleep).max(Duration::from_millis(1));
            tokio::select! {
                () = tokio::time::sleep(sleep) => {
                    if let Err(error) = self.apply(Input::Tick).await {
                        tracing::warn!(%error, "a tick was not applied");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
                () = self.shared.changed.notified() => {}
            }
        }
    }
}

/// Why the service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record.
    #[error(transparent)]
    Damaged(#[from] Refusal),
}
