//! VMs that stand come before VMs that run: what restores them gets most of the processor as long as there is no service manager.
//!
//! ```text
//!  first program: agent started urgent ─► VMM (inherits it) loads its VM ─► RESUME ─► as any other
//! ```
//!
//! Where processors are few, VMs that run again took them from those still to be loaded: of eight on an emulated processor the first two
//! stood for 10 s and the last two for 34 s. Before the service manager there is one group of all processes for the scheduler, so a plain
//! priority is enough (sched(7)); later the weights of units say it.

use std::fs;

use rustix::process::{Pid, getpriority_process, setpriority_process};

/// About nine times the share of others (Linux, `sched_prio_to_weight`): VMs that run again still get a part.
const URGENT: i32 = -10;

/// Starts something urgent: whatever it starts is urgent, too.
pub(super) fn started<T>(start: impl FnOnce() -> T) -> T {
    // What cannot be urgent is as any other.
    setpriority_process(None, URGENT).ok();
    let started = start();
    setpriority_process(None, 0).ok();
    started
}

/// A process of this agent's is urgent no longer. One that never was stays as it is, whatever somebody made of it.
pub(crate) fn ends(pid: i32) {
    let Some(process) = Pid::from_raw(pid) else { return };
    if getpriority_process(Some(process)) != Ok(URGENT) {
        return;
    }
    // A priority is a thread's own, and a thread gets that of the one that makes it: until all have been seen.
    let is_urgent = |thread: &Pid| getpriority_process(Some(*thread)) == Ok(URGENT);
    while threads(pid).any(|thread| is_urgent(&thread) && setpriority_process(Some(thread), 0).is_ok()) {}
}

fn threads(pid: i32) -> impl Iterator<Item = Pid> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| Pid::from_raw(task.file_name().to_str()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn what_is_started_urgent_ends_to_be_with_all_its_threads() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        // On a thread of its own, as priorities are a thread's.
        let mut child = std::thread::spawn(|| {
            let mut command = Command::new("sleep");
            let child = started(|| command.arg("60").stdin(Stdio::null()).spawn()).unwrap();
            assert_eq!(getpriority_process(None), Ok(0));
            child
        })
        .join()
        .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let of = |pid| getpriority_process(Pid::from_raw(pid)).unwrap();
        assert_eq!(of(pid), URGENT);
        ends(pid);
        assert_eq!(of(pid), 0);
        setpriority_process(Pid::from_raw(pid), 5).unwrap();
        ends(pid);
        assert_eq!(of(pid), 5, "an operator's own choice");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
