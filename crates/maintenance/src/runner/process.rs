//! Steps as plain processes, without systemd.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Child;
use tokio::time::{Instant, timeout_at};

use super::{GRACE, StepAct, StepEnd, StepEvent, StepOutcome, StepRunner, Supervisor, TAIL};
use crate::time::Mono;
use crate::update::Command;

/// Runs steps as process groups of this process.
#[derive(Debug, Clone, Default)]
pub struct ProcessRunner {
    groups: Arc<Mutex<BTreeMap<String, Pid>>>,
}

/// How long pipes are read after the step's end: what it printed last is still in them, but a descendant that left the
/// group may hold them open for ever.
const DRAIN: Duration = Duration::from_millis(20);

impl ProcessRunner {
    /// A runner without steps.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn remember(&self, name: &str, group: Option<Pid>) -> Option<Pid> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        match group {
            Some(group) => groups.insert(name.to_owned(), group),
            None => groups.remove(name),
        }
    }
}

impl StepRunner for ProcessRunner {
    async fn run(&self, name: &str, command: &Command, limit: Duration) -> StepOutcome {
        if let Err(reason) = self.kill(name).await {
            return StepOutcome { end: StepEnd::NotStarted { reason }, took: Duration::ZERO, tail: String::new() };
        }
        let started = Instant::now();
        let mut child = match spawn(command) {
            Ok(child) => child,
            Err(e) => {
                let reason = format!("{command}: {e}");
                return StepOutcome { end: StepEnd::NotStarted { reason }, took: Duration::ZERO, tail: String::new() };
            }
        };
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        self.remember(name, group);
        let output = Tail::default();
        let reading = [
            child.stdout.take().map(|pipe| tokio::spawn(output.clone().read(pipe))),
            child.stderr.take().map(|pipe| tokio::spawn(output.clone().read(pipe))),
        ];
        let (end, took) = supervise(&mut child, group, started, limit).await;
        if let Some(group) = group {
            // What the step left behind in its group does not outlive it; no such group is the good case.
            let _ = kill_process_group(group, Signal::KILL);
        }
        if end != (StepEnd::TimedOut { gone: false }) {
            self.remember(name, None);
        }
        for task in reading.into_iter().flatten() {
            let abort = task.abort_handle();
            if tokio::time::timeout(DRAIN, task).await.is_err() {
                abort.abort();
            }
        }
        StepOutcome { end, took, tail: output.text() }
    }

    async fn kill(&self, name: &str) -> Result<(), String> {
        let Some(group) = self.remember(name, None) else { return Ok(()) };
        let until = Instant::now() + Duration::from_secs(1);
        while kill_process_group(group, Signal::KILL).is_ok() && test_kill_process_group(group).is_ok() {
            if Instant::now() >= until {
                self.remember(name, Some(group));
                return Err(format!("an earlier attempt (process group {}) does not vanish", group.as_raw_pid()));
            }
            // A group cannot be awaited, only looked at.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}

fn spawn(command: &Command) -> std::io::Result<Child> {
    let argv = command.argv();
    let (program, arguments) = argv.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
    tokio::process::Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

async fn supervise(child: &mut Child, group: Option<Pid>, started: Instant, limit: Duration) -> (StepEnd, Duration) {
    let now = || Mono(u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX));
    let mut supervisor = Supervisor::new(Mono(0), limit);
    let mut event = StepEvent::Tick;
    loop {
        match supervisor.handle(event, now()) {
            StepAct::Answer { end, took } => return (end, took),
            StepAct::Kill => {
                match group {
                    Some(group) => {
                        let _ = kill_process_group(group, Signal::KILL);
                    }
                    None => {
                        let _ = child.start_kill();
                    }
                }
                event = StepEvent::Tick;
            }
            StepAct::WaitUntil(at) => {
                let at = started + Duration::from_micros(at.0);
                event = match timeout_at(at, child.wait()).await {
                    Ok(status) => StepEvent::Ended(end_of(status)),
                    Err(_) => StepEvent::Tick,
                };
            }
        }
    }
}

fn end_of(status: std::io::Result<std::process::ExitStatus>) -> StepEnd {
    use std::os::unix::process::ExitStatusExt;
    match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => StepEnd::Exited { code },
            (None, signal) => StepEnd::Signalled { signal: signal.unwrap_or(0) },
        },
        Err(e) => StepEnd::NotStarted { reason: e.to_string() },
    }
}

/// The end of an endless text.
#[derive(Debug, Clone, Default)]
struct Tail(Arc<Mutex<Vec<u8>>>);

impl Tail {
    async fn read(self, mut pipe: impl AsyncRead + Unpin) {
        let mut buffer = [0; 2048];
        while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend_from_slice(&buffer[..length]);
            let surplus = kept.len().saturating_sub(TAIL);
            kept.drain(..surplus);
        }
    }

    fn text(&self) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&kept).into_owned()
    }
}

// The grace is spent waiting for a killed process; it must not eat the reserve of the smallest budgets.
const _: () = assert!(GRACE.as_millis() <= 100);
