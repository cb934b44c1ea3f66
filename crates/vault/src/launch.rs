//! Starting a program inside a unit with descriptors that the agent owns.
//!
//! systemd starts the VM's unit (its cgroup, its user, its limits), but it must not own the VM's descriptors. So the
//! unit's program is a launcher, which fetches what to become over a unix socket:
//!
//! ```text
//!  agent                                   unit of the VM
//!    Door::bind(path)
//!    (starts the unit) ------------------> vmm-exec --socket path
//!    Door::accept <------- connect ------- receive_and_exec(path)
//!      peer: pidfd, uid                        |
//!    Waiting::hand_over --- fds, argv --->     | descriptors moved to their numbers
//!         |                                    | exec
//!         | <----- end of stream -----  (socket is close-on-exec): it runs
//!         | <----- reason ------------  it could not: LaunchError::Refused
//! ```
//!
//! The launcher's pid is the program's pid, so the pidfd taken at [`Door::accept`] is the VMM's.
//!
//! On the wire: 8 bytes `FERMATA\x01`, the length of the body (u32, little endian), the number of descriptors (u32), all in
//! one message together with the descriptors (`SCM_RIGHTS`); then the body, a JSON [`Launch`] with target numbers.

#![expect(unsafe_code, reason = "dup2 onto a chosen number is in no safe library")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

use crate::process::{Process, ProcessError};

const MAGIC: [u8; 8] = *b"FERMATA\x01";
/// The most descriptors in one message (Linux `SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;
/// The most bytes of a body: far above any command line, far below what could hurt.
const MAX_BODY: u32 = 1 << 20;

/// What a launcher becomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// The program's file.
    pub program: PathBuf,
    /// Its arguments, without the name of the program.
    pub args: Vec<String>,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
}

/// On the wire.
#[derive(Serialize, Deserialize)]
struct Body {
    launch: Launch,
    targets: Vec<RawFd>,
}

