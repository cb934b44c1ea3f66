//! A relay between two processes that pass descriptors, with a gate before the end.
//!
//! QEMU's hand over begins on a channel of its own: the old VMM sends descriptors on it, the new one builds its machine,
//! which takes long, and then closes the channel. *That* is the moment at which the old VMM stops the VM. A relay on this
//! channel sees the moment come and can do what must happen just before it, however long the machine took to build.
//! A new VMM that dies closes it, too; what the old one still says then is read to its end, so that it does not meet a closed channel.
//!
//! ```text
//!   old VMM --- bytes, descriptors ---> relay --- bytes, descriptors ---> new VMM
//!      |<-- end of stream -- gate() <-- relay <------ end of stream --------|
//! ```

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

/// Descriptors taken in one message; QEMU sends one at a time.
const MAX_FDS: usize = 32;
/// After which nothing more is expected of a VMM that was sending: it writes some kilobytes, one message right after the other.
const SILENCE: Duration = Duration::from_millis(500);
/// The same where the other VMM closed the channel in order: it may have died between two messages, and the VM still runs meanwhile.
const PAUSE: Duration = Duration::from_millis(10);
/// How long one that does not stop is listened to.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a relay ended early. Both ends are closed then.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The socket could not be made.
    #[error("relay socket {path}: {source}")]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A connection could not be made, or broke.
    #[error("relay, {what}: {source}")]
    Broken {
        /// What was being done.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Nothing came in time.
    #[error("relay: the VMMs were not done within {0:?}")]
    Late(Duration),
}

/// A relay that waits for its one connection. Its socket's file goes when it is dropped.
#[derive(Debug)]
pub struct Relay {
    listener: UnixListener,
    path: PathBuf,
}

impl Relay {
    /// Listens at `path`.
    ///
    /// # Errors
    /// [`RelayError::Bind`].
    pub fn bind(path: &Path) -> Result<Self, RelayError> {
        let bind = |source| RelayError::Bind { path: path.to_owned(), source };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(bind(error)),
            _ => {}
        }
        Ok(Self { listener: UnixListener::bind(path).map_err(bind)?, path: path.to_owned() })
    }

    /// Lets `uid` connect.
    ///
    /// # Errors
    /// [`RelayError::Bind`].
    pub fn admit(&self, uid: u32, gid: u32) -> Result<(), RelayError> {
        std::os::unix::fs::chown(&self.path, Some(uid), Some(gid))
            .map_err(|source| RelayError::Bind { path: self.path.clone(), source })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Passes on one connection to `target` until `target` closes it; then runs `gate`, then closes the origin's side.
    /// Blocks this thread.
    ///
    /// # Errors
    /// [`RelayError`]; the gate has not run then.
    pub fn run(self, target: &Path, limit: Duration, gate: impl FnOnce()) -> Result<(), RelayError> {
        let until = Instant::now() + limit;
        let broken = |what| move |source: io::Error| RelayError::Broken { what, source };
        if !wait(&[self.listener.as_fd()], until)?.contains(&0) {
            return Err(RelayError::Late(limit));
        }
        let (origin, _) = self.listener.accept().map_err(broken("accept the old VMM"))?;
        let passed = pass_all(&origin, target, until, limit);
        hear_out(&origin, if matches!(passed, Ok(End::Read)) { PAUSE } else { SILENCE });
        passed.map(|_| gate())
    }
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Its sender had read everything there was for it.
    Read,
    /// Its sender closed it with something unread, as one that dies does.
    Unread,
}

