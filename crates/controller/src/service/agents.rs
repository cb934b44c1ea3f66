//! The controller's side of the link to agents.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fermata_model::{HostName, SetName, VmName};
use fermata_store::{Op, Txn};
use jiff::Timestamp;

use super::{Controller, ServiceError};
use crate::identity::{self, Identity, Join, JoinToken};
use crate::order::{Approved, Order, RolloutId, Scope, Slot, Task};
use crate::records::{decode, encode, slot_key, visit_key};
use crate::rollout::{Author, HostPhase, Input};
use crate::wire::{
    Answer, Elsewhere, HostRecord, JoinRequest, Joined, NewCertificate, NewJoin, Poll, PollReply, Question, Secret,
};

/// The longest an agent's poll may wait.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

fn host_key(host: &HostName) -> String {
    format!("host/{host}")
}

impl Controller {
    /// Makes a token with which hosts can join.
    ///
    /// # Errors
    /// The store's.
    pub async fn new_join(&self, new: &NewJoin) -> Result<Secret, ServiceError> {
        let seconds = i64::from(new.seconds.unwrap_or(86_400));
        let until = Self::now().saturating_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
        let token = JoinToken { secret: identity::secret(), ca: self.authority.fingerprint() };
        let record = Join { until, host: new.host.clone() };
        self.store.put(&identity::join_key(&token.secret), encode(&record)).await?;
        Ok(Secret { token: token.to_string() })
    }

    /// Lets a host in that shows a join secret.
    ///
    /// # Errors
    /// [`ServiceError::Bad`] with the reason.
    pub async fn join(&self, request: &JoinRequest) -> Result<Joined, ServiceError> {
        let bad = |text: &str| ServiceError::Bad(text.to_owned());
        let row = self.store.get(&identity::join_key(&request.secret)).await?;
        let row =
            row.ok_or_else(|| bad("the join token is not known here; make a new one with `fermata controller token`"))?;
        let join: Join = decode(&row)?;
        if Self::now() > join.until {
            return Err(bad("the join token has run out; make a new one with `fermata controller token`"));
        }
        if join.host.as_ref().is_some_and(|host| *host != request.host) {
            return Err(bad("the join token is for another host; make one for this host, or one for any"));
        }
        self.certify(request.host.as_str(), Identity::Agent(request.host.clone()), &request.request).await
    }

    /// Renews the certificate of a host that is known already.
    ///
    /// # Errors
    /// [`ServiceError::Pki`] when the request is not one.
    pub async fn renew(&self, host: &HostName, request: &str) -> Result<Joined, ServiceError> {
        self.certify(host.as_str(), Identity::Agent(host.clone()), request).await
    }

    /// A certificate for an operator, who made the key.
    ///
    /// # Errors
    /// [`ServiceError::Pki`] when the request is not one.
    pub async fn new_certificate(&self, new: &NewCertificate) -> Result<Joined, ServiceError> {
        let identity = Identity::Operator { name: new.name.clone(), role: new.role };
        self.certify(&new.name, identity, &new.request).await
    }

    async fn certify(&self, name: &str, identity: Identity, request: &str) -> Result<Joined, ServiceError> {
        let (certificate, fingerprint) = self.authority.sign(request, name)?;
        self.store.put(&identity::certificate_key(&fingerprint), encode(&identity)).await?;
        let renew_at = crate::rollout::after(Self::now(), self.authority.client_life() * 2 / 3);
        Ok(Joined { certificate, ca: self.authority.pem().to_owned(), renew_at })
    }

    /// Shuts a host out: all its certificates are void from the next request on.
    ///
    /// # Errors
    /// The store's.
    pub async fn revoke(&self, who: &Identity) -> Result<usize, ServiceError> {
        let mut revoked = 0;
        for prefix in ["certificate/", "token/"] {
            for row in self.store.range(prefix).await?.keys {
                let found: Identity = decode(&row)?;
                let same = match (&found, who) {
                    (Identity::Operator { name, .. }, Identity::Operator { name: wanted, .. }) => name == wanted,
                    _ => found == *who,
                };
                if same {
                    let _ = self.store.txn(Txn::write([Op::delete(row.key)])).await?;
                    revoked += 1;
                }
            }
        }
        Ok(revoked)
    }

    /// An agent says where it stands and is told what there is for it; waits for a while when there is nothing.
    ///
    /// # Errors
    /// The store's.
    pub async fn poll(&self, host: &HostName, poll: Poll) -> Result<PollReply, ServiceError> {
        let mut changes = self.mail.subscribe();
        self.hear(host, &poll).await?;
        let wait = Duration::from_millis(poll.wait_ms).min(LONGEST_WAIT);
        let end = tokio::time::Instant::now() + wait;
        loop {
            let reply = PollReply {
                order: self.slot(host).await?.order,
                questions: self.mail.take(host),
                elsewhere: self.elsewhere(host).await?,
            };
            if reply.order != poll.known || !reply.questions.is_empty() {
                return Ok(reply);
            }
            // Whatever happened since the subscription wakes at once, so nothing is slept over.
            if tokio::time::timeout_at(end, changes.changed()).await.is_err() {
                return Ok(reply);
            }
        }
    }