/// Why a launch failed.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The socket's file.
    #[error("launch socket {path}: {what}: {source}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Nobody connected, or nothing came, in time.
    #[error("the launcher did not {what} within {limit:?}; see the unit's log")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit: Duration,
    },
    /// Talking failed.
    #[error("talking to the launcher: {what}: {source}")]
    Talk {
        /// What was being done.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The other side is not what it should be.
    #[error("the other side of the launch socket is not a launcher of this version: {0}")]
    Protocol(&'static str),
    /// Descriptor numbers that cannot be.
    #[error("descriptor numbers {0:?} cannot be used: each must be 3 or more, none twice, at most {MAX_FDS} of them")]
    Numbers(Vec<RawFd>),
    /// The launcher could not become the program.
    #[error("the launcher could not start {program}: {reason}")]
    Refused {
        /// The program.
        program: PathBuf,
        /// What the launcher said.
        reason: String,
    },
    /// The launcher (or the program) is gone.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

fn talk(what: &'static str) -> impl Fn(io::Error) -> LaunchError {
    move |source| LaunchError::Talk { what, source }
}

/// Where launchers connect. The socket's file is deleted when this is dropped.
#[derive(Debug)]
pub struct Door {
    listener: UnixListener,
    path: PathBuf,
}

impl Door {
    /// Listens at `path`, replacing a socket that a dead agent left there.
    ///
    /// # Errors
    /// [`LaunchError::Socket`]; paths longer than 107 bytes are none.
    pub fn bind(path: &Path) -> Result<Self, LaunchError> {
        let socket = |what| move |source| LaunchError::Socket { path: path.to_owned(), what, source };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(socket("remove the old one")(error)),
            _ => {}
        }
        let listener = UnixListener::bind(path).map_err(socket("listen"))?;
        listener.set_nonblocking(true).map_err(socket("listen"))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Lets `uid` connect (the socket is made for its owner only).
    ///
    /// # Errors
    /// [`LaunchError::Socket`].
    pub fn admit(&self, uid: u32, gid: u32) -> Result<(), LaunchError> {
        std::os::unix::fs::chown(&self.path, Some(uid), Some(gid)).map_err(|source| LaunchError::Socket {
            path: self.path.clone(),
            what: "give it to the VM's user",
            source,
        })
    }

    /// Waits for a launcher, on this thread.
    ///
    /// # Errors
    /// [`LaunchError::Timeout`] when none came within `limit`.
    pub fn accept(&self, limit: Duration) -> Result<Waiting, LaunchError> {
        if !readable(&self.listener, limit).map_err(talk("wait for it"))? {
            return Err(LaunchError::Timeout { what: "connect", limit });
        }
        let (stream, _) = self.listener.accept().map_err(talk("accept it"))?;
        stream.set_nonblocking(false).map_err(talk("accept it"))?;
        let credentials =
            rustix::net::sockopt::socket_peercred(&stream).map_err(|errno| talk("ask who it is")(errno.into()))?;
        // The peer waits for our message, so its pid is still its own.
        let process = Process::open(credentials.pid.as_raw_nonzero().get())?;
        Ok(Waiting { stream, process, uid: credentials.uid.as_raw() })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Nothing to be done about a failure; `bind` removes what is left.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A launcher that waits to be told what to become.
#[derive(Debug)]
pub struct Waiting {
    stream: UnixStream,
    process: Process,
    uid: u32,
}

impl Waiting {
    /// The launcher: the program-to-be.
    #[must_use]
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// The user it runs as.
    #[must_use]
    pub const fn uid(&self) -> u32 {
        self.uid
    }

    /// Tells the launcher what to become and lends it the descriptors under the given numbers. Returns when the program
    /// has been started.
    ///
    /// # Errors
    /// [`LaunchError::Refused`] with the launcher's reason; [`LaunchError::Timeout`] after `limit`.
    pub fn hand_over(
        self,
        launch: &Launch,
        fds: &[(RawFd, BorrowedFd<'_>)],
        limit: Duration,
    ) -> Result<Process, LaunchError> {
        check_numbers(&fds.iter().map(|(target, _)| *target).collect::<Vec<_>>())?;
        self.stream.set_write_timeout(Some(limit)).map_err(talk("set a time limit"))?;
        self.stream.set_read_timeout(Some(limit)).map_err(talk("set a time limit"))?;
        send(&self.stream, launch, fds)?;
        let mut reason = String::new();
        match (&self.stream).take(4096).read_to_string(&mut reason) {
            Ok(0) if self.process.is_alive() => Ok(self.process),
            Ok(0) => Err(ProcessError::Gone { pid: self.process.pid() }.into()),
            Ok(_) => Err(LaunchError::Refused { program: launch.program.clone(), reason }),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                Err(LaunchError::Timeout { what: "start the program", limit })
            }
            Err(source) => Err(LaunchError::Talk { what: "wait for the program", source }),
        }
    }
}

fn check_numbers(targets: &[RawFd]) -> Result<(), LaunchError> {
    let distinct: BTreeSet<_> = targets.iter().collect();
    if distinct.len() == targets.len() && targets.len() <= MAX_FDS && targets.iter().all(|fd| (3..1024).contains(fd)) {
        Ok(())
    } else {
        Err(LaunchError::Numbers(targets.to_vec()))
    }
}

fn readable(fd: impl AsFd, limit: Duration) -> io::Result<bool> {
    let timeout =
        Timespec { tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: limit.subsec_nanos().into() };
    Ok(rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout))? > 0)
}

fn send(stream: &UnixStream, launch: &Launch, fds: &[(RawFd, BorrowedFd<'_>)]) -> Result<(), LaunchError> {
    let (targets, borrowed): (Vec<RawFd>, Vec<BorrowedFd<'_>>) = fds.iter().copied().unzip();
    let body = serde_json::to_vec(&Body { launch: launch.clone(), targets })
        .map_err(|error| talk("write what to start")(error.into()))?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|length| *length <= MAX_BODY)
        .ok_or(LaunchError::Protocol("the command line is longer than a mebibyte"))?;
    let count = u32::try_from(fds.len()).map_err(|_| LaunchError::Protocol("too many descriptors"))?;
    let header = [&MAGIC[..], &length.to_le_bytes(), &count.to_le_bytes()].concat();

    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(LaunchError::Protocol("too many descriptors"));
    }
    let sent = rustix::net::sendmsg(stream, &[IoSlice::new(&header)], &mut ancillary, SendFlags::NOSIGNAL)
        .map_err(|errno| talk("send the descriptors")(errno.into()))?;
    let mut stream = stream;
    stream.write_all(&header[sent..]).map_err(talk("send the header"))?;
    stream.write_all(&body).map_err(talk("send what to start"))
}

fn receive(stream: &UnixStream) -> Result<(Launch, Vec<(RawFd, OwnedFd)>), LaunchError> {
    let mut header = [0; 16];
    let mut filled = 0;
    let mut fds = Vec::new();
    while filled < header.len() {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut header[filled..])];
        let message = rustix::net::recvmsg(stream, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
            .map_err(|errno| talk("receive the descriptors")(errno.into()))?;
        for part in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = part {
                fds.extend(received);
            }
        }
        if message.bytes == 0 {
            return Err(LaunchError::Protocol("it closed the connection without a word"));
        }
        filled += message.bytes;
    }
    let (magic, numbers) = header.split_at(8);
    let number = |at: usize| u32::from_le_bytes([numbers[at], numbers[at + 1], numbers[at + 2], numbers[at + 3]]);
    if magic != MAGIC {
        return Err(LaunchError::Protocol("it speaks another language"));
    }
    if number(0) > MAX_BODY {
        return Err(LaunchError::Protocol("its message is longer than a mebibyte"));
    }
    if number(4) as usize != fds.len() {
        return Err(LaunchError::Protocol("descriptors are missing (is the limit of open files too low?)"));
    }
    let mut body = vec![0; number(0) as usize];
    let mut stream = stream;
    stream.read_exact(&mut body).map_err(talk("receive what to start"))?;
    let Body { launch, targets } =
        serde_json::from_slice(&body).map_err(|_| LaunchError::Protocol("its message cannot be read"))?;
    if targets.len() != fds.len() {
        return Err(LaunchError::Protocol("descriptors and their numbers do not match"));
    }
    check_numbers(&targets)?;
    Ok((launch, targets.into_iter().zip(fds).collect()))
}

/// Connects to the agent at `path`, becomes the program it names, with the descriptors it lends. Returns only on failure,
/// and tells the agent why.
///
/// Descriptors that were not asked for are closed on exec: all the launcher's own have that flag.
#[must_use]
pub fn receive_and_exec(path: &Path, limit: Duration) -> LaunchError {
    let stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(source) => return LaunchError::Socket { path: path.to_owned(), what: "connect", source },
    };
    // Tells the agent; it may be gone by now, but the unit's log gets the reason too.
    let refuse = |stream: &UnixStream, error: LaunchError| {
        let mut stream = stream;
        let _ = stream.write_all(error.to_string().as_bytes());
        error
    };
    let prepared = stream
        .set_read_timeout(Some(limit))
        .map_err(talk("set a time limit"))
        .and_then(|()| receive(&stream))
        .and_then(|(launch, fds)| Ok((out_of_the_way(&stream, &fds)?, fds, launch)));
    match prepared {
        Err(error) => refuse(&stream, error),
        Ok(((connection, moved), fds, launch)) => {
            // Their numbers may be asked for: whatever is put there is not theirs to close. Exec closes them.
            std::mem::forget(stream);
            fds.into_iter().for_each(|(_, fd)| std::mem::forget(fd));
            refuse(&connection, become_program(launch, &moved))
        }
    }
}

type Numbered = Vec<(RawFd, OwnedFd)>;

/// Copies the connection and all descriptors to numbers above those asked for.
fn out_of_the_way(stream: &UnixStream, fds: &[(RawFd, OwnedFd)]) -> Result<(UnixStream, Numbered), LaunchError> {
    let above = fds.iter().map(|(target, _)| *target + 1).max().unwrap_or(3);
    let copy = |fd: BorrowedFd<'_>| {
        rustix::io::fcntl_dupfd_cloexec(fd, above).map_err(|errno| talk("make room for descriptors")(errno.into()))
    };
    let connection = UnixStream::from(copy(stream.as_fd())?);
    let moved = fds.iter().map(|(target, fd)| Ok((*target, copy(fd.as_fd())?))).collect::<Result<_, LaunchError>>()?;
    Ok((connection, moved))
}

