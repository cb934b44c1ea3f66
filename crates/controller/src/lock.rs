//! The lock of a set: which of its parts is under maintenance, on which hosts, for whom.
//!
//! The record lies in the store under the set's name and changes by compare-and-swap only, in one transaction with the orders it
//! stands for. It is shared by the hosts of one part and excludes every other part (promise P4).
//!
//! Invariants:
//! - All holders are of one part and one rollout.
//! - A part is entered anew only when nobody holds another one and the recovery time after the last one is over. Recovery is a
//!   courtesy to the set and depends on clocks; exclusion does not.
//! - A holder leaves with the generation it came with, or not at all.

use std::collections::BTreeMap;

use fermata_model::HostName;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::order::{Generation, Part, RolloutId};

/// A host of the part in work.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// The order it stands for.
    pub generation: Generation,
    /// Since when.
    pub since: Timestamp,
    /// How many VMs of the set are on the host.
    pub vms: u32,
}

/// The part in work.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Open {
    /// The rollout that opened it.
    pub owner: RolloutId,
    /// The part.
    pub part: Part,
    /// Its hosts in work; never empty.
    pub holders: BTreeMap<HostName, Holder>,
}

/// The part last touched.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Recovering {
    /// The part.
    pub part: Part,
    /// Other parts wait until then.
    pub until: Timestamp,
}

/// The lock's record; the default is a set that was never touched.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct SetLock {
    /// The part in work, if any.
    pub open: Option<Open>,
    /// The part last touched, if any.
    pub recovering: Option<Recovering>,
}

/// Who asks for a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim<'a> {
    /// The rollout.
    pub rollout: &'a RolloutId,
    /// The host.
    pub host: &'a HostName,
    /// The part of the set that the host carries.
    pub part: &'a Part,
    /// The generation of the order to come.
    pub generation: Generation,
    /// How many VMs of the set are on the host.
    pub vms: u32,
}

/// Why a part cannot be entered now.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Blocked {
    /// Another part, or another rollout, is in work.
    #[error("part {part} is in work for rollout {owner} on {}", hosts.iter().map(HostName::as_str).collect::<Vec<_>>().join(", "))]
    InWork {
        /// The part in work.
        part: Part,
        /// For whom.
        owner: RolloutId,
        /// On these hosts.
        hosts: Vec<HostName>,
    },
    /// The set recovers from another part.
    #[error("the set recovers from part {part} until {until}")]
    Recovering {
        /// The part last touched.
        part: Part,
        /// Until when.
        until: Timestamp,
    },
}

impl SetLock {
    /// Whether `claim` could be entered at `now`.
    ///
    /// # Errors
    /// [`Blocked`] with what is in the way.
    pub fn check(&self, claim: &Claim<'_>, now: Timestamp) -> Result<(), Blocked> {
        if let Some(open) = &self.open {
            let same =
                open.part == *claim.part && open.owner == *claim.rollout && !open.holders.contains_key(claim.host);
            return if same {
                Ok(())
            } else {
                Err(Blocked::InWork {
                    part: open.part.clone(),
                    owner: open.owner.clone(),
                    hosts: open.holders.keys().cloned().collect(),
                })
            };
        }
        match &self.recovering {
            Some(recovering) if recovering.part != *claim.part && now < recovering.until => {
                Err(Blocked::Recovering { part: recovering.part.clone(), until: recovering.until })
            }
            _ => Ok(()),
        }
    }

    /// Enters a part.
    ///
    /// # Errors
    /// As [`SetLock::check`]; the lock is as it was.
    pub fn enter(&mut self, claim: &Claim<'_>, now: Timestamp) -> Result<(), Blocked> {
        self.check(claim, now)?;
        let open = self.open.get_or_insert_with(|| Open {
            owner: claim.rollout.clone(),
            part: claim.part.clone(),
            holders: BTreeMap::new(),
        });
        let holder = Holder { generation: claim.generation, since: now, vms: claim.vms };
        open.holders.insert(claim.host.clone(), holder);
        Ok(())
    }

    /// Raises a holder's generation: the order that it stands for was replaced.
    pub fn renew(&mut self, host: &HostName, from: Generation, to: Generation) {
        if let Some(open) = &mut self.open
            && let Some(holder) = open.holders.get_mut(host)
            && holder.generation == from
        {
            holder.generation = to;
        }
    }

    /// Takes a host out, if it is in with this generation. `until` is when the set has recovered; `None` when no VM was touched.
    /// Returns whether it was in.
    pub fn leave(&mut self, host: &HostName, generation: Generation, until: Option<Timestamp>) -> bool {
        let Some(open) = &mut self.open else { return false };
        if open.holders.get(host).is_none_or(|holder| holder.generation != generation) {
            return false;
        }
        open.holders.remove(host);
        if let Some(until) = until {
            // The same part touched twice: the later end counts, whatever the clocks of two controllers say.
            let until = match &self.recovering {
                Some(before) if before.part == open.part => before.until.max(until),
                _ => until,
            };
            self.recovering = Some(Recovering { part: open.part.clone(), until });
        }
        if open.holders.is_empty() {
            self.open = None;
        }
        true
    }

    /// How many VMs of the set are on hosts in work.
    #[must_use]
    pub fn vms_in_work(&self) -> u32 {
        self.open.iter().flat_map(|open| open.holders.values()).map(|holder| holder.vms).sum()
    }

    /// Whether a host is in with this generation.
    #[must_use]
    pub fn holds(&self, host: &HostName, generation: Generation) -> bool {
        self.open.as_ref().and_then(|open| open.holders.get(host)).is_some_and(|holder| holder.generation == generation)
    }
}

#[cfg(test)]
mod tests;
