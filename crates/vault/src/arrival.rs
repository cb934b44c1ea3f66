//! Waiting for a socket that a VMM will make, without looking for it again and again.
//!
//! A VMM makes its monitor when the rest of it is set up, hundreds of milliseconds after its start where processors are few. A look
//! every millisecond took a fifth of the processor that the VMM needed for that (one emulated processor, traced system calls), and
//! each VM that comes back has one who waits. So the kernel tells what appears in the folder (`inotify(7)`).
//!
//! Invariant: the watch is older than the look that finds nothing, so nothing appears unseen between them.

#![expect(unsafe_code, reason = "the runtime watches a descriptor only by the word of its owner")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What appears in one folder.
#[derive(Debug)]
pub struct Arrivals {
    watch: AsyncFd<OwnedFd>,
}

impl Arrivals {
    /// Watches the folder of `file` from now on.
    ///
    /// # Errors
    /// The kernel's: there is no such folder, or the user has too many watches. Also outside of a tokio runtime with I/O.
    pub fn beside(file: &Path) -> io::Result<Self> {
        let folder = file.parent().ok_or(io::ErrorKind::NotFound)?;
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&watch, folder, WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR)?;
        // SAFETY: the watch owns the descriptor, which stays open and the same until the watch is dropped.
        let watch = unsafe { AsyncFd::register_with_interest(watch, Interest::READABLE) }.map_err(io::Error::from)?;
        Ok(Self { watch })
    }

    /// Until something appeared that nobody was told of yet.
    ///
    /// # Errors
    /// The kernel's, for instance when the folder is gone.
    pub async fn next(&self) -> io::Result<()> {
        let mut ready = self.watch.readable().await?;
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(ready.get_inner(), &mut space);
        loop {
            match events.next() {
                Ok(event) if event.events().contains(inotify::ReadFlags::IGNORED) => {
                    return Err(io::ErrorKind::NotFound.into());
                }
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        ready.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const SOON: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn what_appears_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("qmp");
        let arrivals = Arrivals::beside(&file).unwrap();
        assert!(tokio::time::timeout(SOON, arrivals.next()).await.is_err(), "nothing is there");
        std::fs::write(&file, "").unwrap();
        arrivals.next().await.unwrap();
        assert!(tokio::time::timeout(SOON, arrivals.next()).await.is_err(), "told already");
        std::fs::remove_dir_all(folder.path()).unwrap();
        assert!(arrivals.next().await.is_err(), "the folder is gone");
        assert!(Arrivals::beside(&file).is_err());
    }
}
