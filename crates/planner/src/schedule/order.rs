//! Orders to start the search from.

use std::cmp::Reverse;

use super::Seconds;
use super::dsatur;
use super::problem::Problem;
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

fn inferred(fleet: &Fleet, problem: &Problem) -> Vec<Option<u32>> {
    let classes = fleet.class_count();
    let class = |job: &super::problem::Job| {
        let class = fleet.host_class(job.host, classes);
        let mut members = fleet.vms_on(job.host).iter().filter_map(|vm| vm.member);
        members.all(|m| fleet.fits_class(m.set, m.domain, class)).then_some(u32::from(class))
    };
    problem.jobs.iter().map(class).collect()
}

/// Colour classes in the order of their colours, the longest work first inside one.
pub(crate) fn by_colour(problem: &Problem, colours: &[u16]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..problem.jobs.len() as u32).collect();
    order.sort_by_key(|&job| (colours[job as usize], Reverse(problem.jobs[job as usize].work), job));
    order
}
