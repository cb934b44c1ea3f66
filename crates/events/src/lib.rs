//! Scheduled Events: what a guest is told about maintenance, and what its answer allows.
//!
//! The crate is a pure core. [`State::apply`] takes an [`Input`] and [`Now`] and gives a list of [`Action`]s; nothing
//! here reads a clock, draws a random number, opens a file or iterates in an order that is not written down. The shell
//! (the metadata service) performs the actions **in order**: an [`Action::Persist`] must be durable before anything
//! behind it, the answer to the caller included, happens.
//!
//! ```text
//!  announce --> Scheduled --gate--> (open) --start--> Started --lead--> pausing --> resumed --> clock verified
//!                  |        ^                            |                                            |
//!                  |        | approvals, NotBefore,      | finish(not-done), nothing paused           | finish
//!                  |        | deferral, other domain     v                                            v
//!                  +-cancel----------------------------> removed <------------------------------------+
//!  failure -----------------------------------------> Started (no gate)
//! ```
//!
//! One *job* is one maintenance on one host. It has one event per scope (a stand-alone VM, or an availability set), and
//! its gate opens only when every event's gate does; then all of them become Started together.
//!
//! Invariants, each with a test of its name:
//!
//! - A caller's `DocumentIncarnation` rises exactly when the document it sees changes, and never falls.
//! - No event becomes Started before its `NotBefore` unless its scope's policy is satisfied by approvals.
//! - No pause is allowed before `Started` was visible for the lead (at least 2 s).
//! - An event is removed only when no VM of it is paused and every resumed VM's clock was verified.
//! - At most one update domain of an availability set has a Started event that came through the gate.
//! - A VM learns nothing of events outside its scope: a foreign id and an unknown id are refused alike.
//!
//! | module | concern |
//! |---|---|
//! | [`time`] | the two clocks, and the protocol's date format |
//! | [`version`] | the seven api-versions and their members |
//! | [`event`] | events, jobs, approvals, phases of a VM |
//! | [`scope`] | scopes and approval policies |
//! | [`document`] | the protocol's JSON and the native JSON |
//! | [`input`] | inputs, actions, refusals |
//! | [`state`] | the state and [`State::apply`] |
//! | [`history`] | what happened: advertised against actual |

pub mod document;
pub mod event;
pub mod history;
pub mod input;
pub mod scope;
pub mod state;
pub mod time;
pub mod version;

pub use document::{IfNoneMatch, etag};
pub use event::{Event, EventId, EventKind, EventSource, EventStatus, Job, JobId, PauseBound, Phase};
pub use history::{Outcome, Record};
pub use input::{Action, Affected, Announce, Approver, Change, Input, Lifecycle, Notice, Refusal};
pub use scope::{ApprovalPolicy, Scope, ScopeId};
pub use state::{Config, State, Vm};
pub use time::{MonoMs, Now, UnixMs};
pub use version::ApiVersion;
