//! The agent's log while the host has no journal yet: the kernel's log, which the journal takes in later. As soon as there is a journal,
//! that.
//!
//! The service manager gives a service no log when the journal does not listen at its start, and a journal that starts with the agent
//! would take the processor from VMs that stand.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::linux::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Where the journal takes streams of lines.
const JOURNAL: &str = "/run/systemd/journal/stdout";
/// Between two looks for it: nothing announces it to those that have no bus.
const LOOK: Duration = Duration::from_millis(500);
/// How often it is looked for.
const LOOKS: u32 = 600;
/// The device that swallows everything (kernel documentation, `admin-guide/devices.txt`): major 1, minor 3.
const NULL: u64 = (1 << 8) | 3;

/// Whether what this process says goes nowhere.
fn is_mute() -> bool {
    let target = Path::new("/proc/self/fd/2").metadata();
    target.is_ok_and(|meta| meta.st_rdev() == NULL)
}

fn speak_to(target: impl AsFd) -> io::Result<()> {
    rustix::stdio::dup2_stdout(target.as_fd())?;
    Ok(rustix::stdio::dup2_stderr(target)?)
}

/// Opens the kernel's log where there is no other. Whether that was needed.
pub(super) fn to_the_kernel() -> bool {
    // Where not even that is to be had, nobody can be told.
    is_mute() && OpenOptions::new().write(true).open("/dev/kmsg").and_then(speak_to).is_ok()
}

/// A stream into the journal, as the service manager opens it for services: identifier, unit, priority (6, information), whether lines
/// carry a priority of their own, whether they are forwarded to syslog, the kernel's log and the console.
fn journal() -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(JOURNAL)?;
    stream.write_all(b"fermata\nfermata-agent.service\n6\n1\n0\n0\n0\n")?;
    Ok(stream)
}

/// Waits for the journal and speaks to it from then on.
pub(super) async fn to_the_journal() {
    for _ in 0..LOOKS {
        if Path::new(JOURNAL).exists() && journal().and_then(speak_to).is_ok() {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
    tracing::warn!("no journal; this stays in the kernel's log");
}
