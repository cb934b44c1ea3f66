//! Where everything lies in the store. Keys are paths, values are JSON.
//!
//! | key | value |
//! |---|---|
//! | `set-lock/SET` | [`crate::lock::SetLock`] |
//! | `slot/HOST` | [`crate::order::Slot`] |
//! | `definition/ID` | [`crate::rollout::Definition`] |
//! | `plan/ID` | the [`fermata_planner::Plan`] that a rollout follows |
//! | `visit/ID/HOST/GENERATION` | [`crate::wire::VisitProgress`]: what a host measured |
//! | `domain/SET/VM` | the update domain that a VM without one of its own was given, for life |
//! | `alarm/ID` | [`crate::wire::Alarm`]: what the independent check found |
//! | `update/DIGEST` | the text of an update file |
//! | `update-name/NAME` | the digest that an update's name stands for |
//! | `rollout/ID/log/NUMBER` | [`crate::rollout::Entry`], one key per decision |
//! | `cordon/HOST` | exists while the host is cordoned |

use fermata_model::{HostName, SetName};
use fermata_store::KeyValue;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::order::RolloutId;

/// A record that this program cannot read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the record {key} cannot be read: {reason}; it was written by another version, run that one")]
pub struct RecordError {
    /// Its key.
    pub key: String,
    /// What is wrong.
    pub reason: String,
}

/// The key of a set's lock.
#[must_use]
pub fn lock_key(set: &SetName) -> String {
    format!("set-lock/{set}")
}

/// The key of a host's slot.
#[must_use]
pub fn slot_key(host: &HostName) -> String {
    format!("slot/{host}")
}

/// The key that says that a host is cordoned.
#[must_use]
pub fn cordon_key(host: &HostName) -> String {
    format!("cordon/{host}")
}

/// What all keys of definitions begin with.
pub const DEFINITIONS: &str = "definition/";

/// The key of a rollout's definition.
#[must_use]
pub fn definition_key(rollout: &RolloutId) -> String {
    format!("{DEFINITIONS}{rollout}")
}

/// The key of a rollout's plan.
#[must_use]
pub fn plan_key(rollout: &RolloutId) -> String {
    format!("plan/{rollout}")
}

/// What all keys of what hosts measured in a rollout begin with.
#[must_use]
pub fn visit_prefix(rollout: &RolloutId) -> String {
    format!("visit/{rollout}/")
}

/// The key of what a host measured in a visit; keys sort as generations do.
#[must_use]
pub fn visit_key(rollout: &RolloutId, host: &HostName, generation: crate::order::Generation) -> String {
    format!("visit/{rollout}/{host}/{:020}", generation.0)
}

/// What all keys of given update domains begin with.
pub const DOMAINS: &str = "domain/";

/// The key of the update domain that a VM was given.
#[must_use]
pub fn domain_key(set: &SetName, vm: &fermata_model::VmName) -> String {
    format!("{DOMAINS}{set}/{vm}")
}

/// What all keys of alarms begin with.
pub const ALARMS: &str = "alarm/";

/// The key of a rollout's alarm.
#[must_use]
pub fn alarm_key(rollout: &RolloutId) -> String {
    format!("{ALARMS}{rollout}")
}

/// The key of the digest that an update's name stands for.
#[must_use]
pub fn update_name_key(name: &str) -> String {
    format!("update-name/{name}")
}

/// The key of an update file.
#[must_use]
pub fn update_key(digest: &str) -> String {
    format!("update/{digest}")
}

/// What all keys of a rollout's log begin with.
#[must_use]
pub fn log_prefix(rollout: &RolloutId) -> String {
    format!("rollout/{rollout}/log/")
}

/// The key of a line of a rollout's log; keys sort as numbers do.
#[must_use]
pub fn log_key(rollout: &RolloutId, number: u64) -> String {
    format!("{}{number:012}", log_prefix(rollout))
}

/// A value as it is stored.
///
/// # Panics
/// When a value cannot be JSON, which no record type can be.
#[must_use]
pub fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("records are plain data with text keys")
}

/// Reads a stored value.
///
/// # Errors
/// [`RecordError`].
pub fn decode<T: DeserializeOwned>(row: &KeyValue) -> Result<T, RecordError> {
    serde_json::from_slice(&row.value).map_err(|error| RecordError { key: row.key.clone(), reason: error.to_string() })
}
