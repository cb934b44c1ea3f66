//! Orders to start the search from.

use std::cmp::Reverse;

use fermata_model::UpdateDomain;

use super::Seconds;
use super::dsatur;
use super::problem::{Problem, Touch};
use crate::fleet::Fleet;

/// Classes of hosts one after the other, and the hosts that do not fit their class at the end, by colour.
///
/// With a label key the classes are its values in text order (numbers by size); hosts without the label do not fit.
/// Without a key the class is inferred from the update domains that the host's VMs have, and a host fits when all its
/// VMs agree. One misfit in the middle of a sweep makes its sets lose a whole recovery time there, and everything
/// behind them wait; at the end, misfits only wait for each other. Inside a class the hosts whose sets take longest come
/// first.
///
/// `None` without a key when more hosts than not are misfits: then there are no classes to speak of.
pub(crate) fn by_label(
    fleet: &Fleet,
    problem: &Problem,
    key: Option<&str>,
    set_bounds: &[Seconds],
) -> Option<Vec<u32>> {
    let count = problem.jobs.len() as u32;
    let classes = match key {
        Some(key) => given(fleet, problem, key),
        None => inferred(fleet, problem),
    };
    if key.is_none() && classes.iter().filter(|c| c.is_none()).count() * 2 > classes.len() {
        return None;
    }
    let colours = dsatur::colours(problem, |job| classes[job as usize].is_none());
    let urgency = |job: u32| problem.touches_of(job as usize).iter().map(|t| set_bounds[t.set as usize]).max();
    let mut order: Vec<u32> = (0..count).collect();
    order.sort_by_cached_key(|&job| {
        let misfit = classes[job as usize].is_none();
        let colour = if misfit { colours[job as usize] } else { 0 };
        (misfit, classes[job as usize], colour, Reverse(urgency(job)), job)
    });
    Some(order)
}

/// The rank of each host's label value; `None` without the label.
fn given(fleet: &Fleet, problem: &Problem, key: &str) -> Vec<Option<u32>> {
    let value = |job: &super::problem::Job| {
        let text = fleet.label(job.host, key)?;
        Some((text.parse().unwrap_or(u64::MAX), text))
    };
    let mut values: Vec<_> = problem.jobs.iter().filter_map(value).collect();
    values.sort_unstable();
    values.dedup();
    problem.jobs.iter().map(|job| value(job).map(|v| values.partition_point(|other| *other < v) as u32)).collect()
}

/// The class that all of a host's VMs speak for. Where there are several, the first in which its sets stay within their
/// quotas: hosts beyond a quota run one after the other and hold up the whole class.
fn inferred(fleet: &Fleet, problem: &Problem) -> Vec<Option<u32>> {
    let classes = fleet.class_count();
    let mut vms_in_class = vec![[0u32; UpdateDomain::MAX_COUNT as usize]; problem.sets.len()];
    let mut class = |job: usize| {
        let host = problem.jobs[job].host;
        let touches = problem.touches_of(job);
        let fits = |class: u8| {
            fleet.vms_on(host).iter().filter_map(|vm| vm.member).all(|m| fleet.fits_class(m.set, m.domain, class))
        };
        let beyond = |class: u8| -> u32 {
            let beyond = |t: &Touch| {
                let there = vms_in_class[t.set as usize][usize::from(class)];
                if there == 0 { 0 } else { (there + t.vms).saturating_sub(problem.sets[t.set as usize].quota) }
            };
            touches.iter().map(beyond).sum()
        };
        let chosen = (0..classes).filter(|class| fits(*class)).min_by_key(|class| (beyond(*class), *class))?;
        for touch in touches {
            vms_in_class[touch.set as usize][usize::from(chosen)] += touch.vms;
        }
        Some(u32::from(chosen))
    };
    (0..problem.jobs.len()).map(&mut class).collect()
}

/// Colour classes in the order of their colours, the longest work first inside one.
pub(crate) fn by_colour(problem: &Problem, colours: &[u16]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..problem.jobs.len() as u32).collect();
    order.sort_by_key(|&job| (colours[job as usize], Reverse(problem.jobs[job as usize].work), job));
    order
}
