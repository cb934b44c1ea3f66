//! What a store should be, as plainly as possible: the list of everything that ever happened.

use crate::types::{Compare, Op, Relation, Target, Txn};

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) revision: u64,
    pub(super) key: String,
    pub(super) value: Option<Vec<u8>>,
}

/// A live key: value, creating revision, changing revision, version.
pub(super) type Live = (Vec<u8>, u64, u64, u64);

#[derive(Debug, Default)]
pub(super) struct Reference {
    pub(super) changes: Vec<Change>,
    pub(super) revision: u64,
}

impl Reference {
    /// The state of a key, derived from its history alone.
    pub(super) fn live(&self, key: &str) -> Option<Live> {
        let mut live = None;
        for change in self.changes.iter().filter(|change| change.key == key) {
            live = change.value.clone().map(|value| match live {
                Some((_, created, _, version)) => (value, created, change.revision, version + 1),
                None => (value, change.revision, change.revision, 1),
            });
        }
        live
    }

    pub(super) fn all(&self) -> Vec<(String, Live)> {
        let mut keys: Vec<&String> = self.changes.iter().map(|change| &change.key).collect();
        keys.sort();
        keys.dedup();
        keys.into_iter().filter_map(|key| Some((key.clone(), self.live(key)?))).collect()
    }

    fn holds(&self, compare: &Compare) -> bool {
        let live = self.live(&compare.key);
        let (value, created, modified, version) = live.clone().unwrap_or_default();
        let (less, equal) = match &compare.target {
            Target::Version(given) => (version < *given, version == *given),
            Target::CreateRevision(given) => (created < given.0, created == given.0),
            Target::ModRevision(given) => (modified < given.0, modified == given.0),
            Target::Value(_) if live.is_none() => return false,
            Target::Value(given) => (value < *given, value == *given),
        };
        match compare.relation {
            Relation::Equal => equal,
            Relation::NotEqual => !equal,
            Relation::Less => less,
            Relation::Greater => !less && !equal,
        }
    }

    /// Runs a transaction; `None` when it must be refused.
    pub(super) fn txn(&mut self, txn: &Txn) -> Option<bool> {
        for branch in [&txn.success, &txn.failure] {
            let mut written: Vec<&String> = branch
                .iter()
                .filter_map(|op| match op {
                    Op::Put { key, .. } | Op::Delete { key } => Some(key),
                    Op::Get { .. } | Op::Range { .. } => None,
                })
                .collect();
            let count = written.len();
            written.sort();
            written.dedup();
            if written.len() < count {
                return None;
            }
        }
        let succeeded = txn.compares.iter().all(|compare| self.holds(compare));
        let revision = self.revision + 1;
        for op in if succeeded { &txn.success } else { &txn.failure } {
            let (key, value) = match op {
                Op::Put { key, value, .. } => (key, Some(value.clone())),
                Op::Delete { key } if self.live(key).is_some() => (key, None),
                Op::Delete { .. } | Op::Get { .. } | Op::Range { .. } => continue,
            };
            self.changes.push(Change { revision, key: key.clone(), value });
            self.revision = revision;
        }
        Some(succeeded)
    }
}
