//! The second witness that a VM may have run in the VMM that takes it over: a file in that VMM's run folder, in memory, with
//! the name of the maintenance that did it.
//!
//! The journal's entry that gives the VM to its new VMM is written in the pause, and not synced (`docs/adr/0031`). A file system that fails
//! and is mounted anew may lose it while VMs live on; the file here ends with the VMMs it tells of, and not before. Whoever lets a
//! new VMM run makes it first, and whoever would end that VMM, or let the old one run, looks for it first (promise P1).

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// More than the name of any maintenance.
const LONGEST: u64 = 4_096;

fn file(folder: &Path) -> PathBuf {
    folder.join("ran")
}

/// Notes that the VM may run in the VMM of this run folder from now on, by the doing of a maintenance. Noting it twice does no harm.
///
/// # Errors
/// The file cannot be written.
pub fn may_run(folder: &Path, maintenance: &str) -> io::Result<()> {
    // The folder is the VMM's: what it may have put there under this name is not followed.
    match OpenOptions::new().write(true).create_new(true).open(file(folder)) {
        Ok(mut made) => made.write_all(maintenance.as_bytes()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether the VM may have run in it.
#[must_use]
pub fn may_have_run(folder: &Path) -> bool {
    file(folder).symlink_metadata().is_ok()
}

/// Whether it was this maintenance that let the VM run in it.
#[must_use]
pub fn may_have_run_by(folder: &Path, maintenance: &str) -> bool {
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(file(folder));
    let mut by = String::new();
    opened.and_then(|open| open.take(LONGEST).read_to_string(&mut by)).is_ok() && by == maintenance
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_seen_and_nothing_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!may_have_run(folder.path()));
        may_run(folder.path(), "first").unwrap();
        may_run(folder.path(), "second").unwrap();
        assert!(may_have_run(folder.path()));
        assert!(may_have_run_by(folder.path(), "first") && !may_have_run_by(folder.path(), "second"));

        let other = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(other.path().join("elsewhere"), other.path().join("ran")).unwrap();
        may_run(other.path(), "first").unwrap();
        assert!(may_have_run(other.path()) && !other.path().join("elsewhere").exists());
        assert!(!may_have_run_by(other.path(), "first"));
        assert!(may_run(&folder.path().join("nowhere"), "first").is_err());
    }
}
