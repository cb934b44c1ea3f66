//! What the controller remembers: key-value with revisions, compare-and-swap transactions, watch and lease.
//!
//! The semantics are etcd's (version 3 API), so that an etcd behind the same trait needs no change above it:
//!
//! - One counter, the **revision**, orders all writes. A transaction that writes anything takes exactly one revision, however
//!   many keys it writes; one that writes nothing takes none.
//! - A key knows the revision that created it, the one that changed it last, and its **version** (1 when created, +1 per
//!   put; gone and created again is version 1 again). A missing key compares as version 0 and revisions 0.
//! - A **transaction** is: if all comparisons hold, do these operations, else those. It happens completely or not at all, and is durable
//!   when the reply arrives.
//! - A **watch** from a revision delivers every event from that revision on, in order, none twice, none left out; or it
//!   says [`StoreError::Compacted`], after which the reader reads everything anew.
//! - A **lease** that is not kept alive takes its keys with it. Time comes in with each call; a server with a clock
//!   of its own may ignore it.
//!
//! Nothing of the implementation shows: no SQL, no paths, no transactions that stay open.
//!
//! | module | what |
//! |---|---|
//! | [`types`] | revisions, keys, comparisons, operations, events |
//! | [`engine`] | the semantics, once, over bare tables; pure |
//! | [`memory`] | tables in memory: simulation and tests |
//! | [`sqlite`] | tables in one file, synced, one process at a time: the default |
//! | [`conformance`] | the suite that every implementation must pass (feature `conformance`) |

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod engine;
pub mod error;
pub mod memory;
pub mod sqlite;
pub mod types;
mod watch;

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use jiff::Timestamp;

pub use error::StoreError;
pub use memory::MemoryStore;
pub use sqlite::SqliteStore;
pub use types::{
    Compare, Event, EventKind, KeyValue, LeaseId, Op, OpResult, Relation, Revision, Snapshot, Target, Txn, TxnReply,
};
pub use watch::{Watch, WatchSource};

/// The answer of a store, some time later.
pub type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// A store with the semantics of the crate's documentation.
pub trait Store: Send + Sync + 'static {
    /// Runs a transaction.
    ///
    /// # Errors
    /// [`StoreError::EmptyKey`], [`StoreError::DuplicateKey`], [`StoreError::LeaseNotFound`]: nothing was written.
    /// [`StoreError::Unavailable`]: it is unknown whether it was written; read before trying again.
    fn txn(&self, txn: Txn) -> Reply<'_, TxnReply>;

    /// All live keys that begin with `prefix`, in byte order, and the revision at which this was true.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    fn range(&self, prefix: &str) -> Reply<'_, Snapshot>;

    /// Events on keys that begin with `prefix`, from revision `from` (included) on.
    fn watch(&self, prefix: &str, from: Revision) -> Watch;

    /// Forgets events before `revision`; live keys stay.
    ///
    /// # Errors
    /// [`StoreError::FutureRevision`] or [`StoreError::Compacted`] when there is nothing at that revision to forget.
    fn compact(&self, revision: Revision) -> Reply<'_, ()>;

    /// A new lease that ends `ttl` after `now` unless it is kept alive.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    fn lease_grant(&self, ttl: Duration, now: Timestamp) -> Reply<'_, LeaseId>;

    /// Lets the lease end its time to live after `now`.
    ///
    /// # Errors
    /// [`StoreError::LeaseNotFound`] when it has ended: the keys are gone or are about to be.
    fn lease_keep_alive(&self, lease: LeaseId, now: Timestamp) -> Reply<'_, ()>;

    /// Ends a lease now and deletes its keys, in one revision.
    ///
    /// # Errors
    /// [`StoreError::LeaseNotFound`].
    fn lease_revoke(&self, lease: LeaseId) -> Reply<'_, ()>;

    /// Ends every lease whose time is up at `now`, each in a revision of its own.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    fn tick(&self, now: Timestamp) -> Reply<'_, ()>;

    /// The value of one key.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    fn get<'a>(&'a self, key: &'a str) -> Reply<'a, Option<KeyValue>> {
        Box::pin(async move {
            let reply = self.txn(Txn::read([Op::get(key)])).await?;
            Ok(reply.results.into_iter().find_map(OpResult::into_first))
        })
    }

    /// Writes one key without a condition.
    ///
    /// # Errors
    /// As [`Store::txn`].
    fn put<'a>(&'a self, key: &'a str, value: Vec<u8>) -> Reply<'a, Revision> {
        Box::pin(async move { Ok(self.txn(Txn::write([Op::put(key, value)])).await?.revision) })
    }
}
