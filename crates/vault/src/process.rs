//! Processes by pidfd: waited for, ended for certain, and asked for their descriptors.
//!
//! A bare pid may belong to somebody else by the time it is used; a [`Process`] is the one process it was opened for,
//! dead or alive. What may be written down is its [`Identity`], which no later process of any boot shares.

#![expect(unsafe_code, reason = "the runtime takes descriptors to watch on our word that they stay open")]

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use uuid::Uuid;

/// What tells one process from every other, also after the agent or the host was restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// The process id.
    pub pid: i32,
    /// When it started, in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub started: u64,
    /// The boot it runs in (`/proc/sys/kernel/random/boot_id`).
    pub boot: Uuid,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} (started at tick {})", self.pid, self.started)
    }
}

/// Why something could not be done with a process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It is gone.
    #[error("process {pid} is gone")]
    Gone {
        /// The process id it had.
        pid: i32,
    },
    /// It is still there after the time allowed.
    #[error("process {pid} still lives {waited:?} after it was killed; it hangs in the kernel (see /proc/{pid}/stack)")]
    StillAlive {
        /// The process id.
        pid: i32,
        /// How long was waited.
        waited: Duration,
    },
    /// It has no such descriptor.
    #[error("process {pid} has no descriptor {fd}")]
    NoDescriptor {
        /// The process id.
        pid: i32,
        /// The missing number.
        fd: RawFd,
    },
    /// A system call failed.
    #[error("process {pid}: {what}: {source}")]
    System {
        /// The process id.
        pid: i32,
        /// What was being done.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// One process, dead or alive.
#[derive(Debug)]
pub struct Process {
    pidfd: OwnedFd,
    identity: Identity,
}

/// The boot this system runs in.
///
/// # Errors
/// When `/proc` is not there.
pub fn boot_id() -> io::Result<Uuid> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().parse().map_err(io::Error::other)
}

fn start_tick(pid: i32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command (field 2) may itself hold spaces and brackets; the last `)` ends it.
    stat.rsplit_once(')')
        .and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse().ok())
        .ok_or_else(|| io::Error::other("field 22 of its stat is missing"))
}

