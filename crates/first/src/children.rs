//! Processes of the first program's, awaited by their ends and never longer than a limit: the host must come up also when one hangs.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Where programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Between two looks at what no descriptor tells of: orphans to collect, an agent that was stopped, a limit that is over.
const LOOK: Duration = Duration::from_millis(100);

/// What a child says goes to the kernel's log, which the journal takes in later.
pub(crate) fn quiet(mut command: Command) -> Command {
    command.env("PATH", PATH).stdin(Stdio::null()).stdout(Stdio::null());
    if let Ok(log) = OpenOptions::new().write(true).open("/dev/kmsg") {
        command.stderr(log);
    }
    command
}

/// Waits for processes, not longer than `limit`.
pub(crate) fn await_all(children: &mut [Child], limit: Duration) {
    let until = Instant::now() + limit;
    while Instant::now() < until {
        // All of them are asked: what has ended and was not collected would not be waited for.
        let running =
            children.iter_mut().filter_map(|child| matches!(child.try_wait(), Ok(None)).then(|| pid_of(child)));
        let running: Vec<Pid> = running.flatten().collect();
        if running.is_empty() {
            return;
        }
        rest(&running);
    }
}

/// Waits for one; whether it ended well in that time.
pub(crate) fn ends_well(child: Child, limit: Duration) -> bool {
    let mut one = [child];
    await_all(&mut one, limit);
    let [child] = &mut one;
    child.try_wait().is_ok_and(|ended| ended.is_some_and(|status| status.success()))
}

pub(crate) fn pid_of(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

/// Until one of these processes ends, or it is time to look.
pub(crate) fn rest(processes: &[Pid]) {
    let ends = processes.iter().filter_map(|pid| pidfd_open(*pid, PidfdFlags::empty()).ok());
    let ends: Vec<OwnedFd> = ends.collect();
    let mut polled: Vec<PollFd<'_>> = ends.iter().map(|end| PollFd::new(end, PollFlags::IN)).collect();
    let look = Timespec { tv_sec: 0, tv_nsec: LOOK.subsec_nanos().into() };
    // Whatever it says, whoever asked looks.
    poll(&mut polled, Some(&look)).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_waited_for_by_their_ends_and_not_longer_than_the_limit() {
        let sleep = |seconds: &str| Command::new("sleep").arg(seconds).spawn().unwrap();
        let (began, limit) = (Instant::now(), Duration::from_secs(5));
        let mut all = [sleep("0"), sleep("0.2")];
        await_all(&mut all, limit);
        assert!(all.iter_mut().all(|child| matches!(child.try_wait(), Ok(Some(_)))) && began.elapsed() < limit);
        let mut hangs = [sleep("0"), sleep("60")];
        await_all(&mut hangs, Duration::from_millis(300));
        assert!(matches!(hangs[1].try_wait(), Ok(None)), "given up, not ended");
        hangs[1].kill().unwrap();
        hangs[1].wait().unwrap();
        assert!(ends_well(sleep("0"), limit) && !ends_well(sleep("no such time"), limit));
    }
}
