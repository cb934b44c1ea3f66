//! The agent's side of the link to the controller.
//!
//! [`run`] joins three things: the [`OrderGate`], which decides; a [`Journal`] that has every change of the gate before anything is done about it;
//! and [`HostWork`], the host itself. The controller may be away for as long as it likes: what was begun is brought to its end, and told
//! when it is back.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fermata_model::HostName;
use jiff::Timestamp;

mod line;

pub use line::{Line, is_joined, join};

use crate::client::ClientError;
use crate::gate::{Do, OrderGate, missing_approvals};
use crate::health::HealthGate;
use crate::order::{Approved, Generation, Order, Outcome, Scope, UpdateRef};
use crate::pki::PkiError;
use crate::rollout::VmTrouble;
use crate::wire::{Answer, Elsewhere, HostReport, Poll, PollReply, Question, VisitProgress};

/// A future of a host's work.
pub type Work<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the link needs of the host. Every method may be called again for the same thing after a crash, and must then do nothing twice.
pub trait HostWork: Send + Sync + 'static {
    /// The host and its VMs as they are now.
    fn host(&self) -> Work<'_, HostReport>;

    /// Whether the updates could be done right now, and whether the VMs pass the gates as it is; else the reason.
    fn preflight<'a>(&'a self, updates: &'a [UpdateRef], gates: &'a [HealthGate]) -> Work<'a, Result<(), String>>;

    /// Tells the guests of this host.
    fn announce<'a>(&'a self, order: &'a Order, not_before: Timestamp) -> Work<'a, ()>;

    /// Takes an announcement back.
    fn cancel<'a>(&'a self, order: &'a Order) -> Work<'a, ()>;

    /// Tells guests of visits on other hosts: the whole list; what is not in it any more is over.
    fn elsewhere<'a>(&'a self, visits: &'a [Elsewhere]) -> Work<'a, ()>;

    /// Of these scopes, those whose guests on this host have approved the visit of a host.
    fn approved<'a>(&'a self, order: &'a Order, scopes: &'a BTreeSet<Scope>) -> Work<'a, Approved>;

    /// Tells whoever tells the guests of this host which scopes of an announced visit were approved elsewhere. False: not yet told.
    fn tell_approved<'a>(&'a self, order: &'a Order) -> Work<'a, bool>;

    /// Begins the maintenance, or finds it begun. Returns at once.
    fn begin<'a>(&'a self, order: &'a Order) -> Work<'a, ()>;

    /// How the maintenance of a generation ended; nothing while it goes on.
    fn outcome(&self, generation: Generation) -> Work<'_, Option<Outcome>>;

    /// VMs that do not pass their health gates.
    fn health<'a>(&'a self, gates: &'a [HealthGate]) -> Work<'a, Vec<VmTrouble>>;

    /// What the newest visit has come to so far, and what was measured in it.
    fn progress(&self) -> Work<'_, Option<VisitProgress>>;
}

/// Why the link does not work.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A file.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file with something else in it.
    #[error("{path}: {reason}; restore it from a backup, or remove this host from the controller and join anew")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The controller.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The token.
    #[error(transparent)]
    Token(#[from] crate::identity::NotAToken),
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> LinkError {
    let path = path.to_owned();
    move |source| LinkError::Io { path, source }
}

/// Replaces a file so that after a crash there is the old or the new one, whole.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), LinkError> {
    let fresh = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(io(path))
}

/// The gate on disk.
#[derive(Debug)]
pub struct Journal(PathBuf);

