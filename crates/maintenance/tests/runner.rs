//! Steps that do not behave, as real processes.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, Instant};

use fermata_maintenance::runner::{GRACE, ProcessRunner, StepEnd, StepRunner};
use fermata_maintenance::update::Command;

fn shell(script: &str) -> Command {
    Command::Shell(script.to_owned())
}

/// Whether a process with this unusual argument is alive.
fn alive(argument: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().filter_map(Result::ok).any(|entry| {
        std::fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).split('\0').any(|word| word == argument))
    })
}

#[tokio::test]
async fn a_step_that_works_says_what_it_printed() {
    let outcome = ProcessRunner::new().run("a", &shell("echo out; echo err >&2"), Duration::from_secs(5)).await;
    assert_eq!(outcome.end, StepEnd::Exited { code: 0 });
    assert!(outcome.tail.contains("out") && outcome.tail.contains("err"), "{}", outcome.tail);
}

#[tokio::test]
async fn a_step_that_fails_says_so() {
    let outcome = ProcessRunner::new().run("a", &shell("echo no; exit 7"), Duration::from_secs(5)).await;
    assert_eq!(outcome.end, StepEnd::Exited { code: 7 });
    let missing = Command::Argv(vec!["/no/such/program".to_owned()]);
    let outcome = ProcessRunner::new().run("a", &missing, Duration::from_secs(5)).await;
    assert!(matches!(outcome.end, StepEnd::NotStarted { .. }));
}

#[tokio::test]
async fn a_step_that_ignores_signals_and_forks_is_gone_at_its_deadline() {
    let script = "trap '' TERM INT HUP; sleep 7301 & sleep 7301 & wait; sleep 7301";
    let started = Instant::now();
    let outcome = ProcessRunner::new().run("a", &shell(script), Duration::from_millis(300)).await;
    assert_eq!(outcome.end, StepEnd::TimedOut { gone: true });
    assert!(started.elapsed() < Duration::from_millis(300) + GRACE + Duration::from_secs(2), "{:?}", started.elapsed());
    assert!(!alive("7301"), "a descendant of the step lives on");
}

#[tokio::test]
async fn a_daemon_that_keeps_the_pipes_open_does_not_hold_the_step_up() {
    // In a session of its own it is out of reach of a process group (on hosts the cgroup reaches it), but nobody waits.
    let started = Instant::now();
    let outcome =
        ProcessRunner::new().run("a", &shell("setsid sleep 3 & sleep 0.1; echo ready"), Duration::from_secs(30)).await;
    assert_eq!(outcome.end, StepEnd::Exited { code: 0 });
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert!(outcome.tail.contains("ready"));
}

#[tokio::test]
async fn what_a_step_leaves_in_its_group_does_not_outlive_it() {
    let outcome = ProcessRunner::new().run("a", &shell("sleep 7302 & sleep 0.1"), Duration::from_secs(5)).await;
    assert_eq!(outcome.end, StepEnd::Exited { code: 0 });
    assert!(!alive("7302"));
}

#[tokio::test]
async fn only_the_end_of_endless_output_is_kept() {
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; echo last";
    let outcome = ProcessRunner::new().run("a", &shell(script), Duration::from_secs(20)).await;
    assert!(outcome.tail.len() <= 4096 && outcome.tail.ends_with("last\n"), "{}", outcome.tail.len());
}
