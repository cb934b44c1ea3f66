//! Who gets the processors first where they are few: VMs that stand before VMs that run, and of those the one whose clock is put right.
//!
//! ```text
//!  after a jump   first program: agent started urgent ─► VMM (inherits it) loads its VM ─► RESUME ─► as any other
//!  in a swap      hand over ─► both VMMs and the agent urgent ─► RESUME ─► the VMM that has the VM for a moment more, left alone by the agent ─► as any other
//!  a clock        a turn (as many as processors) ─► its VMM urgent ─► message, answer ─► as any other ─► next one's turn
//! ```
//!
//! Where processors are few, VMs that run again took them from those still to be loaded: of eight on an emulated processor the first two
//! stood for 10 s and the last two for 34 s. Before the service manager there is one group of all processes for the scheduler, so a plain
//! priority is enough (sched(7)). Services have a group each (autogroups, sched(7)), and the group's priority counts as well. Where units
//! have weights (ours do, for a host's start), those count between them; among VMs, which are in one group then, priorities still do. What helps a VM against
//! this agent there is to be left alone for a moment.
//!
//! Invariant: what somebody else gave a priority keeps it, and what was made urgent here is urgent as long as one [`Urgent`] of it lives.

mod swap;
mod turn;

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Mutex, PoisonError};

use fermata_first::URGENT;
use rustix::process::{Pid, getpid, getpriority_process, setpriority_process};

pub(crate) use swap::{Haste, leave_alone};
pub(crate) use turn::{Turn, nobody_stands, vms_stand};

/// How many [`Urgent`] there are of a process.
static HELD: Mutex<BTreeMap<i32, usize>> = Mutex::new(BTreeMap::new());

/// A process that was made urgent here, until the last of these is dropped.
#[derive(Debug)]
struct Urgent {
    pid: i32,
}

impl Urgent {
    /// A process is urgent from now on; nothing where somebody gave it a priority.
    fn made(pid: i32) -> Option<Self> {
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        match held.get_mut(&pid) {
            Some(count) => *count += 1,
            None if begins(pid) => drop(held.insert(pid, 1)),
            None => return None,
        }
        Some(Self { pid })
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(count) = held.get_mut(&self.pid) else { return };
        *count -= 1;
        if *count == 0 {
            held.remove(&self.pid);
            if is_this_agent(self.pid) { set_group(self.pid, URGENT, 0) } else { ends(self.pid) }
        }
    }
}

fn is_this_agent(pid: i32) -> bool {
    pid == getpid().as_raw_nonzero().get()
}

/// A process is urgent from now on, unless somebody gave it a priority; whether it is.
fn begins(pid: i32) -> bool {
    let Some(process) = Pid::from_raw(pid) else { return false };
    if getpriority_process(Some(process)) != Ok(0) {
        return false;
    }
    // What this agent starts meanwhile would inherit the priority of its threads and keep it: its group's is enough.
    if !is_this_agent(pid) {
        let is_usual = |thread: &Pid| getpriority_process(Some(*thread)) == Ok(0);
        while threads(pid).any(|thread| is_usual(&thread) && setpriority_process(Some(thread), URGENT).is_ok()) {}
    }
    set_group(pid, 0, URGENT);
    true
}

/// The priority of a process's group, where it has one that is `from` now: `/autogroup-7 nice 0` (Linux, `kernel/sched/autogroup.c`).
fn set_group(pid: i32, from: i32, to: i32) {
    let file = format!("/proc/{pid}/autogroup");
    let told = fs::read_to_string(&file).unwrap_or_default();
    if told.trim().rsplit_once(' ').is_some_and(|(_, nice)| nice == from.to_string()) {
        // Who is in none, the first of all, has a file that cannot be written.
        fs::write(&file, to.to_string()).unwrap_or_default();
    }
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
    set_group(pid, URGENT, 0);
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
            let child = fermata_first::urgently(|| command.arg("60").stdin(Stdio::null()).spawn()).unwrap();
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
