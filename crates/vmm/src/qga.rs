//! The agent inside the guest (qemu-guest-agent), over its channel.
//!
//! The channel is a stream without connections: the agent in the guest may be absent, restart, or still answer a question
//! that nobody waits for any more. So every use begins by *synchronising*: a random-looking number is sent, everything
//! before its echo is thrown away (`guest-sync-delimited`, QEMU `docs/interop/qemu-ga-ref`).
//!
//! QEMU gives the channel to one user at a time.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::Instant;

/// The longest answer, in bytes: the guest is not to be trusted with our memory.
const MAX_ANSWER: u64 = 4 << 20;
/// Begins a delimited answer; never part of JSON.
const SENTINEL: u8 = 0xff;

/// Why the guest's agent did not do it.
#[derive(Debug, thiserror::Error)]
pub enum QgaError {
    /// The VMM's side of the channel is not there.
    #[error("guest agent channel {path}: {source}; is the VM running, and with `guest_agent`?")]
    Connect {
        /// The channel's socket.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// No answer from inside.
    #[error(
        "the guest agent did not answer `{command}` within {limit:?}; install and start qemu-guest-agent in the guest"
    )]
    Timeout {
        /// The command.
        command: &'static str,
        /// How long was waited.
        limit: Duration,
    },
    /// The agent said no.
    #[error("the guest agent refused `{command}`: {desc}")]
    Refused {
        /// The command.
        command: &'static str,
        /// Its words.
        desc: String,
    },
    /// The VMM closed the channel.
    #[error("the VMM closed the guest agent channel during `{command}`")]
    Closed {
        /// The command.
        command: &'static str,
    },
    /// The answer is none.
    #[error("the guest agent's answer to `{command}` cannot be read: {what}")]
    Protocol {
        /// The command.
        command: &'static str,
        /// What is wrong with it.
        what: String,
    },
}

/// How a guest is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownMode {
    /// Power off.
    Powerdown,
    /// Reboot.
    Reboot,
    /// Halt.
    Halt,
}

/// A guest's wall clock: nanoseconds since 1970, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct GuestTime(pub i64);

/// What the agent is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Info {
    /// Its version.
    pub version: String,
    /// What it can do.
    pub supported_commands: Vec<Supported>,
}

/// A command of the guest's agent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Supported {
    /// Its name.
    pub name: String,
    /// Whether the guest's administrator allows it.
    pub enabled: bool,
}

/// A connection to the guest's agent.
#[derive(Debug)]
pub struct Qga {
    stream: BufReader<UnixStream>,
    path: PathBuf,
    next: u64,
    /// Whether an answer may still come that nobody waits for.
    stale: bool,
}

impl Qga {
    /// Connects and synchronises: afterwards an agent is known to answer.
    ///
    /// # Errors
    /// [`QgaError::Connect`], or [`QgaError::Timeout`] when no agent answers within `limit`.
    pub async fn connect(path: &Path, limit: Duration) -> Result<Self, QgaError> {
        let connect = |source| QgaError::Connect { path: path.to_owned(), source };
        let stream = tokio::time::timeout(limit, UnixStream::connect(path))
            .await
            .map_err(|_| connect(io::ErrorKind::TimedOut.into()))?
            .map_err(connect)?;
        // Any start does: it only has to differ from what an earlier user of the channel sent.
        let next = u64::from(std::process::id()) << 20;
        let mut qga = Self { stream: BufReader::new(stream), path: path.to_owned(), next, stale: true };
        qga.synchronise(limit).await?;
        Ok(qga)
    }

    /// The channel's socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Throws away everything that was asked before, within `limit`.
    ///
    /// # Errors
    /// [`QgaError::Timeout`] when no agent answers.
    pub async fn synchronise(&mut self, limit: Duration) -> Result<(), QgaError> {
        const COMMAND: &str = "guest-sync-delimited";
        self.next += 1;
        let id = self.next;
        let until = Instant::now() + limit;
        tokio::time::timeout_at(until, async {
            // The sentinel first makes the agent's parser drop a half command of an earlier user.
            self.send(COMMAND, json!({"id": id}), true).await?;
            loop {
                let mut skipped = Vec::new();
                self.read_until(COMMAND, SENTINEL, &mut skipped).await?;
                let mut line = Vec::new();
                self.read_until(COMMAND, b'\n', &mut line).await?;
                let answer: Option<Value> = serde_json::from_slice(&line).ok();
                if answer.is_some_and(|answer| answer["return"].as_u64() == Some(id)) {
                    self.stale = false;
                    return Ok(());
                }
            }
        })
        .await
        .map_err(|_| QgaError::Timeout { command: COMMAND, limit })?
    }