impl Journal {
    /// The journal in a folder.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self(folder.join("gate.json"))
    }

    /// The gate as it was saved last; a new one for a host that never had an order.
    ///
    /// # Errors
    /// [`LinkError::Damaged`]: a gate that forgets could act on an old order, so none is made up.
    pub fn load(&self, host: &HostName) -> Result<OrderGate, LinkError> {
        match fs::read(&self.0) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| LinkError::Damaged { path: self.0.clone(), reason: error.to_string() }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(OrderGate::new(host.clone())),
            Err(error) => Err(io(&self.0)(error)),
        }
    }

    /// Saves the gate; it is on the disk when this returns.
    ///
    /// # Errors
    /// [`LinkError::Io`]: nothing may be done about the change then.
    pub fn save(&self, gate: &OrderGate) -> Result<(), LinkError> {
        let bytes = serde_json::to_vec(gate).expect("a gate is plain data");
        replace(&self.0, &bytes)
    }
}

/// The link of one host.
pub struct Link {
    gate: OrderGate,
    journal: Journal,
    work: Arc<dyn HostWork>,
    reported: Option<HostReport>,
    told: Option<VisitProgress>,
    answers: Vec<Answer>,
    known: Option<Order>,
    elsewhere: Vec<Elsewhere>,
    approvals: BTreeMap<HostName, Approved>,
    /// The order whose approvals this host was told of last.
    told_approved: Option<Order>,
}

impl Link {
    /// Takes the link up where it was left, and the work with it.
    ///
    /// # Errors
    /// [`LinkError`] of the journal.
    pub async fn resume(host: &HostName, journal: Journal, work: Arc<dyn HostWork>) -> Result<Self, LinkError> {
        let gate = journal.load(host)?;
        // What the gate says was decided may not have been done when the agent stopped; the host does nothing twice.
        if let Some((order, not_before)) = gate.announced() {
            work.announce(order, not_before).await;
        }
        if let Some(order) = gate.at_work() {
            work.begin(order).await;
        }
        Ok(Self {
            gate,
            journal,
            work,
            reported: None,
            told: None,
            answers: Vec::new(),
            known: None,
            elsewhere: Vec::new(),
            approvals: BTreeMap::new(),
            told_approved: None,
        })
    }

    /// Whether the host is at work or has announced work.
    #[must_use]
    pub const fn busy(&self) -> bool {
        self.gate.at_work().is_some() || self.gate.announced().is_some()
    }

    /// One turn without the controller: approvals, the clock, the end of the work.
    ///
    /// # Errors
    /// [`LinkError`] of the journal; nothing was done then.
    pub async fn turn(&mut self, now: Timestamp) -> Result<(), LinkError> {
        if let Some((order, _)) = self.gate.announced() {
            let order = order.clone();
            // Before the work begins: its maintenance finds its events approved, as what was approved here is.
            if self.told_approved.as_ref() != Some(&order) && self.work.tell_approved(&order).await {
                self.told_approved = Some(order.clone());
            }
            for scope in self.work.approved(&order, &missing_approvals(&order)).await.scopes {
                self.gate.approve(&scope);
            }
            if let Some(Do::Begin(order)) = self.gate.tick(now) {
                self.journal.save(&self.gate)?;
                self.work.begin(&order).await;
            }
        }
        if let Some(generation) = self.gate.at_work().map(|order| order.generation)
            && let Some(outcome) = self.work.outcome(generation).await
        {
            self.gate.finished(generation, outcome);
            self.journal.save(&self.gate)?;
        }
        for visit in &self.elsewhere {
            let approved = self.work.approved(&visit.order, &visit.scopes).await;
            if !approved.scopes.is_empty() {
                let known = self.approvals.entry(visit.order.host.clone()).or_default();
                known.scopes.extend(approved.scopes);
                known.by.extend(approved.by);
            }
        }
        Ok(())
    }

