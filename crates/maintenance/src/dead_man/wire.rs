//! What agent and dead-man say to each other: one JSON value per line.

use std::collections::BTreeMap;

use fermata_model::VmName;
use serde::{Deserialize, Serialize};

use super::{Freed, Guarded};
use crate::time::Mono;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    /// Guard these until then.
    Arm { deadline: Mono, guarded: Vec<Guarded> },
    /// Guard these no longer.
    Disarm { vms: Vec<VmName> },
    /// End, if nothing is guarded.
    Exit,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reply {
    Armed,
    /// Which of them had to be freed, how and when.
    Disarmed {
        fired: BTreeMap<VmName, Freed>,
    },
    Exiting,
    Refused {
        reason: String,
    },
}