/// Both ways, until `target` has closed its side.
fn pass_all(origin: &UnixStream, target: &Path, until: Instant, limit: Duration) -> Result<End, RelayError> {
    let broken = |what| move |source: io::Error| RelayError::Broken { what, source };
    let target = UnixStream::connect(target).map_err(broken("connect to the new VMM"))?;
    let mut origin_open = true;
    loop {
        let watched: &[BorrowedFd<'_>] =
            if origin_open { &[target.as_fd(), origin.as_fd()] } else { &[target.as_fd()] };
        let ready = wait(watched, until)?;
        if ready.is_empty() {
            return Err(RelayError::Late(limit));
        }
        if ready.contains(&1) {
            origin_open = pass(origin, &target).map_err(broken("pass on"))?.is_none();
            if !origin_open {
                target.shutdown(Shutdown::Write).map_err(broken("pass on the end"))?;
            }
        }
        if ready.contains(&0)
            && let Some(end) = pass(&target, origin).map_err(broken("pass back"))?
        {
            return Ok(end);
        }
    }
}

/// Reads what the origin still says to a target that is gone, until it has said nothing for a while. A VMM that writes into a channel whose other
/// end has closed may end at that (QEMU 11.1: SIGSEGV after "Unable to write to socket: Broken pipe"), and the VM with it.
fn hear_out(mut origin: &UnixStream, mut silence: Duration) {
    let until = Instant::now() + PATIENCE;
    let mut bytes = [0; 16 << 10];
    // Bytes alone: the kernel closes descriptors that nobody takes.
    while Instant::now() < until
        && wait(&[origin.as_fd()], Instant::now() + silence).is_ok_and(|ready| !ready.is_empty())
        && origin.read(&mut bytes).is_ok_and(|count| count > 0)
    {
        silence = SILENCE;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Nothing to be done about a failure; `bind` removes what is left.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The indices of what can be read, or has ended.
fn wait(fds: &[BorrowedFd<'_>], until: Instant) -> Result<Vec<usize>, RelayError> {
    let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let left = until.saturating_duration_since(Instant::now());
    let timeout =
        Timespec { tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
    match rustix::event::poll(&mut polled, Some(&timeout)) {
        Ok(_) => {
            Ok(polled.iter().enumerate().filter(|(_, p)| !p.revents().is_empty()).map(|(index, _)| index).collect())
        }
        Err(errno) => Err(RelayError::Broken { what: "wait", source: errno.into() }),
    }
}

/// Passes one message on, with its descriptors; how the stream ended where there was none.
fn pass(from: &UnixStream, to: &UnixStream) -> io::Result<Option<End>> {
    let mut bytes = [0; 16 << 10];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(from, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::CONNRESET) => return Ok(Some(End::Unread)),
            other => other?.bytes,
        }
    };
    let fds: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|part| match part {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds.collect::<Vec<_>>()),
            _ => None,
        })
        .flatten()
        .collect();
    if received == 0 {
        return Ok(Some(End::Read));
    }
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other("more descriptors in one message than were made room for"));
    }
    let sent = rustix::net::sendmsg(to, &[IoSlice::new(&bytes[..received])], &mut ancillary, SendFlags::NOSIGNAL)?;
    let mut to = to;
    to.write_all(&bytes[sent..received])?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn send_with_fd(stream: &UnixStream, bytes: &[u8], fd: BorrowedFd<'_>) {
        let fds = [fd];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::empty()).unwrap();
    }

    #[test]
    fn descriptors_pass_and_the_gate_runs_before_the_origin_sees_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let (here, there) = (dir.path().join("relay"), dir.path().join("target"));
        let target = UnixListener::bind(&there).unwrap();
        let relay = Relay::bind(&here).unwrap();
        let (passed, gate) = mpsc::channel();
        let running = std::thread::spawn(move || {
            relay.run(&there, Duration::from_secs(10), || passed.send(Instant::now()).unwrap())
        });
        let mut origin = UnixStream::connect(&here).unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        send_with_fd(&origin, b"state", writer.as_fd());
        drop(writer);
        let (new_vmm, _) = target.accept().unwrap();
        let mut bytes = [0; 5];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        rustix::net::recvmsg(&new_vmm, &mut slices, &mut ancillary, RecvFlags::empty()).unwrap();
        assert_eq!(&bytes, b"state");
        let fds: Vec<OwnedFd> = ancillary
            .drain()
            .filter_map(
                |m| if let RecvAncillaryMessage::ScmRights(fds) = m { Some(fds.collect::<Vec<_>>()) } else { None },
            )
            .flatten()
            .collect();
        rustix::io::write(&fds[0], b"through").unwrap();
        drop(fds);
        assert!(gate.try_recv().is_err(), "the gate must wait for the new VMM");
        drop(new_vmm);
        let mut rest = Vec::new();
        origin.read_to_end(&mut rest).unwrap();
        let end_seen = Instant::now();
        assert!(gate.try_recv().unwrap() <= end_seen);
        running.join().unwrap().unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        assert!(!here.exists());
    }

    #[test]
    fn an_origin_whose_target_is_gone_is_heard_out() {
        for reads in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let (here, there) = (dir.path().join("relay"), dir.path().join("target"));
            let target = UnixListener::bind(&there).unwrap();
            let relay = Relay::bind(&here).unwrap();
            let running = std::thread::spawn(move || relay.run(&there, Duration::from_secs(10), || ()));
            let mut origin = UnixStream::connect(&here).unwrap();
            origin.write_all(b"first").unwrap();
            let (mut new_vmm, _) = target.accept().unwrap();
            if reads {
                new_vmm.read_exact(&mut [0; 5]).unwrap();
            }
            // More than its socket takes at once: it is still writing when the other side is gone.
            let mut writer = origin.try_clone().unwrap();
            let (full, is_full) = mpsc::channel();
            let writing = std::thread::spawn(move || {
                writer.set_nonblocking(true)?;
                while writer.write(&[0; 16 << 10]).is_ok() {}
                writer.set_nonblocking(false)?;
                full.send(()).unwrap();
                writer.write_all(&vec![0; 4 << 20])
            });
            is_full.recv().unwrap();
            if reads {
                new_vmm.read_exact(&mut [0; 1 << 10]).unwrap();
            }
            drop((new_vmm, target));
            writing.join().unwrap().unwrap();
            assert_eq!(origin.read(&mut [0; 1]).unwrap(), 0, "it is told that nobody is there, afterwards");
            drop(running.join().unwrap());
        }
    }

    #[test]
    fn a_relay_that_nobody_uses_gives_up() {
        let dir = tempfile::tempdir().unwrap();
        let relay = Relay::bind(&dir.path().join("relay")).unwrap();
        let result = relay.run(&dir.path().join("target"), Duration::from_millis(20), || panic!("no gate"));
        assert!(matches!(result, Err(RelayError::Late(_))));
    }
}
