//! Where the state outlives the process and the host's kernel.

use std::collections::BTreeMap;
use std::path::Path;

use fermata_events::Change;
use rusqlite::{Connection, OptionalExtension, params};

/// Why the state cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite refused.
    #[error("imds store: {doing} failed; check that the file is writable and the disk is not full")]
    Sqlite {
        /// What was tried.
        doing: &'static str,
        /// What SQLite said.
        source: rusqlite::Error,
    },
    /// A test made it fail.
    #[error("imds store: writing was made to fail")]
    Refused,
}

/// A message that has to reach somebody outside at least once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The number it was given.
    pub id: i64,
    /// Which target it is for.
    pub target: String,
    /// The bytes to send.
    pub body: String,
}

/// Durable records and the outbox. One writer.
pub trait Store: Send {
    /// All records.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn records(&mut self) -> Result<BTreeMap<String, String>, StoreError>;

    /// Makes changes and outgoing messages durable, all or none of them.
    ///
    /// # Errors
    /// When the store cannot be written; nothing is then written.
    fn commit(&mut self, changes: &[Change], outgoing: &[(String, String)]) -> Result<(), StoreError>;

    /// The epoch of this store: `fresh` is kept when there is none yet.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    fn epoch(&mut self, fresh: u32) -> Result<u32, StoreError>;

    /// The oldest messages that were not delivered, `limit` at most.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn outbox(&mut self, limit: u32) -> Result<Vec<Outgoing>, StoreError>;

    /// Forgets a delivered message.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn delivered(&mut self, id: i64) -> Result<(), StoreError>;
}

/// The store on disk: one SQLite file, synced at every commit.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Connection,
}

fn sqlite(doing: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |source| StoreError::Sqlite { doing, source }
}

impl SqliteStore {
    /// Opens or creates the file.
    ///
    /// # Errors
    /// When the file cannot be opened as a database.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = Connection::open(path).map_err(sqlite("opening the file"))?;
        Self::with(connection)
    }

    /// A store that is forgotten with the process; for tests and trials.
    ///
    /// # Errors
    /// When SQLite cannot start.
    pub fn in_memory() -> Result<Self, StoreError> {
        Self::with(Connection::open_in_memory().map_err(sqlite("opening memory"))?)
    }

    fn with(connection: Connection) -> Result<Self, StoreError> {
        // FULL: a commit is on the disk when it returns, which is what "durable before the 200" means.
        connection
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -512;
                 CREATE TABLE IF NOT EXISTS record (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
                 CREATE TABLE IF NOT EXISTS outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, target TEXT NOT NULL, body TEXT NOT NULL);
                 CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;",
            )
            .map_err(sqlite("preparing the tables"))?;
        Ok(Self { connection })
    }
}

impl Store for SqliteStore {
    fn records(&mut self) -> Result<BTreeMap<String, String>, StoreError> {
        let mut query = self.connection.prepare("SELECT key, value FROM record").map_err(sqlite("reading records"))?;
        let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(sqlite("reading records"))?;
        rows.collect::<Result<_, _>>().map_err(sqlite("reading records"))
    }

    fn commit(&mut self, changes: &[Change], outgoing: &[(String, String)]) -> Result<(), StoreError> {
        let wrong = sqlite("writing");
        let transaction = self.connection.transaction().map_err(&wrong)?;
        for change in changes {
            match &change.value {
                Some(value) => transaction
                    .prepare_cached("INSERT OR REPLACE INTO record (key, value) VALUES (?1, ?2)")
                    .and_then(|mut s| s.execute(params![change.key, value])),
                None => transaction
                    .prepare_cached("DELETE FROM record WHERE key = ?1")
                    .and_then(|mut s| s.execute(params![change.key])),
            }
            .map_err(&wrong)?;
        }
        for (target, body) in outgoing {
            transaction
                .prepare_cached("INSERT INTO outbox (target, body) VALUES (?1, ?2)")
                .and_then(|mut s| s.execute(params![target, body]))
                .map_err(&wrong)?;
        }
        transaction.commit().map_err(&wrong)
    }

    fn epoch(&mut self, fresh: u32) -> Result<u32, StoreError> {
        let wrong = sqlite("reading the epoch");
        self.connection
            .execute("INSERT OR IGNORE INTO meta (name, value) VALUES ('epoch', ?1)", params![fresh])
            .map_err(&wrong)?;
        let epoch: Option<u32> = self
            .connection
            .query_row("SELECT value FROM meta WHERE name = 'epoch'", [], |row| row.get(0))
            .optional()
            .map_err(&wrong)?;
        Ok(epoch.unwrap_or(fresh))
    }

    fn outbox(&mut self, limit: u32) -> Result<Vec<Outgoing>, StoreError> {
        let wrong = sqlite("reading the outbox");
        let mut query = self
            .connection
            .prepare_cached("SELECT id, target, body FROM outbox ORDER BY id LIMIT ?1")
            .map_err(&wrong)?;
        let rows = query
            .query_map(params![limit], |row| Ok(Outgoing { id: row.get(0)?, target: row.get(1)?, body: row.get(2)? }))
            .map_err(&wrong)?;
        rows.collect::<Result<_, _>>().map_err(&wrong)
    }

    fn delivered(&mut self, id: i64) -> Result<(), StoreError> {
        self.connection
            .execute("DELETE FROM outbox WHERE id = ?1", params![id])
            .map(drop)
            .map_err(sqlite("clearing the outbox"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_committed_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("imds.db");
        let change = |key: &str, value: Option<&str>| Change { key: key.to_owned(), value: value.map(str::to_owned) };
        {
            let mut store = SqliteStore::open(&path).unwrap();
            assert_eq!(store.epoch(7).unwrap(), 7);
            store.commit(&[change("a", Some("1")), change("b", Some("2"))], &[("t".into(), "m".into())]).unwrap();
            store.commit(&[change("a", None)], &[]).unwrap();
        }
        let mut store = SqliteStore::open(&path).unwrap();
        assert_eq!(store.epoch(8).unwrap(), 7);
        assert_eq!(store.records().unwrap(), [("b".to_owned(), "2".to_owned())].into());
        let outbox = store.outbox(10).unwrap();
        assert_eq!((outbox.len(), outbox[0].body.as_str()), (1, "m"));
        store.delivered(outbox[0].id).unwrap();
        assert!(store.outbox(10).unwrap().is_empty());
    }
}
