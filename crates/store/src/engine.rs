//! The semantics, once, over bare tables.
//!
//! [`Tables`] is a dumb shelf: rows in, rows out. Everything that makes it a store (revisions, comparisons, leases, the
//! event log) is here, so two implementations cannot drift apart in it. The functions are pure but for the tables and refuse
//! before their first write: an error after it can only come from the tables themselves, which then must undo the call.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::error::StoreError;
use crate::types::{
    Compare, Event, EventKind, KeyValue, LeaseId, Op, OpResult, Relation, Revision, Snapshot, Target, Txn, TxnReply,
};

/// The counters of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// The last revision given out.
    pub revision: Revision,
    /// The oldest revision whose events are still known.
    pub compacted: Revision,
    /// The last lease id given out.
    pub lease: u64,
}

/// A lease as it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// Its name.
    pub id: LeaseId,
    /// How long it lives after a sign of life.
    pub ttl: Duration,
    /// When it ends.
    pub ends: Timestamp,
}

/// Where rows lie.
pub trait Tables {
    /// Reads the counters.
    fn counters(&mut self) -> Result<Counters, StoreError>;
    /// Writes the counters.
    fn set_counters(&mut self, counters: Counters) -> Result<(), StoreError>;
    /// A live key.
    fn get(&mut self, key: &str) -> Result<Option<KeyValue>, StoreError>;
    /// Live keys with a prefix, in byte order.
    fn range(&mut self, prefix: &str) -> Result<Vec<KeyValue>, StoreError>;
    /// Live keys of a lease, in byte order.
    fn keys_of(&mut self, lease: LeaseId) -> Result<Vec<String>, StoreError>;
    /// Writes a live key.
    fn put(&mut self, row: &KeyValue) -> Result<(), StoreError>;
    /// Removes a live key.
    fn remove(&mut self, key: &str) -> Result<(), StoreError>;
    /// Appends to the event log; `position` counts within the revision.
    fn log(&mut self, position: usize, event: &Event) -> Result<(), StoreError>;
    /// Events with a prefix from a revision on, in order; whole revisions only, at least one if there is any.
    fn events(&mut self, prefix: &str, from: Revision) -> Result<Vec<Event>, StoreError>;
    /// Forgets events before a revision.
    fn forget_before(&mut self, revision: Revision) -> Result<(), StoreError>;
    /// A lease.
    fn lease(&mut self, id: LeaseId) -> Result<Option<Lease>, StoreError>;
    /// Writes a lease.
    fn put_lease(&mut self, lease: Lease) -> Result<(), StoreError>;
    /// Removes a lease.
    fn remove_lease(&mut self, id: LeaseId) -> Result<(), StoreError>;
    /// Leases that end at or before `now`, by id.
    fn ended(&mut self, now: Timestamp) -> Result<Vec<LeaseId>, StoreError>;
}

fn holds(row: Option<&KeyValue>, compare: &Compare) -> bool {
    let ordering = match &compare.target {
        Target::Version(given) => row.map_or(0, |row| row.version).cmp(given),
        Target::CreateRevision(given) => row.map_or(Revision(0), |row| row.create_revision).cmp(given),
        Target::ModRevision(given) => row.map_or(Revision(0), |row| row.mod_revision).cmp(given),
        Target::Value(given) => match row {
            Some(row) => row.value.cmp(given),
            None => return false,
        },
    };
    match compare.relation {
        Relation::Equal => ordering.is_eq(),
        Relation::NotEqual => ordering.is_ne(),
        Relation::Less => ordering.is_lt(),
        Relation::Greater => ordering.is_gt(),
    }
}

fn check(txn: &Txn) -> Result<(), StoreError> {
    if txn.compares.iter().any(|compare| compare.key.is_empty()) {
        return Err(StoreError::EmptyKey);
    }
    for branch in [&txn.success, &txn.failure] {
        let mut written = BTreeSet::new();
        for op in branch {
            match op {
                Op::Put { key, .. } | Op::Delete { key } => {
                    if key.is_empty() {
                        return Err(StoreError::EmptyKey);
                    }
                    if !written.insert(key) {
                        return Err(StoreError::DuplicateKey(key.clone()));
                    }
                }
                Op::Get { key } if key.is_empty() => return Err(StoreError::EmptyKey),
                Op::Get { .. } | Op::Range { .. } => {}
            }
        }
    }
    Ok(())
}

/// Writes of one revision: the revision is taken by the first of them.
struct Writer {
    counters: Counters,
    position: usize,
}

impl Writer {
    fn open(tables: &mut impl Tables) -> Result<Self, StoreError> {
        Ok(Self { counters: tables.counters()?, position: 0 })
    }

    const fn revision(&self) -> Revision {
        self.counters.revision.next()
    }

    fn log(&mut self, tables: &mut impl Tables, key: &str, kind: EventKind) -> Result<(), StoreError> {
        tables.log(self.position, &Event { revision: self.revision(), key: key.to_owned(), kind })?;
        self.position += 1;
        Ok(())
    }

    fn put(
        &mut self,
        tables: &mut impl Tables,
        key: &str,
        value: &[u8],
        lease: Option<LeaseId>,
    ) -> Result<(), StoreError> {
        let before = tables.get(key)?;
        let row = KeyValue {
            key: key.to_owned(),
            value: value.to_vec(),
            create_revision: before.as_ref().map_or(self.revision(), |row| row.create_revision),
            mod_revision: self.revision(),
            version: before.map_or(0, |row| row.version) + 1,
            lease,
        };
        tables.put(&row)?;
        self.log(tables, key, EventKind::Put(row))
    }

