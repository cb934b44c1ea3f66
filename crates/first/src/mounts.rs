//! What is mounted before the service manager's first word, as it would mount it: it finds its own.

use std::ffi::CString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::StatVfsMountFlags;
use rustix::mount::{MountFlags, mount, mount_remount};

use crate::{CGROUPS, say};

/// systemd, `mount-setup.c`: source, place, type, options of the file system.
const ALL: [(&str, &str, &str, MountFlags, &str); 5] = [
    ("proc", "/proc", "proc", MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC), ""),
    ("sysfs", "/sys", "sysfs", MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC), ""),
    ("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID.union(MountFlags::STRICTATIME), "mode=0755"),
    ("tmpfs", "/run", "tmpfs", MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::STRICTATIME), "mode=0755"),
    (
        "cgroup2",
        CGROUPS,
        "cgroup2",
        MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC),
        "nsdelegate,memory_recursiveprot",
    ),
];
/// As many of them show the kernel and its devices, and are taken along from an initial RAM disk.
const KERNELS: usize = 3;

/// Mounts what is not there yet; what cannot be mounted is said.
pub(crate) fn mount_all() {
    ALL.iter().for_each(mount_one);
    if let Err(errno) = make_writable() {
        say(&format!("/ stays read-only: {errno}"));
    }
}

/// Mounts what shows the kernel and its devices; the places are made where they are not there.
pub(crate) fn mount_kernels() {
    for one in &ALL[..KERNELS] {
        // Where it cannot be made, the mount says so.
        std::fs::create_dir_all(one.1).unwrap_or_default();
        mount_one(one);
    }
}

/// The places of those.
pub(crate) fn kernels() -> impl Iterator<Item = &'static str> {
    ALL[..KERNELS].iter().map(|one| one.1)
}

fn mount_one((source, place, kind, flags, options): &(&str, &str, &str, MountFlags, &str)) {
    let device = |path: &Path| path.metadata().map(|meta| meta.dev()).ok();
    let path = Path::new(place);
    if device(path) != path.parent().and_then(device) {
        return;
    }
    let options = CString::new(*options).unwrap_or_default();
    if let Err(errno) = mount(*source, path, *kind, *flags, options.as_c_str()) {
        say(&format!("{place} is not mounted: {errno}"));
    }
}

/// The flags of a mount that stay its own, by the words of proc(5)'s mountinfo.
pub(crate) fn flags(words: &str) -> MountFlags {
    let flag = |word: &str| match word {
        "ro" => MountFlags::RDONLY,
        "nosuid" => MountFlags::NOSUID,
        "nodev" => MountFlags::NODEV,
        "noexec" => MountFlags::NOEXEC,
        "noatime" => MountFlags::NOATIME,
        "nodiratime" => MountFlags::NODIRATIME,
        "relatime" => MountFlags::RELATIME,
        "sync" => MountFlags::SYNCHRONOUS,
        _ => MountFlags::empty(),
    };
    words.split(',').map(flag).fold(MountFlags::empty(), MountFlags::union)
}

/// Most hosts mount their root file system read-only at first, and look at it; a journal's replay is over by then.
fn make_writable() -> rustix::io::Result<()> {
    let now = rustix::fs::statvfs("/")?.f_flag;
    if !now.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    let kept = [
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
        (StatVfsMountFlags::SYNCHRONOUS, MountFlags::SYNCHRONOUS),
    ];
    let flags = kept.into_iter().filter(|(seen, _)| now.contains(*seen)).map(|(_, flag)| flag);
    mount_remount("/", flags.fold(MountFlags::empty(), MountFlags::union), "")
}

/// Mounts a file system of the host, with the options it had; without them where this kernel has other ones.
///
/// # Errors
/// The kernel's.
pub(crate) fn mount_disk(device: &Path, at: &Path, kind: &str, words: &str, options: &str) -> io::Result<()> {
    let flags = flags(words);
    let given = CString::new(options)?;
    match mount(device, at, kind, flags, given.as_c_str()) {
        Err(_) if !options.is_empty() => Ok(mount(device, at, kind, flags, c"")?),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_keeps_its_flags() {
        assert_eq!(flags("rw,noatime"), MountFlags::NOATIME);
        assert_eq!(flags("ro,nosuid,relatime"), MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::RELATIME);
        assert_eq!(kernels().collect::<Vec<_>>(), ["/proc", "/sys", "/dev"]);
    }
}
