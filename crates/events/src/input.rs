//! What comes in, what goes out, and what is refused.

use std::net::IpAddr;
use std::time::Duration;

use fermata_model::{SetName, UpdateDomain, VmName};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::event::{DeferLimits, Event, EventId, EventKind, EventSource, JobId, PauseBound};
use crate::history::Outcome;
use crate::scope::{ApprovalPolicy, ScopeId};
use crate::time::UnixMs;

/// One VM of an announcement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Affected {
    /// The VM.
    pub vm: VmName,
    /// The forecast's upper bound of its pause.
    pub pause: PauseBound,
    /// What is done to this VM, where it differs from the job's kind. A scope is told the harshest of its VMs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<EventKind>,
}

impl Affected {
    /// A VM to which happens what the job is announced as.
    #[must_use]
    pub const fn new(vm: VmName, pause: PauseBound) -> Self {
        Self { vm, pause, kind: None }
    }
}

/// A maintenance to be announced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Announce {
    /// The job; never used before. Announcing the same job again with the same content changes nothing.
    pub job: JobId,
    /// Where the ids of its events are derived from; random, chosen once per job.
    pub seed: Uuid,
    /// What it does to the VMs.
    pub kind: EventKind,
    /// Who caused it.
    #[serde(default)]
    pub source: EventSource,
    /// A sentence for people; Azure's own when empty.
    #[serde(default)]
    pub description: String,
    /// A short code of the reason, for the native document.
    #[serde(default)]
    pub reason: String,
    /// Every VM of the job.
    pub affected: Vec<Affected>,
    /// The notice the update asks for, in seconds. A VM's own minimum can make it longer; a scope that never asked, or
    /// has not asked for 24 h, is owed none.
    pub notice_s: u32,
    /// How long `Started` is visible before the pause, in milliseconds; the configured lead when absent, 2,000 at least.
    #[serde(default)]
    pub lead_ms: Option<u64>,
    /// Limits for deferrals by guests; none by default.
    #[serde(default)]
    pub defer: DeferLimits,
    /// Play only the life cycle, with a pause of this many milliseconds that touches no VM.
    #[serde(default)]
    pub simulate_pause_ms: Option<u64>,
}

/// Who approves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "as")]
pub enum Approver {
    /// A VM of this host, known by the wire.
    Vm {
        /// Its name.
        vm: VmName,
        /// The source address of the request.
        from: Option<IpAddr>,
        /// The `User-Agent` of the request.
        agent: String,
    },
    /// A VM of another host, vouched for by the controller.
    Peer {
        /// Its name.
        vm: VmName,
        /// The availability set it is in.
        set: SetName,
    },
    /// An operator.
    Operator {
        /// Their name, for the audit.
        name: String,
    },
}

