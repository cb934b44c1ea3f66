//! Which hosts, in which order: the planner.
//!
//! Pure: a [`Fleet`], a [`Policy`] and a moment go in, an immutable [`Plan`] comes out; a plan, the facts and a moment
//! go in, a [`Decision`] about every host comes out. No clock, no randomness (seeds are given), no I/O.
//!
//! | module | what |
//! |---|---|
//! | [`fleet`] | the inventory, its import, placement, self-conflicts |
//! | [`policy`] | limits, stages, windows, what separates a set |
//! | [`plan`] | immutable plans and how they are made |
//! | [`rollout`] | which hosts may start now, and why the others may not |
//! | [`advice`] | which migrations shorten a rollout; what another recovery time would do |
//! | [`bench`] | the policies the planner is compared with |
//! | [`check`] | the independent checker of plans and logs |
//! | [`generate`] | fleets from a seed |
//! | `schedule` | the scheduler behind both |
//!
//! Invariant of everything here (promise P4): in one availability set at most one update domain is in work at any time,
//! and the set's recovery time lies between two of them.

pub mod advice;
pub mod bench;
pub mod check;
pub mod fleet;
pub mod generate;
mod id;
pub mod plan;
pub mod policy;
pub mod rollout;
mod schedule;

pub use fleet::{Fleet, FleetBuilder, FleetSpec, HostSpec, PlacedVm, SetSpec};
pub use id::{HostId, SetId, TextId, VmId};
pub use plan::{Effort, Plan, PlanId, PlanRequest, make};
pub use policy::Policy;
pub use rollout::{Decision, Facts, Verdict, decide};