fn become_program(launch: Launch, moved: &[(RawFd, OwnedFd)]) -> LaunchError {
    for (target, fd) in moved {
        // SAFETY: both are plain integers to the kernel. No Rust object owns `target`: `out_of_the_way` left all that
        // is still used above the targets, and the caller has forgotten what was below.
        if unsafe { libc::dup2(fd.as_raw_fd(), *target) } == -1 {
            return talk("move a descriptor to its number")(io::Error::last_os_error());
        }
    }
    let failure = Command::new(&launch.program).args(&launch.args).env_clear().envs(&launch.env).exec();
    LaunchError::Refused { program: launch.program, reason: failure.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Stdio};

    const LIMIT: Duration = Duration::from_secs(30);
    const ROLE: &str = "FERMATA_TEST_LAUNCHER";

    /// Not a promise: the launcher's side, in a process of its own.
    #[test]
    fn launcher() {
        if let Some(path) = std::env::var_os(ROLE) {
            let error = receive_and_exec(Path::new(&path), LIMIT);
            eprintln!("{error}");
            std::process::exit(127);
        }
    }

    fn start_launcher(path: &Path) -> Child {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "launch::tests::launcher", "--nocapture"])
            .env(ROLE, path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn shell(script: &str) -> Launch {
        Launch {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            env: BTreeMap::from([("WHO".to_owned(), "guest".to_owned())]),
        }
    }

    #[test]
    fn the_program_runs_with_the_lent_descriptors_under_their_numbers_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("door");
        let door = Door::bind(&path).unwrap();
        let mut child = start_launcher(&path);
        let waiting = door.accept(LIMIT).unwrap();
        assert_eq!(waiting.process().pid().cast_unsigned(), child.id());

        let (mut output, to_us) = io::pipe().unwrap();
        let (from_us, mut input) = io::pipe().unwrap();
        // Low numbers collide with those under which the launcher received the descriptors.
        let fds = [(4, from_us.as_fd()), (3, to_us.as_fd())];
        let script = "read line <&4; echo $line $WHO >&3; list=$(readlink /proc/$$/fd/*); echo \"$list\" >&3";
        let process = waiting.hand_over(&shell(script), &fds, LIMIT).unwrap();
        assert_eq!(process.pid().cast_unsigned(), child.id());
        drop(to_us);
        input.write_all(b"hello\n").unwrap();
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        let (greeting, descriptors) = text.split_once('\n').unwrap();
        assert_eq!(greeting, "hello guest");
        for ours in [output.as_raw_fd(), input.as_raw_fd()] {
            let pipe = std::fs::read_link(format!("/proc/self/fd/{ours}")).unwrap();
            let times = descriptors.lines().filter(|line| Path::new(line) == pipe).count();
            assert_eq!(times, 1, "{} in {descriptors}", pipe.display());
        }
        assert!(!descriptors.contains("socket:"), "the connection to the agent is closed: {descriptors}");
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn a_program_that_cannot_start_is_refused_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("door");
        let door = Door::bind(&path).unwrap();
        let mut child = start_launcher(&path);
        let launch = Launch { program: "/nowhere/qemu".into(), ..shell("") };
        let null = std::fs::File::open("/dev/null").unwrap();
        let fds: Vec<_> = (3..40).map(|number| (number, null.as_fd())).collect();
        let error = door.accept(LIMIT).unwrap().hand_over(&launch, &fds, LIMIT).unwrap_err();
        assert!(matches!(&error, LaunchError::Refused { reason, .. } if reason.contains("No such file")), "{error}");
        assert_eq!(child.wait().unwrap().code(), Some(127));
    }

    #[test]
    fn a_launcher_that_never_comes_is_a_timeout_and_a_dead_one_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("door");
        let door = Door::bind(&path).unwrap();
        assert!(matches!(door.accept(Duration::from_millis(10)), Err(LaunchError::Timeout { .. })));
        let mut child = start_launcher(&path);
        let waiting = door.accept(LIMIT).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let error = waiting.hand_over(&shell("true"), &[], LIMIT).unwrap_err();
        assert!(matches!(error, LaunchError::Process(ProcessError::Gone { .. }) | LaunchError::Talk { .. }), "{error}");
        drop(door);
        assert!(!path.exists());
    }

    #[test]
    fn numbers_that_cannot_be_are_refused() {
        for targets in [vec![2], vec![3, 3], vec![-1], vec![1024], (3..400).collect()] {
            assert!(matches!(check_numbers(&targets), Err(LaunchError::Numbers(_))), "{targets:?}");
        }
        check_numbers(&[10, 3]).unwrap();
    }

    #[test]
    fn a_stranger_is_not_obeyed() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&theirs).write_all(b"GET / HTTP/1.1\r\n").unwrap();
        assert!(matches!(receive(&ours), Err(LaunchError::Protocol(_))));
        let (ours, theirs) = UnixStream::pair().unwrap();
        let header = [&MAGIC[..], &u32::MAX.to_le_bytes(), &0u32.to_le_bytes()].concat();
        (&theirs).write_all(&header).unwrap();
        assert!(matches!(receive(&ours), Err(LaunchError::Protocol(_))));
    }
}
