//! The best schedule found within a step budget.

use super::order;
use super::problem::Problem;
use super::timeline::Timeline;
use super::{NEVER, Span};
use crate::fleet::Fleet;
use crate::plan::{Effort, Strategy};
use crate::policy::Policy;

/// A schedule with its origin.
pub(crate) struct Found {
    pub(crate) spans: Vec<Span>,
    pub(crate) strategy: Strategy,
    pub(crate) steps: u32,
}

/// The best schedule found.
pub(crate) fn best(
    fleet: &Fleet,
    problem: &Problem,
    policy: &Policy,
    soaks: &[u32],
    _effort: Effort,
    _should_stop: &mut dyn FnMut() -> bool,
) -> Found {
    let mut timeline = Timeline::new(problem);
    let mut order = order::by_label(fleet, problem, policy.order_label.as_deref());
    let mut spans = vec![Span::default(); problem.jobs.len()];
    run(&mut timeline, problem, soaks, &mut order, &mut spans);
    Found { spans, strategy: crate::plan::label_strategy(policy), steps: 0 }
}

/// Places all jobs in order, stage after stage, and returns when the last one ends. `order` is sorted by stage.
pub(crate) fn run(
    timeline: &mut Timeline<'_>,
    problem: &Problem,
    soaks: &[u32],
    order: &mut [u32],
    spans: &mut [Span],
) -> u32 {
    timeline.clear();
    order.sort_by_key(|&job| problem.jobs[job as usize].stage);
    let (mut stage, mut from, mut end) = (0, 0, 0);
    for &job in &*order {
        let job = job as usize;
        let of = problem.jobs[job].stage;
        if of != stage {
            // Empty stages have nothing to watch.
            from = if end > 0 { (end + soaks[stage as usize]).min(NEVER) } else { from };
            stage = of;
        }
        let (span, _) = timeline.place(job, from);
        spans[job] = span;
        end = end.max(span.end);
    }
    end
}
