//! What QEMU tells unasked.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;
use tokio::sync::broadcast;

/// QEMU's clock: time since 1970 by the host's wall clock, in whole microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp {
    /// Seconds.
    pub seconds: i64,
    /// Microseconds below a second.
    pub microseconds: i64,
}

impl Timestamp {
    /// Microseconds since 1970.
    #[must_use]
    pub const fn as_micros(self) -> i64 {
        self.seconds * 1_000_000 + self.microseconds
    }

    /// The time from `earlier` to this; zero when the clock was set back in between.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.as_micros() - earlier.as_micros()).unwrap_or(0))
    }
}

/// State of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationStatus {
    /// None was started.
    None,
    /// Begun.
    Setup,
    /// Being given up.
    Cancelling,
    /// Given up.
    Cancelled,
    /// Memory goes over.
    Active,
    /// Postcopy: the successor runs already.
    PostcopyActive,
    /// Postcopy interrupted.
    PostcopyPaused,
    /// Postcopy continues.
    PostcopyRecoverSetup,
    /// Postcopy continues.
    PostcopyRecover,
    /// All is over.
    Completed,
    /// It failed; the reason is in `query-migrate`.
    Failed,
    /// COLO.
    Colo,
    /// Before the disks change hands.
    PreSwitchover,
    /// Device state goes over.
    Device,
    /// Waits for a device to unplug.
    WaitUnplug,
    /// A status of a newer QEMU.
    #[serde(other)]
    Other,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum EventKind {
    /// vCPUs stopped.
    Stop,
    /// vCPUs run.
    Resume,
    /// The guest or the host ends the VM.
    Shutdown {
        /// Whether the guest wanted it.
        guest: bool,
        /// QEMU's reason, e.g. `guest-shutdown`.
        reason: String,
    },
    /// The guest reboots.
    Reset {
        /// Whether the guest wanted it.
        guest: bool,
    },
    /// The power button was pressed.
    Powerdown,
    /// A hand over has a new state.
    Migration(MigrationStatus),
    /// The disk failed; with `stop` the VM waits.
    BlockIoError {
        /// The device.
        device: String,
        /// Whether vCPUs were stopped.
        stopped: bool,
        /// Whether the disk is full.
        no_space: bool,
        /// QEMU's words.
        reason: String,
    },
    /// The guest's kernel panicked.
    GuestPanicked,
    /// The guest's RTC was set: seconds between it and the host's clock.
    RtcChange(i64),
    /// Something else.
    Other(Value),
}

/// An event with QEMU's time stamp.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// QEMU's name of it.
    pub name: String,
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    pub kind: EventKind,
}

/// On the wire.
#[derive(Deserialize)]
pub(super) struct RawEvent {
    event: String,
    timestamp: Timestamp,
    #[serde(default)]
    data: Value,
}

impl From<RawEvent> for Event {
    fn from(raw: RawEvent) -> Self {
        let text = |key: &str| raw.data[key].as_str().unwrap_or_default().to_owned();
        let truth = |key: &str| raw.data[key].as_bool().unwrap_or(false);
        let kind = match raw.event.as_str() {
            "STOP" => EventKind::Stop,
            "RESUME" => EventKind::Resume,
            "SHUTDOWN" => EventKind::Shutdown { guest: truth("guest"), reason: text("reason") },
            "RESET" => EventKind::Reset { guest: truth("guest") },
            "POWERDOWN" => EventKind::Powerdown,
            "MIGRATION" => EventKind::Migration(
                serde_json::from_value(raw.data["status"].clone()).unwrap_or(MigrationStatus::Other),
            ),
            "BLOCK_IO_ERROR" => EventKind::BlockIoError {
                device: text("device"),
                stopped: raw.data["action"] == "stop",
                no_space: truth("nospace"),
                reason: text("reason"),
            },
            "GUEST_PANICKED" => EventKind::GuestPanicked,
            "RTC_CHANGE" => EventKind::RtcChange(raw.data["offset"].as_i64().unwrap_or(0)),
            _ => EventKind::Other(raw.data.clone()),
        };
        Self { name: raw.event, at: raw.timestamp, kind }
    }
}

/// A subscription to events.
#[derive(Debug)]
pub struct Events {
    receiver: broadcast::Receiver<Event>,
}

impl Events {
    pub(super) const fn new(receiver: broadcast::Receiver<Event>) -> Self {
        Self { receiver }
    }

    /// The next event; `None` when the VMM has closed its monitor. A subscriber that is a thousand events late misses
    /// the oldest.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            match self.receiver.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    tracing::warn!(missed, "events of a VMM were missed");
                }
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    /// An event that is here already; `None` when there is none.
    pub fn waiting(&mut self) -> Option<Event> {
        loop {
            match self.receiver.try_recv() {
                Ok(event) => return Some(event),
                Err(broadcast::error::TryRecvError::Lagged(_)) => {}
                Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed) => return None,
            }
        }
    }

    /// The next event for which `wanted` has an answer; `None` when the monitor closed before.
    pub async fn find<T>(&mut self, mut wanted: impl FnMut(&Event) -> Option<T>) -> Option<T> {
        loop {
            let event = self.next().await?;
            if let Some(found) = wanted(&event) {
                return Some(found);
            }
        }
    }
}
