//! The agent's durable memory: which VMs exist, what is wanted of them, and what was set up for each that runs.
//!
//! One SQLite file, synced at every write. A [`Runtime`] is written *before* the first link, unit or file of a start is
//! made, so whatever a crash leaves behind is found and removed (promise P6).

pub mod ports;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use fermata_model::{Size, VmDefinition, VmName, VmmVersion};
use fermata_vault::memory::Kind;
use fermata_vault::process::Identity;
use fermata_vault::tap::TapName;
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What the operator wants of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wanted {
    /// It shall run.
    Running,
    /// It shall not run.
    Stopped,
}

/// What was set up for a running VM; enough to find it again, or to remove every trace of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// Counts the VMM processes of this VM's life on this host; part of unit and socket names, so that an old and a new
    /// VMM can stand side by side.
    pub generation: u64,
    /// The unit of the VMM.
    pub unit: String,
    /// The VMM's version.
    pub vmm: VmmVersion,
    /// The host boot in which it was set up.
    pub boot: Uuid,
    /// The process, once it is known.
    pub process: Option<Identity>,
    /// Sockets and logs of this generation.
    pub dir: PathBuf,
    /// Taps, in the order of the VM's NICs.
    pub taps: Vec<TapName>,
    /// Files whose owner was changed for the VMM, with the owner to put back.
    pub owners: Vec<FileOwner>,
    /// The kind of vault its memory is in.
    #[serde(default)]
    pub vault: Kind,
}

/// An owner to put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileOwner {
    /// The file.
    pub path: PathBuf,
    /// Its user before.
    pub uid: u32,
    /// Its group before.
    pub gid: u32,
}

/// A VM as remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmRecord {
    /// What it is.
    pub definition: VmDefinition,
    /// What is wanted of it.
    pub wanted: Wanted,
    /// What was set up for it, while it runs.
    pub runtime: Option<Runtime>,
    /// What was set up for the VMM that stands beside it during a swap: the one to come, later the one that was.
    pub beside: Option<Runtime>,
    /// Why it last ended without being asked to.
    pub last_failure: Option<String>,
}

/// Why the data base did not answer.
#[derive(Debug, thiserror::Error)]
pub enum InventoryError {
    /// SQLite refused.
    #[error("data base {path}: {source}; check free space and permissions of its folder")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// The answer.
        source: rusqlite::Error,
    },
    /// What is stored cannot be read by this version.
    #[error("data base {path}: the record of VM `{vm}` cannot be read: {source}; was it written by a newer version?")]
    Record {
        /// The file.
        path: PathBuf,
        /// The VM.
        vm: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The schema is newer than this program.
    #[error("data base {path}: schema {found} is newer than {known}; install the version that wrote it")]
    Newer {
        /// The file.
        path: PathBuf,
        /// The schema found.
        found: i64,
        /// The schema known.
        known: i64,
    },
}

const SCHEMA: i64 = 1;

/// The data base, shared by the agent's tasks.
#[derive(Debug, Clone)]
pub struct Inventory {
    connection: Arc<Mutex<Connection>>,
    path: PathBuf,
}

