//! From plan, inventory, facts and now to a verdict on every host.

use std::collections::HashMap;
use std::fmt;

use fermata_model::HostName;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::facts::{Facts, Gate, HostFact, SetFact};
use super::reason::{Holder, WaitReason};
use crate::fleet::Fleet;
use crate::plan::{Exclusion, Plan};
use crate::schedule::problem::{Group, Problem};
use crate::schedule::timeline::{Binding, Timeline};
use crate::schedule::{NEVER, Seconds, Span};

/// How much longer a host that is past its work time is expected to take, in seconds.
const OVERTIME_S: Seconds = 60;

/// Groups of occupants outside the rollout that hold a whole set.
const WHOLE_SET: Group = u32::MAX;

/// What to do with a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Start it now.
    Start,
    /// It waits.
    Wait {
        /// Why.
        reason: WaitReason,
        /// When it starts at the earliest, as a forecast; absent while that depends on somebody's decision or repair.
        earliest: Option<Timestamp>,
    },
    /// It is in work.
    InWork,
    /// Its maintenance is over and its VMs are healthy.
    Whole,
    /// Its maintenance is over or lost and its VMs are not healthy.
    Broken,
    /// An operator left it out.
    Skipped,
}

/// A host with its verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostVerdict {
    /// The host.
    pub host: HostName,
    /// What to do with it.
    pub verdict: Verdict,
}

/// A verdict on every host of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[must_use = "the hosts to start are in here"]
pub struct Decision {
    /// The moment it was made for.
    pub now: Timestamp,
    /// The hosts, in the plan's order.
    pub hosts: Vec<HostVerdict>,
    /// When the last host is expected to be healthy; absent while that depends on somebody's decision or repair.
    pub eta: Option<Timestamp>,
}

impl Decision {
    /// The hosts to start now, in the plan's order. They may start together.
    pub fn starts(&self) -> impl Iterator<Item = &HostName> {
        self.hosts.iter().filter(|h| h.verdict == Verdict::Start).map(|h| &h.host)
    }

    /// The verdict on one host.
    #[must_use]
    pub fn of(&self, host: &HostName) -> Option<&Verdict> {
        self.hosts.iter().find(|h| h.host == *host).map(|h| &h.verdict)
    }
}

/// Every host with its verdict, the reasons in words. Forecasts are in UTC.
impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let utc = |at: Timestamp| at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
        write!(f, "At {}: ", utc(self.now))?;
        match self.eta {
            Some(eta) => writeln!(f, "all hosts healthy by {} (forecast)", utc(eta))?,
            None => writeln!(f, "the end depends on what is named below")?,
        }
        let width = self.hosts.iter().map(|h| h.host.as_str().len()).max().unwrap_or(0);
        for HostVerdict { host, verdict } in &self.hosts {
            write!(f, "  {:<width$}  ", host.as_str())?;
            match verdict {
                Verdict::Start => writeln!(f, "starts now")?,
                Verdict::InWork => writeln!(f, "is in work")?,
                Verdict::Whole => writeln!(f, "is done")?,
                Verdict::Broken => writeln!(f, "is not whole; repair it, then retry or skip it")?,
                Verdict::Skipped => writeln!(f, "was skipped")?,
                Verdict::Wait { reason, earliest: Some(at) } => {
                    writeln!(f, "waits until {} at the earliest: {reason}", utc(*at))?;
                }
                Verdict::Wait { reason, earliest: None } => writeln!(f, "waits: {reason}")?,
            }
        }
        Ok(())
    }
}

/// Which hosts may start at `now`, and why the others may not.
///
/// The inventory may be newer than the plan: where VMs are, limits and windows are judged by what `fleet` says now. The
/// order is the plan's.
pub fn decide(plan: &Plan, fleet: &Fleet, facts: &Facts, now: Timestamp) -> Decision {
    Round::new(plan, fleet, facts, now).run()
}

/// One call of [`decide`].
struct Round<'a> {
    plan: &'a Plan,
    fleet: &'a Fleet,
    facts: &'a Facts,
    /// Second 0 of the timeline: nothing that matters is earlier.
    origin: Timestamp,
    /// Now, on the timeline.
    now: Seconds,
    problem: Problem,
    /// Job by position in the plan.
    job_of: Vec<Option<u32>>,
    /// Position in the plan by job.
    position_of: Vec<u32>,
    /// What others hold: set and fact. As occupants they are numbered after the jobs.
    outside: Vec<(u32, &'a SetFact)>,
}