/// Everything that can happen to the state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "do")]
pub enum Input {
    /// A VM of this host exists, with these properties.
    UpsertVm {
        /// Its name.
        vm: VmName,
        /// The set it is in.
        #[serde(default)]
        set: Option<SetName>,
        /// Its update domain in the set.
        #[serde(default)]
        update_domain: Option<UpdateDomain>,
        /// The shortest notice it must be given once it asked, in seconds.
        #[serde(default)]
        min_notice_s: u32,
        /// The highest incarnation it saw on another host; the next one here is above it.
        #[serde(default)]
        incarnation_floor: u32,
    },
    /// A VM is no longer on this host.
    RemoveVm {
        /// Its name.
        vm: VmName,
    },
    /// Whose approvals count in a scope from now on; open events keep theirs.
    SetPolicy {
        /// The scope.
        scope: ScopeId,
        /// The policy.
        policy: ApprovalPolicy,
    },
    /// The controller tells that a VM of the set on another host asked for its events.
    PeerPolled {
        /// The set.
        set: SetName,
        /// When.
        at: UnixMs,
    },
    /// A VM asked for its events.
    Polled {
        /// The VM.
        vm: VmName,
    },
    /// Announce a job.
    Announce(Announce),
    /// A host failure: events appear as Started at once.
    Fail(Announce),
    /// Approve events, all or none of them.
    Approve {
        /// The events.
        events: Vec<EventId>,
        /// Who.
        by: Approver,
    },
    /// A guest asks for more time.
    Defer {
        /// The event.
        event: EventId,
        /// The VM that asks.
        vm: VmName,
        /// Until when.
        until: UnixMs,
    },
    /// Cancel a job that has not started.
    Cancel {
        /// The job.
        job: JobId,
    },
    /// Publish Started; only through an open gate.
    Start {
        /// The job.
        job: JobId,
    },
    /// VMs of the job are about to be paused; all of them when `vms` is empty. Only when the lead is over.
    Pausing {
        /// The job.
        job: JobId,
        /// The VMs.
        #[serde(default)]
        vms: Vec<VmName>,
    },
    /// A VM executes again.
    Resumed {
        /// The job.
        job: JobId,
        /// The VM.
        vm: VmName,
        /// The measured pause in milliseconds.
        paused_ms: u64,
    },
    /// A resumed VM's clock was verified.
    ClockVerified {
        /// The job.
        job: JobId,
        /// The VM.
        vm: VmName,
        /// The step its wall clock was given, in milliseconds.
        #[serde(default)]
        clock_step_ms: i64,
    },
    /// A VM executes again and its clock cannot be verified: no agent in it tells the time, or it was started anew and read
    /// its clock at boot. Of a VM that was not paused, nothing.
    RunsAgain {
        /// The job.
        job: JobId,
        /// The VM.
        vm: VmName,
        /// The measured pause in milliseconds, where there was one.
        #[serde(default)]
        paused_ms: Option<u64>,
    },
    /// The job is over; its events vanish as soon as no VM of theirs is paused or unverified.
    Finish {
        /// The job.
        job: JobId,
        /// How it ended.
        outcome: Outcome,
    },
    /// An event of another host in a set of this host's VMs, as the controller tells it.
    Mirror {
        /// The event; its origin is ignored.
        event: Box<Event>,
    },
    /// A mirrored event is over.
    Unmirror {
        /// The event.
        event: EventId,
    },
    /// Time went by.
    Tick,
}

/// One write of the durable state: a key and its new value (JSON), or its deletion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The key.
    pub key: String,
    /// The value; `None` deletes the key.
    pub value: Option<String>,
}

/// A step in an event's life, for webhooks and logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Lifecycle {
    /// Announced.
    Scheduled,
    /// Approved, as the scope's policy wants it.
    Approved,
    /// A guest asked for more time and got it.
    Deferred,
    /// Started.
    Started,
    /// Over, without having started or after it.
    Removed,
    /// A pause was longer than advertised.
    Overrun,
}

/// What the outside is told of a step in an event's life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Notice {
    /// The step.
    pub step: Lifecycle,
    /// When.
    pub at_unix_ms: UnixMs,
    /// The event.
    pub event_id: EventId,
    /// Its job, when it is decided here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// Who sees it.
    pub scope: ScopeId,
    /// What it does.
    pub event_type: EventKind,
    /// The VMs.
    pub resources: Vec<VmName>,
    /// The promise.
    pub not_before_unix_ms: UnixMs,
    /// The advertised pause.
    pub duration_in_seconds: i32,
    /// How it ended; with [`Lifecycle::Removed`] only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// The VM the step is about, with [`Lifecycle::Overrun`] and [`Lifecycle::Deferred`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmName>,
    /// Whether only the life cycle is played.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub simulated: bool,
}

/// What the shell does next, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "action")]
#[must_use]
pub enum Action {
    /// Make these writes durable, as one, before anything behind it; an answer of 200 included.
    Persist {
        /// The writes.
        changes: Vec<Change>,
    },
    /// The documents of these VMs changed: render anew, wake long polls.
    DocumentsChanged {
        /// The VMs.
        vms: Vec<VmName>,
    },
    /// Every event of the job is approved or its notice is over, and no other update domain is in the way.
    GateOpened {
        /// The job.
        job: JobId,
    },
    /// `Started` was visible for the lead; the job may pause VMs.
    MayPause {
        /// The job.
        job: JobId,
    },
    /// Answer the long polls of these VMs and drop their idle connections: a pause begins.
    WakeWaiters {
        /// The VMs.
        vms: Vec<VmName>,
    },
    /// A VM of this host approved an event that is decided elsewhere.
    ForwardApproval {
        /// The event.
        event: EventId,
        /// The VM.
        vm: VmName,
    },
    /// The first request of a scope: notices are owed from now on.
    Enabled {
        /// The scope.
        scope: ScopeId,
    },
    /// No request for 24 h: no notice is owed.
    Disabled {
        /// The scope.
        scope: ScopeId,
    },
    /// A step in an event's life, for webhooks and logs.
    Notify {
        /// The notice.
        notice: Notice,
    },
    /// All events of the job have vanished.
    JobOver {
        /// The job.
        job: JobId,
        /// How it ended.
        outcome: Outcome,
    },
}

