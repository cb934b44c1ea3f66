//! The journal on disk: one SQLite file, append-only, synced before acts.
//!
//! Write-ahead log, `synchronous=FULL` for [`Durability::Power`] (the commit returns after fsync) and `NORMAL` for
//! [`Durability::Process`] (the commit returns after the write; the kernel has it, so it outlives the agent). Automatic
//! checkpoints are off, because their fsync could fall into a pause; [`Journal::append`] makes one when a maintenance
//! is finished. See `docs/adr/0031-durability-in-the-pause.md`.
//!
//! Entries are numbered per maintenance from 0 without gaps, and the number is the primary key: of two writers with the
//! same past, one gets [`JournalError::Superseded`] and must not act any more.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fermata_model::Mechanism;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior, params};

use crate::forecast::{History, WINDOW};
use crate::id::{Digest, MaintenanceId, UpdateId};
use crate::machine::{Durability, Entry, Log, LogFailure, Outcome, Stamped};
use crate::time::Wall;

/// Why the journal did not work. Nothing was written then.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// No space.
    #[error("journal {path}: the disk is full; free space there, the maintenance goes on by itself")]
    Full {
        /// The file.
        path: PathBuf,
    },
    /// Not writable.
    #[error("journal {path}: not writable ({reason}); remount the file system or correct its permissions")]
    ReadOnly {
        /// The file.
        path: PathBuf,
        /// SQLite's words.
        reason: String,
    },
    /// Another process wrote the entry with this number.
    #[error(
        "journal {path}: entry {entry} of {maintenance} is there already, another agent is in charge; stop this one"
    )]
    Superseded {
        /// The file.
        path: PathBuf,
        /// The maintenance.
        maintenance: MaintenanceId,
        /// The number.
        entry: u64,
    },
    /// The same id with another content.
    #[error(
        "update {update}: its file changed since it was used here (digest {known}, now {given}); give the changed file an id of its own"
    )]
    OtherFile {
        /// The update.
        update: UpdateId,
        /// Digest in the journal.
        known: Digest,
        /// Digest given.
        given: Digest,
    },
    /// A line that is not an entry.
    #[error(
        "journal {path}: entry {entry} of {maintenance} cannot be read ({reason}); it was written by a newer version or is damaged"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The maintenance.
        maintenance: String,
        /// The number.
        entry: u64,
        /// Why.
        reason: String,
    },
    /// Anything else SQLite says.
    #[error("journal {path}: {source}; see whether the disk works and the file belongs to Fermata")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// SQLite's error.
        source: rusqlite::Error,
    },
}

/// The journal of a host.
#[derive(Debug)]
pub struct Journal {
    db: Connection,
    path: PathBuf,
}

