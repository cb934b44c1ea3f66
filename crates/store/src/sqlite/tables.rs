//! The tables in SQL; the only place of the workspace above which nobody sees a statement.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::unavailable;
use crate::engine::{Counters, Lease, Tables};
use crate::error::StoreError;
use crate::types::{Event, EventKind, KeyValue, LeaseId, Revision};

const FORMAT: i64 = 1;

/// Events handed out at once by a watch, rounded up to a whole revision.
const EVENTS_AT_ONCE: usize = 1_000;

// Keys are blobs so that they compare by bytes, whatever the collation.
const SCHEMA: &str = "
CREATE TABLE counters (one INTEGER PRIMARY KEY CHECK (one = 1), revision INTEGER NOT NULL, compacted INTEGER NOT NULL,
    lease INTEGER NOT NULL);
INSERT INTO counters VALUES (1, 0, 0, 0);
CREATE TABLE live (key BLOB PRIMARY KEY, value BLOB NOT NULL, created INTEGER NOT NULL, modified INTEGER NOT NULL,
    version INTEGER NOT NULL, lease INTEGER) WITHOUT ROWID;
CREATE INDEX live_lease ON live (lease) WHERE lease IS NOT NULL;
CREATE TABLE log (modified INTEGER NOT NULL, position INTEGER NOT NULL, key BLOB NOT NULL, value BLOB, created INTEGER,
    version INTEGER, lease INTEGER, PRIMARY KEY (modified, position)) WITHOUT ROWID;
CREATE TABLE lease (id INTEGER PRIMARY KEY, ttl_ms INTEGER NOT NULL, ends_ms INTEGER NOT NULL);
";

pub(super) fn open(path: &Path) -> Result<(Connection, Revision), StoreError> {
    let failed = |error: rusqlite::Error| {
        let hint = match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy) => "; another process has it open, stop that one first",
            _ => "",
        };
        unavailable("opening", format!("{}: {error}{hint}", path.display()))
    };
    let mut connection = Connection::open(path).map_err(failed)?;
    connection.busy_timeout(Duration::from_secs(1)).map_err(failed)?;
    connection
        .execute_batch("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")
        .map_err(failed)?;
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(failed)?;
    let found: i64 = transaction.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed)?;
    match found {
        0 => transaction.execute_batch(&format!("{SCHEMA} PRAGMA user_version = {FORMAT};")).map_err(failed)?,
        FORMAT => {}
        _ => return Err(StoreError::Format { path: path.display().to_string(), found, known: FORMAT }),
    }
    let revision = SqlTables { connection: &transaction, doing: "opening" }.counters()?.revision;
    transaction.commit().map_err(failed)?;
    Ok((connection, revision))
}

/// The tables inside one open transaction.
pub(super) struct SqlTables<'a> {
    pub(super) connection: &'a Connection,
    pub(super) doing: &'static str,
}

// SQLite's integers are signed; a counter that starts at 0 and moves by 1 never reaches the difference.
const fn sql(number: u64) -> i64 {
    number.cast_signed()
}

fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(i64::cast_unsigned)
}

fn text(row: &Row<'_>, column: usize) -> rusqlite::Result<String> {
    String::from_utf8(row.get(column)?).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, Box::new(error))
    })
}

fn lease_id(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<LeaseId>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(|id| LeaseId(id.cast_unsigned())))
}

fn live(row: &Row<'_>) -> rusqlite::Result<KeyValue> {
    Ok(KeyValue {
        key: text(row, 0)?,
        value: row.get(1)?,
        create_revision: Revision(unsigned(row, 2)?),
        mod_revision: Revision(unsigned(row, 3)?),
        version: unsigned(row, 4)?,
        lease: lease_id(row, 5)?,
    })
}

fn logged(row: &Row<'_>) -> rusqlite::Result<Event> {
    let (revision, key) = (Revision(unsigned(row, 0)?), text(row, 1)?);
    let kind = match row.get::<_, Option<Vec<u8>>>(2)? {
        None => EventKind::Delete,
        Some(value) => EventKind::Put(KeyValue {
            key: key.clone(),
            value,
            create_revision: Revision(unsigned(row, 3)?),
            mod_revision: revision,
            version: unsigned(row, 4)?,
            lease: lease_id(row, 5)?,
        }),
    };
    Ok(Event { revision, key, kind })
}

/// The first byte string after all that begin with `prefix`; empty when there is none.
fn after(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.last_mut() {
        if *last < u8::MAX {
            *last += 1;
            return end;
        }
        end.pop();
    }
    end
}

impl SqlTables<'_> {
    fn failed(&self, error: &rusqlite::Error) -> StoreError {
        unavailable(self.doing, error)
    }

    fn all<T>(
        &self,
        statement: &str,
        parameters: impl rusqlite::Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let run = || {
            let mut statement = self.connection.prepare_cached(statement)?;
            statement.query_map(parameters, read)?.collect::<rusqlite::Result<Vec<T>>>()
        };
        run().map_err(|error| self.failed(&error))
    }

    fn one<T>(
        &self,
        statement: &str,
        parameters: impl rusqlite::Params,
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, StoreError> {
        let run = || self.connection.prepare_cached(statement)?.query_row(parameters, read).optional();
        run().map_err(|error| self.failed(&error))
    }

    fn execute(&self, statement: &str, parameters: impl rusqlite::Params) -> Result<(), StoreError> {
        let run = || self.connection.prepare_cached(statement)?.execute(parameters);
        run().map(drop).map_err(|error| self.failed(&error))
    }
}