/// Why an input changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such VM on this host.
    #[error("events: no VM `{0}` on this host; upsert it first")]
    UnknownVm(VmName),
    /// No such event in the caller's scope; an id of another scope looks the same.
    #[error("events: no event {0} in this scope; list the events and use an id of the list")]
    UnknownEvent(EventId),
    /// No such job.
    #[error("events: no open job `{0}`; announce it first")]
    UnknownJob(JobId),
    /// The job's id was used for something else.
    #[error("events: job `{0}` is already announced with other content; use a new id")]
    JobExists(JobId),
    /// Nothing to announce.
    #[error("events: job `{0}` affects no VM; announce only what is felt")]
    NothingAffected(JobId),
    /// The VM is named twice, or in another open event of this host.
    #[error("events: VM `{vm}` already has an open event; finish or cancel that maintenance first")]
    VmBusy {
        /// The VM.
        vm: VmName,
    },
    /// Rule 39.
    #[error("events: the job touches update domains {first:?} and {second:?} of set `{set}`; split it")]
    SeveralUpdateDomains {
        /// The set.
        set: SetName,
        /// One domain.
        first: Option<UpdateDomain>,
        /// Another one.
        second: Option<UpdateDomain>,
    },
    /// Membership is stable while an event is open.
    #[error(
        "events: VM `{vm}` cannot change its set or update domain while {scope} has an open event; wait for its end"
    )]
    ScopeBusy {
        /// The VM.
        vm: VmName,
        /// The scope with the event.
        scope: ScopeId,
    },
    /// The gate is shut.
    #[error("events: job `{job}` may not start: {why}")]
    GateShut {
        /// The job.
        job: JobId,
        /// What is missing.
        why: GateWait,
    },
    /// The job is in another stage.
    #[error("events: job `{job}` {is}; {instead}")]
    WrongStage {
        /// The job.
        job: JobId,
        /// Where it is.
        is: &'static str,
        /// What can be done.
        instead: &'static str,
    },
    /// `Started` was not visible for long enough.
    #[error("events: job `{job}` may pause in {left:?}; wait for the lead")]
    LeadNotOver {
        /// The job.
        job: JobId,
        /// The rest of the lead.
        left: Duration,
    },
    /// The VM is not part of the job, or in another phase.
    #[error("events: VM `{vm}` of job `{job}` is not {wanted}")]
    WrongPhase {
        /// The job.
        job: JobId,
        /// The VM.
        vm: VmName,
        /// The phase it would have to be in.
        wanted: &'static str,
    },
    /// The operator's limits for deferrals.
    #[error("events: event {event} cannot be deferred: {why}")]
    NotDeferrable {
        /// The event.
        event: EventId,
        /// The limit in the way.
        why: &'static str,
    },
    /// A stored value cannot be read.
    #[error("events: stored record `{key}` is damaged ({reason}); restore the state file or remove the record")]
    Damaged {
        /// The key.
        key: String,
        /// What the parser said.
        reason: String,
    },
}

/// What a gate waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "kebab-case", tag = "for")]
pub enum GateWait {
    /// Neither approved nor over.
    #[error("{scope} has not approved and its notice ends at {} ms", not_before.0)]
    Notice {
        /// The scope.
        scope: ScopeId,
        /// When its notice ends.
        not_before: UnixMs,
    },
    /// A guest asked for more time.
    #[error("{scope} deferred it to {} ms", until.0)]
    Deferral {
        /// The scope.
        scope: ScopeId,
        /// Until when.
        until: UnixMs,
    },
    /// Another update domain of the set is under maintenance.
    #[error("update domain {other:?} of {scope} is under maintenance")]
    OtherDomain {
        /// The set.
        scope: ScopeId,
        /// The other domain.
        other: Option<UpdateDomain>,
    },
}
