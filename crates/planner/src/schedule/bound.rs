//! Lower bounds: what no schedule can beat, whatever its order.

use super::Seconds;
use super::problem::{Group, Problem};
use crate::plan::LowerBounds;

/// Start hosts that the clique search tries at most.
const CLIQUE_STARTS: usize = 64;

/// Members of sets that the clique search looks at, after which it tries no further start host: about 0.2 s.
const CLIQUE_WORK: usize = 30_000_000;

/// All bounds of a problem with these soak times per stage.
pub(crate) fn all(problem: &Problem, soaks: &[u32]) -> LowerBounds {
    let sets = set_bounds(problem);
    LowerBounds {
        set_s: sets.iter().copied().max().unwrap_or(0),
        capacity_s: capacity(problem),
        clique_s: clique(problem),
        stages_s: stages(problem, soaks),
        without_windows: !problem.is_always_open(),
    }
}

/// Per set: each of its groups takes as long as its longest job, and as all its work shared out over the quota; between
/// two groups lies the recovery time.
pub(crate) fn set_bounds(problem: &Problem) -> Vec<Seconds> {
    let mut by_group: Vec<(Group, Seconds, u32)> = Vec::new();
    (0..problem.sets.len() as u32)
        .map(|set| {
            let Touched { quota, recovery } = touched(problem, set);
            by_group.clear();
            by_group.extend(
                problem.members_of(set).iter().map(|&(job, group, vms)| (group, problem.jobs[job as usize].work, vms)),
            );
            by_group.sort_unstable();
            let mut total = 0u64;
            let mut groups = 0u64;
            for group in by_group.chunk_by(|a, b| a.0 == b.0) {
                let longest = group.iter().map(|(_, work, _)| u64::from(*work)).max().unwrap_or(0);
                // VM-seconds; a job above the quota fills it alone.
                let area: u64 =
                    group.iter().map(|(_, work, vms)| u64::from(*work) * u64::from((*vms).min(quota))).sum();
                total += longest.max(area.div_ceil(u64::from(quota)));
                groups += 1;
            }
            clamp(total + groups.saturating_sub(1) * u64::from(recovery))
        })
        .collect()
}

struct Touched {
    quota: u32,
    recovery: Seconds,
}

fn touched(problem: &Problem, set: u32) -> Touched {
    let set = problem.sets[set as usize];
    Touched { quota: set.quota, recovery: set.recovery }
}

fn clamp(seconds: u64) -> Seconds {
    Seconds::try_from(seconds).unwrap_or(super::NEVER).min(super::NEVER)
}

fn capacity(problem: &Problem) -> Seconds {
    let mut per_rack = vec![0u64; problem.racks];
    let mut all = 0;
    for job in &problem.jobs {
        all += u64::from(job.work);
        if let Some(rack) = per_rack.get_mut(job.rack as usize) {
            *rack += u64::from(job.work);
        }
    }
    let rack = per_rack.into_iter().max().unwrap_or(0);
    let shared = |work: u64, limit: Option<u32>| limit.map_or(0, |limit| clamp(work.div_ceil(u64::from(limit))));
    let longest = problem.jobs.iter().map(|j| j.work).max().unwrap_or(0);
    shared(all, problem.host_limit).max(shared(rack, problem.rack_limit)).max(longest)
}

fn stages(problem: &Problem, soaks: &[u32]) -> Seconds {
    let mut longest = vec![0u64; soaks.len()];
    for job in &problem.jobs {
        let stage = &mut longest[job.stage as usize];
        *stage = (*stage).max(u64::from(job.work));
    }
    let Some(last) = longest.iter().rposition(|work| *work > 0) else { return 0 };
    let before = longest[..last].iter().zip(soaks).filter(|(work, _)| **work > 0);
    clamp(before.map(|(work, soak)| work + u64::from(*soak)).sum::<u64>() + longest[last])
}

/// Hosts of which no two may be in work together, because each pair carries different parts of some set: their work
/// plus the shortest recovery between any two. Grown greedily from the hosts with the most neighbours.
fn clique(problem: &Problem) -> Seconds {
    let count = problem.jobs.len();
    let degree =
        |job: usize| -> usize { problem.touches_of(job).iter().map(|t| problem.members_of(t.set).len()).sum() };
    let mut starts: Vec<(usize, usize)> = (0..count).map(|job| (degree(job), job)).collect();
    starts.sort_unstable_by_key(|&(degree, job)| (std::cmp::Reverse(degree), job));
    let recovery = u64::from(problem.sets.iter().map(|s| s.recovery).min().unwrap_or(0));
    let mut mark = vec![0u32; count];
    let mut stamp = 0;
    let mut best = 0;
    let mut work_left = CLIQUE_WORK;
    for &(_, start) in starts.iter().take(CLIQUE_STARTS) {
        let mut members = vec![start];
        let mut candidates = neighbours(problem, start, &mut mark, &mut stamp);
        while !candidates.is_empty() {
            // The candidate that leaves the most candidates, the longest work first.
            stamp += 1;
            let open = stamp;
            for &candidate in &candidates {
                mark[candidate as usize] = open;
            }
            let left = |candidate: u32| {
                problem
                    .touches_of(candidate as usize)
                    .iter()
                    .flat_map(|t| problem.members_of(t.set).iter().filter(move |(_, group, _)| *group != t.group))
                    .filter(|(other, _, _)| mark[*other as usize] == open)
                    .count()
            };
            work_left = work_left.saturating_sub(candidates.iter().map(|c| degree(*c as usize)).sum());
            let chosen = candidates
                .iter()
                .copied()
                .max_by_key(|&c| (left(c), problem.jobs[c as usize].work, std::cmp::Reverse(c)));
            let Some(chosen) = chosen else { break };
            members.push(chosen as usize);
            let near = neighbours(problem, chosen as usize, &mut mark, &mut stamp);
            stamp += 1;
            for other in near {
                mark[other as usize] = stamp;
            }
            candidates.retain(|&c| mark[c as usize] == stamp);
        }
        let work: u64 = members.iter().map(|&job| u64::from(problem.jobs[job].work)).sum();
        best = best.max(work + recovery * (members.len() as u64 - 1));
        if work_left == 0 {
            break;
        }
    }
    clamp(best)
}

/// Jobs that carry another group of a set of this job, each once.
fn neighbours(problem: &Problem, job: usize, mark: &mut [u32], stamp: &mut u32) -> Vec<u32> {
    *stamp += 1;
    let mut found = Vec::new();
    for touch in problem.touches_of(job) {
        for &(other, group, _) in problem.members_of(touch.set) {
            if group != touch.group && mark[other as usize] != *stamp {
                mark[other as usize] = *stamp;
                found.push(other);
            }
        }
    }
    found
}
