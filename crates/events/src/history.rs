//! What happened: the promise and the fact, side by side.

use std::collections::BTreeMap;

use fermata_model::VmName;
use serde::{Deserialize, Serialize};

use crate::event::{Event, EventId, EventKind, Phase};
use crate::scope::ScopeId;
use crate::time::UnixMs;

/// How an event ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The maintenance was done.
    Done,
    /// It was begun and put back.
    Undone,
    /// It failed.
    Failed,
    /// It was announced and then did not happen.
    Cancelled,
}

/// What one VM felt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Felt {
    /// The measured pause in milliseconds; absent where there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_ms: Option<u64>,
    /// The step of the wall clock in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_step_ms: Option<i64>,
}

/// An event that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The event.
    pub event_id: EventId,
    /// Who saw it.
    pub scope: ScopeId,
    /// What it did.
    pub event_type: EventKind,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether only the life cycle was played.
    pub simulated: bool,
    /// When it was announced.
    pub announced_unix_ms: UnixMs,
    /// What was promised.
    pub not_before_unix_ms: UnixMs,
    /// When it became Started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_unix_ms: Option<UnixMs>,
    /// When it vanished.
    pub ended_unix_ms: UnixMs,
    /// What was advertised as `DurationInSeconds`.
    pub duration_in_seconds: i32,
    /// The VMs that approved.
    pub approved_by: Vec<VmName>,
    /// What each VM felt.
    pub vms: BTreeMap<VmName, Felt>,
}

impl Record {
    pub(crate) fn of(event: &Event, outcome: Outcome, simulated: bool, at: UnixMs) -> Self {
        let felt = |phase: Phase| Felt {
            pause_ms: phase.paused_ms(),
            clock_step_ms: match phase {
                Phase::Verified { clock_step_ms, .. } => Some(clock_step_ms),
                Phase::Waiting | Phase::Paused | Phase::Resumed { .. } | Phase::RunsAgain { .. } | Phase::Gone => None,
            },
        };
        Self {
            event_id: event.id,
            scope: event.scope.clone(),
            event_type: event.kind,
            outcome,
            simulated,
            announced_unix_ms: event.announced,
            not_before_unix_ms: event.not_before,
            started_unix_ms: event.started,
            ended_unix_ms: at,
            duration_in_seconds: event.duration_in_seconds(),
            approved_by: event.approvals.keys().cloned().collect(),
            vms: event.resources.iter().map(|(vm, part)| (vm.clone(), felt(part.phase))).collect(),
        }
    }
}
