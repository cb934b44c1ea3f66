//! The best schedule found within a step budget.
//!
//! 1. The orders of [`order`](super::order) are placed once each; the better one goes on.
//! 2. Where time looks the same in both directions (no windows, one stage), every step places the jobs backwards from
//!    the end, then forwards again by their latest start (forward-backward improvement, Li and Willis 1992). Neither
//!    direction can make a schedule longer. What the two passes leave in place has no slack: those few jobs decide the
//!    makespan, and some of them are tried a little earlier than the jobs they wait for.
//! 3. Elsewhere a step places the jobs by their start, some of them a little earlier.
//! 4. At the end jobs are placed by their start until nothing moves, so that the plan's order alone gives the plan.
//!
//! One step is at most two placements of all jobs.

use super::problem::Problem;
use super::timeline::Timeline;
use super::{NEVER, Seconds, Span, bound, dsatur, order};
use crate::fleet::Fleet;
use crate::generate::SplitMix;
use crate::plan::{Effort, LowerBounds, Strategy};
use crate::policy::Policy;

/// Jobs with at most this much slack, in seconds, are taken for those that decide.
const CRITICAL_SLACK_S: Seconds = 30;

/// A schedule this close to the best lower bound is not compared with other strategies.
const CLOSE: f64 = 1.15;

/// A step that gains less than this part of the makespan is no reason to look further.
const WORTH: Seconds = 1000;

/// A schedule with its origin.
pub(crate) struct Found {
    pub(crate) spans: Vec<Span>,
    pub(crate) strategy: Strategy,
    pub(crate) steps: u32,
    pub(crate) bounds: LowerBounds,
}

/// The best schedule found.
pub(crate) fn best(
    fleet: &Fleet,
    problem: &Problem,
    policy: &Policy,
    soaks: &[u32],
    effort: Effort,
    should_stop: &mut dyn FnMut() -> bool,
) -> Found {
    let bounds = bound::all(problem, soaks);
    let mut search =
        Search { timeline: Timeline::new(problem, std::iter::empty()), problem, soaks, random: SplitMix(effort.seed) };
    let label = policy.order_label.as_deref();
    let by_label = order::by_label(fleet, problem, label, &bound::set_bounds(problem)).map(|mut order| {
        let mut spans = vec![Span::default(); problem.jobs.len()];
        let end = search.place_all(&mut order, &mut spans);
        let strategy = if label.is_some() { Strategy::Label } else { Strategy::InferredLabel };
        (end, spans, strategy)
    });
    let (mut end, mut spans, strategy) = match by_label {
        // Colouring knows nothing of classes and has never come this close.
        Some(found) if f64::from(found.0) <= CLOSE * f64::from(bounds.best_s()) || should_stop() => found,
        by_label => {
            let mut order = order::by_colour(problem, &dsatur::colours(problem, |_| true));
            let mut spans = vec![Span::default(); problem.jobs.len()];
            let end = search.place_all(&mut order, &mut spans);
            by_label.filter(|found| found.0 <= end).unwrap_or((end, spans, Strategy::Dsatur))
        }
    };
    let reversible = problem.is_reversible();
    // Classes improve in jumps, long after the last one; colourings hardly at all.
    let patience = if strategy == Strategy::Dsatur { effort.steps / 16 } else { effort.steps / 2 };
    let (mut steps, mut idle) = (0, 0);
    while steps < effort.steps && idle <= patience && end > bounds.best_s() && !should_stop() {
        let before = end;
        end = if reversible { search.squeeze(&mut spans, end) } else { search.shake(&mut spans, end) };
        steps += 1;
        idle = if end < before - before / WORTH { 0 } else { idle + 1 };
    }
    search.settle(&mut spans);
    Found { spans, strategy, steps, bounds }
}

struct Search<'p> {
    timeline: Timeline<'p>,
    problem: &'p Problem,
    soaks: &'p [u32],
    random: SplitMix,
}

