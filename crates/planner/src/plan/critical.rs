//! Why a plan takes as long as it does: the chain of hosts of which each waits for the one before.

use std::fmt;

use fermata_model::{HostName, SetName};
use serde::Serialize;

use super::Plan;
use super::render::duration;
use crate::fleet::Fleet;
use crate::schedule::problem::Problem;
use crate::schedule::timeline::{Binding, Timeline};
use crate::schedule::{NEVER, Seconds, Span};

/// What a host of the chain waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Link {
    /// Nothing: it starts with the plan.
    First,
    /// The host before it carries another part of this set, and the recovery time lies between.
    Set {
        /// The set.
        set: SetName,
        /// Its recovery time, in seconds.
        recovery_s: u32,
    },
    /// The host before it uses up the share of this set.
    Share {
        /// The set.
        set: SetName,
    },
    /// The limit of its rack.
    Rack,
    /// The limit of the fleet.
    HostLimit,
    /// Its window.
    Window,
    /// The stage of the host before it.
    Stage,
}

/// A host of the chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CriticalStep {
    /// The host.
    pub host: HostName,
    /// Its start, in seconds after the plan's.
    pub start_s: u32,
    /// Its end, in seconds after the plan's start.
    pub end_s: u32,
    /// What it waits for.
    pub waits_for: Link,
}

impl fmt::Display for CriticalStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} after {}: ", self.host, duration(self.start_s))?;
        match &self.waits_for {
            Link::First => f.write_str("starts with the plan"),
            Link::Set { set, recovery_s } => {
                write!(f, "another part of availability set {set}, then {} of recovery", duration(*recovery_s))
            }
            Link::Share { set } => write!(f, "the share of availability set {set}"),
            Link::Rack => f.write_str("the limit of its rack"),
            Link::HostLimit => f.write_str("the limit of hosts at once"),
            Link::Window => f.write_str("its window"),
            Link::Stage => f.write_str("the stage before"),
        }
    }
}

/// The chain that decides the makespan, from its first host to its last. `fleet` is the inventory of the plan.
#[must_use]
pub fn critical_path(plan: &Plan, fleet: &Fleet) -> Vec<CriticalStep> {
    let ids = plan.hosts().iter().filter_map(|h| fleet.host_id(&h.host));
    let problem = Problem::new(fleet, plan.policy(), ids, plan.starts_at());
    if problem.jobs.len() != plan.hosts().len() {
        // Not the plan's inventory: there is no chain to speak of.
        return Vec::new();
    }
    let mut timeline = Timeline::new(&problem, std::iter::empty());
    let mut spans = vec![Span::default(); problem.jobs.len()];
    let mut bindings = vec![Binding::Free; problem.jobs.len()];
    let mut order: Vec<usize> = (0..plan.hosts().len()).collect();
    order.sort_by_key(|&job| plan.hosts()[job].stage);
    // The host that the present stage waits for, and until when.
    let mut gate: (Seconds, Option<usize>) = (0, None);
    let mut held_by_stage: Vec<Option<usize>> = vec![None; problem.jobs.len()];
    let (mut stage, mut last): (u32, Option<usize>) = (0, None);
    for &job in &order {
        let of = plan.hosts()[job].stage;
        if of != stage {
            let soak = plan.stages().get(stage as usize).map_or(0, |s| s.soak_s);
            gate = (last.map_or(0, |last| (spans[last].end + soak).min(NEVER)), last);
            stage = of;
        }
        (spans[job], bindings[job]) = timeline.place(job, gate.0);
        held_by_stage[job] = gate.1;
        if last.is_none_or(|last| spans[job].end > spans[last].end) {
            last = Some(job);
        }
    }
    let set_name = |set: u32| fleet.set(problem.sets[set as usize].id).spec.name.clone();
    let mut chain = Vec::new();
    let mut next = last;
    while let Some(job) = next {
        let (waits_for, before) = match bindings[job] {
            Binding::Free => match held_by_stage[job] {
                Some(before) => (Link::Stage, Some(before)),
                None => (Link::First, None),
            },
            Binding::Window => (Link::Window, None),
            Binding::Fleet => (Link::HostLimit, ends_at(&spans, spans[job].start)),
            Binding::Rack { by } => (Link::Rack, Some(by as usize)),
            Binding::Quota { set, by } => (Link::Share { set: set_name(set) }, Some(by as usize)),
            Binding::OtherGroup { set, by } => {
                let recovery_s = problem.sets[set as usize].recovery;
                (Link::Set { set: set_name(set), recovery_s }, Some(by as usize))
            }
        };
        let Span { start, end } = spans[job];
        chain.push(CriticalStep { host: plan.hosts()[job].host.clone(), start_s: start, end_s: end, waits_for });
        // A later host can block an earlier one only in the order of placing; the chain goes back in time.
        next = before.filter(|before| spans[*before].start < start);
    }
    chain.reverse();
    chain
}

fn ends_at(spans: &[Span], at: Seconds) -> Option<usize> {
    spans.iter().position(|span| span.end == at)
}