    /// What to say to the controller.
    pub async fn poll(&mut self, now: Timestamp, wait: Duration) -> Poll {
        let host = self.work.host().await;
        let host = (self.reported.as_ref() != Some(&host)).then_some(host);
        let visit = self.work.progress().await.filter(|visit| self.told.as_ref() != Some(visit));
        Poll {
            clock: now,
            report: self.gate.report(),
            host,
            answers: self.answers.clone(),
            approvals: self.approvals.clone(),
            visit,
            known: self.known.clone(),
            wait_ms: u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Takes in what the controller said to a poll.
    ///
    /// # Errors
    /// [`LinkError`] of the journal; nothing was done then.
    pub async fn hear(&mut self, said: Poll, reply: PollReply, now: Timestamp) -> Result<(), LinkError> {
        // It arrived: answers need not be said again, and the host is known.
        self.answers.retain(|answer| !said.answers.contains(answer));
        for host in said.approvals.keys() {
            self.approvals.remove(host);
        }
        if let Some(host) = said.host {
            self.reported = Some(host);
        }
        if let Some(visit) = said.visit {
            self.told = Some(visit);
        }
        if let Some(order) = &reply.order {
            match self.gate.order(order, now) {
                Ok(actions) => {
                    self.journal.save(&self.gate)?;
                    for action in actions {
                        match action {
                            Do::Announce { order, not_before } => self.work.announce(&order, not_before).await,
                            Do::Cancel(order) => self.work.cancel(&order).await,
                            Do::Begin(order) => self.work.begin(&order).await,
                        }
                    }
                }
                Err(refusal) => tracing::warn!(%refusal, "an order was not obeyed"),
            }
        }
        self.known = reply.order;
        if self.elsewhere != reply.elsewhere {
            self.work.elsewhere(&reply.elsewhere).await;
            self.elsewhere = reply.elsewhere;
        }
        for question in reply.questions {
            let answer = match question {
                Question::Preflight { rollout, asked, updates, gates } => {
                    let refusal = self.work.preflight(&updates, &gates).await.err();
                    Answer::Preflight { rollout, asked, refusal }
                }
                Question::Health { rollout, gates } => {
                    Answer::Health { rollout, unhealthy: self.work.health(&gates).await }
                }
            };
            self.answers.push(answer);
        }
        Ok(())
    }
}

/// How often the clock and the host are looked at while something is announced or at work.
const BUSY: Duration = Duration::from_millis(200);
/// How long a poll may wait otherwise.
const CALM: Duration = Duration::from_secs(5);
/// The pause after a controller that could not be reached.
const AWAY: Duration = Duration::from_secs(2);

/// How often the line looks whether its certificate runs out.
const RENEWAL: Duration = Duration::from_secs(60);

/// Runs the link until the process ends. The controller may come and go.
///
/// # Errors
/// [`LinkError`] of the journal, and of nothing else: the host must not act on what it cannot remember.
pub async fn run(line: &Line, mut link: Link) -> Result<std::convert::Infallible, LinkError> {
    let mut away = 0u32;
    let mut look = tokio::time::Instant::now();
    loop {
        if tokio::time::Instant::now() >= look {
            let pause = match line.renew_if_due(Timestamp::now()).await {
                Ok(_) => RENEWAL.min(line.patience()),
                Err(error) => {
                    tracing::warn!(%error, "the certificate could not be renewed; the next try is in a minute");
                    RENEWAL
                }
            };
            look = tokio::time::Instant::now() + pause;
        }
        link.turn(Timestamp::now()).await?;
        let wait = if link.busy() || !link.elsewhere.is_empty() { BUSY } else { CALM };
        let poll = link.poll(Timestamp::now(), if link.answers.is_empty() { wait } else { Duration::ZERO }).await;
        match line.client().post::<PollReply>("/v1/agent/poll", &poll).await {
            Ok(reply) => {
                if away > 0 {
                    tracing::info!(tries = away, "the controller is back");
                }
                away = 0;
                link.hear(poll, reply, Timestamp::now()).await?;
            }
            Err(error) => {
                if away == 0 {
                    tracing::warn!(%error, "the controller is away; what was begun goes on");
                }
                away = away.saturating_add(1);
                tokio::time::sleep(if link.busy() { BUSY } else { AWAY }).await;
            }
        }
    }
}
