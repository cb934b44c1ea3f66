//! Move advice and what-if: how a rollout could be shorter.
//!
//! [`moves`] looks for the few VMs whose migration shortens a rollout most. It follows the plan's critical path, moves a
//! VM of a set that holds it up to a host where it disturbs nobody, and plans again; the gain it reports is the
//! difference between two real plans, not an estimate. [`what_if_recovery`] plans again with other recovery times.

use std::fmt;

use fermata_model::{HostName, SetName, UpdateDomain, VmName};
use serde::Serialize;

use crate::fleet::Fleet;
use crate::id::HostId;
use crate::plan::render::{duration, plural};
use crate::plan::{Effort, Link, Plan, PlanError, PlanRequest, critical_path, make};

/// VMs tried per round.
const TRIED_PER_ROUND: usize = 6;

/// Rounds without a shorter plan after which the search ends: one chain may hide another.
const PATIENCE: usize = 3;

/// A VM to migrate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Move {
    /// The VM.
    pub vm: VmName,
    /// Its set.
    pub set: SetName,
    /// Its update domain, which it keeps.
    pub domain: UpdateDomain,
    /// Where it runs.
    pub from: HostName,
    /// Where it should run.
    pub to: HostName,
    /// The makespan with this move and all before it, in seconds.
    pub makespan_s: u32,
}

/// The advice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[must_use]
pub struct MoveAdvice {
    /// The makespan as things are, in seconds.
    pub before_s: u32,
    /// The makespan after all moves, in seconds.
    pub after_s: u32,
    /// The moves, the first ones first.
    pub moves: Vec<Move>,
}

impl MoveAdvice {
    /// How much shorter the rollout becomes, in seconds.
    #[must_use]
    pub const fn gain_s(&self) -> u32 {
        self.before_s.saturating_sub(self.after_s)
    }
}

impl fmt::Display for MoveAdvice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.moves.is_empty() {
            return writeln!(f, "No few migrations would shorten this rollout of {}.", duration(self.before_s));
        }
        writeln!(
            f,
            "Migrating {} shortens the rollout by {}, from {} to {} (planned again):",
            plural(self.moves.len(), "VM"),
            duration(self.gain_s()),
            duration(self.before_s),
            duration(self.after_s)
        )?;
        for m in &self.moves {
            let Move { vm, set, domain, from, to, makespan_s } = m;
            let then = duration(*makespan_s);
            writeln!(f, "  {vm} (availability set {set}, update domain {domain}) from {from} to {to}: then {then}")?;
        }
        Ok(())
    }
}

/// How far to look for moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MoveSearch {
    /// Most VMs to move.
    pub moves: usize,
    /// Most plans to make. One takes about 10 ms for 1,000 hosts and 2 s for 100,000.
    pub plans: usize,
}

impl Default for MoveSearch {
    fn default() -> Self {
        Self { moves: 10, plans: 120 }
    }
}

/// The few VMs whose migration shortens the rollout most. Whether the target has the memory and the processors is for
/// the migration to check; hosts known to have no room are not proposed.
///
/// # Errors
/// [`PlanError`] when there is no plan in the first place.
pub fn moves(fleet: &Fleet, request: &PlanRequest, search: MoveSearch) -> Result<MoveAdvice, PlanError> {
    let quick = PlanRequest { effort: Effort { steps: 2, ..request.effort }, ..request.clone() };
    let mut fleet = fleet.clone();
    let mut plan = make(&fleet, &quick, &mut || false)?;
    let before_s = plan.makespan_s();
    let mut taken: Vec<Move> = Vec::new();
    let mut best = (before_s, 0);
    let mut plans = 1;
    let mut waited = 0;
    while taken.len() < search.moves && plans < search.plans && waited < PATIENCE {
        let mut round: Option<(u32, Move, Fleet, Plan)> = None;
        for candidate in candidates(&fleet, &plan, &taken).into_iter().take(TRIED_PER_ROUND) {
            let Some(to) = fleet.host_id(&candidate.to) else { continue };
            let moved = fleet.with_move(&candidate.vm, to);
            let planned = make(&moved, &quick, &mut || false)?;
            plans += 1;
            let makespan_s = planned.makespan_s();
            if round.as_ref().is_none_or(|(least, ..)| makespan_s < *least) {
                round = Some((makespan_s, Move { makespan_s, ..candidate }, moved, planned));
            }
            if plans >= search.plans {
                break;
            }
        }
        let Some((makespan_s, chosen, moved, planned)) = round else { break };
        taken.push(chosen);
        (fleet, plan) = (moved, planned);
        if makespan_s < best.0 {
            best = (makespan_s, taken.len());
            waited = 0;
        } else {
            waited += 1;
        }
    }
    taken.truncate(best.1);
    Ok(MoveAdvice { before_s, after_s: best.0, moves: taken })
}