/// One maintenance in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its identity.
    pub id: MaintenanceId,
    /// The update.
    pub update: UpdateId,
    /// The update's file.
    pub digest: Digest,
    /// When it was ordered.
    pub created: Wall,
    /// How it ended, when it did.
    pub outcome: Option<Outcome>,
}

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS maintenances (
    id TEXT PRIMARY KEY, update_id TEXT NOT NULL, digest TEXT NOT NULL, created_us INTEGER NOT NULL, outcome TEXT
) STRICT;
CREATE TABLE IF NOT EXISTS entries (
    maintenance TEXT NOT NULL REFERENCES maintenances (id), number INTEGER NOT NULL, wall_us INTEGER NOT NULL,
    entry TEXT NOT NULL, PRIMARY KEY (maintenance, number)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS entries_are_append_only BEFORE UPDATE ON entries
    BEGIN SELECT RAISE (ABORT, 'the journal is append-only'); END;
CREATE TABLE IF NOT EXISTS samples (
    number INTEGER PRIMARY KEY, mechanism TEXT NOT NULL, blackout_us INTEGER NOT NULL
) STRICT;
";

impl Journal {
    /// Opens the journal for writing; makes it when it is not there.
    ///
    /// # Errors
    /// [`JournalError`] when the file cannot be made, read or written.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let fail = |source| JournalError::of(path, source);
        let db = Connection::open(path).map_err(fail)?;
        db.busy_timeout(Duration::from_secs(2)).map_err(fail)?;
        db.pragma_update(None, "journal_mode", "WAL").map_err(fail)?;
        db.pragma_update(None, "synchronous", "FULL").map_err(fail)?;
        db.pragma_update(None, "wal_autocheckpoint", 0).map_err(fail)?;
        db.pragma_update(None, "foreign_keys", true).map_err(fail)?;
        db.execute_batch(SCHEMA).map_err(fail)?;
        Ok(Self { db, path: path.to_owned() })
    }

    /// Opens the journal for reading only: for the dead-man and for commands.
    ///
    /// # Errors
    /// [`JournalError`] when there is none or it cannot be read.
    pub fn open_to_read(path: &Path) -> Result<Self, JournalError> {
        let fail = |source| JournalError::of(path, source);
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(fail)?;
        db.busy_timeout(Duration::from_secs(2)).map_err(fail)?;
        Ok(Self { db, path: path.to_owned() })
    }

    /// All maintenances, the newest last.
    ///
    /// # Errors
    /// [`JournalError`] when the journal cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, JournalError> {
        let sql = "SELECT id, update_id, digest, created_us, outcome FROM maintenances ORDER BY created_us, id";
        let mut statement = self.db.prepare_cached(sql).map_err(|e| self.fail(e))?;
        let rows = statement.query_map([], |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, String>(1)?,
                row.get::<_, String>(2)?,
                row.get::<_, i64>(3)?,
                row.get::<_, Option<String>>(4)?,
            ))
        });
        let mut list = Vec::new();
        for row in rows.map_err(|e| self.fail(e))? {
            let (id, update, digest, created, outcome) = row.map_err(|e| self.fail(e))?;
            let unreadable = |reason: String| JournalError::Unreadable {
                path: self.path.clone(),
                maintenance: id.clone(),
                entry: 0,
                reason,
            };
            list.push(Listed {
                id: id.parse().map_err(|e: crate::id::IdError| unreadable(e.to_string()))?,
                update: update.parse().map_err(|e: crate::id::IdError| unreadable(e.to_string()))?,
                digest: digest.parse().map_err(|e: crate::id::DigestError| unreadable(e.to_string()))?,
                created: Wall(u64::try_from(created).unwrap_or(0)),
                outcome: outcome
                    .map(|text| serde_json::from_str(&text).map_err(|e| unreadable(e.to_string())))
                    .transpose()?,
            });
        }
        Ok(list)
    }

    /// The maintenances that are not over: what an agent continues when it starts.
    ///
    /// # Errors
    /// [`JournalError`] when the journal cannot be read.
    pub fn unfinished(&self) -> Result<Vec<MaintenanceId>, JournalError> {
        Ok(self.list()?.into_iter().filter(|listed| listed.outcome.is_none()).map(|listed| listed.id).collect())
    }

    /// All entries of a maintenance, in order; empty when there is none of that id.
    ///
    /// # Errors
    /// [`JournalError`] when the journal cannot be read.
    pub fn entries(&self, maintenance: &MaintenanceId) -> Result<Vec<Stamped>, JournalError> {
        let sql = "SELECT number, entry FROM entries WHERE maintenance = ?1 ORDER BY number";
        let mut statement = self.db.prepare_cached(sql).map_err(|e| self.fail(e))?;
        let rows = statement
            .query_map([maintenance.as_str()], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))
            .map_err(|e| self.fail(e))?;
        let mut entries = Vec::new();
        for row in rows {
            let (number, text) = row.map_err(|e| self.fail(e))?;
            let unreadable = |reason: String| JournalError::Unreadable {
                path: self.path.clone(),
                maintenance: maintenance.to_string(),
                entry: u64::try_from(number).unwrap_or(0),
                reason,
            };
            if usize::try_from(number).ok() != Some(entries.len()) {
                return Err(unreadable(format!("entry {} is missing", entries.len())));
            }
            entries.push(serde_json::from_str(&text).map_err(|e| unreadable(e.to_string()))?);
        }
        Ok(entries)
    }

    /// Is this file what ran here under its id before?
    ///
    /// # Errors
    /// [`JournalError::OtherFile`] when it is not.
    pub fn check_identity(&self, update: &UpdateId, digest: Digest) -> Result<(), JournalError> {
        let sql = "SELECT digest FROM maintenances WHERE update_id = ?1 AND digest <> ?2 LIMIT 1";
        let other: Option<String> = self
            .db
            .query_row(sql, params![update.as_str(), digest.to_string()], |row| row.get(0))
            .optional()
            .map_err(|e| self.fail(e))?;
        match other.and_then(|text| text.parse().ok()) {
            None => Ok(()),
            Some(known) => Err(JournalError::OtherFile { update: update.clone(), known, given: digest }),
        }
    }

    /// Keeps measured blackouts for forecasts to come.
    ///
    /// # Errors
    /// [`JournalError`] when they cannot be written.
    pub fn record(&mut self, samples: &[(Mechanism, Duration)]) -> Result<(), JournalError> {
        let path = self.path.clone();
        let fail = |source| JournalError::of(&path, source);
        let transaction = self.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail)?;
        for (mechanism, blackout) in samples {
            let micros = i64::try_from(blackout.as_micros()).unwrap_or(i64::MAX);
            transaction
                .execute(
                    "INSERT INTO samples (mechanism, blackout_us) VALUES (?1, ?2)",
                    params![mechanism.to_string(), micros],
                )
                .map_err(fail)?;
        }
        transaction.commit().map_err(fail)
    }

    /// What was measured here, the newest last.
    ///
    /// # Errors
    /// [`JournalError`] when it cannot be read.
    pub fn history(&self) -> Result<History, JournalError> {
        Ok(History {
            hold_overhead: self.samples(Mechanism::Hold)?,
            swap: self.samples(Mechanism::Swap)?,
            kexec: self.samples(Mechanism::Kexec)?,
        })
    }

    fn samples(&self, mechanism: Mechanism) -> Result<Vec<Duration>, JournalError> {
        let sql = "SELECT blackout_us FROM samples WHERE mechanism = ?1 ORDER BY number DESC LIMIT ?2";
        let mut statement = self.db.prepare_cached(sql).map_err(|e| self.fail(e))?;
        let limit = i64::try_from(WINDOW).unwrap_or(i64::MAX);
        let rows = statement
            .query_map(params![mechanism.to_string(), limit], |row| row.get::<_, i64>(0))
            .map_err(|e| self.fail(e))?;
        let mut samples: Vec<Duration> = rows
            .map(|row| row.map(|micros| Duration::from_micros(u64::try_from(micros).unwrap_or(0))))
            .collect::<Result<_, _>>()
            .map_err(|e| self.fail(e))?;
        samples.reverse();
        Ok(samples)
    }

    /// Whether there is room for the entries of a maintenance: writes as much, synced, and takes it back. For
    /// preflight; a disk that fills up later is survived, but it is better not to begin.
    ///
    /// # Errors
    /// [`JournalError`] when it could not be written.
    pub fn check_room(&mut self) -> Result<(), JournalError> {
        let path = self.path.clone();
        let fail = |source| JournalError::of(&path, source);
        self.db.pragma_update(None, "synchronous", "FULL").map_err(fail)?;
        self.db
            .execute_batch(
                "BEGIN IMMEDIATE; CREATE TABLE room (filler BLOB); INSERT INTO room VALUES (zeroblob(1048576)); COMMIT;
                 DROP TABLE room;",
            )
            .map_err(|source| {
                // The transaction of a failed batch stays open otherwise; a second failure adds nothing.
                let _ = self.db.execute_batch("ROLLBACK");
                JournalError::of(&path, source)
            })
    }

    fn fail(&self, source: rusqlite::Error) -> JournalError {
        JournalError::of(&self.path, source)
    }

    fn try_append(
        &mut self,
        maintenance: &MaintenanceId,
        first: u64,
        entries: &[Stamped],
        durability: Durability,
    ) -> Result<(), JournalError> {
        let path = self.path.clone();
        let fail = |source| JournalError::of(&path, source);
        let synchronous = match durability {
            Durability::Process => "NORMAL",
            Durability::Power => "FULL",
        };
        if let (0, Some(Entry::Planned { order, .. })) = (first, entries.first().map(|stamped| &stamped.entry)) {
            self.check_identity(&order.update.id, order.update.digest)?;
        }
        self.db.pragma_update(None, "synchronous", synchronous).map_err(fail)?;
        let transaction = self.db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(fail)?;
        let mut finished = false;
        for (number, stamped) in (first..).zip(entries) {
            let wall = i64::try_from(stamped.at.wall.0).unwrap_or(i64::MAX);
            let json = |value: serde_json::Result<String>| {
                value.map_err(|e| fail(rusqlite::Error::ToSqlConversionFailure(Box::new(e))))
            };
            let taken = |source: rusqlite::Error| match source.sqlite_error_code() {
                Some(ErrorCode::ConstraintViolation) => {
                    JournalError::Superseded { path: path.clone(), maintenance: maintenance.clone(), entry: number }
                }
                _ => fail(source),
            };
            if let Entry::Planned { order, .. } = &stamped.entry {
                transaction
                    .prepare_cached(
                        "INSERT INTO maintenances (id, update_id, digest, created_us) VALUES (?1, ?2, ?3, ?4)",
                    )
                    .map_err(fail)?
                    .execute(params![
                        maintenance.as_str(),
                        order.update.id.as_str(),
                        order.update.digest.to_string(),
                        wall
                    ])
                    .map_err(taken)?;
            }
            if let Entry::Finished { outcome } = &stamped.entry {
                finished = true;
                transaction
                    .execute(
                        "UPDATE maintenances SET outcome = ?2 WHERE id = ?1",
                        params![maintenance.as_str(), json(serde_json::to_string(outcome))?],
                    )
                    .map_err(fail)?;
            }
            let number_sql = i64::try_from(number).unwrap_or(i64::MAX);
            transaction
                .prepare_cached("INSERT INTO entries (maintenance, number, wall_us, entry) VALUES (?1, ?2, ?3, ?4)")
                .map_err(fail)?
                .execute(params![maintenance.as_str(), number_sql, wall, json(serde_json::to_string(stamped))?])
                .map_err(taken)?;
        }
        transaction.commit().map_err(fail)?;
        if finished {
            // Housekeeping only; the entries are safe in the log whether or not this works.
            let _ = self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        }
        Ok(())
    }
}

