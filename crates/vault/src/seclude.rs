//! A view of the host's files in which a process can write its own folders and nothing else, where no service manager gives it one
//! (systemd.exec(5): `ProtectSystem=strict`, and what `DynamicUser=` does with folders).
//!
//! ```text
//!  mount namespace of its own ─► each own folder mounted in its place, also below one that others may not enter ─► `/` read-only
//! ```
//!
//! Needs root and one thread only; [`crate::confine`] comes after it.

#![expect(unsafe_code, reason = "namespaces are left by a call that no safe library has")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change, mount_remount};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// The permission to enter a folder, for everybody.
const ENTER: u32 = 0o001;

/// Why a process could not be secluded; it must not go on then.
#[derive(Debug, thiserror::Error)]
#[error("this process cannot be given a view of its own: {what}: {source}")]
pub struct SecludeError {
    what: String,
    source: io::Error,
}

/// Gives this process a view of its own, for good: `/` is read-only, `own` folders are not, and are reached by whoever owns them.
/// What is mounted elsewhere (`/run`) is as it was.
///
/// # Errors
/// [`SecludeError`]; the view may be there in part.
pub fn seclude(own: &[PathBuf]) -> Result<(), SecludeError> {
    let failed = |what: &Path| {
        let what = what.display().to_string();
        move |source: io::Error| SecludeError { what, source }
    };
    let root = Path::new("/");
    // SAFETY: descriptors stay common to all threads; only mounts are unshared.
    let unshared = unsafe { unshare_unsafe(UnshareFlags::NEWNS) };
    unshared.map_err(io::Error::from).map_err(failed(Path::new("a mount namespace")))?;
    mount_change(root, MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(io::Error::from)
        .map_err(failed(root))?;
    for folder in own {
        bring(folder).map_err(failed(folder))?;
    }
    mount_remount(root, MountFlags::BIND | MountFlags::RDONLY, "").map_err(io::Error::from).map_err(failed(root))
}

fn bring(folder: &Path) -> io::Result<()> {
    // Held by a descriptor: its name may lead elsewhere in a moment.
    let held: File = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(folder)?;
    let closed = folder.parent().filter(|parent| parent.metadata().is_ok_and(|meta| meta.mode() & ENTER == 0));
    if let Some(parent) = closed {
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("tmpfs", parent, "tmpfs", flags, c"mode=0755,size=64k")?;
        fs::create_dir(folder)?;
    }
    Ok(mount_bind(format!("/proc/self/fd/{}", held.as_raw_fd()), folder)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown};
    use std::process::Command;

    use super::*;
    use crate::confine::Confinement;

    const ROLE: &str = "FERMATA_TEST_SECLUDED";

    /// Not a test of its own: the process that the test below starts.
    #[test]
    fn secluded() {
        let Ok(place) = std::env::var(ROLE) else { return };
        let place = Path::new(&place);
        let (own, group) = (place.join("private/own"), place.join("group"));
        seclude(&[own.clone(), group.clone()]).unwrap();
        let confined = Confinement { group, uid: 12_345, gid: 12_345, groups: Vec::new(), files: 99 };
        confined.enter().unwrap();
        let written = |path: PathBuf| fs::write(path, "x").is_ok();
        println!("own {}, other {}", written(own.join("file")), written(place.join("open/file")));
    }

    #[test]
    fn only_its_own_folder_can_be_written() {
        // On hosts that run VMs this folder is on the root file system; memory (`/tmp` of some) is not.
        let place = tempfile::tempdir_in("/var/tmp").unwrap();
        let on_root = place.path().metadata().unwrap().dev() == Path::new("/").metadata().unwrap().dev();
        if !rustix::process::geteuid().is_root() || !on_root {
            return;
        }
        let at = |name: &str| place.path().join(name);
        for (name, mode) in [("private", 0o700), ("private/own", 0o700), ("group", 0o755), ("open", 0o777)] {
            fs::create_dir(at(name)).unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
        chown(at("private/own"), Some(12_345), Some(12_345)).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "seclude::tests::secluded", "--nocapture"]).env(ROLE, place.path());
        let said = command.output().unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        assert!(said.contains("own true, other false"), "{said}");
        assert_eq!(fs::read_to_string(at("private/own/file")).unwrap(), "x", "it is the folder itself");
        fs::write(at("open/file"), "others see what they saw").unwrap();
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = bring(Path::new("/nowhere/own")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