impl Inventory {
    /// Opens the data base, making it if it is not there.
    ///
    /// # Errors
    /// [`InventoryError`].
    pub fn open(path: &Path) -> Result<Self, InventoryError> {
        let failed = |source| InventoryError::Sqlite { path: path.to_owned(), source };
        let connection = Connection::open(path).map_err(failed)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
        let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
        if found > SCHEMA {
            return Err(InventoryError::Newer { path: path.to_owned(), found, known: SCHEMA });
        }
        connection
            .execute_batch(
                "CREATE TABLE IF NOT EXISTS vm (
                     name TEXT PRIMARY KEY,
                     definition TEXT NOT NULL,
                     wanted TEXT NOT NULL,
                     runtime TEXT,
                     beside TEXT,
                     last_failure TEXT,
                     generation INTEGER NOT NULL DEFAULT 0
                 ) STRICT;
                 CREATE TABLE IF NOT EXISTS port (
                     number INTEGER PRIMARY KEY AUTOINCREMENT,
                     vm TEXT NOT NULL,
                     nic INTEGER NOT NULL,
                     address TEXT,
                     UNIQUE (vm, nic)
                 ) STRICT;
                 PRAGMA user_version = 1;",
            )
            .map_err(failed)?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)), path: path.to_owned() })
    }

    fn with<T>(&self, act: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, InventoryError> {
        // A panic elsewhere cannot leave a half-done statement behind: SQLite rolls back.
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        act(&connection).map_err(|source| InventoryError::Sqlite { path: self.path.clone(), source })
    }

    /// All VMs by name.
    ///
    /// # Errors
    /// [`InventoryError`].
    pub fn list(&self) -> Result<Vec<VmRecord>, InventoryError> {
        let rows = self.with(|db| {
            let mut statement =
                db.prepare("SELECT name, definition, wanted, runtime, beside, last_failure FROM vm ORDER BY name")?;
            statement.query_map([], Row::read)?.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        rows.into_iter().map(|row| self.decode(row)).collect()
    }

    /// One VM.
    ///
    /// # Errors
    /// [`InventoryError`].
    pub fn get(&self, name: &VmName) -> Result<Option<VmRecord>, InventoryError> {
        let row = self.with(|db| {
            db.query_row(
                "SELECT name, definition, wanted, runtime, beside, last_failure FROM vm WHERE name = ?1",
                [name.as_str()],
                Row::read,
            )
            .optional()
        })?;
        row.map(|row| self.decode(row)).transpose()
    }

    /// Remembers a new VM, stopped.
    ///
    /// # Errors
    /// [`InventoryError`].
    pub fn insert(&self, definition: &VmDefinition) -> Result<(), InventoryError> {
        let json = encode(definition);
        self.with(|db| {
            db.execute(
                "INSERT INTO vm (name, definition, wanted) VALUES (?1, ?2, 'stopped')",
                params![definition.name.as_str(), json],
            )
        })?;
        Ok(())
    }

    /// Forgets a VM.
    ///
    /// # Errors
    /// [`InventoryError`].
    pub fn delete(&self, name: &VmName) -> Result<(), InventoryError> {
        self.with(|db| db.execute("DELETE FROM vm WHERE name = ?1", [name.as_str()]))?;
        Ok(())
    }

    /// Records what is wanted of a VM.
    ///
    /// # Errors
    /// [`InventoryError`].
    pub fn set_wanted(&self, name: &VmName, wanted: Wanted) -> Result<(), InventoryError> {
        let text = match wanted {
            Wanted::Running => "running",
            Wanted::Stopped => "stopped",
        };
        self.with(|db| db.execute("UPDATE vm SET wanted = ?2 WHERE name = ?1", params![name.as_str(), text]))?;
        Ok(())
    }

    /// Takes the next generation number of a VM. Numbers are never used twice.
    ///
    /// # Errors
    /// [`InventoryError`].
    pub fn next_generation(&self, name: &VmName) -> Result<u64, InventoryError> {
        let next: i64 = self.with(|db| {
            db.query_row(
                "UPDATE vm SET generation = generation + 1 WHERE name = ?1 RETURNING generation",
                [name.as_str()],
                |row| row.get(0),
            )
        })?;
        Ok(next.unsigned_abs())
    }

    /// Records what is being set up for a VM, or that nothing is.
    ///
    /// # Errors
    /// [`InventoryError`].
    pub fn set_runtime(&self, name: &VmName, runtime: Option<&Runtime>) -> Result<(), InventoryError> {
        let json = runtime.map(encode);
        self.with(|db| db.execute("UPDATE vm SET runtime = ?2 WHERE name = ?1", params![name.as_str(), json]))?;
        Ok(())
    }

    /// Records what is being set up for the VMM beside, or that there is none.
    ///
    /// # Errors
    /// [`InventoryError`].
    pub fn set_beside(&self, name: &VmName, runtime: Option<&Runtime>) -> Result<(), InventoryError> {
        let json = runtime.map(encode);
        self.with(|db| db.execute("UPDATE vm SET beside = ?2 WHERE name = ?1", params![name.as_str(), json]))?;
        Ok(())
    }

    /// Records that the VMM beside runs the VM now, and the one that ran it stands beside.
    ///
    /// # Errors
    /// [`InventoryError`].
    pub fn change_over(&self, name: &VmName) -> Result<(), InventoryError> {
        // Only forward: an attempt whose answer was lost may have done it, and doing it again would undo it.
        let swap = "UPDATE vm SET runtime = beside, beside = runtime \
                    WHERE name = ?1 AND beside ->> '$.generation' > runtime ->> '$.generation'";
        self.with(|db| db.execute(swap, [name.as_str()]))?;
        Ok(())
    }

    /// Records why a VM ended without being asked to, or that all is well again.
    ///
    /// # Errors
    /// [`InventoryError`].
    pub fn set_failure(&self, name: &VmName, failure: Option<&str>) -> Result<(), InventoryError> {
        self.with(|db| db.execute("UPDATE vm SET last_failure = ?2 WHERE name = ?1", params![name.as_str(), failure]))?;
        Ok(())
    }

    fn decode(&self, row: Row) -> Result<VmRecord, InventoryError> {
        let unreadable = |source| InventoryError::Record { path: self.path.clone(), vm: row.name.clone(), source };
        let wanted = if row.wanted == "running" { Wanted::Running } else { Wanted::Stopped };
        let definition = serde_json::from_str(&row.definition).map_err(unreadable)?;
        let runtime = row.runtime.as_deref().map(serde_json::from_str).transpose().map_err(unreadable)?;
        let beside = row.beside.as_deref().map(serde_json::from_str).transpose().map_err(unreadable)?;
        Ok(VmRecord { definition, wanted, runtime, beside, last_failure: row.last_failure })
    }
}

struct Row {
    name: String,
    definition: String,
    wanted: String,
    runtime: Option<String>,
    beside: Option<String>,
    last_failure: Option<String>,
}

impl Row {
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            name: row.get(0)?,
            definition: row.get(1)?,
            wanted: row.get(2)?,
            runtime: row.get(3)?,
            beside: row.get(4)?,
            last_failure: row.get(5)?,
        })
    }
}