impl<'a> Round<'a> {
    fn new(plan: &'a Plan, fleet: &'a Fleet, facts: &'a Facts, now: Timestamp) -> Self {
        let begun = facts.hosts.values().filter_map(|fact| match fact {
            HostFact::InWork { started } | HostFact::Whole { started, .. } | HostFact::Broken { started, .. } => {
                Some(*started)
            }
            HostFact::Held(_) | HostFact::Skipped => None,
        });
        let released = facts.sets.values().flatten().filter_map(|f| f.until);
        let first = begun.chain(released).chain([now, plan.starts_at()]).min().unwrap_or(now);
        let origin = Timestamp::from_second(first.as_second()).unwrap_or(first);
        let ids = plan.hosts().iter().filter_map(|h| fleet.host_id(&h.host));
        let mut problem = Problem::for_rollout(fleet, plan.policy(), ids, origin, plan.starts_at());
        let by_id: HashMap<_, _> = problem.jobs.iter().zip(0u32..).map(|(job, number)| (job.host, number)).collect();
        let job_of: Vec<Option<u32>> =
            plan.hosts().iter().map(|h| fleet.host_id(&h.host).and_then(|id| by_id.get(&id).copied())).collect();
        let mut position_of = vec![0; problem.jobs.len()];
        for (position, job) in (0u32..).zip(&job_of) {
            if let Some(job) = *job {
                position_of[job as usize] = position;
                problem.jobs[job as usize].stage = plan.hosts()[position as usize].stage;
            }
        }
        let now = now.as_second() - origin.as_second();
        let now = Seconds::try_from(now).unwrap_or(0).min(NEVER - 1);
        let dense: HashMap<_, _> = problem.sets.iter().zip(0u32..).map(|(set, number)| (set.id, number)).collect();
        let outside = facts.sets.iter().flat_map(|(name, facts)| facts.iter().map(move |fact| (name, fact)));
        let outside = outside.filter_map(|(name, fact)| Some((*dense.get(&fleet.set_id(name)?)?, fact))).collect();
        Self { plan, fleet, facts, origin, now, problem, job_of, position_of, outside }
    }

