//! The controller around the cores: reads and writes the store, asks agents, keeps nothing that a restart would miss.
//!
//! All rollouts are brought forward by [`Controller::round`], a few times a second and whenever something arrives. What is asked of agents lies in
//! [`Mail`] until they poll; it is derived from the rollouts' agendas, so losing it loses nothing.

mod agents;
mod drift;
mod guard;
mod inventory;
mod mail;
mod rollouts;
mod updates;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fermata_store::{Store, StoreError};
use jiff::Timestamp;
use tokio::sync::Mutex;

use crate::order::RolloutId;
use crate::pki::{Authority, PkiError};
use crate::records::RecordError;
use crate::rollout::{Author, Input, Need, Refusal};
use crate::session::{Decided, Session, SessionError};
use mail::Mail;

/// Why the controller did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// Nothing of that name.
    #[error("there is no {what} `{name}`; `fermata {what} list` shows what there is")]
    NotFound {
        /// What was looked for.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A request that cannot be carried out as it is.
    #[error("{0}")]
    Bad(String),
    /// The rollout does not take it.
    #[error(transparent)]
    Refused(Refusal),
    /// Others are always faster.
    #[error("the rollout changes faster than it can be read; try again")]
    Busy,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A log that does not follow from the rules.
    #[error("{0}")]
    Log(String),
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// How often an input is decided anew because somebody was faster.
const TRIES: u32 = 64;

/// A controller.
pub struct Controller {
    store: Arc<dyn Store>,
    authority: Authority,
    name: String,
    sessions: Mutex<BTreeMap<RolloutId, Session>>,
    mail: Mail,
}

impl Controller {
    /// A controller over a store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, authority: Authority, name: String) -> Arc<Self> {
        Arc::new(Self { store, authority, name, sessions: Mutex::default(), mail: Mail::default() })
    }

    /// The authority that signs for it.
    #[must_use]
    pub const fn authority(&self) -> &Authority {
        &self.authority
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &dyn Store {
        &*self.store
    }

    fn now() -> Timestamp {
        Timestamp::now()
    }

    /// Brings all rollouts forward until the process ends.
    pub async fn run(self: Arc<Self>) {
        loop {
            if let Err(error) = self.round().await {
                tracing::error!(%error, "a round failed; the next one tries again");
            }
            // Woken by what arrives; the time limit is for what only time brings (soak, windows, notice).
            let _ = tokio::time::timeout(Duration::from_millis(500), self.mail.arrival()).await;
        }
    }

    /// Gives every rollout what it needs now.
    ///
    /// # Errors
    /// [`ServiceError`] of the store.
    pub async fn round(&self) -> Result<(), ServiceError> {
        self.learn_of_rollouts().await?;
        let ids: Vec<RolloutId> = self.sessions.lock().await.keys().cloned().collect();
        let mut asked = BTreeMap::new();
        for id in ids {
            let (needs, gates) = {
                let mut sessions = self.sessions.lock().await;
                let Some(session) = sessions.get_mut(&id) else { continue };
                self.follow(session).await?;
                let rollout = session.rollout();
                (rollout.agenda(Self::now(), usize::MAX), rollout.definition().rules.gates.clone())
            };
            let begin = self.advised(&id).await?;
            for need in needs {
                match need {
                    Need::Give(Input::AskPreflight(host))
                        if begin.as_ref().is_some_and(|begin| !begin.contains(&host)) => {}
                    Need::Give(input) => {
                        self.offer(&id, input).await?;
                    }
                    Need::Preflight { host, asked: at } => {
                        if let Some(reason) = self.drift(&id, &host).await? {
                            let input = Input::Preflight { host, asked: at, refusal: Some(reason) };
                            self.offer(&id, input).await?;
                            continue;
                        }
                        let question = self.preflight_question(&id, &host, at).await;
                        asked.entry(host).or_insert_with(Vec::new).extend(question);
                    }
                    Need::Health(host) => {
                        let question = crate::wire::Question::Health { rollout: id.clone(), gates: gates.clone() };
                        asked.entry(host).or_default().push(question);
                    }
                }
            }
        }
        self.mail.ask(asked);
        Ok(())
    }

    /// Gives an input of the controller's own; that the rollout does not take it is no error.
    async fn offer(&self, id: &RolloutId, input: Input) -> Result<(), ServiceError> {
        match self.give(id, input, Author::Controller(self.name.clone()), String::new()).await {
            Ok(()) | Err(ServiceError::Refused(_) | ServiceError::Busy) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Gives an input to a rollout, deciding anew as long as somebody else is faster.
    ///
    /// # Errors
    /// [`ServiceError::Refused`] when the rollout does not take it.
    pub async fn give(&self, id: &RolloutId, input: Input, author: Author, reason: String) -> Result<(), ServiceError> {
        let mut sessions = self.sessions.lock().await;
        let session =
            sessions.get_mut(id).ok_or_else(|| ServiceError::NotFound { what: "rollout", name: id.to_string() })?;
        for _ in 0..TRIES {
            self.follow(session).await?;
            let reply = self.store.txn(session.read(input.host())).await?;
            match session.decide(input.clone(), author.clone(), reason.clone(), Self::now(), reply) {
                Ok(Decided::Behind) => {}
                Ok(Decided::Commit(commit)) => {
                    let taken = self.store.txn(commit.txn.clone()).await?.succeeded;
                    if taken {
                        tracing::info!(rollout = %id, line = commit.entry.number, input = ?commit.entry.input, "decided");
                    }
                    session.committed(*commit, taken);
                    if taken {
                        self.mail.changed();
                        return Ok(());
                    }
                    if session.next() == 1 {
                        // Its definition may have been replaced; the next round learns of the new one.
                        break;
                    }
                }
                Err(error) => return Err(session_error(error)),
            }
        }
        Err(ServiceError::Busy)
    }

    /// Follows the log to its end.
    async fn follow(&self, session: &mut Session) -> Result<(), ServiceError> {
        loop {
            let key = crate::records::log_key(&session.rollout().definition().id, session.next());
            let Some(row) = self.store.get(&key).await? else { return Ok(()) };
            session.follow(&crate::records::decode(&row)?).map_err(session_error)?;
        }
    }
}

fn session_error(error: SessionError) -> ServiceError {
    match error {
        SessionError::Refused(refusal) => ServiceError::Refused(refusal),
        SessionError::Record(error) => ServiceError::Record(error),
        SessionError::Log { .. } => ServiceError::Log(error.to_string()),
    }
}