impl Search<'_> {
    /// Places all jobs in order, stage after stage, and returns when the last one ends. Sorts `order` by stage.
    fn place_all(&mut self, order: &mut [u32], spans: &mut [Span]) -> Seconds {
        self.timeline.clear();
        let jobs = &self.problem.jobs;
        if self.soaks.len() > 1 {
            order.sort_by_key(|&job| jobs[job as usize].stage);
        }
        let (mut stage, mut from, mut end) = (0, 0, 0);
        for &job in &*order {
            let of = jobs[job as usize].stage;
            if of != stage {
                // Empty stages have nothing to watch.
                from = if end > 0 { (end + self.soaks[stage as usize]).min(NEVER) } else { from };
                stage = of;
            }
            let (span, _) = self.timeline.place(job as usize, from);
            spans[job as usize] = span;
            end = end.max(span.end);
        }
        end
    }

    /// One backward and one forward placement; keeps the result unless it is longer.
    fn squeeze(&mut self, spans: &mut Vec<Span>, end: Seconds) -> Seconds {
        let mut order = self.jobs_by(|job| (std::cmp::Reverse(spans[job].end), job));
        let mut backwards = spans.clone();
        let backwards_end = self.place_all(&mut order, &mut backwards);
        // Time runs the other way there; mirrored, the end of a span is the latest start of its job.
        let latest = |job: usize| end.saturating_sub(backwards[job].end);
        if backwards_end < end {
            // Already shorter: mirror it as it is, and look further in the next step.
            for (span, back) in spans.iter_mut().zip(&backwards) {
                *span = Span { start: backwards_end - back.end, end: backwards_end - back.start };
            }
            return backwards_end;
        }
        let jump = self.jump();
        let random = &mut self.random;
        let keys: Vec<i64> = (0..spans.len())
            .map(|job| {
                let critical = latest(job).saturating_sub(spans[job].start) <= CRITICAL_SLACK_S;
                let earlier = if critical && random.below(4) == 0 { random.below(jump) } else { 0 };
                i64::from(latest(job)) - i64::from(earlier)
            })
            .collect();
        self.try_order(spans, end, |job| (keys[job], job))
    }

    /// One placement by start with some jobs earlier; keeps the result unless it is longer.
    fn shake(&mut self, spans: &mut Vec<Span>, end: Seconds) -> Seconds {
        let jump = self.jump();
        let random = &mut self.random;
        let earlier = |random: &mut SplitMix| if random.below(8) == 0 { random.below(jump) } else { 0 };
        let keys: Vec<i64> = spans.iter().map(|s| i64::from(s.start) - i64::from(earlier(random))).collect();
        self.try_order(spans, end, |job| (keys[job], job))
    }

    /// Places by start until nothing moves.
    fn settle(&mut self, spans: &mut Vec<Span>) {
        loop {
            let mut order = self.jobs_by(|job| (spans[job].start, self.problem.jobs[job].host));
            let mut next = spans.clone();
            self.place_all(&mut order, &mut next);
            if next == *spans {
                return;
            }
            // Each start is at most what it was, so this comes to an end.
            *spans = next;
        }
    }

    fn try_order<K: Ord>(&mut self, spans: &mut Vec<Span>, end: Seconds, key: impl Fn(usize) -> K) -> Seconds {
        let mut order = self.jobs_by(key);
        let mut next = spans.clone();
        let next_end = self.place_all(&mut order, &mut next);
        if next_end > end {
            return end;
        }
        *spans = next;
        next_end
    }

    fn jobs_by<K: Ord>(&self, key: impl Fn(usize) -> K) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.problem.jobs.len() as u32).collect();
        order.sort_unstable_by_key(|&job| key(job as usize));
        order
    }

    /// How much earlier a job is tried: enough to overtake one or two others.
    fn jump(&self) -> Seconds {
        self.problem.jobs.iter().map(|j| j.work).max().unwrap_or(0).saturating_mul(2)
    }
}
