//! Both embedded stores keep every promise of the suite.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use fermata_store::conformance::{Factory, Options, run};
use fermata_store::{MemoryStore, SqliteStore, Store, StoreError};

struct Memory;

impl Factory for Memory {
    async fn make(&self) -> Arc<dyn Store> {
        Arc::new(MemoryStore::default())
    }
}

struct Sqlite {
    folder: tempfile::TempDir,
    made: AtomicU32,
}

impl Factory for Sqlite {
    async fn make(&self) -> Arc<dyn Store> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.path().join(format!("{number}.sqlite"));
        Arc::new(SqliteStore::open(path).await.unwrap())
    }
}

#[test]
fn memory_keeps_every_promise() {
    run(&Memory, Options { histories: 512, ..Options::default() });
}

#[test]
fn sqlite_keeps_every_promise() {
    // In memory-backed storage where there is some: the suite syncs thousands of times and is not about the disk.
    let folder = tempfile::TempDir::new_in("/dev/shm").or_else(|_| tempfile::TempDir::new()).unwrap();
    run(&Sqlite { folder, made: AtomicU32::new(0) }, Options::default());
}

#[tokio::test]
async fn a_file_in_use_is_refused_with_the_way_out() {
    let folder = tempfile::TempDir::new().unwrap();
    let first = SqliteStore::open_in(folder.path()).await.unwrap();
    let Err(refusal) = SqliteStore::open_in(folder.path()).await else { panic!("opened twice") };
    assert!(refusal.to_string().contains("stop that one first"), "{refusal}");
    first.put("still", b"mine".to_vec()).await.unwrap();
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_refused() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("store.sqlite");
    rusqlite::Connection::open(&path).unwrap().execute_batch("PRAGMA user_version = 9").unwrap();
    let Err(refusal) = SqliteStore::open(path).await else { panic!("opened") };
    assert!(matches!(refusal, StoreError::Format { found: 9, .. }), "{refusal}");
}
