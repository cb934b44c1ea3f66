//! Where everything lies in the store. Keys are paths, values are JSON.
//!
//! | key | value |
//! |---|---|
//! | `set-lock/SET` | [`crate::lock::SetLock`] |
//! | `slot/HOST` | [`crate::order::Slot`] |
//! | `rollout/ID/definition` | [`crate::rollout::Definition`] |
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

/// The key of a rollout's definition.
#[must_use]
pub fn definition_key(rollout: &RolloutId) -> String {
    format!("rollout/{rollout}/definition")
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
