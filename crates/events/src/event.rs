//! Events, the jobs they belong to, and the life of each VM in them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use fermata_model::{Impact, UpdateDomain, VmName};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::history::Outcome;
use crate::scope::{ApprovalPolicy, ScopeId};
use crate::time::{MonoMs, UnixMs};

/// An event's id: a GUID, written in upper case as Azure does, compared without regard to case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(transparent)]
pub struct EventId(pub Uuid);

impl EventId {
    /// The id of the event that job `seed` has in `scope`. Every host and the controller derive the same one.
    #[must_use]
    pub fn derived(seed: Uuid, scope: &ScopeId) -> Self {
        Self(Uuid::new_v5(&seed, scope.to_string().as_bytes()))
    }

    /// The id that a text names; letters of either case.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        // Braced, URN and undashed forms are not what the protocol writes; accept only the 36-character form.
        (text.len() == 36).then(|| Uuid::try_parse(text).ok().map(Self)).flatten()
    }
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut buffer = Uuid::encode_buffer();
        f.write_str(self.0.hyphenated().encode_upper(&mut buffer))
    }
}

impl Serialize for EventId {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// A maintenance on a host, as the agent names it. Opaque here; never used again for another maintenance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub String);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an event does to its VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub enum EventKind {
    /// Paused for some seconds; memory and open files kept.
    Freeze,
    /// Memory lost.
    Reboot,
    /// Moved to another host; ephemeral disks lost.
    Redeploy,
    /// Reclaimed at short notice.
    Preempt,
    /// Deleted.
    Terminate,
}

impl EventKind {
    /// The word in the document.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Freeze => "Freeze",
            Self::Reboot => "Reboot",
            Self::Redeploy => "Redeploy",
            Self::Preempt => "Preempt",
            Self::Terminate => "Terminate",
        }
    }

    /// The kind that announces `impact`; nothing is announced where nothing is felt.
    #[must_use]
    pub const fn of_impact(impact: Impact) -> Option<Self> {
        match impact {
            Impact::None => None,
            Impact::Freeze => Some(Self::Freeze),
            Impact::Reboot => Some(Self::Reboot),
            Impact::Redeploy => Some(Self::Redeploy),
        }
    }

    /// Azure's minimum notice for the kind.
    #[must_use]
    pub const fn azure_notice(self) -> Duration {
        match self {
            Self::Freeze | Self::Reboot => Duration::from_secs(15 * 60),
            Self::Redeploy => Duration::from_secs(10 * 60),
            Self::Preempt => Duration::from_secs(30),
            Self::Terminate => Duration::from_secs(5 * 60),
        }
    }
}

/// Who caused an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub enum EventSource {
    /// The host's operator.
    #[default]
    Platform,
    /// The VM's owner.
    User,
}

impl EventSource {
    /// The word in the document.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Platform => "Platform",
            Self::User => "User",
        }
    }
}

/// Where an event is. There is no third value in the protocol: what is over, vanishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub enum EventStatus {
    /// Announced.
    Scheduled,
    /// About to happen, or happening.
    Started,
}

impl EventStatus {
    /// The word in the document.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "Scheduled",
            Self::Started => "Started",
        }
    }
}

/// The longest pause that is promised for a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PauseBound {
    /// No pause at all.
    None,
    /// At most this many milliseconds: the forecast's upper bound.
    AtMostMs(u64),
    /// Nobody can tell (`-1` in the document).
    Unknown,
}

impl PauseBound {
    /// `DurationInSeconds`: whole seconds rounded up, 0 for none, -1 for unknown.
    #[must_use]
    pub fn seconds(self) -> i32 {
        match self {
            Self::None => 0,
            Self::AtMostMs(ms) => i32::try_from(ms.div_ceil(1000)).unwrap_or(i32::MAX),
            Self::Unknown => -1,
        }
    }
}

