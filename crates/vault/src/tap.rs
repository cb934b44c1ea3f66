//! Tap devices, one per VMM, and vhost-net.
//!
//! A tap outlives every process: it is *persistent*, and the agent keeps a descriptor of its queue beside the VMM's. It is made for
//! several queues so that it can be opened again while it is in use, to be deleted or looked at; two VMMs never share
//! one: QEMU sets header length and offloads as it starts, and these belong to the device, not to the queue.
//!
//! Frames in a queue that is detached are dropped by the kernel.

#![expect(unsafe_code, reason = "the ioctls of /dev/net/tun are in no safe library")]

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{IntegerSetter, Opcode, Setter, Updater, opcode};
use rustix::net::{AddressFamily, SocketType};
use serde::{Deserialize, Serialize};

/// Longest name of a network device, in bytes (Linux `IFNAMSIZ` less the terminator).
pub const MAX_NAME: usize = 15;

// linux/if_tun.h
const TUNSETIFF: Opcode = opcode::write::<libc::c_int>(b'T', 202);
const TUNSETPERSIST: Opcode = opcode::write::<libc::c_int>(b'T', 203);
const TUNSETOWNER: Opcode = opcode::write::<libc::c_int>(b'T', 204);
const TUNGETIFF: Opcode = opcode::read::<libc::c_uint>(b'T', 210);
const TUNSETQUEUE: Opcode = opcode::write::<libc::c_int>(b'T', 217);
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_ATTACH_QUEUE: u16 = 0x0200;
const IFF_DETACH_QUEUE: u16 = 0x0400;
const FLAGS: u16 = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE;

/// A frame with its header for offloads, at its largest: 64 KiB of segments that were not cut yet.
const MAX_FRAME: usize = 65_536 + 64;

/// `struct ifreq` as far as tun uses it: a name, then flags in a union of 24 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
struct IfReq {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// The name of a tap: 1 to 15 letters, digits, `-`, `_` or `.`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TapName(String);

impl TapName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TapName {
    type Err = TapError;
    fn from_str(text: &str) -> Result<Self, TapError> {
        let fits = (1..=MAX_NAME).contains(&text.len()) && text != "." && text != "..";
        // `%` would make the kernel choose a name, `/` and `:` are refused by it.
        if fits && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            Ok(Self(text.to_owned()))
        } else {
            Err(TapError::Name(text.to_owned()))
        }
    }
}

impl TryFrom<String> for TapName {
    type Error = TapError;
    fn try_from(text: String) -> Result<Self, TapError> {
        text.parse()
    }
}

impl From<TapName> for String {
    fn from(name: TapName) -> String {
        name.0
    }
}

impl fmt::Display for TapName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why something could not be done with a tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// Not a name of a network device.
    #[error("`{0}` is not the name of a network device; use 1 to {MAX_NAME} letters, digits, `-`, `_` or `.`")]
    Name(String),
    /// The name is taken by a device of another kind, or by a tap of other features.
    #[error("network device {0} exists and is not a multi-queue tap of ours; delete it or use another name")]
    Taken(TapName),
    /// Another process has the tap and it has no queue left (the kernel allows 256).
    #[error("tap {0} has no free queue: something opens queues without closing them")]
    NoQueue(TapName),
    /// A system call failed.
    #[error("{subject}: {what}: {source}")]
    System {
        /// The tap or the device file.
        subject: String,
        /// What was being done.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// One queue of a tap, attached when made: frames arrive in it and frames written to it leave.
#[derive(Debug)]
pub struct Queue {
    fd: OwnedFd,
    name: TapName,
}

fn open_device(path: &'static str) -> Result<OwnedFd, TapError> {
    rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
        .map_err(|errno| TapError::System { subject: path.to_owned(), what: "open", source: errno.into() })
}

fn request(name: &str, flags: u16) -> IfReq {
    let mut bytes = [0; 16];
    // `TapName` is at most 15 bytes, so a terminator is always left.
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    IfReq { name: bytes, flags, rest: [0; 22] }
}

/// Whether a network device of this name exists.
#[must_use]
pub fn exists(name: &TapName) -> bool {
    // Any socket will do to ask; not /sys, which shows the network namespace it was mounted in.
    rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None)
        .and_then(|socket| rustix::net::netdevice::name_to_index(socket, name.as_str()))
        .is_ok()
}

