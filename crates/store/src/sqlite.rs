//! Tables in one SQLite file: the default store, for one controller.
//!
//! A thread of its own owns the connection; calls are sent to it and answered when the transaction is on the disk
//! (write-ahead log, `synchronous = FULL`). The file is locked for as long as the store is open, so a second process is refused
//! instead of reading what is about to change under it.

mod tables;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::Connection;
use tokio::sync::{oneshot, watch};

use crate::engine::{self, Tables as _};
use crate::error::StoreError;
use crate::types::{Event, LeaseId, Revision, Snapshot, Txn, TxnReply};
use crate::watch::{Cursor, ReadEvents, Watch};
use crate::{Reply, Store};
use tables::SqlTables;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

fn unavailable(doing: &'static str, reason: impl std::fmt::Display) -> StoreError {
    StoreError::Unavailable { doing, reason: format!("{reason}") }
}

struct Shared {
    jobs: mpsc::Sender<Job>,
    moved: watch::Sender<Revision>,
}

impl Shared {
    async fn run<T: Send + 'static>(
        &self,
        doing: &'static str,
        run: impl FnOnce(&mut SqlTables<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let moved = self.moved.clone();
        let job = move |connection: &mut Connection| {
            let result = transaction(connection, doing, run);
            if let Ok((_, revision)) = &result {
                moved.send_if_modified(|seen| std::mem::replace(seen, *revision) != *revision);
            }
            // Nobody waits for the answer any more when the caller was dropped; the work is done all the same.
            let _ = answer.send(result.map(|(value, _)| value));
        };
        self.jobs.send(Box::new(job)).map_err(|_| unavailable(doing, "the store was closed"))?;
        answered.await.map_err(|_| unavailable(doing, "the store was closed"))?
    }
}

fn transaction<T>(
    connection: &mut Connection,
    doing: &'static str,
    run: impl FnOnce(&mut SqlTables<'_>) -> Result<T, StoreError>,
) -> Result<(T, Revision), StoreError> {
    let transaction = connection.transaction().map_err(|error| unavailable(doing, error))?;
    let mut tables = SqlTables { connection: &transaction, doing };
    // An error drops the transaction, which rolls it back.
    let value = run(&mut tables)?;
    let revision = tables.counters()?.revision;
    transaction.commit().map_err(|error| unavailable(doing, error))?;
    Ok((value, revision))
}

impl ReadEvents for Shared {
    fn events<'a>(&'a self, prefix: &'a str, from: Revision) -> Reply<'a, Vec<Event>> {
        let prefix = prefix.to_owned();
        Box::pin(self.run("watching", move |tables| engine::events(tables, &prefix, from)))
    }
}

/// A store in a file.
#[derive(Clone)]
pub struct SqliteStore(Arc<Shared>);

impl SqliteStore {
    /// Opens the store, making the file when it is not there.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the file cannot be used or another process has it open;
    /// [`StoreError::Format`] when a newer version wrote it.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let path = path.into();
        let (jobs, queue) = mpsc::channel::<Job>();
        let (opened, result) = oneshot::channel();
        let spawned = std::thread::Builder::new().name("store".to_owned()).spawn(move || {
            match tables::open(&path) {
                Ok((mut connection, revision)) => {
                    // The opener may have given up waiting; then the queue is closed as well and the loop ends at once.
                    let _ = opened.send(Ok(revision));
                    while let Ok(job) = queue.recv() {
                        job(&mut connection);
                    }
                }
                Err(error) => drop(opened.send(Err(error))),
            }
        });
        spawned.map_err(|error| unavailable("starting the store's thread", error))?;
        let revision = result.await.map_err(|_| unavailable("opening", "the store's thread ended"))??;
        Ok(Self(Arc::new(Shared { jobs, moved: watch::Sender::new(revision) })))
    }

    /// The same, for tests that know the path.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub async fn open_in(folder: &Path) -> Result<Self, StoreError> {
        Self::open(folder.join("store.sqlite")).await
    }
}

impl Store for SqliteStore {
    fn txn(&self, txn: Txn) -> Reply<'_, TxnReply> {
        Box::pin(self.0.run("running a transaction", move |tables| engine::txn(tables, &txn)))
    }
    fn range(&self, prefix: &str) -> Reply<'_, Snapshot> {
        let prefix = prefix.to_owned();
        Box::pin(self.0.run("reading a range", move |tables| engine::range(tables, &prefix)))
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
        Box::pin(self.0.run("compacting", move |tables| engine::compact(tables, revision)))
    }
    fn lease_grant(&self, ttl: Duration, now: Timestamp) -> Reply<'_, LeaseId> {
        Box::pin(self.0.run("granting a lease", move |tables| engine::lease_grant(tables, ttl, now)))
    }
    fn lease_keep_alive(&self, lease: LeaseId, now: Timestamp) -> Reply<'_, ()> {
        Box::pin(self.0.run("keeping a lease", move |tables| engine::lease_keep_alive(tables, lease, now)))
    }
    fn lease_revoke(&self, lease: LeaseId) -> Reply<'_, ()> {
        Box::pin(self.0.run("ending a lease", move |tables| engine::lease_revoke(tables, lease)))
    }
    fn tick(&self, now: Timestamp) -> Reply<'_, ()> {
        Box::pin(self.0.run("ending leases", move |tables| engine::tick(tables, now)))
    }
}
