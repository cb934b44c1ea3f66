//! What the planner's benchmark measures: this planner beside the policies it is compared with.
//!
//! Deterministic apart from the times, which the caller takes: nothing here reads a clock.

use jiff::Timestamp;
use serde::Serialize;

use crate::fleet::Fleet;
use crate::policy::Policy;
use crate::schedule::problem::Problem;
use crate::schedule::{NEVER, baseline, dsatur};

/// Makespans of the policies to compare with, under the same rules, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Baselines {
    /// Every host starts as soon as no rule forbids it, in the order of the inventory.
    pub when_free_s: u32,
    /// Strict waves, one per DSATUR colour.
    pub dsatur_waves_s: u32,
    /// How many waves those are.
    pub colours: u32,
}

/// Plans a fleet by the policies to compare with.
#[must_use]
pub fn baselines(fleet: &Fleet, policy: &Policy, starts_at: Timestamp) -> Baselines {
    let problem = Problem::new(fleet, policy, fleet.host_ids(), starts_at);
    let colours = dsatur::colours(&problem, |_| true);
    let free = baseline::start_when_free(&problem);
    Baselines {
        when_free_s: free.iter().map(|s| s.end).filter(|end| *end < NEVER).max().unwrap_or(0),
        dsatur_waves_s: dsatur::waves_s(&problem, &colours),
        colours: colours.iter().max().map_or(0, |last| u32::from(*last) + 1),
    }
}