/// Opens a queue of the tap, making the tap when it does not exist. It is not yet persistent, and down.
///
/// # Errors
/// [`TapError::Taken`], [`TapError::NoQueue`], or the kernel's reason (needs `CAP_NET_ADMIN`).
pub fn open_queue(name: &TapName) -> Result<Queue, TapError> {
    let fd = open_device("/dev/net/tun")?;
    let mut ifreq = request(name.as_str(), FLAGS);
    // SAFETY: TUNSETIFF reads and writes one `struct ifreq` of 40 bytes, which `IfReq` is (checked below).
    let result = unsafe { rustix::ioctl::ioctl(&fd, Updater::<TUNSETIFF, IfReq>::new(&mut ifreq)) };
    match result {
        Ok(()) => Ok(Queue { fd, name: name.clone() }),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::BUSY) => Err(TapError::Taken(name.clone())),
        Err(rustix::io::Errno::TOOBIG) => Err(TapError::NoQueue(name.clone())),
        Err(errno) => Err(TapError::System { subject: format!("tap {name}"), what: "open", source: errno.into() }),
    }
}

const _: () = assert!(size_of::<IfReq>() == 40, "struct ifreq is 40 bytes on 64-bit Linux");

/// Makes a persistent tap that `owner` may open again without privileges, and opens its first queue.
///
/// # Errors
/// As [`open_queue`]; a tap that could not be made persistent is gone again.
pub fn create(name: &TapName, owner: Option<u32>) -> Result<Queue, TapError> {
    let queue = open_queue(name)?;
    if let Some(uid) = owner {
        // SAFETY: TUNSETOWNER takes a uid by value.
        let call = unsafe { IntegerSetter::<TUNSETOWNER>::new_usize(uid as usize) };
        queue.control("set its owner", call)?;
    }
    queue.set_persistent(true)?;
    Ok(queue)
}

/// Deletes a tap; nothing when there is none. A queue that some process still holds keeps the device until it closes.
///
/// # Errors
/// [`TapError::Taken`] when the name belongs to something else: it is left alone.
pub fn delete(name: &TapName) -> Result<(), TapError> {
    if !exists(name) {
        return Ok(());
    }
    open_queue(name)?.set_persistent(false)
}

/// Opens `/dev/vhost-net`: one per VMM, the kernel moves the frames of a NIC.
///
/// # Errors
/// The kernel's reason; the module is `vhost_net`.
pub fn open_vhost_net() -> Result<OwnedFd, TapError> {
    open_device("/dev/vhost-net")
}

impl Queue {
    /// The tap's name.
    #[must_use]
    pub const fn name(&self) -> &TapName {
        &self.name
    }

    /// Takes a descriptor recovered from elsewhere as a queue of `name`.
    ///
    /// # Errors
    /// [`TapError::Taken`] when it is a queue of another device.
    pub fn adopt(name: &TapName, fd: OwnedFd) -> Result<Self, TapError> {
        let mut ifreq = request("", 0);
        // SAFETY: TUNGETIFF writes one `struct ifreq`, despite the `unsigned int` in its number.
        unsafe { rustix::ioctl::ioctl(&fd, Updater::<TUNGETIFF, IfReq>::new(&mut ifreq)) }.map_err(|errno| {
            TapError::System {
                subject: format!("descriptor offered as tap {name}"),
                what: "ask its device",
                source: errno.into(),
            }
        })?;
        if ifreq.name[..name.0.len()] == *name.0.as_bytes() && ifreq.name[name.0.len()] == 0 {
            Ok(Self { fd, name: name.clone() })
        } else {
            Err(TapError::Taken(name.clone()))
        }
    }

    /// Starts or stops delivery into this queue. Detaching drops the frames that wait in it.
    ///
    /// # Errors
    /// `EINVAL` when it is already so.
    pub fn set_attached(&self, attached: bool) -> Result<(), TapError> {
        let ifreq = request("", if attached { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE });
        // SAFETY: TUNSETQUEUE reads one `struct ifreq`.
        let call = unsafe { Setter::<TUNSETQUEUE, IfReq>::new(ifreq) };
        self.control(if attached { "attach a queue" } else { "detach a queue" }, call)
    }

