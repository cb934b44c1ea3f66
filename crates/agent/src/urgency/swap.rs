//! A VM changes its VMM: who has a part in its pause is urgent, and the VM itself for a moment after, in which this agent leaves it alone.
//!
//! Other guests, and what follows a RESUME (the journal, the end of the old VMM), take a processor from the VM just when it has to catch up: it stood
//! for its vCPUs' own account longer than its VMM said. Only where processors are few does any of this matter.

use std::time::Duration;

use rustix::process::getpid;

use super::Urgent;
use crate::first::processors_are_few;

/// How long a VM that runs again comes before others.
const HEAD_START: Duration = Duration::from_millis(250);
/// How long this agent does nothing after a RESUME that can wait, where processors are few. What it does then (journal, dead-man, the end of the old
/// VMM) takes tens of milliseconds of an emulated processor, and weights of control groups, which come before priorities, give it as much as all VMs.
const QUIET: Duration = Duration::from_millis(100);
/// With less time than this for what is left to do, nothing is put off.
const AMPLE: Duration = Duration::from_millis(500);

/// Leaves the processor to a VM that just began to run again, when there is still so much time.
pub(crate) async fn leave_alone(left: Duration) {
    if left > AMPLE && processors_are_few() {
        tokio::time::sleep(QUIET).await;
    }
}

/// Both VMMs and this agent, urgent from just before the VM stands until it runs.
#[derive(Debug)]
pub(crate) struct Haste {
    old: Option<Urgent>,
    new: Option<Urgent>,
    agent: Option<Urgent>,
}

impl Haste {
    /// A VM goes from one process to another.
    pub(crate) fn between(old: i32, new: i32) -> Self {
        let agent = Urgent::made(getpid().as_raw_nonzero().get());
        Self { old: Urgent::made(old), new: Urgent::made(new), agent }
    }

    /// The VM runs in the new one.
    pub(crate) fn arrived(self) {
        drop((self.agent, self.old));
        Self::ends_soon(self.new);
    }

    /// The VM runs in the old one again.
    pub(crate) fn returned(self) {
        drop((self.agent, self.new));
        Self::ends_soon(self.old);
    }

    fn ends_soon(urgent: Option<Urgent>) {
        tokio::spawn(async move {
            tokio::time::sleep(HEAD_START).await;
            drop(urgent);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use rustix::process::{Pid, getpriority_process, setpriority_process};

    use super::super::{HELD, URGENT};
    use super::*;

    fn sleeper() -> (Child, i32) {
        let child = Command::new("setsid").args(["sleep", "60"]).stdin(Stdio::null()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        setpriority_process(Pid::from_raw(pid), 0).unwrap();
        (child, pid)
    }

    fn of(pid: i32) -> i32 {
        getpriority_process(Pid::from_raw(pid)).unwrap()
    }

    async fn until_held(pid: i32, times: usize) {
        let held = || HELD.lock().unwrap().get(&pid).copied().unwrap_or(0);
        while held() != times {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn who_has_the_vm_is_urgent_a_little_longer() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let ((mut first, old), (mut second, new)) = (sleeper(), sleeper());
        let before = getpriority_process(None);
        let haste = Haste::between(old, new);
        assert_eq!((of(old), of(new)), (URGENT, URGENT));
        assert_eq!(getpriority_process(None), before, "what the agent starts is as any other");
        haste.arrived();
        assert_eq!((of(old), of(new)), (0, URGENT));
        let more = Urgent::made(new);
        until_held(new, 1).await;
        assert_eq!(of(new), URGENT, "whoever made it urgent as well is not done");
        drop(more);
        assert_eq!(of(new), 0);

        Haste::between(old, new).returned();
        assert_eq!((of(old), of(new)), (URGENT, 0));
        until_held(old, 0).await;
        assert_eq!(of(old), 0);

        setpriority_process(Pid::from_raw(old), 5).unwrap();
        drop(Haste::between(old, new));
        assert_eq!((of(old), of(new)), (5, 0), "an operator's own choice");
        for child in [&mut first, &mut second] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
