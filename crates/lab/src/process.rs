//! Detached processes: started by one program, found and ended by another.
//!
//! A process is known by its id *and* its start time, so that an id that was given out again is never taken for ours; it is
//! ended through a pidfd that was opened before the start time was compared.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::OwnedFd,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};

/// A process that outlives the program that started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Start time in clock ticks since boot, field 22 of `/proc/PID/stat` (proc(5)).
    pub started: u64,
}

impl Process {
    /// The process with an id that is known to be running now.
    ///
    /// # Errors
    /// There is none.
    pub fn of(pid: u32) -> Result<Self> {
        let started = start_time(pid).with_context(|| format!("process {pid} is gone"))?;
        Ok(Self { pid, started })
    }

    /// The process whose id a pid file holds.
    ///
    /// # Errors
    /// No such file, or no such process.
    pub fn of_pid_file(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Self::of(text.trim().parse().with_context(|| format!("{} holds no process id", path.display()))?)
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// Ends it and waits until it is gone; not running is fine.
    ///
    /// # Errors
    /// It may not be signalled, or does not go away.
    pub fn kill(&self) -> Result<()> {
        let Some(pidfd) = self.pidfd() else { return Ok(()) };
        match pidfd_send_signal(&pidfd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("end process {}", self.pid)),
        }
        let mut watched = [PollFd::new(&pidfd, PollFlags::IN)];
        let gone = poll(&mut watched, Some(&Timespec::try_from(Duration::from_secs(20))?))?;
        anyhow::ensure!(gone == 1, "process {} did not end within 20 s of SIGKILL", self.pid);
        Ok(())
    }

    fn pidfd(&self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(self.pid.cast_signed())?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        self.is_alive().then_some(pidfd)
    }
}

fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name, in parentheses, may hold spaces: count from its end. Field 3 is the first after it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if fields.first() == Some(&"Z") {
        return None;
    }
    fields.get(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_ended_for_certain() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        assert!(process.is_alive());
        process.kill().unwrap();
        assert!(!process.is_alive());
        child.wait().unwrap();
    }

    #[test]
    fn another_process_with_the_same_id_is_left_alone() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process { started: 1, ..Process::of(child.id()).unwrap() };
        process.kill().unwrap();
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
