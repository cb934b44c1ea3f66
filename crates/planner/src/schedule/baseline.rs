//! Start-whatever-is-free: the policy to compare with. Whenever something ends, every host that no rule forbids starts,
//! in the order of the inventory. It keeps every rule, and takes the longest of all, because each set changes its update
//! domain as often as it can and pays its recovery time each time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::problem::Problem;
use super::timeline::Timeline;
use super::{NEVER, Span};

/// The schedule of that policy; jobs that can never start are left at [`NEVER`].
pub(crate) fn start_when_free(problem: &Problem) -> Vec<Span> {
    let mut timeline = Timeline::new(problem, std::iter::empty());
    let mut spans = vec![Span { start: NEVER, end: NEVER }; problem.jobs.len()];
    let mut queue: BinaryHeap<_> = (0..problem.jobs.len() as u32).map(|job| Reverse((0, job))).collect();
    // A job's time only moves later as others are placed, so a time that still holds when it is first in the queue is
    // the time at which the job would have been found free.
    while let Some(Reverse((at, job))) = queue.pop() {
        let (start, _) = timeline.earliest(job as usize, at);
        if start > at {
            if start < NEVER {
                queue.push(Reverse((start, job)));
            }
            continue;
        }
        let span = Span { start, end: start + problem.jobs[job as usize].work };
        timeline.occupy(job as usize, span);
        spans[job as usize] = span;
    }
    spans
}
