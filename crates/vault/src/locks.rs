//! Who holds an open-file-description lock on a file.
//!
//! QEMU marks what it does with an image by locks on single bytes; reading them tells whether an image is in use without
//! taking a lock, so a look never disturbs a VMM that is just opening it.

#![expect(unsafe_code, reason = "F_OFD_GETLK is in no safe library")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Whether anybody holds a lock (shared or not) on any byte of `start .. start + len`.
///
/// Locks of the caller's own open file description do not count: open the file anew to look.
///
/// # Errors
/// The kernel's reason; `ENOLCK` or `EOPNOTSUPP` on file systems without locks.
pub fn is_locked(file: impl AsFd, start: i64, len: i64) -> io::Result<bool> {
    // SAFETY: `flock` is plain integers, for which all zeros is a value.
    let mut query: libc::flock = unsafe { std::mem::zeroed() };
    query.l_type = libc::F_WRLCK as libc::c_short;
    query.l_whence = libc::SEEK_SET as libc::c_short;
    query.l_start = start;
    query.l_len = len;
    // SAFETY: F_OFD_GETLK reads and writes one `flock`, which `query` is and which outlives the call; the descriptor
    // is borrowed and therefore open.
    let result = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_OFD_GETLK, &raw mut query) };
    if result == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(query.l_type != libc::F_UNLCK as libc::c_short)
}

/// Takes a shared lock on `start .. start + len` for as long as `file`'s open file description lives, as QEMU does.
///
/// # Errors
/// `EAGAIN` when somebody holds an exclusive lock there.
pub fn lock_shared(file: impl AsFd, start: i64, len: i64) -> io::Result<()> {
    // SAFETY: as in `is_locked`.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_RDLCK as libc::c_short;
    lock.l_whence = libc::SEEK_SET as libc::c_short;
    lock.l_start = start;
    lock.l_len = len;
    // SAFETY: F_OFD_SETLK reads one `flock`, which `lock` is; the descriptor is borrowed and therefore open.
    let result = unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_lock_is_seen_through_another_description_only_and_ends_with_its_holder() {
        let scratch = tempfile::NamedTempFile::new().unwrap();
        let holder = scratch.reopen().unwrap();
        let looker = File::open(scratch.path()).unwrap();
        assert!(!is_locked(&looker, 100, 104).unwrap());
        lock_shared(&holder, 101, 1).unwrap();
        assert!(is_locked(&looker, 100, 104).unwrap());
        assert!(!is_locked(&looker, 200, 4).unwrap());
        assert!(!is_locked(&holder, 100, 104).unwrap());
        drop(holder);
        assert!(!is_locked(&looker, 100, 104).unwrap());
    }
}