    async fn hear(&self, host: &HostName, poll: &Poll) -> Result<(), ServiceError> {
        self.seen(host, poll).await?;
        let author = Author::Agent(host.clone());
        if poll.report.host != *host {
            return Err(ServiceError::Bad(format!(
                "the report is about host {}, the certificate is of {host}",
                poll.report.host
            )));
        }
        if let Some(visit) = &poll.visit {
            let key = visit_key(&visit.rollout, host, visit.generation);
            self.store.put(&key, encode(visit)).await?;
        }
        let mut inputs: Vec<(RolloutId, Input)> = Vec::new();
        for id in self.rollouts_at(host).await {
            inputs.push((id, Input::Report(poll.report.clone())));
        }
        for answer in &poll.answers {
            inputs.push(match answer.clone() {
                Answer::Preflight { rollout, asked, refusal } => {
                    (rollout, Input::Preflight { host: host.clone(), asked, refusal })
                }
                Answer::Health { rollout, unhealthy } => (rollout, Input::Health { host: host.clone(), unhealthy }),
            });
        }
        for (visited, Approved { scopes, by }) in &poll.approvals {
            for id in self.rollouts_at(visited).await {
                let (scopes, by) = (scopes.clone(), by.clone());
                inputs.push((id, Input::ApproveVisit { host: visited.clone(), scopes, by }));
            }
        }
        for (id, input) in inputs {
            match self.give(&id, input, author.clone(), String::new()).await {
                Ok(()) | Err(ServiceError::Refused(_) | ServiceError::NotFound { .. } | ServiceError::Busy) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Rollouts that have begun a host and are not through with it.
    async fn rollouts_at(&self, host: &HostName) -> Vec<RolloutId> {
        let sessions = self.sessions.lock().await;
        let begun = sessions.iter().filter(|(_, session)| session.rollout().state().in_flight.contains(host));
        begun.map(|(id, _)| id.clone()).collect()
    }

    async fn seen(&self, host: &HostName, poll: &Poll) -> Result<(), ServiceError> {
        let now = Self::now();
        let row = self.store.get(&host_key(host)).await?;
        let before: Option<HostRecord> = row.as_ref().map(decode).transpose()?;
        let skew_ms = poll.clock.duration_since(now).as_millis();
        let record = HostRecord {
            report: match (&poll.host, &before) {
                (Some(report), _) => report.clone(),
                (None, Some(before)) => before.report.clone(),
                (None, None) => return Ok(()),
            },
            seen: Some(now),
            skew_ms: i64::try_from(skew_ms).unwrap_or(i64::MAX),
            cordoned: before.as_ref().is_some_and(|before| before.cordoned),
        };
        // Every ten seconds is enough to say that a host is alive; the rest would only wear the disk.
        let stale = |before: &HostRecord| {
            before.report != record.report || before.seen.is_none_or(|seen| now.duration_since(seen).as_secs() >= 10)
        };
        if before.as_ref().is_none_or(stale) {
            self.store.put(&host_key(host), encode(&record)).await?;
        }
        Ok(())
    }

    pub(super) async fn slot(&self, host: &HostName) -> Result<Slot, ServiceError> {
        let row = self.store.get(&slot_key(host)).await?;
        Ok(row.as_ref().map(decode).transpose()?.unwrap_or_default())
    }

    /// Visits of other hosts whose sets have guests on this one.
    async fn elsewhere(&self, host: &HostName) -> Result<Vec<Elsewhere>, ServiceError> {
        let Some(row) = self.store.get(&host_key(host)).await? else { return Ok(Vec::new()) };
        let record: HostRecord = decode(&row)?;
        let mine: BTreeSet<Scope> = record.report.vms.iter().filter_map(|vm| vm.set.clone().map(Scope::Set)).collect();
        if mine.is_empty() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for row in self.store.range("slot/").await?.keys {
            let slot: Slot = decode(&row)?;
            let Some(order) = slot.order.filter(|order| slot.open.is_some() && order.host != *host) else { continue };
            let Task::Maintain(visit) = &order.task else { continue };
            let scopes: BTreeSet<Scope> = visit.scopes.intersection(&mine).cloned().collect();
            if scopes.is_empty() {
                continue;
            }
            let visited: Option<HostRecord> =
                self.store.get(&host_key(&order.host)).await?.as_ref().map(decode).transpose()?;
            let mut vms: BTreeMap<SetName, BTreeSet<VmName>> = BTreeMap::new();
            for vm in visited.into_iter().flat_map(|record| record.report.vms) {
                if let Some(set) = vm.set.filter(|set| scopes.contains(&Scope::Set(set.clone()))) {
                    vms.entry(set).or_default().insert(vm.name);
                }
            }
            let started = match self.phase_of(&order.rollout, &order.host).await {
                Some(HostPhase::InWork { since, .. } | HostPhase::Checking { since, .. }) => Some(since),
                _ => None,
            };
            found.push(Elsewhere { order, scopes, vms, started });
        }
        Ok(found)
    }

    pub(super) async fn preflight_question(
        &self,
        id: &RolloutId,
        host: &HostName,
        asked: Timestamp,
    ) -> Option<Question> {
        let sessions = self.sessions.lock().await;
        let rollout = sessions.get(id)?.rollout();
        let state = rollout.state().hosts.get(host)?;
        let updates = rollout.definition().updates.iter().chain(&state.merged).cloned().collect();
        let gates = rollout.definition().rules.gates.clone();
        Some(Question::Preflight { rollout: id.clone(), asked, updates, gates })
    }

    /// The order of a host, if a visit is open.
    ///
    /// # Errors
    /// The store's.
    pub async fn open_order(&self, host: &HostName) -> Result<Option<Order>, ServiceError> {
        let slot = self.slot(host).await?;
        Ok(slot.order.filter(|_| slot.open.is_some()))
    }

    /// Where a host stands in a rollout.
    pub async fn phase_of(&self, id: &RolloutId, host: &HostName) -> Option<HostPhase> {
        Some(self.sessions.lock().await.get(id)?.rollout().state().hosts.get(host)?.phase.clone())
    }
}
