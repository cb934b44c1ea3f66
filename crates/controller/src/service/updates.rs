//! Update files that the controller keeps for its hosts, and what hosts measured while they did them.

use std::collections::BTreeMap;

use fermata_maintenance::update::Update;
use fermata_model::{HostName, Mechanism};
use fermata_store::{Compare, Op, Txn};

use super::{Controller, ServiceError};
use crate::order::{RolloutId, UpdateRef};
use crate::records::{decode, encode, update_key, update_name_key, visit_prefix};
use crate::rollout::{HostPhase, HostState, Input};
use crate::wire::{Command, KeptUpdate, VisitProgress};

impl Controller {
    /// Keeps an update file under its digest; the same file again changes nothing.
    ///
    /// # Errors
    /// [`ServiceError::Bad`] when the file is not sound.
    pub async fn keep_update(&self, text: &str) -> Result<KeptUpdate, ServiceError> {
        let update = Update::from_toml(text).map_err(|error| ServiceError::Bad(format!("update file: {error}")))?;
        let digest = crate::pki::sha256(text.as_bytes());
        let place = update_name_key(update.id.as_str());
        let txn = Txn {
            compares: vec![Compare::absent(&place)],
            success: vec![Op::put(&place, encode(&digest)), Op::put(update_key(&digest), encode(&text))],
            failure: vec![Op::get(&place)],
        };
        let reply = self.store.txn(txn).await?;
        if !reply.succeeded {
            let row = reply.results.into_iter().next().and_then(fermata_store::OpResult::into_first);
            let known: Option<String> = row.as_ref().map(decode).transpose()?;
            if known.as_ref() != Some(&digest) {
                return Err(ServiceError::Bad(format!(
                    "update `{}` was given before from a file with the digest {}, this one has {digest}; give a changed file another id",
                    update.id,
                    known.unwrap_or_default()
                )));
            }
        }
        let kept = UpdateRef { name: update.id.to_string(), digest, mechanism: update.harshest };
        Ok(KeptUpdate { update: kept, title: update.title, notice_s: update.notice.as_secs() })
    }

    /// An update file, by its digest.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`].
    pub async fn update(&self, digest: &str) -> Result<String, ServiceError> {
        let row = self.store.get(&update_key(digest)).await?;
        let row = row.ok_or_else(|| ServiceError::NotFound { what: "update", name: digest.to_owned() })?;
        Ok(decode(&row)?)
    }

    /// Whether all updates are here, and may do what they are ordered to do.
    pub(super) async fn check_updates(&self, updates: &[UpdateRef]) -> Result<(), ServiceError> {
        for wanted in updates {
            let text = match self.update(&wanted.digest).await {
                Err(ServiceError::NotFound { .. }) => {
                    return Err(ServiceError::Bad(format!(
                        "update `{}`: nobody has given a file with the digest {}; `fermata rollout plan FILE` does",
                        wanted.name, wanted.digest
                    )));
                }
                other => other?,
            };
            let update = Update::from_toml(&text).map_err(|error| ServiceError::Bad(error.to_string()))?;
            if update.id.as_str() != wanted.name {
                let text = format!("update `{}`: its file calls itself `{}`; use that name", wanted.name, update.id);
                return Err(ServiceError::Bad(text));
            }
            let needed = update.change.mechanism();
            if wanted.mechanism < needed || wanted.mechanism == Mechanism::Reboot && update.harshest < Mechanism::Reboot
            {
                return Err(ServiceError::Bad(format!(
                    "update `{}` needs \"{needed}\", its file allows \"{}\", the rollout \"{}\"; correct the rollout",
                    wanted.name, update.harshest, wanted.mechanism
                )));
            }
        }
        Ok(())
    }

    /// Updates that are to be done in the same visits: on the hosts named, or on all that have not been begun.
    ///
    /// # Errors
    /// [`ServiceError::Bad`] when an update is not here.
    pub async fn merge(&self, id: &RolloutId, command: &Command) -> Result<Input, ServiceError> {
        if command.updates.is_empty() {
            return Err(ServiceError::Bad("nothing to merge; name at least one update".to_owned()));
        }
        self.check_updates(&command.updates).await?;
        let mut hosts = command.hosts.clone();
        if hosts.is_empty() {
            let (_, state) = self.state(id).await?;
            let waits = |host: &HostState| matches!(host.phase, HostPhase::Waiting);
            hosts = state.hosts.iter().filter(|(_, host)| waits(host)).map(|(name, _)| name.clone()).collect();
        }
        Ok(Input::Merge { updates: command.updates.clone(), hosts })
    }

    /// What hosts measured in a rollout, visit by visit.
    ///
    /// # Errors
    /// The store's.
    pub async fn measured(&self, id: &RolloutId) -> Result<BTreeMap<HostName, Vec<VisitProgress>>, ServiceError> {
        let prefix = visit_prefix(id);
        let mut measured: BTreeMap<HostName, Vec<VisitProgress>> = BTreeMap::new();
        for row in self.store.range(&prefix).await?.keys {
            let host = row.key.strip_prefix(&prefix).and_then(|rest| rest.split('/').next());
            let Some(host) = host.and_then(|host| host.parse().ok()) else { continue };
            measured.entry(host).or_default().push(decode(&row)?);
        }
        Ok(measured)
    }
}