/// Where one VM is in an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum Phase {
    /// Not touched.
    Waiting,
    /// Paused (or down, for a reboot or a failure).
    Paused,
    /// Executing again; its clock is not yet known to be right.
    Resumed {
        /// The measured pause in milliseconds.
        paused_ms: u64,
    },
    /// Executing, with the clock verified.
    Verified {
        /// The measured pause in milliseconds.
        paused_ms: u64,
        /// The step its wall clock was given, in milliseconds.
        clock_step_ms: i64,
    },
    /// Executing again, and nothing more can be known: no agent in it tells its clock, or it was started anew and read its
    /// clock at boot.
    RunsAgain {
        /// The measured pause in milliseconds, where there was one.
        paused_ms: Option<u64>,
    },
    /// Deleted meanwhile; nobody waits for it.
    Gone,
}

impl Phase {
    /// Whether the event may end with the VM in this phase.
    #[must_use]
    pub const fn may_end(self) -> bool {
        matches!(self, Self::Waiting | Self::Verified { .. } | Self::RunsAgain { .. } | Self::Gone)
    }

    /// The measured pause, once there is one.
    #[must_use]
    pub const fn paused_ms(self) -> Option<u64> {
        match self {
            Self::Resumed { paused_ms } | Self::Verified { paused_ms, .. } => Some(paused_ms),
            Self::RunsAgain { paused_ms } => paused_ms,
            Self::Waiting | Self::Paused | Self::Gone => None,
        }
    }
}

/// One VM of an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// What was promised.
    pub bound: PauseBound,
    /// Where it is.
    pub phase: Phase,
}

/// An approval, as it is kept for the audit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Approval {
    /// When.
    pub at: UnixMs,
    /// The address it came from, for a VM's approval.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub from: String,
    /// The client's `User-Agent`, shortened to 128 bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub agent: String,
}

/// A guest's wish to wait longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deferral {
    /// The VM that asked.
    pub by: VmName,
    /// Not before this time, unless the same VM approves.
    pub until: UnixMs,
}

/// Where an event's decisions are made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "on")]
pub enum Origin {
    /// On this host, by this job.
    Here {
        /// The job.
        job: JobId,
    },
    /// On another host; shown here because a VM of this host is in the same set.
    Elsewhere,
}

/// One event: one scope's part of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its id, from Scheduled to removal.
    pub id: EventId,
    /// Who sees it.
    pub scope: ScopeId,
    /// Where its decisions are made.
    pub origin: Origin,
    /// Scheduled or Started.
    pub status: EventStatus,
    /// What it does.
    pub kind: EventKind,
    /// Who caused it.
    pub source: EventSource,
    /// A sentence for people.
    pub description: String,
    /// The VMs, by the name they know themselves by.
    pub resources: BTreeMap<VmName, Part>,
    /// The update domain all of them are in; `None` outside a set.
    pub update_domain: Option<UpdateDomain>,
    /// A promise in whole seconds; constant for the event's life.
    pub not_before: UnixMs,
    /// The same promise on the monotonic clock; computed anew when the state is loaded.
    #[serde(skip)]
    pub deadline: MonoMs,
    /// When it was announced.
    pub announced: UnixMs,
    /// When it became Started.
    pub started: Option<UnixMs>,
    /// Whose approvals count.
    pub policy: ApprovalPolicy,
    /// Approvals of VMs, the ones that do not count included; the first of each VM.
    pub approvals: BTreeMap<VmName, Approval>,
    /// An operator's approval and their name.
    pub operator: Option<(String, Approval)>,
    /// The last deferral in force.
    pub deferral: Option<Deferral>,
    /// How many deferrals there were.
    pub deferrals: u16,
}

impl Event {
    /// `DurationInSeconds`: the worst bound of its VMs, in whole seconds rounded up.
    #[must_use]
    pub fn duration_in_seconds(&self) -> i32 {
        self.resources.values().map(|part| part.bound).max().unwrap_or(PauseBound::None).seconds()
    }

