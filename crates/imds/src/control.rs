//! Orders of the agent, and news for it: JSON lines over a Unix socket.
//!
//! The service is a process of its own, so that a restart of the agent is not noticed by guests. The agent connects,
//! says [`Call::Hello`], tells its VMs, subscribes, and reads the state: everything it may have missed is in it. A gate
//! that opened while nobody listened is found with [`Call::Jobs`].
//!
//! ```text
//!  -> {"id":1,"call":"apply","input":{"do":"start","job":"m-17"}}
//!  <- {"id":1,"ok":[{"action":"documents-changed","vms":["web0"]}]}
//!  <- {"news":{"action":"may-pause","job":"m-17"}}
//!  -> {"id":2,"call":"apply","input":{"do":"start","job":"m-18"}}
//!  <- {"id":2,"error":"events: no open job `m-18`; announce it first"}
//! ```
//!
//! The socket is for the agent alone; its file permissions say so.

mod client;
mod server;

use std::collections::BTreeMap;

use fermata_events::input::GateWait;
use fermata_events::{Action, EventId, EventKind, Input, Job, ScopeId, UnixMs};
use fermata_model::VmName;
use serde::{Deserialize, Serialize};

use crate::service::VmRecord;

pub use client::{ControlClient, ControlError, News};
pub use server::serve;

/// Longest line in either direction, in bytes.
pub const LINE_MAX: usize = 4 << 20;

/// An order or a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "call")]
pub enum Call {
    /// Who is there? Answer: [`Hello`].
    Hello,
    /// A VM exists, or changed. Answer: actions.
    Upsert {
        /// The VM.
        record: Box<VmRecord>,
    },
    /// A VM left. Answer: actions.
    Remove {
        /// The VM.
        vm: VmName,
    },
    /// An input for the events core. Answer: actions, when they are durable and visible. For `pausing`, the answer comes
    /// when the long polls of the VMs were answered.
    Apply {
        /// The input.
        input: Input,
    },
    /// Open jobs and what their gates wait for. Answer: list of [`JobView`].
    Jobs,
    /// Open events for operators. Answer: list of native events.
    Events,
    /// What is over. Answer: list of records.
    History {
        /// Ended after this time.
        #[serde(default)]
        since: UnixMs,
    },
    /// VMs and when they asked. Answer: map of [`VmView`].
    Vms,
    /// Play a whole life cycle without touching a VM. Answer: [`Simulated`].
    Simulate {
        /// The VMs.
        vms: Vec<VmName>,
        /// What is announced.
        kind: EventKind,
        /// The notice, in seconds.
        notice_s: u32,
        /// How long the pause seems to last, in milliseconds.
        pause_ms: u64,
    },
    /// Cancel the job of an event. Answer: actions.
    CancelEvent {
        /// The event.
        event: EventId,
    },
    /// Answer guests with 410 until told otherwise. Answer: null.
    Loading {
        /// Whether.
        on: bool,
    },
    /// Metrics. Answer: text.
    Metrics,
    /// Send every action from now on. Answer: null, then [`Line::News`].
    Subscribe,
}

/// A numbered call, as it stands on a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbered {
    /// Chosen by the caller; stands in the answer.
    pub id: u64,
    /// The call.
    #[serde(flatten)]
    pub call: Call,
}

/// A line to the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// A call succeeded.
    Ok {
        /// The call's number.
        id: u64,
        /// Its answer.
        ok: serde_json::Value,
    },
    /// A call failed; nothing happened.
    Error {
        /// The call's number; 0 for a line that was no call.
        id: u64,
        /// Reason and way out.
        error: String,
    },
    /// Something happened.
    News {
        /// What.
        news: Action,
    },
    /// News were lost because the reader was too slow; read the state.
    Lost {
        /// How many.
        lost: u64,
    },
}

/// The answer to [`Call::Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of this protocol: 1.
    pub protocol: u32,
    /// Version of the service's program.
    pub version: String,
    /// The epoch of its store.
    pub epoch: u32,
}

/// A job, and what its gate waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobView {
    /// The job.
    pub job: Job,
    /// What the gate waits for; empty when it is open.
    pub waits: Vec<GateWait>,
}

/// A VM, as operators see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmView {
    /// The scope it is in.
    pub scope: ScopeId,
    /// The number of its document.
    pub incarnation: u32,
    /// Its last request; written down every few minutes.
    pub last_poll_unix_ms: Option<UnixMs>,
    /// Whether notices are owed to its scope.
    pub enabled: bool,
}

/// The answer to [`Call::Simulate`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Simulated {
    /// The job.
    pub job: fermata_events::JobId,
    /// Its events.
    pub events: Vec<EventId>,
}

/// The answer to [`Call::Vms`].
pub type Vms = BTreeMap<VmName, VmView>;
