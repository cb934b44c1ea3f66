//! The scheduler: orders in, start times out.
//!
//! Everything rests on one operation: [`Timeline::place`](timeline::Timeline::place) puts a job at the earliest time
//! that no rule forbids, given what has been placed before. An *order* of jobs is thereby a *schedule*, and searching
//! for schedules is searching for orders:
//!
//! - [`order`]: the classes of a host label, given or inferred, or colour classes;
//! - [`dsatur`]: those colours;
//! - [`search`]: takes the better of both and improves it until its step budget is spent;
//! - [`bound`]: what no order can beat;
//! - [`baseline`]: the policy to compare with.
//!
//! All times are whole seconds since an origin. Nothing here reads a clock or a random source; the seed comes in.

pub(crate) mod baseline;
pub(crate) mod bound;
pub(crate) mod calendar;
pub(crate) mod dsatur;
pub(crate) mod order;
pub(crate) mod problem;
pub(crate) mod search;
pub(crate) mod timeline;

/// Seconds since the origin.
pub(crate) type Seconds = u32;

/// A time that does not come. Far above any real time, and far enough below the type's end to add to.
pub(crate) const NEVER: Seconds = u32::MAX / 4;

/// Start and end of one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Span {
    pub(crate) start: Seconds,
    pub(crate) end: Seconds,
}