impl JournalError {
    fn of(path: &Path, source: rusqlite::Error) -> Self {
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::Full { path },
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => {
                Self::ReadOnly { path, reason: source.to_string() }
            }
            _ => Self::Sqlite { path, source },
        }
    }
}

impl From<JournalError> for LogFailure {
    fn from(error: JournalError) -> Self {
        let superseded = matches!(error, JournalError::Superseded { .. });
        Self { text: error.to_string(), superseded }
    }
}

impl Log for Journal {
    fn append(
        &mut self,
        maintenance: &MaintenanceId,
        first: u64,
        entries: &[Stamped],
        durability: Durability,
    ) -> Result<(), LogFailure> {
        Ok(self.try_append(maintenance, first, entries, durability)?)
    }
}

impl<L: Log> Log for &mut L {
    fn append(
        &mut self,
        maintenance: &MaintenanceId,
        first: u64,
        entries: &[Stamped],
        durability: Durability,
    ) -> Result<(), LogFailure> {
        (**self).append(maintenance, first, entries, durability)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::{Mono, Now};

    #[test]
    fn no_space_is_told_as_a_full_disk() {
        let folder = tempfile::tempdir().unwrap();
        let mut journal = Journal::open(&folder.path().join("journal.db")).unwrap();
        let pages: i64 = journal.db.pragma_query_value(None, "page_count", |row| row.get(0)).unwrap();
        journal.db.pragma_update(None, "max_page_count", pages).unwrap();
        assert!(matches!(journal.check_room(), Err(JournalError::Full { .. })));
        let at = Now { mono: Mono(0), wall: Wall(0) };
        let entry = Stamped { at, entry: Entry::Approved { by: "x".repeat(100_000) } };
        journal.db.pragma_update(None, "foreign_keys", false).unwrap();
        let failure = journal.append(&"m-1".parse().unwrap(), 0, &[entry], Durability::Power).unwrap_err();
        assert!(failure.text.contains("disk is full") && !failure.superseded, "{failure}");
    }
}
