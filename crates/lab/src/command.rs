//! Outside commands: with a time limit, and errors that show what the command said.

use std::{
    ffi::OsStr,
    io::Read,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// What a command left behind.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote.
    pub stdout: Vec<u8>,
    /// What it complained about.
    pub stderr: Vec<u8>,
}

/// Runs a command to its end, whatever that is.
///
/// # Errors
/// It does not start, or is still running after `limit` (it is then killed).
pub fn finish(command: &mut Command, limit: Duration) -> Result<Finished> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {name}; is it installed?"))?;
    let stdout = child.stdout.take().map(drain);
    let stderr = child.stderr.take().map(drain);
    let status = wait(&mut child, limit)?;
    let collect =
        |reader: Option<thread::JoinHandle<Vec<u8>>>| reader.and_then(|it| it.join().ok()).unwrap_or_default();
    let Some(status) = status else {
        let text = tail(&collect(stderr), 20);
        bail!("{name} was still running after {} s and was killed:\n{text}", limit.as_secs());
    };
    Ok(Finished { status, stdout: collect(stdout), stderr: collect(stderr) })
}

/// Runs a command that must succeed; gives what it wrote.
///
/// # Errors
/// As [`finish`], and when it fails; the error ends with the last lines of what it said.
pub fn succeed(command: &mut Command, limit: Duration) -> Result<String> {
    let finished = finish(command, limit)?;
    if !finished.status.success() {
        let words: Vec<_> =
            std::iter::once(command.get_program()).chain(command.get_args()).map(OsStr::to_string_lossy).collect();
        bail!("{} ({}):\n{}", words.join(" "), finished.status, tail(&finished.stderr, 20));
    }
    Ok(String::from_utf8_lossy(&finished.stdout).into_owned())
}

fn drain(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        // A pipe that breaks has said all it will say.
        let _ = from.read_to_end(&mut all);
        all
    })
}

/// Waits for a child; kills it when the time is up and gives `None`.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    use rustix::{
        event::{PollFd, PollFlags, Timespec, poll},
        process::{Pid, PidfdFlags, pidfd_open},
    };
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("watch a child")?;
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut watched = [PollFd::new(&pidfd, PollFlags::IN)];
        match poll(&mut watched, Some(&Timespec::try_from(left)?)) {
            Ok(0) => {
                child.kill()?;
                child.wait()?;
                return Ok(None);
            }
            Ok(_) => return Ok(Some(child.wait()?)),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("wait for a child"),
        }
    }
}

/// The last lines of a text.
#[must_use]
pub fn tail(text: &[u8], lines: usize) -> String {
    let text = String::from_utf8_lossy(text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// SHA-256 of several parts, each kept apart from the next, as hexadecimal digits.
pub fn digest<Part: AsRef<[u8]>>(parts: impl IntoIterator<Item = Part>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        let part = part.as_ref();
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Asks again and again until there is an answer or the time is up.
///
/// # Errors
/// `question` failed for good, or nothing came in time (`None`).
#[expect(
    clippy::disallowed_methods,
    reason = "logs and sockets of another machine send no event; bounded by the deadline"
)]
pub fn await_some<T>(
    limit: Duration,
    every: Duration,
    mut question: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = question()? {
            return Ok(Some(answer));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(every);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_tells_what_it_said() {
        let error =
            succeed(Command::new("sh").args(["-c", "echo broken pipe organ >&2; exit 3"]), Duration::from_secs(10));
        assert!(error.unwrap_err().to_string().contains("broken pipe organ"));
    }

    #[test]
    fn a_command_that_hangs_is_ended() {
        let start = Instant::now();
        let error = finish(Command::new("sleep").arg("60"), Duration::from_millis(100)).unwrap_err();
        assert!(error.to_string().contains("still running"));
        assert!(start.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn parts_of_a_digest_do_not_run_together() {
        assert_ne!(digest(["ab", "c"]), digest(["a", "bc"]));
    }
}
