//! Revisions, keys, comparisons, operations, events.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A point in the store's history; 0 is before the first write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The name of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A live key with what the store knows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// The revision that created it.
    pub create_revision: Revision,
    /// The revision that changed it last.
    pub mod_revision: Revision,
    /// How often it was put since it was created, from 1.
    pub version: u64,
    /// The lease it lives by.
    pub lease: Option<LeaseId>,
}

/// Live keys at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The store's revision when they were read; watch from the next one.
    pub revision: Revision,
    /// The keys in byte order.
    pub keys: Vec<KeyValue>,
}

/// What of a key is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The version; 0 for a missing key.
    Version(u64),
    /// The creating revision; 0 for a missing key.
    CreateRevision(Revision),
    /// The last changing revision; 0 for a missing key.
    ModRevision(Revision),
    /// The value; no relation holds for a missing key.
    Value(Vec<u8>),
}

/// How it is compared: the key's side stands on the left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// Equal.
    Equal,
    /// Not equal.
    NotEqual,
    /// The key's is less.
    Less,
    /// The key's is greater.
    Greater,
}

/// One comparison of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: String,
    /// How.
    pub relation: Relation,
    /// With what.
    pub target: Target,
}

impl Compare {
    /// The key has not been touched since it was read with `revision`; 0 = it does not exist.
    #[must_use]
    pub fn unchanged(key: impl Into<String>, revision: Revision) -> Self {
        Self { key: key.into(), relation: Relation::Equal, target: Target::ModRevision(revision) }
    }

    /// The key does not exist.
    #[must_use]
    pub fn absent(key: impl Into<String>) -> Self {
        Self { key: key.into(), relation: Relation::Equal, target: Target::Version(0) }
    }
}

/// One operation of a transaction. Operations see what those before them in the transaction did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes a key.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Vec<u8>,
        /// The lease it shall live by; `None` takes it off any lease.
        lease: Option<LeaseId>,
    },
    /// Deletes one key; nothing happens when it is missing.
    Delete {
        /// The key.
        key: String,
    },
    /// Reads one key.
    Get {
        /// The key.
        key: String,
    },
    /// Reads all keys that begin with a prefix.
    Range {
        /// The prefix; empty for everything.
        prefix: String,
    },
}

impl Op {
    /// Writes a key that lives by no lease.
    #[must_use]
    pub fn put(key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        Self::Put { key: key.into(), value: value.into(), lease: None }
    }

    /// Deletes a key.
    #[must_use]
    pub fn delete(key: impl Into<String>) -> Self {
        Self::Delete { key: key.into() }
    }

    /// Reads a key.
    #[must_use]
    pub fn get(key: impl Into<String>) -> Self {
        Self::Get { key: key.into() }
    }
}

/// If every comparison holds, do `success`, else `failure`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[must_use]
pub struct Txn {
    /// The comparisons.
    pub compares: Vec<Compare>,
    /// Done when all of them hold.
    pub success: Vec<Op>,
    /// Done when one does not.
    pub failure: Vec<Op>,
}

impl Txn {
    /// Operations without a condition.
    pub fn write(ops: impl IntoIterator<Item = Op>) -> Self {
        Self { success: ops.into_iter().collect(), ..Self::default() }
    }

    /// Reads without a condition.
    pub fn read(ops: impl IntoIterator<Item = Op>) -> Self {
        Self::write(ops)
    }
}

/// What one operation gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpResult {
    /// A put was done.
    Put,
    /// Whether a delete found something.
    Deleted(bool),
    /// What a read found.
    Found(Vec<KeyValue>),
}

impl OpResult {
    /// The first key that a read found.
    #[must_use]
    pub fn into_first(self) -> Option<KeyValue> {
        match self {
            Self::Found(keys) => keys.into_iter().next(),
            Self::Put | Self::Deleted(_) => None,
        }
    }
}

/// What a transaction gave.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct TxnReply {
    /// Whether the comparisons held.
    pub succeeded: bool,
    /// The store's revision afterwards.
    pub revision: Revision,
    /// One result per operation done.
    pub results: Vec<OpResult>,
}

/// What happened to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// It was written; this is its state since.
    Put(KeyValue),
    /// It is gone.
    Delete,
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The revision of the change; events of one transaction share it.
    pub revision: Revision,
    /// The key.
    pub key: String,
    /// What happened.
    pub kind: EventKind,
}