fn encode<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("plain data with text keys always has a JSON form")
}

/// What VMs of this host already use, for refusing a second use.
#[derive(Debug, Default)]
pub struct InUse {
    /// Memory promised to VMs that run.
    pub running_memory: Size,
    records: Vec<VmRecord>,
}

impl InUse {
    /// Gathers what is used.
    #[must_use]
    pub fn of(records: Vec<VmRecord>) -> Self {
        let bytes = records.iter().filter(|r| r.runtime.is_some()).map(|r| r.definition.memory.bytes()).sum();
        Self { running_memory: Size::from_bytes(bytes), records }
    }

    /// The VM that has a property, if one has.
    pub fn holder(&self, has: impl Fn(&VmDefinition) -> bool) -> Option<&VmName> {
        self.records.iter().map(|r| &r.definition).find(|d| has(d)).map(|d| &d.name)
    }

    /// The VM whose uuid is `uuid`, or shares with it the part that tap names are made of.
    #[must_use]
    pub fn uuid_holder(&self, uuid: Uuid) -> Option<&VmName> {
        self.holder(|d| d.uuid.as_fields().0 == uuid.as_fields().0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fermata_model::{HostDefaults, VmSpec, definition::resolve};

    fn definition(name: &str) -> VmDefinition {
        let spec = VmSpec::from_toml(&format!("name = \"{name}\"\nvcpus = 1\nmemory = \"64MiB\"")).unwrap();
        let host = HostDefaults {
            uuid: Uuid::new_v4(),
            cpu: "qemu64".to_owned(),
            machine: "pc-q35-10.0".parse().unwrap(),
            vmm: "10.0".parse().unwrap(),
            tsc_khz: None,
        };
        resolve(spec, &host)
    }

    fn runtime(vm: &VmDefinition, generation: u64) -> Runtime {
        Runtime {
            generation,
            unit: "fermata-vm-a-1.service".to_owned(),
            vmm: vm.vmm,
            boot: Uuid::from_u128(3),
            process: Some(Identity { pid: 1, started: 2, boot: Uuid::from_u128(3) }),
            dir: "/run/fermata/vm/a/1".into(),
            taps: vec!["vm00000000-0".parse().unwrap()],
            owners: vec![],
            vault: Kind::Devdax,
        }
    }

    #[test]
    fn a_vm_that_changed_over_stays_so_when_it_is_told_again() {
        let dir = tempfile::tempdir().unwrap();
        let inventory = Inventory::open(&dir.path().join("agent.db")).unwrap();
        let vm = definition("a");
        inventory.insert(&vm).unwrap();
        inventory.set_runtime(&vm.name, Some(&runtime(&vm, 9))).unwrap();
        inventory.set_beside(&vm.name, Some(&runtime(&vm, 10))).unwrap();
        for _ in 0..2 {
            inventory.change_over(&vm.name).unwrap();
            let record = inventory.get(&vm.name).unwrap().unwrap();
            let generation = |runtime: Option<Runtime>| runtime.map(|r| r.generation);
            assert_eq!((generation(record.runtime), generation(record.beside)), (Some(10), Some(9)));
        }
    }

    #[test]
    fn what_is_written_is_there_after_reopening() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.db");
        let vm = definition("a");
        let runtime = runtime(&vm, 1);
        {
            let inventory = Inventory::open(&path).unwrap();
            inventory.insert(&vm).unwrap();
            assert!(inventory.insert(&vm).is_err());
            inventory.set_wanted(&vm.name, Wanted::Running).unwrap();
            inventory.set_runtime(&vm.name, Some(&runtime)).unwrap();
            assert_eq!(inventory.next_generation(&vm.name).unwrap(), 1);
        }
        let inventory = Inventory::open(&path).unwrap();
        let record = inventory.get(&vm.name).unwrap().unwrap();
        assert_eq!((record.definition, record.runtime, record.wanted), (vm.clone(), Some(runtime), Wanted::Running));
        assert_eq!(inventory.next_generation(&vm.name).unwrap(), 2);
        inventory.delete(&vm.name).unwrap();
        assert!(inventory.list().unwrap().is_empty());
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.db");
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
        assert!(Inventory::open(&path).unwrap_err().to_string().contains("newer"));
    }
}