impl Tables for SqlTables<'_> {
    fn counters(&mut self) -> Result<Counters, StoreError> {
        let read = |row: &Row<'_>| {
            Ok(Counters {
                revision: Revision(unsigned(row, 0)?),
                compacted: Revision(unsigned(row, 1)?),
                lease: unsigned(row, 2)?,
            })
        };
        self.one("SELECT revision, compacted, lease FROM counters", [], read)?
            .ok_or_else(|| unavailable(self.doing, "the store's counters are missing"))
    }

    fn set_counters(&mut self, counters: Counters) -> Result<(), StoreError> {
        self.execute(
            "UPDATE counters SET revision = ?1, compacted = ?2, lease = ?3",
            params![sql(counters.revision.0), sql(counters.compacted.0), sql(counters.lease)],
        )
    }

    fn get(&mut self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        self.one(
            "SELECT key, value, created, modified, version, lease FROM live WHERE key = ?1",
            params![key.as_bytes()],
            live,
        )
    }

    fn range(&mut self, prefix: &str) -> Result<Vec<KeyValue>, StoreError> {
        self.all(
            "SELECT key, value, created, modified, version, lease FROM live \
             WHERE key >= ?1 AND (?2 = x'' OR key < ?2) ORDER BY key",
            params![prefix.as_bytes(), after(prefix)],
            live,
        )
    }

    fn keys_of(&mut self, lease: LeaseId) -> Result<Vec<String>, StoreError> {
        self.all("SELECT key FROM live WHERE lease = ?1 ORDER BY key", params![sql(lease.0)], |row| text(row, 0))
    }

    fn put(&mut self, row: &KeyValue) -> Result<(), StoreError> {
        self.execute(
            "INSERT OR REPLACE INTO live (key, value, created, modified, version, lease) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                row.key.as_bytes(),
                row.value,
                sql(row.create_revision.0),
                sql(row.mod_revision.0),
                sql(row.version),
                row.lease.map(|lease| sql(lease.0))
            ],
        )
    }

    fn remove(&mut self, key: &str) -> Result<(), StoreError> {
        self.execute("DELETE FROM live WHERE key = ?1", params![key.as_bytes()])
    }

    fn log(&mut self, position: usize, event: &Event) -> Result<(), StoreError> {
        let row = match &event.kind {
            EventKind::Put(row) => Some(row),
            EventKind::Delete => None,
        };
        self.execute(
            "INSERT INTO log (modified, position, key, value, created, version, lease) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            params![
                sql(event.revision.0),
                sql(position as u64),
                event.key.as_bytes(),
                row.map(|row| &row.value),
                row.map(|row| sql(row.create_revision.0)),
                row.map(|row| sql(row.version)),
                row.and_then(|row| row.lease).map(|lease| sql(lease.0))
            ],
        )
    }

    fn events(&mut self, prefix: &str, from: Revision) -> Result<Vec<Event>, StoreError> {
        const MATCH: &str = "modified >= ?1 AND key >= ?2 AND (?3 = x'' OR key < ?3)";
        self.all(
            &format!(
                "SELECT modified, key, value, created, version, lease FROM log WHERE {MATCH} AND modified <= \
                 (SELECT max(modified) FROM (SELECT modified FROM log WHERE {MATCH} ORDER BY modified LIMIT {EVENTS_AT_ONCE})) \
                 ORDER BY modified, position"
            ),
            params![sql(from.0), prefix.as_bytes(), after(prefix)],
            logged,
        )
    }

    fn forget_before(&mut self, revision: Revision) -> Result<(), StoreError> {
        self.execute("DELETE FROM log WHERE modified < ?1", params![sql(revision.0)])
    }

    fn lease(&mut self, id: LeaseId) -> Result<Option<Lease>, StoreError> {
        let row = self.one("SELECT ttl_ms, ends_ms FROM lease WHERE id = ?1", params![sql(id.0)], |row| {
            Ok((unsigned(row, 0)?, row.get::<_, i64>(1)?))
        })?;
        Ok(row.map(|(ttl, ends)| Lease {
            id,
            ttl: Duration::from_millis(ttl),
            ends: Timestamp::from_millisecond(ends).unwrap_or(Timestamp::MAX),
        }))
    }

    fn put_lease(&mut self, lease: Lease) -> Result<(), StoreError> {
        let ttl = i64::try_from(lease.ttl.as_millis()).unwrap_or(i64::MAX);
        self.execute(
            "INSERT OR REPLACE INTO lease (id, ttl_ms, ends_ms) VALUES (?1, ?2, ?3)",
            params![sql(lease.id.0), ttl, lease.ends.as_millisecond()],
        )
    }

    fn remove_lease(&mut self, id: LeaseId) -> Result<(), StoreError> {
        self.execute("DELETE FROM lease WHERE id = ?1", params![sql(id.0)])
    }

    fn ended(&mut self, now: Timestamp) -> Result<Vec<LeaseId>, StoreError> {
        self.all("SELECT id FROM lease WHERE ends_ms <= ?1 ORDER BY id", params![now.as_millisecond()], |row| {
            Ok(LeaseId(unsigned(row, 0)?))
        })
    }
}