    /// Whether the agent answers.
    ///
    /// # Errors
    /// [`QgaError`].
    pub async fn ping(&mut self, limit: Duration) -> Result<(), QgaError> {
        self.call::<Value>("guest-ping", Value::Null, limit).await.map(drop)
    }

    /// What the agent is and can do.
    ///
    /// # Errors
    /// [`QgaError`].
    pub async fn info(&mut self, limit: Duration) -> Result<Info, QgaError> {
        self.call("guest-info", Value::Null, limit).await
    }

    /// The guest's wall clock, at some time between asking and answering.
    ///
    /// # Errors
    /// [`QgaError`].
    pub async fn time(&mut self, limit: Duration) -> Result<GuestTime, QgaError> {
        self.call("guest-get-time", Value::Null, limit).await.map(GuestTime)
    }

    /// Sets the guest's wall clock. The time is always given: without one Linux guests look for `hwclock` and Windows
    /// guests for a time server.
    ///
    /// # Errors
    /// [`QgaError`]; after a timeout the clock may or may not have been set: set it again, to a target time.
    pub async fn set_time(&mut self, time: GuestTime, limit: Duration) -> Result<(), QgaError> {
        self.call::<Value>("guest-set-time", json!({"time": time.0}), limit).await.map(drop)
    }

    /// Asks the guest to end. The agent does not answer this command; the VMM's events tell what became of it.
    ///
    /// # Errors
    /// [`QgaError::Closed`] when the channel is gone.
    pub async fn shutdown(&mut self, mode: ShutdownMode) -> Result<(), QgaError> {
        let mode = match mode {
            ShutdownMode::Powerdown => "powerdown",
            ShutdownMode::Reboot => "reboot",
            ShutdownMode::Halt => "halt",
        };
        self.stale = true;
        self.send("guest-shutdown", json!({"mode": mode}), false).await
    }

    async fn call<T: DeserializeOwned>(
        &mut self,
        command: &'static str,
        arguments: Value,
        limit: Duration,
    ) -> Result<T, QgaError> {
        let until = Instant::now() + limit;
        if self.stale {
            self.synchronise(limit).await?;
        }
        // Until the answer is here, whoever comes next must synchronise first.
        self.stale = true;
        let line = tokio::time::timeout_at(until, async {
            self.send(command, arguments, false).await?;
            let mut line = Vec::new();
            self.read_until(command, b'\n', &mut line).await?;
            Ok(line)
        })
        .await
        .map_err(|_| QgaError::Timeout { command, limit })??;
        let protocol = |what: String| QgaError::Protocol { command, what };
        let mut answer: Value = serde_json::from_slice(&line).map_err(|error| protocol(error.to_string()))?;
        self.stale = false;
        if let Some(error) = answer.get("error") {
            return Err(QgaError::Refused { command, desc: error["desc"].as_str().unwrap_or("no reason").to_owned() });
        }
        serde_json::from_value(answer["return"].take()).map_err(|error| protocol(error.to_string()))
    }

    async fn send(&mut self, command: &'static str, arguments: Value, sentinel: bool) -> Result<(), QgaError> {
        let mut message = json!({"execute": command});
        if !arguments.is_null() {
            message["arguments"] = arguments;
        }
        let mut bytes = if sentinel { vec![SENTINEL] } else { Vec::new() };
        bytes.extend_from_slice(message.to_string().as_bytes());
        bytes.push(b'\n');
        self.stream.get_mut().write_all(&bytes).await.map_err(|_| QgaError::Closed { command })
    }

    async fn read_until(&mut self, command: &'static str, end: u8, into: &mut Vec<u8>) -> Result<(), QgaError> {
        let read = (&mut self.stream).take(MAX_ANSWER).read_until(end, into).await;
        match read {
            Ok(_) if into.last() == Some(&end) => Ok(()),
            Ok(n) if n as u64 == MAX_ANSWER => {
                Err(QgaError::Protocol { command, what: format!("longer than {MAX_ANSWER} bytes") })
            }
            Ok(_) | Err(_) => Err(QgaError::Closed { command }),
        }
    }
}

#[cfg(test)]
mod tests;
