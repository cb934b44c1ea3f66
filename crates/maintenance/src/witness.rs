//! The second witness that a VM may have run in the VMM that takes it over: an empty file in that VMM's run folder, in memory.
//!
//! The journal's entry that gives the VM to its new VMM is written in the pause, and not synced (`docs/adr/0031`). A file system that fails
//! and is mounted anew may lose it while VMs live on; the file here ends with the VMMs it tells of, and not before. Whoever lets a
//! new VMM run makes it first, and whoever would end that VMM, or let the old one run, looks for it first (promise P1).

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

fn file(folder: &Path) -> PathBuf {
    folder.join("ran")
}

/// Notes that the VM may run in the VMM of this run folder from now on. Noting it twice does no harm.
///
/// # Errors
/// The file cannot be made.
pub fn may_run(folder: &Path) -> io::Result<()> {
    // The folder is the VMM's: what it may have put there under this name is not followed.
    match OpenOptions::new().write(true).create_new(true).open(file(folder)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Whether the VM may have run in it.
#[must_use]
pub fn may_have_run(folder: &Path) -> bool {
    file(folder).symlink_metadata().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_seen_and_nothing_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!may_have_run(folder.path()));
        may_run(folder.path()).unwrap();
        may_run(folder.path()).unwrap();
        assert!(may_have_run(folder.path()));

        let other = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(other.path().join("elsewhere"), other.path().join("ran")).unwrap();
        may_run(other.path()).unwrap();
        assert!(may_have_run(other.path()) && !other.path().join("elsewhere").exists());
        assert!(may_run(&folder.path().join("nowhere")).is_err());
    }
}