    /// The job, when the event is decided on this host.
    #[must_use]
    pub fn job(&self) -> Option<&JobId> {
        match &self.origin {
            Origin::Here { job } => Some(job),
            Origin::Elsewhere => None,
        }
    }

    /// Whether the approvals given so far let it start early.
    #[must_use]
    pub fn approved(&self) -> bool {
        if self.operator.is_some() {
            return true;
        }
        match &self.policy {
            ApprovalPolicy::AnyInScope => !self.approvals.is_empty(),
            ApprovalPolicy::AffectedOnly => {
                self.resources.iter().all(|(vm, part)| part.phase == Phase::Gone || self.approvals.contains_key(vm))
            }
            ApprovalPolicy::Named { vms } => self.approvals.keys().any(|vm| vms.contains(vm)),
            ApprovalPolicy::Quorum { needed } => self.approvals.len() >= usize::from((*needed).max(1)),
            ApprovalPolicy::OperatorOnly => false,
        }
    }

    /// The deferral that still holds the event back, if any.
    #[must_use]
    pub fn held_until(&self, wall: UnixMs) -> Option<UnixMs> {
        let deferral = self.deferral.as_ref()?;
        let withdrawn = self.operator.is_some() || self.approvals.contains_key(&deferral.by);
        (!withdrawn && wall < deferral.until).then_some(deferral.until)
    }
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "is")]
pub enum JobStage {
    /// Announced; the gate is shut or not yet used.
    Waiting {
        /// Whether [`crate::Action::GateOpened`] was given; given again after a restart.
        #[serde(skip)]
        told: bool,
    },
    /// Started; a pause is allowed from `pause_from` on.
    Started {
        /// When `Started` was visible for the lead.
        #[serde(skip)]
        pause_from: MonoMs,
        /// Whether [`crate::Action::MayPause`] was given; given again after a restart.
        #[serde(skip)]
        told: bool,
    },
    /// A VM was paused; there is no way back to before.
    Paused,
}

/// A life cycle played without touching a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Simulation {
    /// How long the pause seems to last, in milliseconds.
    pub pause_ms: u64,
    /// When the next step is due; set while one is.
    #[serde(skip)]
    pub until: Option<MonoMs>,
}

/// One maintenance on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// Its events, one per scope.
    pub events: Vec<EventId>,
    /// How far it is.
    pub stage: JobStage,
    /// How long `Started` is visible before a pause, in milliseconds (at least 2,000).
    pub lead_ms: u64,
    /// A short code of the reason, for the native document.
    pub reason: String,
    /// Limits for deferrals by guests.
    pub defer: DeferLimits,
    /// Set when only the life cycle is played.
    pub simulation: Option<Simulation>,
    /// The outcome that was ordered; events vanish as soon as every VM allows it.
    pub finish: Option<Outcome>,
}

/// How far guests may push a maintenance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeferLimits {
    /// How long after `NotBefore` a deferral may reach, in seconds; 0 allows none.
    pub max_s: u32,
    /// How many deferrals an event may have.
    pub max_count: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_15_ids_are_upper_case_and_compared_without_case() {
        let id = EventId::parse("602d9444-d2cd-49c7-8624-8643e7171297").unwrap();
        assert_eq!(id.to_string(), "602D9444-D2CD-49C7-8624-8643E7171297");
        assert_eq!(EventId::parse(&id.to_string()), Some(id));
        for bad in ["", "602D9444D2CD49C786248643E7171297", "{602D9444-D2CD-49C7-8624-8643E7171297}"] {
            assert_eq!(EventId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn rule_17_duration_is_rounded_up_never_down() {
        assert_eq!(PauseBound::AtMostMs(1).seconds(), 1);
        assert_eq!(PauseBound::AtMostMs(6_000).seconds(), 6);
        assert_eq!(PauseBound::AtMostMs(6_001).seconds(), 7);
        assert_eq!((PauseBound::None.seconds(), PauseBound::Unknown.seconds()), (0, -1));
        assert!(PauseBound::Unknown > PauseBound::AtMostMs(u64::MAX));
    }
}
