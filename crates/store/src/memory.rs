//! Tables in memory: for simulation, model checking and tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use crate::engine::{self, Counters, Lease, Tables};
use crate::error::StoreError;
use crate::types::{Event, KeyValue, LeaseId, Revision, Snapshot, Txn, TxnReply};
use crate::watch::{Cursor, ReadEvents, Watch};
use crate::{Reply, Store};

/// Rows in memory. Plain data without threads or time, so that deterministic simulations can hold it directly.
#[derive(Debug, Clone, Default)]
pub struct MemoryTables {
    counters: Counters,
    live: BTreeMap<String, KeyValue>,
    log: Vec<Event>,
    leases: BTreeMap<LeaseId, Lease>,
}

impl MemoryTables {
    /// Runs a transaction: completely, or not at all on an error.
    ///
    /// # Errors
    /// As [`Store::txn`].
    pub fn txn(&mut self, txn: &Txn) -> Result<TxnReply, StoreError> {
        engine::txn(self, txn)
    }

    /// Live keys with a prefix.
    #[must_use]
    pub fn range(&self, prefix: &str) -> Vec<&KeyValue> {
        self.live
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, row)| row)
            .collect()
    }
}

impl Tables for MemoryTables {
    fn counters(&mut self) -> Result<Counters, StoreError> {
        Ok(self.counters)
    }
    fn set_counters(&mut self, counters: Counters) -> Result<(), StoreError> {
        self.counters = counters;
        Ok(())
    }
    fn get(&mut self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        Ok(self.live.get(key).cloned())
    }
    fn range(&mut self, prefix: &str) -> Result<Vec<KeyValue>, StoreError> {
        Ok(Self::range(self, prefix).into_iter().cloned().collect())
    }
    fn keys_of(&mut self, lease: LeaseId) -> Result<Vec<String>, StoreError> {
        Ok(self.live.values().filter(|row| row.lease == Some(lease)).map(|row| row.key.clone()).collect())
    }
    fn put(&mut self, row: &KeyValue) -> Result<(), StoreError> {
        self.live.insert(row.key.clone(), row.clone());
        Ok(())
    }
    fn remove(&mut self, key: &str) -> Result<(), StoreError> {
        self.live.remove(key);
        Ok(())
    }
    fn log(&mut self, _position: usize, event: &Event) -> Result<(), StoreError> {
        self.log.push(event.clone());
        Ok(())
    }
    fn events(&mut self, prefix: &str, from: Revision) -> Result<Vec<Event>, StoreError> {
        let start = self.log.partition_point(|event| event.revision < from);
        Ok(self.log[start..].iter().filter(|event| event.key.starts_with(prefix)).cloned().collect())
    }
    fn forget_before(&mut self, revision: Revision) -> Result<(), StoreError> {
        self.log.retain(|event| event.revision >= revision);
        Ok(())
    }
    fn lease(&mut self, id: LeaseId) -> Result<Option<Lease>, StoreError> {
        Ok(self.leases.get(&id).copied())
    }
    fn put_lease(&mut self, lease: Lease) -> Result<(), StoreError> {
        self.leases.insert(lease.id, lease);
        Ok(())
    }
    fn remove_lease(&mut self, id: LeaseId) -> Result<(), StoreError> {
        self.leases.remove(&id);
        Ok(())
    }
    fn ended(&mut self, now: Timestamp) -> Result<Vec<LeaseId>, StoreError> {
        Ok(self.leases.values().filter(|lease| lease.ends <= now).map(|lease| lease.id).collect())
    }
}

#[derive(Debug)]
struct Shared {
    tables: Mutex<MemoryTables>,
    moved: watch::Sender<Revision>,
}

impl Shared {
    fn run<T>(&self, run: impl FnOnce(&mut MemoryTables) -> Result<T, StoreError>) -> Result<T, StoreError> {
        // A panic while holding the lock can only be a bug in the tables themselves; readers may go on.
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let reply = run(&mut tables);
        self.moved
            .send_if_modified(|seen| std::mem::replace(seen, tables.counters.revision) != tables.counters.revision);
        reply
    }
}

impl ReadEvents for Shared {
    fn events<'a>(&'a self, prefix: &'a str, from: Revision) -> Reply<'a, Vec<Event>> {
        Box::pin(async move { self.run(|tables| engine::events(tables, prefix, from)) })
    }
}

/// A store that forgets everything when it is dropped.
#[derive(Debug, Clone)]
pub struct MemoryStore(Arc<Shared>);

impl Default for MemoryStore {
    fn default() -> Self {
        let moved = watch::Sender::new(Revision::default());
        Self(Arc::new(Shared { tables: Mutex::default(), moved }))
    }
}

impl Store for MemoryStore {
    fn txn(&self, txn: Txn) -> Reply<'_, TxnReply> {
        Box::pin(async move { self.0.run(|tables| engine::txn(tables, &txn)) })
    }
    fn range(&self, prefix: &str) -> Reply<'_, Snapshot> {
        let prefix = prefix.to_owned();
        Box::pin(async move { self.0.run(|tables| engine::range(tables, &prefix)) })
    }
    fn watch(&self, prefix: &str, from: Revision) -> Watch {
        Watch::new(Cursor {
            tables: Arc::clone(&self.0),
            moved: self.0.moved.subscribe(),
            prefix: prefix.to_owned(),
            from,
        })
    }
    fn compact(&self, revision: Revision) -> Reply<'_, ()> {
        Box::pin(async move { self.0.run(|tables| engine::compact(tables, revision)) })
    }
    fn lease_grant(&self, ttl: Duration, now: Timestamp) -> Reply<'_, LeaseId> {
        Box::pin(async move { self.0.run(|tables| engine::lease_grant(tables, ttl, now)) })
    }
    fn lease_keep_alive(&self, lease: LeaseId, now: Timestamp) -> Reply<'_, ()> {
        Box::pin(async move { self.0.run(|tables| engine::lease_keep_alive(tables, lease, now)) })
    }
    fn lease_revoke(&self, lease: LeaseId) -> Reply<'_, ()> {
        Box::pin(async move { self.0.run(|tables| engine::lease_revoke(tables, lease)) })
    }
    fn tick(&self, now: Timestamp) -> Reply<'_, ()> {
        Box::pin(async move { self.0.run(|tables| engine::tick(tables, now)) })
    }
}
