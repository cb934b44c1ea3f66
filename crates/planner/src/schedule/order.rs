//! Orders from host labels: one class of hosts after the other.

use super::problem::Problem;
use crate::fleet::Fleet;

/// Jobs by the class of their host. With a label key the classes are its values in text order (numbers by size), hosts
/// without the label last; without a key the class is inferred from the update domains that the host's VMs have.
/// Inside a class those that need the longest work come first.
pub(crate) fn by_label(fleet: &Fleet, problem: &Problem, key: Option<&str>) -> Vec<u32> {
    let classes = fleet.class_count();
    let class = |job: &super::problem::Job| -> (u64, &str, u8) {
        match key {
            Some(key) => match fleet.label(job.host, key) {
                Some(text) => (text.parse().unwrap_or(u64::MAX - 1), text, 0),
                None => (u64::MAX, "", 0),
            },
            None => (0, "", fleet.host_class(job.host, classes)),
        }
    };
    let keys: Vec<_> = problem.jobs.iter().map(class).collect();
    let mut order: Vec<u32> = (0..problem.jobs.len() as u32).collect();
    order.sort_by_key(|&job| (keys[job as usize], std::cmp::Reverse(problem.jobs[job as usize].work), job));
    order
}
