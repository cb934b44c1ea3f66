//! The adaptive part: which hosts may start now, and for every other host why not, since which object, until when.
//!
//! ```text
//!             Gate, Hold             rules and plan order           caller starts it
//!  pending ----------------> Wait -------------------------> Start -----------------> InWork --> Whole
//!                                                                                        \-----> Broken
//! ```
//!
//! [`decide`] puts the facts on the scheduler's timeline and places every pending host at its earliest time, in the
//! plan's order. A host whose time is now may start; for every other host the rule that pushed it back is the reason,
//! and its time is the forecast. So a host overtakes the plan's order exactly when that delays nobody before it, and
//! what is explained is what is done: there is one mechanism, not two.
//!
//! Invariants: all hosts told to start may start *together*; a host that waits for a set, a limit or a window would
//! break that very rule, or the plan's order, if it started now.

mod decide;
mod facts;
mod reason;

pub use decide::{Decision, HostVerdict, Verdict, decide};
pub use facts::{Facts, Gate, Hold, HostFact, SetFact};
pub use reason::{Holder, WaitReason};
