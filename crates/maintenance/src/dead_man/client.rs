//! The agent's side.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use fermata_model::VmName;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::wire::{Reply, Request};
use super::{DeadManError, Freed, Guarded};
use crate::time::Mono;

/// A connection to a running dead-man.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Client {
    /// Connects, waiting for a dead-man that is just starting for at most `limit`.
    ///
    /// # Errors
    /// [`DeadManError::Control`] when none listens.
    pub async fn connect(control: &Path, limit: Duration) -> Result<Self, DeadManError> {
        let until = tokio::time::Instant::now() + limit;
        loop {
            match UnixStream::connect(control).await {
                Ok(stream) => {
                    let (reader, writer) = stream.into_split();
                    return Ok(Self { reader: BufReader::new(reader), writer });
                }
                // Nothing announces a socket that does not exist yet; a look costs microseconds.
                Err(_) if tokio::time::Instant::now() < until => tokio::time::sleep(Duration::from_millis(2)).await,
                Err(source) => return Err(DeadManError::Control { path: control.to_owned(), source }),
            }
        }
    }

    /// Guards VMs until `deadline` (`CLOCK_BOOTTIME`). When this returns, the dead-man has reached every VMM's rescue
    /// monitor: only then may VMs stop.
    ///
    /// # Errors
    /// [`DeadManError`] when it cannot guard them; then VMs must not be paused.
    pub async fn arm(&mut self, deadline: Mono, guarded: Vec<Guarded>) -> Result<(), DeadManError> {
        match self.ask(&Request::Arm { deadline, guarded }).await? {
            Reply::Armed => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Guards them no longer and tells which of them had to be freed, how and when.
    ///
    /// # Errors
    /// [`DeadManError`] when it does not answer.
    pub async fn disarm(&mut self, vms: Vec<VmName>) -> Result<BTreeMap<VmName, Freed>, DeadManError> {
        match self.ask(&Request::Disarm { vms }).await? {
            Reply::Disarmed { fired } => Ok(fired),
            other => Err(unexpected(other)),
        }
    }

    /// Ends it, if nothing is guarded.
    ///
    /// # Errors
    /// [`DeadManError::Refused`] while something is.
    pub async fn exit(mut self) -> Result<(), DeadManError> {
        match self.ask(&Request::Exit).await? {
            Reply::Exiting => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    async fn ask(&mut self, request: &Request) -> Result<Reply, DeadManError> {
        let lost = |source| DeadManError::Lost { source };
        let mut line = serde_json::to_string(request).map_err(|e| lost(io::Error::other(e)))?;
        line.push('\n');
        self.writer.write_all(line.as_bytes()).await.map_err(lost)?;
        line.clear();
        if self.reader.read_line(&mut line).await.map_err(lost)? == 0 {
            return Err(lost(io::ErrorKind::UnexpectedEof.into()));
        }
        serde_json::from_str(&line).map_err(|e| lost(io::Error::other(e)))
    }
}

fn unexpected(reply: Reply) -> DeadManError {
    let reason = if let Reply::Refused { reason } = reply { reason } else { format!("unexpected answer {reply:?}") };
    DeadManError::Refused { reason }
}