/// VMs that hold the critical path up, each with a target, the most out of place first.
fn candidates(fleet: &Fleet, plan: &Plan, taken: &[Move]) -> Vec<Move> {
    let chain = critical_path(plan, fleet);
    let classes = fleet.class_count();
    let mut found: Vec<(bool, Move)> = Vec::new();
    for pair in chain.windows(2) {
        let (Link::Set { set, .. } | Link::Share { set }) = &pair[1].waits_for else { continue };
        let Some(set_id) = fleet.set_id(set) else { continue };
        for step in pair {
            let Some(host) = fleet.host_id(&step.host) else { continue };
            for vm in fleet.vms_on(host).iter().filter(|vm| vm.member.is_some_and(|m| m.set == set_id)) {
                let known = found.iter().map(|(_, m)| m).chain(taken).any(|m| m.vm == vm.name);
                let Some(member) = vm.member.filter(|_| !known) else { continue };
                let fits = fleet.fits_class(set_id, member.domain, fleet.host_class(host, classes));
                let Some(to) = target(fleet, host, set_id, member.domain, classes) else { continue };
                found.push((
                    fits,
                    Move {
                        vm: vm.name.clone(),
                        set: set.clone(),
                        domain: member.domain,
                        from: step.host.clone(),
                        to: fleet.host(to).name.clone(),
                        makespan_s: 0,
                    },
                ));
            }
        }
    }
    found.sort_by_key(|(fits, _)| *fits);
    found.into_iter().map(|(_, candidate)| candidate).collect()
}

/// A host for a VM: of a class that fits its update domain, carrying nothing of the set, with the fewest VMs.
fn target(fleet: &Fleet, from: HostId, set: crate::id::SetId, domain: UpdateDomain, classes: u8) -> Option<HostId> {
    fleet
        .host_ids()
        .filter(|&host| host != from && !fleet.host(host).cordoned && fleet.host(host).room != Some(0))
        .filter(|&host| fleet.fits_class(set, domain, fleet.host_class(host, classes)))
        .filter(|&host| fleet.vms_on(host).iter().all(|vm| vm.member.is_none_or(|m| m.set != set)))
        .min_by_key(|&host| {
            (fleet.vms_on(host).iter().filter(|vm| vm.member.is_some()).count(), fleet.vms_on(host).len(), host)
        })
}

/// A rollout with another recovery time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WhatIf {
    /// The recovery time of every set, in seconds.
    pub recovery_s: u32,
    /// The makespan, in seconds.
    pub makespan_s: u32,
    /// What no plan can beat, in seconds.
    pub lower_bound_s: u32,
}

/// Plans with each of these recovery times, the shortest first. More recovery never gives a shorter plan: a plan for a
/// longer recovery keeps the rules of a shorter one too, so where it is the better one it counts for both.
///
/// # Errors
/// [`PlanError`] when there is no plan in the first place.
pub fn what_if_recovery(
    fleet: &Fleet,
    request: &PlanRequest,
    recoveries_s: &[u32],
    should_stop: &mut dyn FnMut() -> bool,
) -> Result<Vec<WhatIf>, PlanError> {
    let mut recoveries_s = recoveries_s.to_vec();
    recoveries_s.sort_unstable();
    recoveries_s.dedup();
    let mut answers: Vec<WhatIf> = Vec::new();
    for recovery_s in recoveries_s.into_iter().rev() {
        let mut request = request.clone();
        request.policy.recovery_s = Some(recovery_s);
        let plan = make(fleet, &request, should_stop)?;
        let longer = answers.last().map_or(u32::MAX, |answer| answer.makespan_s);
        let makespan_s = plan.makespan_s().min(longer);
        answers.push(WhatIf { recovery_s, makespan_s, lower_bound_s: plan.bounds().best_s() });
    }
    answers.reverse();
    Ok(answers)
}
