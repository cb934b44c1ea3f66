//! QEMU's monitor: typed commands with time limits, and its events.
//!
//! ```text
//!   connect -> greeting -> qmp_capabilities -> [execute ...]* -> closed
//!                                   events -> every subscriber
//! ```
//!
//! A [`Qmp`] is one connection and may be shared: commands of several tasks go on the wire in order, replies find their
//! caller by number. A command that is late ([`QmpError::Timeout`]) does not break the connection; its reply is thrown
//! away when it comes. A VMM that hangs answers nothing, and every command then ends by its own limit.
//!
//! Invariant: a caller that is told nothing (timeout, closed) must not assume that the command had no effect.

mod commands;
mod error;
mod event;
mod wire;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fermata_vault::arrival::Arrivals;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::broadcast;
use tokio::time::Instant;

pub use commands::*;
pub use error::QmpError;
pub use event::{Event, EventKind, Events, MigrationStatus, Timestamp};

use wire::Wire;

/// Between two looks at a socket where nothing tells of it.
const LOOK: Duration = Duration::from_millis(1);

/// A command of QMP: its arguments are the value's fields.
pub trait Command: Serialize {
    /// The name on the wire.
    const NAME: &'static str;
    /// How long an answer may take unless the caller says otherwise.
    const LIMIT: Duration = Duration::from_secs(5);
    /// What QEMU answers.
    type Returns: DeserializeOwned;
}

/// The version of a VMM, as its greeting says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// Major, minor, micro.
    pub version: (u16, u16, u16),
    /// The packager's addition.
    pub package: String,
}

/// A monitor connection. Cheap to clone; closes with the last clone.
#[derive(Debug, Clone)]
pub struct Qmp {
    wire: Arc<Wire>,
    greeting: Arc<Greeting>,
}

impl Qmp {
    /// Connects to the monitor at `path`, waiting until it is there (a VMM that starts makes it late), all within
    /// `limit`.
    ///
    /// # Errors
    /// [`QmpError::Connect`] when nobody listened in time, [`QmpError::Protocol`] when it is no QEMU.
    pub async fn connect(path: &Path, limit: Duration) -> Result<Self, QmpError> {
        let until = Instant::now() + limit;
        let mut arrivals = None;
        loop {
            let error = match tokio::time::timeout_at(until, UnixStream::connect(path)).await {
                Ok(Ok(stream)) => {
                    let (reader, writer) = stream.into_split();
                    return Self::over(reader, writer, until.saturating_duration_since(Instant::now())).await;
                }
                Ok(Err(error)) => error,
                Err(_) => std::io::ErrorKind::TimedOut.into(),
            };
            if Instant::now() >= until || error.kind() == std::io::ErrorKind::PermissionDenied {
                return Err(QmpError::Connect { path: path.to_owned(), limit, source: error });
            }
            if error.kind() != std::io::ErrorKind::NotFound {
                // Made, and nobody listens yet; nothing tells of that.
                tokio::time::sleep(LOOK).await;
                continue;
            }
            let Some(watch) = &arrivals else {
                arrivals = Arrivals::beside(path).ok();
                if arrivals.is_none() {
                    tokio::time::sleep(LOOK).await;
                }
                continue;
            };
            if let Ok(Err(_)) = tokio::time::timeout_at(until, watch.next()).await {
                arrivals = None;
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    /// Speaks QMP over any two streams.
    ///
    /// # Errors
    /// [`QmpError::Protocol`] when the other side is no QEMU.
    pub async fn over<R, W>(reader: R, writer: W, limit: Duration) -> Result<Self, QmpError>
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let started = Instant::now();
        let (wire, greeting) = tokio::time::timeout(limit, Wire::greet(reader, writer))
            .await
            .map_err(|_| QmpError::Timeout { command: "greeting", limit })??;
        let qmp = Self { wire: Arc::new(wire), greeting: Arc::new(greeting) };
        qmp.execute_within(&Capabilities {}, limit.saturating_sub(started.elapsed())).await?;
        Ok(qmp)
    }

    /// What the VMM said it is.
    #[must_use]
    pub fn greeting(&self) -> &Greeting {
        &self.greeting
    }

    /// Runs a command within its usual limit.
    ///
    /// # Errors
    /// [`QmpError`]; see the module about timeouts.
    pub async fn execute<C: Command>(&self, command: &C) -> Result<C::Returns, QmpError> {
        self.execute_within(command, C::LIMIT).await
    }

    /// Runs a command within `limit`.
    ///
    /// # Errors
    /// [`QmpError`]; see the module about timeouts.
    pub async fn execute_within<C: Command>(&self, command: &C, limit: Duration) -> Result<C::Returns, QmpError> {
        let arguments = serde_json::to_value(command)
            .map_err(|error| QmpError::Protocol { what: format!("{}: {error}", C::NAME) })?;
        let value = self.wire.call(C::NAME, arguments, limit).await?;
        serde_json::from_value(value)
            .map_err(|error| QmpError::Protocol { what: format!("the answer to {}: {error}", C::NAME) })
    }

    /// Events from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        Events::new(self.wire.subscribe())
    }

    /// Waits until the VMM has closed the connection: usually because it ended.
    pub async fn closed(&self) {
        let mut events = self.wire.subscribe();
        while !self.wire.is_closed() {
            if let Err(broadcast::error::RecvError::Closed) = events.recv().await {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests;
