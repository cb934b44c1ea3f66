//! Rollouts: one update on many hosts, one update domain at a time.
//!
//! The controller decides *when and where*; each host's agent decides *how* and keeps its promises alone. Everything that decides is
//! pure and takes its time from outside:
//!
//! | module | what | pure |
//! |---|---|---|
//! | [`rollout`] | the life of a rollout and of every host in it | yes |
//! | [`lock`] | the record of a set that says which part of it is under maintenance (promise P4) | yes |
//! | [`order`] | what goes to an agent and what comes back | data |
//! | [`records`] | where everything lies in the store | yes |
//! | [`session`] | a controller's memory of one rollout, and the transaction that makes a decision true | yes |
//! | [`service`], [`api`], [`client`], [`wire`] | the controller around the cores, its HTTP API, and who talks to it | no |
//! | [`agent_link`] | the agent's side of the link | no |
//! | [`cli`], [`report`] | the operator's commands, and what happened, from the log alone | no |
//! | [`health`] | which VMs count as healthy | data |
//! | [`watchdog`] | an independent look at what happened, across rollouts | yes |
//! | [`pki`], [`identity`] | the controller's own CA, tokens, roles | no |
//! | [`gate`] | the agent's side: which orders it obeys, and when it may touch a VM (P5) | yes |
//!
//! # Why P4 holds without a leader
//!
//! Opening a part of a set, and ordering a host to do it, is one compare-and-swap transaction over the rollout's log, the lock of every set
//! on the host, and the host's order slot ([`lock`]). Whoever read something older is refused by the store. An order is fenced by a
//! generation that grows with each order to a host; an agent never acts on one older than the newest it knows ([`gate`]). A lock is
//! given back only when the agent has said that it will never touch a VM for that order again: because it has finished,
//! or because it stood down, which raises its generation first.

pub mod agent_link;
pub mod api;
pub mod cli;
pub mod client;
pub mod gate;
pub mod health;
pub mod identity;
mod lifeline;
pub mod lock;
pub mod order;
pub mod pki;
pub mod records;
pub mod report;
pub mod rollout;
pub mod server;
pub mod service;
pub mod session;
pub mod watchdog;
pub mod wire;
