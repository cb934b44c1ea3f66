//! Who gets the processors first where they are few: VMs that stand before VMs that run, and of those the one whose clock is put right.
//!
//! ```text
//!  first program: agent started urgent ─► VMM (inherits it) loads its VM ─► RESUME ─► as any other
//! ```
//!
//! Where processors are few, VMs that run again took them from those still to be loaded: of eight on an emulated processor the first two
//! stood for 10 s and the last two for 34 s. Before the service manager there is one group of all processes for the scheduler, so a plain
//! priority is enough (sched(7)).
//!
//! ```text
//!  a clock to read or set ─► turn (as many as processors) ─► VMM urgent ─► message, answer ─► as any other ─► next one's turn
//!                                                                         └─ no answer for 2 s: as any other, the message goes on
//! ```
//!
//! A guest's clock is known to half the trip of an answer. Where guests take all of the processors a trip takes a second, and seven of eight clocks
//! stayed wrong: so for the time of a message its VM gets most of them. Services have a group each for the scheduler then
//! (autogroups, sched(7)), and the group's priority counts as well. It waits until no VM stands, for 10 s at most. Where an operator has weights for units, those count and this does nothing.

use std::fs;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::first::FEW;
use rustix::process::{Pid, getpriority_process, setpriority_process};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// About nine times the share of others (Linux, `sched_prio_to_weight`): VMs that run again still get a part.
const URGENT: i32 = -10;

/// How long a VM may keep others from their turn.
const TURN: Duration = Duration::from_secs(2);
/// As many turns at once as there are processors.
static TURNS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    Arc::new(Semaphore::new(processors.min(Semaphore::MAX_PERMITS)))
});

/// How long clocks wait for VMs that stand.
const FOR_OTHERS: Duration = Duration::from_secs(10);
/// Whether a VM stands that a maintenance has.
static STANDING: LazyLock<watch::Sender<bool>> = LazyLock::new(|| watch::Sender::new(false));

/// Whether VMs stand now.
pub(crate) fn vms_stand(stand: bool) {
    STANDING.send_if_modified(|before| std::mem::replace(before, stand) != stand);
}

/// Until no VM stands, for a while at most: what puts a clock right takes a processor from them where those are few.
pub(crate) async fn nobody_stands() {
    if std::thread::available_parallelism().is_ok_and(|processors| processors.get() <= FEW) {
        wait_for_others(FOR_OTHERS).await;
    }
}

async fn wait_for_others(limit: Duration) {
    // Neither end of the wait is an error: whoever waited goes on.
    drop(tokio::time::timeout(limit, STANDING.subscribe().wait_for(|stand| !stand)).await);
}

/// A process's turn to be urgent, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    pid: i32,
    /// Whether it was made urgent here: an operator's choice is not to be undone.
    begun: bool,
    _turn: Option<OwnedSemaphorePermit>,
}

impl Turn {
    /// Waits for a turn of this process, and makes it urgent. One that has a priority of its own already keeps that.
    pub(crate) async fn of(pid: i32) -> Self {
        let turn = Arc::clone(&TURNS).acquire_owned().await.ok();
        Self { pid, begun: begins(pid), _turn: turn }
    }

    /// Awaits something in this turn; what takes longer than a turn goes on without it.
    pub(crate) async fn spent_on<F: Future>(self, what: F) -> F::Output {
        self.within(TURN, what).await
    }

    async fn within<F: Future>(self, limit: Duration, what: F) -> F::Output {
        let mut what = std::pin::pin!(what);
        match tokio::time::timeout(limit, &mut what).await {
            Ok(done) => done,
            Err(_) => {
                drop(self);
                what.await
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.begun {
            ends(self.pid);
        }
    }
}

/// A process is urgent from now on, unless somebody gave it a priority; whether it is.
fn begins(pid: i32) -> bool {
    let Some(process) = Pid::from_raw(pid) else { return false };
    if getpriority_process(Some(process)) != Ok(0) {
        return false;
    }
    let is_usual = |thread: &Pid| getpriority_process(Some(*thread)) == Ok(0);
    while threads(pid).any(|thread| is_usual(&thread) && setpriority_process(Some(thread), URGENT).is_ok()) {}
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

    #[tokio::test]
    async fn clocks_wait_for_vms_that_stand_and_not_for_ever() {
        wait_for_others(Duration::MAX).await;
        vms_stand(true);
        wait_for_others(Duration::from_millis(20)).await;
        let (waited, ()) = tokio::join!(
            async {
                wait_for_others(Duration::MAX).await;
                *STANDING.borrow()
            },
            async {
                tokio::task::yield_now().await;
                vms_stand(false);
            }
        );
        assert!(!waited);
    }

    #[tokio::test]
    async fn a_turn_makes_urgent_and_ends_when_it_takes_too_long() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let sleep = |nice: i32| {
            let mut command = Command::new("setsid");
            let child = command.args(["sleep", "60"]).stdin(Stdio::null()).spawn().unwrap();
            let pid = i32::try_from(child.id()).unwrap();
            setpriority_process(Pid::from_raw(pid), nice).unwrap();
            (child, pid)
        };
        let of = |pid| getpriority_process(Pid::from_raw(pid)).unwrap();
        let group = |pid: i32| fs::read_to_string(format!("/proc/{pid}/autogroup")).unwrap_or_default();
        let ((mut usual, pid), (mut own, chosen), (mut same, alike)) = (sleep(0), sleep(5), sleep(URGENT));
        assert_eq!(Turn::of(pid).await.spent_on(async { of(pid) }).await, URGENT);
        assert_eq!(of(pid), 0);
        assert_eq!(Turn::of(chosen).await.spent_on(async { of(chosen) }).await, 5, "an operator's own choice");
        drop(Turn::of(alike).await);
        assert_eq!(of(alike), URGENT, "an operator's own choice");
        let late = async {
            while of(pid) != 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            (of(pid), TURNS.available_permits(), group(pid))
        };
        let (priority, turns, told) = Turn::of(pid).await.within(Duration::from_millis(20), late).await;
        assert!(priority == 0 && !told.contains("-10"), "{priority} {told}");
        assert_eq!(turns, std::thread::available_parallelism().unwrap().get(), "given up");
        for child in [&mut usual, &mut own, &mut same] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