impl Process {
    /// The process that has this pid now.
    ///
    /// # Errors
    /// [`ProcessError::Gone`] when there is none.
    pub fn open(pid: i32) -> Result<Self, ProcessError> {
        let gone = || ProcessError::Gone { pid };
        let system = |what| move |source: io::Error| ProcessError::System { pid, what, source };
        let raw = Pid::from_raw(pid).filter(|_| pid > 0).ok_or_else(gone)?;
        let pidfd = match rustix::process::pidfd_open(raw, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Err(gone()),
            other => other.map_err(|errno| system("open a pidfd")(errno.into()))?,
        };
        let boot = boot_id().map_err(system("read the boot id"))?;
        let started = match start_tick(pid) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(gone()),
            other => other.map_err(system("read its start time"))?,
        };
        let process = Self { pidfd, identity: Identity { pid, started, boot } };
        // Only now is it certain that the start time was read from the process behind the pidfd: a process that lives
        // has had its pid all the time.
        if process.is_alive() { Ok(process) } else { Err(gone()) }
    }

    /// The process that was written down, if it still lives.
    ///
    /// # Errors
    /// [`ProcessError::System`] when this cannot be told.
    pub fn find(identity: Identity) -> Result<Option<Self>, ProcessError> {
        match Self::open(identity.pid) {
            Ok(process) => Ok((process.identity == identity).then_some(process)),
            Err(ProcessError::Gone { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What to write down.
    #[must_use]
    pub const fn identity(&self) -> Identity {
        self.identity
    }

    /// The process id. For display and `/proc`; never to signal it.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.identity.pid
    }

    /// Whether it still lives; a zombie does not.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.wait_timeout(Duration::ZERO)
    }

    /// Sends a signal; none to a process that is gone.
    ///
    /// # Errors
    /// The kernel's reason (usually missing rights).
    pub fn signal(&self, signal: Signal) -> Result<(), ProcessError> {
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(self.system("signal it", errno)),
        }
    }

    /// Waits for its end without blocking the runtime; at once when it is gone already.
    ///
    /// # Errors
    /// [`ProcessError::System`] outside a tokio runtime with I/O, or when no descriptor is left.
    pub async fn exited(&self) -> Result<(), ProcessError> {
        let system = |what| move |source| ProcessError::System { pid: self.pid(), what, source };
        // A descriptor of its own: the runtime refuses to watch one twice.
        let copy = self.pidfd.try_clone().map_err(system("watch for its end"))?;
        // SAFETY: the watch owns `copy`, which stays open and the same until the watch is dropped.
        let watch = unsafe { AsyncFd::register_with_interest(copy, Interest::READABLE) }
            .map_err(|error| system("watch for its end")(error.into()))?;
        let _ended = watch.readable().await.map_err(system("wait for its end"))?;
        Ok(())
    }

    /// Waits for its end on this thread; whether it ended within `limit`.
    #[must_use]
    pub fn wait_timeout(&self, limit: Duration) -> bool {
        let until = std::time::Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(std::time::Instant::now());
            let timeout =
                Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
            let mut watched = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match rustix::event::poll(&mut watched, Some(&timeout)) {
                Ok(0) => return false,
                Ok(_) => return true,
                // A signal for us: look again with what is left of the time.
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }

    /// Kills it and waits until it is certainly gone: its vCPUs run no more and its locks are free.
    ///
    /// # Errors
    /// [`ProcessError::StillAlive`] when it is not gone within `limit`: then nothing may be assumed about it.
    pub async fn kill_for_certain(&self, limit: Duration) -> Result<(), ProcessError> {
        self.signal(Signal::KILL)?;
        match tokio::time::timeout(limit, self.exited()).await {
            Ok(result) => result,
            Err(_) => Err(ProcessError::StillAlive { pid: self.pid(), waited: limit }),
        }
    }

    /// A copy of one of its descriptors, close-on-exec. Needs the right to trace it.
    ///
    /// # Errors
    /// [`ProcessError::NoDescriptor`], [`ProcessError::Gone`], or the kernel's reason.
    pub fn take_fd(&self, fd: RawFd) -> Result<OwnedFd, ProcessError> {
        match rustix::process::pidfd_getfd(&self.pidfd, fd, PidfdGetfdFlags::empty()) {
            Err(Errno::SRCH) => Err(ProcessError::Gone { pid: self.pid() }),
            Err(Errno::BADF) => Err(ProcessError::NoDescriptor { pid: self.pid(), fd }),
            other => other.map_err(|errno| self.system("copy a descriptor", errno)),
        }
    }

    /// Its open descriptors by number, with what `/proc` says they are (`/memfd:.. (deleted)`, `/dev/net/tun`,
    /// `socket:[..]`).
    ///
    /// # Errors
    /// When `/proc/PID/fd` cannot be read: no rights, or gone.
    pub fn descriptors(&self) -> Result<Vec<(RawFd, PathBuf)>, ProcessError> {
        let system = |source| ProcessError::System { pid: self.pid(), what: "list its descriptors", source };
        let mut found = Vec::new();
        for entry in std::fs::read_dir(format!("/proc/{}/fd", self.pid())).map_err(system)? {
            let entry = entry.map_err(system)?;
            let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
            // A descriptor closed between listing and reading is not one any more.
            if let (Some(number), Ok(link)) = (number, std::fs::read_link(entry.path())) {
                found.push((number, link));
            }
        }
        if !self.is_alive() {
            return Err(ProcessError::Gone { pid: self.pid() });
        }
        found.sort_unstable();
        Ok(found)
    }

    fn system(&self, what: &'static str, errno: Errno) -> ProcessError {
        ProcessError::System { pid: self.pid(), what, source: errno.into() }
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::process::{Command, Stdio};

    fn sleeper() -> std::process::Child {
        Command::new("sleep").arg("600").stdout(Stdio::piped()).spawn().unwrap()
    }

    fn of(child: &std::process::Child) -> Process {
        Process::open(child.id().cast_signed()).unwrap()
    }

    #[tokio::test]
    async fn a_killed_process_is_gone_for_certain() {
        let mut child = sleeper();
        let process = of(&child);
        assert!(process.is_alive());
        process.kill_for_certain(Duration::from_secs(10)).await.unwrap();
        assert!(!process.is_alive());
        process.signal(Signal::TERM).unwrap();
        child.wait().unwrap();
        assert!(matches!(process.take_fd(0), Err(ProcessError::Gone { .. })));
        assert!(Process::find(process.identity()).unwrap().is_none());
    }

    #[test]
    fn an_identity_finds_its_own_process_only() {
        let mut child = sleeper();
        let identity = of(&child).identity();
        assert!(Process::find(identity).unwrap().is_some());
        assert!(Process::find(Identity { started: identity.started + 1, ..identity }).unwrap().is_none());
        assert!(Process::find(Identity { boot: Uuid::nil(), ..identity }).unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_descriptor_outlives_the_process_it_was_taken_from() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut child = Command::new("sleep").arg("600").stdout(writer).spawn().unwrap();
        let process = of(&child);
        let link = std::fs::read_link(format!("/proc/self/fd/{}", reader.as_raw_fd())).unwrap();
        assert!(process.descriptors().unwrap().contains(&(1, link)));
        let taken = process.take_fd(1).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        rustix::io::write(&taken, b"still open").unwrap();
        drop(taken);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "still open");
    }

    #[test]
    fn a_missing_descriptor_is_named() {
        let mut child = sleeper();
        let error = of(&child).take_fd(999).unwrap_err();
        assert_eq!(error.to_string(), format!("process {} has no descriptor 999", child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
