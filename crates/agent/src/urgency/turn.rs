//! Clocks are read and set in turns: the VM whose clock it is gets most of the processors for the time of a message.
//!
//! A guest's clock is known to half the trip of an answer. Where guests take all of the processors a trip takes a second, and seven of eight clocks
//! stayed wrong. A turn waits until no VM stands, for 10 s at most, and what has no answer for 2 s goes on without it.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::Urgent;
use crate::first::processors_are_few;

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
    if processors_are_few() {
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
    _urgent: Option<Urgent>,
    _turn: Option<OwnedSemaphorePermit>,
}

impl Turn {
    /// Waits for a turn of this process, and makes it urgent. One that has a priority of its own already keeps that.
    pub(crate) async fn of(pid: i32) -> Self {
        let turn = Arc::clone(&TURNS).acquire_owned().await.ok();
        Self { _urgent: Urgent::made(pid), _turn: turn }
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{Command, Stdio};

    use rustix::process::{Pid, getpriority_process, setpriority_process};

    use super::super::URGENT;
    use super::*;

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
            while of(pid) != 0 || group(pid).contains("nice -10") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            (of(pid), TURNS.available_permits(), group(pid))
        };
        let (priority, turns, told) = Turn::of(pid).await.within(Duration::from_millis(20), late).await;
        assert!(priority == 0 && !told.contains("nice -10"), "{priority} {told}");
        assert_eq!(turns, std::thread::available_parallelism().unwrap().get(), "given up");
        for child in [&mut usual, &mut own, &mut same] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