    /// Whether frames wait in this queue, or a VMM has not yet read all.
    #[must_use]
    pub fn has_frames(&self) -> bool {
        let mut watched = [rustix::event::PollFd::new(&self.fd, rustix::event::PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(rustix::event::poll(&mut watched, Some(&now)), Ok(1..))
    }

    /// Sends every frame that waits here back to where it came from, as if the device had sent it: a bridge then takes it to
    /// whoever has its address now. Only for a queue that nobody else reads any more. How many there were.
    ///
    /// # Errors
    /// The kernel's reason; frames that still wait stay.
    pub fn send_back(&self) -> io::Result<usize> {
        let mut frame = vec![0; MAX_FRAME];
        let mut count = 0;
        while self.has_frames() {
            let length = rustix::io::read(&self.fd, &mut frame)?;
            rustix::io::write(&self.fd, &frame[..length])?;
            count += 1;
        }
        Ok(count)
    }

    /// A second descriptor of the same queue.
    ///
    /// # Errors
    /// The kernel's reason (no descriptor left).
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, name: self.name.clone() })
    }

    fn set_persistent(&self, persistent: bool) -> Result<(), TapError> {
        // SAFETY: TUNSETPERSIST takes a truth value by value.
        let call = unsafe { IntegerSetter::<TUNSETPERSIST>::new_usize(usize::from(persistent)) };
        self.control("make it persistent or not", call)
    }

    fn control<I: rustix::ioctl::Ioctl>(&self, what: &'static str, call: I) -> Result<I::Output, TapError> {
        // SAFETY: the callers in this module build `call` from the number and type of one tun ioctl, and the
        // descriptor is a tun queue.
        unsafe { rustix::ioctl::ioctl(&self.fd, call) }.map_err(|errno| TapError::System {
            subject: format!("tap {}", self.name),
            what,
            source: errno.into(),
        })
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Queue> for OwnedFd {
    fn from(queue: Queue) -> Self {
        queue.fd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_the_kernel_takes_literally_are_names() {
        for text in ["", "a/b", "tap%d", "sixteen-letters-", ".", "..", "a b", "a:1"] {
            assert!(matches!(text.parse::<TapName>(), Err(TapError::Name(_))), "{text}");
        }
        assert_eq!("fm-0a1b2c3d-0".parse::<TapName>().unwrap().as_str(), "fm-0a1b2c3d-0");
    }

    /// Runs the named test again inside a network namespace of its own, where it may do what it likes; whether this is
    /// the outer run, which has nothing left to do.
    fn in_own_network(test: &str) -> bool {
        const INSIDE: &str = "FERMATA_TEST_OWN_NETWORK";
        if std::env::var_os(INSIDE).is_some() {
            return false;
        }
        let output = std::process::Command::new("unshare")
            .args(["--user", "--map-root-user", "--net"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        // Where a person has no access to the device, nothing can be shown here; the lab shows it then.
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        true
    }

    #[test]
    fn a_tap_outlives_its_queues_and_goes_when_deleted() {
        if open_device("/dev/net/tun").is_err()
            || in_own_network("tap::tests::a_tap_outlives_its_queues_and_goes_when_deleted")
        {
            return;
        }
        let name: TapName = "fm-test-0".parse().unwrap();
        assert!(!exists(&name));
        drop(create(&name, Some(0)).unwrap());
        assert!(exists(&name));
        let first = open_queue(&name).unwrap();
        let second = open_queue(&name).unwrap();
        second.set_attached(false).unwrap();
        second.set_attached(true).unwrap();
        assert!(second.set_attached(true).is_err());
        let again = Queue::adopt(&name, second.as_fd().try_clone_to_owned().unwrap()).unwrap();
        assert!(!again.has_frames());
        let other = "fm-test-00".parse().unwrap();
        assert!(matches!(Queue::adopt(&other, first.as_fd().try_clone_to_owned().unwrap()), Err(TapError::Taken(_))));
        assert!(matches!(create(&"lo".parse().unwrap(), None), Err(TapError::Taken(_))));
        delete(&name).unwrap();
        assert!(exists(&name), "a queue is still open");
        drop((first, second, again));
        assert!(!exists(&name));
        delete(&name).unwrap();
    }

    #[test]
    fn frames_nobody_read_go_back_to_the_kernel() {
        if open_device("/dev/net/tun").is_err()
            || in_own_network("tap::tests::frames_nobody_read_go_back_to_the_kernel")
        {
            return;
        }
        let queue = create(&"fm-test-1".parse().unwrap(), Some(0)).unwrap();
        for words in [&["addr", "add", "10.9.9.1/24", "dev", "fm-test-1"][..], &["link", "set", "fm-test-1", "up"]] {
            assert!(std::process::Command::new("ip").args(words).status().unwrap().success());
        }
        // Somebody is looked for by ARP.
        std::net::UdpSocket::bind("10.9.9.1:0").unwrap().send_to(b"x", "10.9.9.2:9").unwrap();
        let sent_back = queue.send_back().unwrap();
        assert!(sent_back > 0);
        let table = std::fs::read_to_string("/proc/net/dev").unwrap();
        let line = table.lines().find(|line| line.trim_start().starts_with("fm-test-1:")).unwrap();
        let received = line.split_whitespace().nth(2).unwrap();
        assert_eq!(received, sent_back.to_string(), "{table}");
        delete(&"fm-test-1".parse().unwrap()).unwrap();
    }
}