    fn run(self) -> Decision {
        let mut timeline = Timeline::new(&self.problem, self.outside.iter().map(|(set, _)| *set));
        self.put_facts(&mut timeline);
        let begin = self.seconds_up(self.plan.starts_at());
        let mut verdicts: Vec<Option<Verdict>> = vec![None; self.plan.hosts().len()];
        let mut starts: Vec<Seconds> = vec![NEVER; self.plan.hosts().len()];
        let mut stage_gate = StageGate { from: self.now.max(begin), block: None };
        let mut last_end = self.now;
        let mut unknown_end = false;
        for (number, stage) in (0u32..).zip(self.plan.stages()) {
            let mut stage_end: Seconds = 0;
            let mut unfinished: Option<(Seconds, &HostName)> = None;
            let mut not_finished = |end: Seconds, host: &'a HostName| {
                if unfinished.is_none_or(|(latest, _)| end > latest) {
                    unfinished = Some((end, host));
                }
            };
            for (position, planned) in self.plan.hosts().iter().enumerate().filter(|(_, h)| h.stage == number) {
                let verdict = match self.facts.hosts.get(&planned.host) {
                    Some(HostFact::Skipped) => Verdict::Skipped,
                    Some(HostFact::Whole { healthy, .. }) => {
                        stage_end = stage_end.max(self.seconds_up(*healthy));
                        Verdict::Whole
                    }
                    Some(HostFact::Broken { .. }) => {
                        not_finished(NEVER, &planned.host);
                        Verdict::Broken
                    }
                    Some(HostFact::InWork { started }) => {
                        let end = self.expected_end(position, *started);
                        not_finished(end, &planned.host);
                        Verdict::InWork
                    }
                    held @ (None | Some(HostFact::Held(_))) => {
                        let verdict = match self.kept_back(position, held) {
                            Some(reason) => Verdict::Wait { reason, earliest: None },
                            None => self.pending(&mut timeline, position, &stage_gate, &mut starts),
                        };
                        let start = starts[position];
                        let work = self.job_of[position].map_or(0, |job| self.problem.jobs[job as usize].work);
                        not_finished(if start >= NEVER { NEVER } else { start + work }, &planned.host);
                        verdict
                    }
                };
                verdicts[position] = Some(verdict);
            }
            if let Some((end, _)) = unfinished {
                stage_end = stage_end.max(end);
            }
            unknown_end |= stage_end >= NEVER;
            last_end = last_end.max(stage_end.min(NEVER));
            if stage.hosts > 0 {
                stage_gate = self.after_stage(number, stage_gate, stage_end, unfinished.map(|(_, host)| host));
            }
        }
        let hosts = self
            .plan
            .hosts()
            .iter()
            .zip(verdicts)
            .map(|(planned, verdict)| HostVerdict {
                host: planned.host.clone(),
                verdict: verdict.unwrap_or(Verdict::Skipped),
            })
            .collect();
        let eta = if unknown_end { None } else { self.moment(last_end) };
        Decision { now: self.moment(self.now).unwrap_or(self.origin), hosts, eta }
    }

    /// Puts hosts that began, and what others hold, on the timeline.
    fn put_facts(&self, timeline: &mut Timeline<'_>) {
        for (position, planned) in self.plan.hosts().iter().enumerate() {
            let Some(job) = self.job_of[position] else { continue };
            let span = match self.facts.hosts.get(&planned.host) {
                Some(HostFact::InWork { started }) => {
                    Span { start: self.seconds_down(*started), end: self.expected_end(position, *started) }
                }
                Some(HostFact::Whole { started, healthy }) => {
                    Span { start: self.seconds_down(*started), end: self.seconds_up(*healthy) }
                }
                Some(HostFact::Broken { started, .. }) => Span { start: self.seconds_down(*started), end: NEVER },
                Some(HostFact::Held(_) | HostFact::Skipped) | None => continue,
            };
            timeline.occupy(job as usize, span);
        }
        for (by, &(set, fact)) in (self.problem.jobs.len() as u32..).zip(&self.outside) {
            // Where something else than update domains separates a set, a held domain may be anywhere in it.
            let by_domain = self.problem.is_by_domain(self.fleet, self.plan.policy(), set);
            let group = fact.domain.filter(|_| by_domain).map_or(WHOLE_SET, |d| u32::from(d.index()));
            let end = fact.until.map_or(NEVER, |until| self.seconds_up(until));
            timeline.hold_set(set, group, fact.vms, by, Span { start: 0, end });
        }
    }

    /// What somebody outside the rollout holds, by occupant.
    fn outside(&self, by: u32) -> Option<&'a SetFact> {
        let number = (by as usize).checked_sub(self.problem.jobs.len())?;
        self.outside.get(number).map(|(_, fact)| *fact)
    }

    /// Why a host is out of the running, whatever the timeline says.
    fn kept_back(&self, position: usize, fact: Option<&HostFact>) -> Option<WaitReason> {
        match &self.facts.gate {
            Gate::Open => {}
            Gate::Paused { by, reason } => {
                return Some(WaitReason::RolloutPaused { by: by.clone(), reason: reason.clone() });
            }
            Gate::Stopped { reason } => return Some(WaitReason::RolloutStopped { reason: reason.clone() }),
        }
        if let Some(HostFact::Held(hold)) = fact {
            return Some(WaitReason::Held(hold.clone()));
        }
        if self.job_of[position].is_some() {
            return None;
        }
        let Some(id) = self.fleet.host_id(&self.plan.hosts()[position].host) else { return Some(WaitReason::Gone) };
        let why = self.problem.excluded.iter().find(|(host, _)| *host == id).map(|(_, why)| why);
        Some(match why {
            Some(Exclusion::Cordoned) => WaitReason::Cordoned,
            Some(Exclusion::SelfConflict(conflict)) => WaitReason::SelfConflict(conflict.clone()),
            Some(Exclusion::NoWindow { .. }) | None => WaitReason::Window,
        })
    }

    fn pending(
        &self,
        timeline: &mut Timeline<'_>,
        position: usize,
        gate: &StageGate,
        starts: &mut [Seconds],
    ) -> Verdict {
        let Some(job) = self.job_of[position] else { return Verdict::Skipped };
        let (span, binding) = timeline.place(job as usize, gate.from);
        starts[position] = span.start;
        if span.start == self.now {
            return Verdict::Start;
        }
        let reason = match binding {
            Binding::Free => gate.block.clone().unwrap_or(WaitReason::NotBegun),
            Binding::Window => WaitReason::Window,
            Binding::Fleet => WaitReason::HostLimit { limit: self.problem.host_limit.unwrap_or(0) },
            Binding::Rack { by } => WaitReason::Rack {
                rack: self.rack_of(job),
                limit: self.problem.rack_limit.unwrap_or(0),
                holder: self.holder(by),
            },
            Binding::Quota { set, by } => WaitReason::Share {
                set: self.set_name(set),
                limit: self.problem.sets[set as usize].quota,
                holder: self.holder(by),
            },
            Binding::OtherGroup { set, by } => {
                WaitReason::Set { set: self.set_name(set), part: self.part(set, by), holder: self.holder(by) }
            }
        };
        Verdict::Wait { reason, earliest: self.moment(span.start) }
    }

    /// When the stage after `number` may begin, and why not before.
    fn after_stage(&self, number: u32, before: StageGate, end: Seconds, unfinished: Option<&HostName>) -> StageGate {
        let stage = &self.plan.stages()[number as usize];
        let name = stage.name.clone();
        let from = end.saturating_add(stage.soak_s).min(NEVER).max(before.from);
        if let Some(host) = unfinished {
            let from = if stage.approval && !self.facts.approved_stages.contains(&number) { NEVER } else { from };
            return StageGate { from, block: Some(WaitReason::Stage { stage: name, host: host.clone() }) };
        }
        if stage.approval && !self.facts.approved_stages.contains(&number) {
            return StageGate { from: NEVER, block: Some(WaitReason::StageApproval { stage: name }) };
        }
        if from > self.now && from > before.from {
            let until = self.moment(from).unwrap_or(self.origin);
            return StageGate { from, block: Some(WaitReason::Soak { stage: name, until }) };
        }
        StageGate { from, ..before }
    }

    fn expected_end(&self, position: usize, started: Timestamp) -> Seconds {
        let work = self.job_of[position].map_or(0, |job| self.problem.jobs[job as usize].work);
        let planned = self.seconds_down(started).saturating_add(work);
        if planned > self.now { planned.min(NEVER) } else { self.now + OVERTIME_S }
    }

    fn holder(&self, by: u32) -> Holder {
        let Some(&position) = self.position_of.get(by as usize) else {
            return Holder::Outside(self.outside(by).map_or_else(String::new, |fact| fact.holder.clone()));
        };
        let host = self.plan.hosts()[position as usize].host.clone();
        match self.facts.hosts.get(&host) {
            Some(HostFact::InWork { .. }) => Holder::InWork(host),
            Some(HostFact::Whole { .. }) => Holder::Recovering(host),
            Some(HostFact::Broken { .. }) => Holder::Broken(host),
            Some(HostFact::Held(_) | HostFact::Skipped) | None => Holder::Planned(host),
        }
    }

    fn part(&self, set: u32, by: u32) -> String {
        if (by as usize) < self.problem.jobs.len() {
            return self.problem.part_name(self.fleet, self.plan.policy(), by as usize, set);
        }
        match self.outside(by).and_then(|fact| fact.domain) {
            Some(domain) => format!("update domain {domain}"),
            None => "all of it".to_owned(),
        }
    }

    fn set_name(&self, set: u32) -> fermata_model::SetName {
        self.fleet.set(self.problem.sets[set as usize].id).spec.name.clone()
    }

    fn rack_of(&self, job: u32) -> String {
        let rack = self.fleet.host(self.problem.jobs[job as usize].host).rack;
        rack.map_or_else(String::new, |rack| self.fleet.text(rack).to_owned())
    }

    fn seconds_down(&self, at: Timestamp) -> Seconds {
        let seconds = at.as_second() - self.origin.as_second();
        Seconds::try_from(seconds.max(0)).map_or(NEVER, |s| s.min(NEVER))
    }

    /// Rounded up: rest that ends within a second ends after it.
    fn seconds_up(&self, at: Timestamp) -> Seconds {
        let whole = self.seconds_down(at);
        if at.subsec_nanosecond() > 0 { (whole + 1).min(NEVER) } else { whole }
    }

    fn moment(&self, seconds: Seconds) -> Option<Timestamp> {
        if seconds >= NEVER {
            return None;
        }
        self.origin.checked_add(SignedDuration::from_secs(i64::from(seconds))).ok()
    }
}

/// When a stage may begin, and what keeps it.
struct StageGate {
    from: Seconds,
    block: Option<WaitReason>,
}
