//! The metadata service: what a guest reads at `http://169.254.169.254`, and the answers it gives.
//!
//! The protocol is Azure's, so clients written for it work unchanged: `/metadata/instance`, `/metadata/scheduledevents`,
//! `/metadata/versions`, and native extensions under `/metadata/x-maintenance/v1`.
//!
//! Layers, each of which can be tested without the one above it:
//!
//! | module | concern | I/O |
//! |---|---|---|
//! | [`http`] | bytes to requests, answers to bytes | none |
//! | [`route`] | request and caller to a verdict | none |
//! | [`instance`] | documents about a VM | none |
//! | [`limits`] | how much a VM may ask for | none |
//! | `fermata-events` | events, approvals, gates | none |
//! | [`store`] | durable records | SQLite |
//! | [`service`] | the core, its writer thread, documents ready to send | threads |
//! | [`caller_of`], [`serve`] | connections of guests | tokio |
//! | [`control`] | orders of the agent, over a Unix socket | tokio |
//! | [`link`] | the agent's end of it | tokio |
//! | [`wire`], [`dhcp`] | firewall, routes, addresses | `nft`, `ip`, UDP |
//! | [`webhook`], [`metrics`] | telling others | HTTP |
//! | [`daemon`] | all of it as one process of few privileges | tokio |
//!
//! Guests are untrusted: a request is bounded before it is parsed, a VM is bounded before it is served, and nothing a
//! guest sends decides who it is.

pub mod caller;
pub mod caller_of;
pub mod clock;
pub mod control;
pub mod daemon;
pub mod dhcp;
pub mod fuzz;
pub mod http;
pub mod instance;
pub mod limits;
pub mod link;
pub mod metrics;
pub mod route;
pub mod serve;
pub mod service;
mod slot;
pub mod store;
pub mod webhook;
pub mod wire;

/// The events core, for users of [`control`] and [`link`].
pub use fermata_events;

pub use caller_of::{ByListener, ByMark, BySource, CallerOf};
pub use clock::{Clock, SystemClock};
pub use serve::serve;
pub use service::{ApplyError, Port, Service, Settings, VmRecord};
pub use store::{SqliteStore, Store};
