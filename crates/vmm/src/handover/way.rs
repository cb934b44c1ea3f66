//! The two ways of a hand over between VMMs that live side by side. Which one works between two versions is found out in a
//! rehearsal, never assumed.

use std::path::PathBuf;
use std::time::Duration;

use fermata_vault::process::Process;
use serde::{Deserialize, Serialize};

use super::{HandedOver, HandoverError, hand_over, hand_over_by_file, prepare, prepare_save, ready, watched};
use crate::command::{Paths, Role};
use crate::qmp::Qmp;

/// How a VM goes from one VMM to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// `cpr-transfer`: the new VMM loads while the old one sends.
    #[default]
    Transfer,
    /// State in a file in memory, written whole and then loaded: where two VMMs do not understand each other's cpr channel.
    /// The pause is longer.
    File,
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Transfer => "transfer",
            Self::File => "file",
        })
    }
}

impl Way {
    /// All of them, the better one first.
    pub const ALL: [Self; 2] = [Self::Transfer, Self::File];

    /// How a new VMM begins that shall take a VM over this way.
    #[must_use]
    pub const fn role(self) -> Role {
        match self {
            Self::Transfer => Role::IncomingCpr,
            Self::File => Role::IncomingDefer,
        }
    }

    /// Where the state lies for a moment, with [`Self::File`]; the folder should be on tmpfs.
    #[must_use]
    pub fn file(new: &Paths) -> PathBuf {
        new.folder().join("state")
    }

    /// Waits until a new VMM that was just started can take a VM over, within `limit`; its monitor, if it has one already.
    ///
    /// # Errors
    /// [`HandoverError::NewDied`] when it ended (its log says why), [`HandoverError::Late`] after `limit`.
    pub async fn ready(self, new: &Process, paths: &Paths, limit: Duration) -> Result<Option<Qmp>, HandoverError> {
        match self {
            Self::Transfer => ready(new, paths, limit).await.map(|()| None),
            Self::File => {
                let monitor = paths.qmp();
                let connected = watched(new, "answer", limit, Qmp::connect(&monitor, limit)).await?;
                connected.map(Some).map_err(HandoverError::New)
            }
        }
    }

    /// Makes the running VMM ready to hand over.
    ///
    /// # Errors
    /// [`HandoverError::Blocked`] with QEMU's reasons.
    pub async fn prepare(self, old: &Qmp) -> Result<(), HandoverError> {
        match self {
            Self::Transfer => prepare(old).await,
            Self::File => prepare_save(old).await,
        }
    }

    /// Hands a VM over; `monitor` is what [`Self::ready`] gave.
    ///
    /// # Errors
    /// [`HandoverError`]; then the VM's state is the old VMM's still: [`super::take_back`].
    pub async fn hand_over(
        self,
        old: &Qmp,
        new: &Process,
        monitor: Option<&Qmp>,
        paths: &Paths,
        limit: Duration,
    ) -> Result<HandedOver, HandoverError> {
        match (self, monitor) {
            (Self::Transfer, _) => hand_over(old, new, paths, limit).await,
            (Self::File, Some(monitor)) => {
                let file = Self::file(paths);
                let handed = hand_over_by_file(old, new, monitor, &file, limit).await;
                // It was read, or is of no use any more; what is left goes with the folder.
                let _ = std::fs::remove_file(&file);
                handed
            }
            (Self::File, None) => Err(HandoverError::NoMonitor),
        }
    }
}