    fn delete(&mut self, tables: &mut impl Tables, key: &str) -> Result<bool, StoreError> {
        if tables.get(key)?.is_none() {
            return Ok(false);
        }
        tables.remove(key)?;
        self.log(tables, key, EventKind::Delete)?;
        Ok(true)
    }

    fn close(mut self, tables: &mut impl Tables) -> Result<Revision, StoreError> {
        if self.position > 0 {
            self.counters.revision = self.revision();
            tables.set_counters(self.counters)?;
        }
        Ok(self.counters.revision)
    }
}

/// Runs a transaction.
///
/// # Errors
/// As [`crate::Store::txn`].
pub fn txn(tables: &mut impl Tables, txn: &Txn) -> Result<TxnReply, StoreError> {
    check(txn)?;
    let mut succeeded = true;
    for compare in &txn.compares {
        succeeded &= holds(tables.get(&compare.key)?.as_ref(), compare);
    }
    let branch = if succeeded { &txn.success } else { &txn.failure };
    for op in branch {
        if let Op::Put { lease: Some(lease), .. } = op
            && tables.lease(*lease)?.is_none()
        {
            return Err(StoreError::LeaseNotFound(*lease));
        }
    }
    let mut writer = Writer::open(tables)?;
    let mut results = Vec::new();
    for op in branch {
        results.push(match op {
            Op::Put { key, value, lease } => {
                writer.put(tables, key, value, *lease)?;
                OpResult::Put
            }
            Op::Delete { key } => OpResult::Deleted(writer.delete(tables, key)?),
            Op::Get { key } => OpResult::Found(tables.get(key)?.into_iter().collect()),
            Op::Range { prefix } => OpResult::Found(tables.range(prefix)?),
        });
    }
    let revision = writer.close(tables)?;
    Ok(TxnReply { succeeded, revision, results })
}

/// Live keys with a prefix.
///
/// # Errors
/// What the tables say.
pub fn range(tables: &mut impl Tables, prefix: &str) -> Result<Snapshot, StoreError> {
    Ok(Snapshot { revision: tables.counters()?.revision, keys: tables.range(prefix)? })
}

/// The next events of a watch; none when there are none yet.
///
/// # Errors
/// [`StoreError::Compacted`].
pub fn events(tables: &mut impl Tables, prefix: &str, from: Revision) -> Result<Vec<Event>, StoreError> {
    let compacted = tables.counters()?.compacted;
    if from < compacted {
        return Err(StoreError::Compacted { asked: from, compacted });
    }
    tables.events(prefix, from)
}

/// Forgets events before `revision`.
///
/// # Errors
/// As [`crate::Store::compact`].
pub fn compact(tables: &mut impl Tables, revision: Revision) -> Result<(), StoreError> {
    let counters = tables.counters()?;
    if revision > counters.revision {
        return Err(StoreError::FutureRevision { asked: revision, current: counters.revision });
    }
    if revision <= counters.compacted {
        return Err(StoreError::Compacted { asked: revision, compacted: counters.compacted });
    }
    tables.forget_before(revision)?;
    tables.set_counters(Counters { compacted: revision, ..counters })
}

fn end_of(ttl: Duration, now: Timestamp) -> Timestamp {
    let ttl = SignedDuration::try_from(ttl).unwrap_or(SignedDuration::MAX);
    now.saturating_add(ttl).unwrap_or(Timestamp::MAX)
}

/// Grants a lease.
///
/// # Errors
/// What the tables say.
pub fn lease_grant(tables: &mut impl Tables, ttl: Duration, now: Timestamp) -> Result<LeaseId, StoreError> {
    let counters = tables.counters()?;
    let id = LeaseId(counters.lease + 1);
    tables.set_counters(Counters { lease: id.0, ..counters })?;
    tables.put_lease(Lease { id, ttl, ends: end_of(ttl, now) })?;
    Ok(id)
}

/// Keeps a lease alive.
///
/// # Errors
/// [`StoreError::LeaseNotFound`], also when its time is up and [`tick`] has not come by yet.
pub fn lease_keep_alive(tables: &mut impl Tables, id: LeaseId, now: Timestamp) -> Result<(), StoreError> {
    let lease = tables.lease(id)?.filter(|lease| lease.ends > now).ok_or(StoreError::LeaseNotFound(id))?;
    tables.put_lease(Lease { ends: lease.ends.max(end_of(lease.ttl, now)), ..lease })
}

/// Ends a lease and deletes its keys.
///
/// # Errors
/// [`StoreError::LeaseNotFound`].
pub fn lease_revoke(tables: &mut impl Tables, id: LeaseId) -> Result<(), StoreError> {
    tables.lease(id)?.ok_or(StoreError::LeaseNotFound(id))?;
    let mut writer = Writer::open(tables)?;
    for key in tables.keys_of(id)? {
        writer.delete(tables, &key)?;
    }
    writer.close(tables)?;
    tables.remove_lease(id)
}

/// Ends every lease whose time is up.
///
/// # Errors
/// What the tables say.
pub fn tick(tables: &mut impl Tables, now: Timestamp) -> Result<(), StoreError> {
    for id in tables.ended(now)? {
        lease_revoke(tables, id)?;
    }
    Ok(())
}
