//! What the first program would have to find out while VMs stand, found out before the jump: which modules in which order, and which files
//! of the disk will be needed.
//!
//! Invariant: a note is a shortcut and nothing else. One that is missing, of another kernel, or wrong costs time only.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Advice, fadvise};
use rustix::io::Errno;
use rustix::system::finit_module;
use serde::{Deserialize, Serialize};

/// Where the note is: the first program reads no configuration.
const PLACE: &str = "/var/lib/fermata/first.json";
/// `linux/module.h`, `MODULE_INIT_COMPRESSED_FILE`: the kernel unpacks the file itself, or says that it cannot.
const COMPRESSED: i32 = 4;

/// One module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Its file, packed or not.
    pub file: PathBuf,
    /// What it is given, as on `modprobe`'s command line.
    pub options: String,
}

impl Module {
    /// Loads it; nothing when it is there already.
    fn load(&self) -> io::Result<()> {
        let options = CString::new(self.options.as_str())?;
        let packed = self.file.extension().is_some_and(|kind| kind != "ko");
        match finit_module(File::open(&self.file)?, &options, if packed { COMPRESSED } else { 0 }) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Modules in the order in which they are loaded. What one needs is before it, and in no other chain.
pub type Chain = Vec<Module>;

/// Loads chains, by as many threads as there are processors: to put a large one into the kernel's own code takes most of a second of one
/// emulated processor, and the others would look on.
///
/// # Errors
/// The first of a chain that could not be loaded, in words; those before it and other chains are there.
pub(crate) fn load(chains: &[Chain]) -> Result<(), String> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    load_by(threads, chains, |module| module.load().map_err(|error| format!("{}: {error}", module.file.display())))
}

fn load_by<T: Sync>(
    threads: usize,
    chains: &[Vec<T>],
    load: impl Fn(&T) -> Result<(), String> + Sync,
) -> Result<(), String> {
    if chains.iter().all(Vec::is_empty) {
        return Err("none is noted".to_owned());
    }
    let (left, failed) = (Mutex::new(chains.iter()), Mutex::new(None));
    let work = || {
        loop {
            let next = left.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(chain) = next else { return };
            if let Err(reason) = chain.iter().try_for_each(&load) {
                failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(reason);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(chains.len()) {
            // One that cannot be started leaves its part to the others.
            std::thread::Builder::new().spawn_scoped(scope, work).map(drop).unwrap_or_default();
        }
        work();
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// A part of a file, in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The file, by its name on the host.
    pub file: PathBuf,
    /// Its first byte.
    pub from: u64,
    /// How many; none: to the end.
    pub length: Option<u64>,
}

impl Part {
    /// All of a file.
    #[must_use]
    pub const fn whole(file: PathBuf) -> Self {
        Self { file, from: 0, length: None }
    }
}

/// Asks the disk for parts of files of a host whose root is at `root`, and does not wait for them.
pub(crate) fn fetch<'a>(root: &Path, parts: impl IntoIterator<Item = &'a Part>) {
    for part in parts {
        let file = root.join(part.file.strip_prefix("/").unwrap_or(&part.file));
        if let Ok(file) = File::open(file) {
            // Whoever needs it reads it, at the latest.
            fadvise(&file, part.from, part.length.and_then(NonZeroU64::new), Advice::WillNeed).ok();
        }
    }
}

/// What was found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The kernel it is for.
    pub release: String,
    /// The agent's program.
    pub agent: PathBuf,
    /// Modules that VMs need; none where the operator has rules of their own for one.
    pub modules: Vec<Chain>,
    /// What of programs and libraries will be asked of the disk.
    pub parts: Vec<Part>,
}

impl Note {
    /// Puts it where the first program looks, on the disk.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self) -> io::Result<()> {
        let draft = Path::new(PLACE).with_extension("new");
        let mut file = File::create(&draft)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(draft, PLACE)
    }

    /// The one for the kernel that runs.
    pub(crate) fn read() -> Option<Self> {
        let note: Self = serde_json::from_slice(&fs::read(PLACE).ok()?).ok()?;
        (note.release == release()).then_some(note)
    }
}

/// The kernel that runs.
pub(crate) fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_are_loaded_whole_in_order_and_one_that_fails_stops_no_other() {
        let chains = [vec![1, 2, 3], vec![10, 11], vec![20], vec![30, 31, 32]];
        for threads in [1, 2, 9] {
            let loaded = Mutex::new(Vec::new());
            let load = |number: &u32| {
                if *number == 11 {
                    return Err("eleven".to_owned());
                }
                loaded.lock().unwrap().push(*number);
                Ok(())
            };
            assert_eq!(load_by(threads, &chains, load), Err("eleven".to_owned()));
            let loaded = loaded.into_inner().unwrap();
            let of = |tens: u32| loaded.iter().copied().filter(|number| number / 10 == tens).collect::<Vec<_>>();
            assert_eq!([of(0), of(1), of(2), of(3)], [vec![1, 2, 3], vec![10], vec![20], vec![30, 31, 32]]);
        }
        assert_eq!(load_by(2, &chains, |_| Ok(())), Ok(()));
        assert!(load_by(2, &[Vec::<u32>::new()], |_| Ok(())).is_err(), "nothing was noted");
    }
}
