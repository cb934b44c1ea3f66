//! Deterministic simulation: real cores, real transactions, a hostile world.
//!
//! A **campaign** is one seed: a fleet, one or two rollouts over it, two controllers, an agent per host, and faults: messages lost, doubled,
//! late and out of order, controllers that sleep between reading and committing, crashes of both, partitions, clocks
//! that are wrong by minutes, VMs that are not healthy for a while, visits that are undone, operators who interfere.
//! After a while the faults stop, and every rollout has to come to its end.
//!
//! Real are: [`fermata_controller::session::Session`] with the rollout inside, its transactions on the store's engine,
//! [`fermata_controller::gate::OrderGate`], plans and definitions made from a fleet. Simulated are time, network, disks that keep what was written, and
//! the work on a host.
//!
//! A judge ([`judge`]) sees everything with the one true clock and stops a campaign at the first broken promise: P4, P5, P6 and what follows from
//! them. The planner's independent checker looks at each rollout's visits, and each log is replayed.

pub mod fleet;
pub mod judge;
pub mod random;
pub mod world;

use std::fmt;

pub use judge::Violation;
pub use world::Sabotage;

/// What a campaign was like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Summary {
    /// Events handled.
    pub events: u64,
    /// Visits begun.
    pub visits: u64,
    /// Commits that the store refused because somebody was faster.
    pub refused_commits: u64,
    /// Orders that gates refused as too old.
    pub old_orders: u64,
    /// Crashes of controllers and agents.
    pub crashes: u64,
    /// Messages lost.
    pub lost: u64,
}

impl std::ops::AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        self.events += other.events;
        self.visits += other.visits;
        self.refused_commits += other.refused_commits;
        self.old_orders += other.old_orders;
        self.crashes += other.crashes;
        self.lost += other.lost;
    }
}

/// A campaign that broke a promise.
#[derive(Debug, Clone)]
pub struct Failure {
    /// Replays it.
    pub seed: u64,
    /// What was broken.
    pub violation: Violation,
    /// The last things that happened.
    pub story: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {}", self.seed, self.violation)?;
        self.story.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

impl std::error::Error for Failure {}

/// Runs the campaign of one seed.
///
/// # Errors
/// [`Failure`] at the first broken promise.
pub fn campaign(seed: u64, sabotage: Option<Sabotage>) -> Result<Summary, Box<Failure>> {
    world::World::new(seed, sabotage).run()
}

/// Runs the campaigns of `count` seeds from `first` on. Each is told to `progress`.
///
/// # Errors
/// The first [`Failure`].
pub fn campaigns(first: u64, count: u64, mut progress: impl FnMut(u64)) -> Result<Summary, Box<Failure>> {
    let mut total = Summary::default();
    for number in 0..count {
        total += campaign(first.wrapping_add(number), None)?;
        progress(number + 1);
    }
    Ok(total)
}
