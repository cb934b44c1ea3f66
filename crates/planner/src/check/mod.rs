//! The independent checker: does a plan, or what really happened, keep the rules?
//!
//! Written without the scheduler's data structures, from the rules alone and as plainly as possible: it compares visits
//! pair by pair. It runs in tests, and in the product over every plan and over the log of a running rollout.
//!
//! What it looks at: one part of a set at a time (promise P4) with the recovery time between two parts, the share of a
//! set, the limits for hosts and racks, windows, and for plans stages and completeness.

mod violation;

use std::collections::BTreeMap;

use fermata_model::HostName;
use jiff::{SignedDuration, Timestamp};

pub use violation::{Report, Violation};

use crate::fleet::{Fleet, Sequencing};
use crate::id::{HostId, SetId};
use crate::plan::Plan;
use crate::policy::{Policy, Window};

/// One maintenance of a host: planned, running or over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visit {
    /// The host.
    pub host: HostName,
    /// When its maintenance started.
    pub started: Timestamp,
    /// When its VMs were healthy again; absent: they are not yet.
    pub healthy: Option<Timestamp>,
}

/// What separates a set, as a value that two visits can be compared by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Part<'a> {
    Domain(u8),
    Fault(u8),
    Text(&'a str),
    /// A host without the property.
    Only(HostId),
}

/// A visit with its host found and its end made comparable.
#[derive(Debug, Clone, Copy)]
struct Known<'a> {
    name: &'a HostName,
    host: HostId,
    start: Timestamp,
    end: Timestamp,
    over: bool,
}

/// Checks a plan against the inventory it was made for.
pub fn check_plan(plan: &Plan, fleet: &Fleet) -> Report {
    let visits: Vec<Visit> = plan
        .hosts()
        .iter()
        .map(|h| Visit { host: h.host.clone(), started: plan.at(h.start_s), healthy: Some(plan.at(h.end_s)) })
        .collect();
    let mut report = check_log(&visits, fleet, plan.policy(), plan.starts_at());
    complete(plan, fleet, &mut report);
    stages(plan, &mut report);
    report
}

/// Checks what happened in a rollout that began at `began`.
pub fn check_log(visits: &[Visit], fleet: &Fleet, policy: &Policy, began: Timestamp) -> Report {
    let mut report = Report::default();
    let mut known = Vec::with_capacity(visits.len());
    for visit in visits {
        match fleet.host_id(&visit.host) {
            Some(host) => known.push(Known {
                name: &visit.host,
                host,
                start: visit.started,
                end: visit.healthy.unwrap_or(Timestamp::MAX),
                over: visit.healthy.is_some(),
            }),
            None => report.add(Violation::UnknownHost { host: visit.host.clone() }),
        }
    }
    known.sort_by(|a, b| (a.start, a.name).cmp(&(b.start, b.name)));
    sets(&known, fleet, policy, &mut report);
    limits(&known, fleet, policy, &mut report);
    windows(&known, fleet, policy, began, &mut report);
    report.visits = visits.len();
    report
}

fn sets(visits: &[Known<'_>], fleet: &Fleet, policy: &Policy, report: &mut Report) {
    let mut sizes: BTreeMap<SetId, u32> = BTreeMap::new();
    for member in fleet.vms().iter().filter_map(|vm| vm.member) {
        *sizes.entry(member.set).or_default() += 1;
    }
    // (set, visit, part) -> VMs
    let mut touched: BTreeMap<SetId, BTreeMap<(usize, Part<'_>), u32>> = BTreeMap::new();
    for (number, visit) in visits.iter().enumerate() {
        for member in fleet.vms_on(visit.host).iter().filter_map(|vm| vm.member) {
            let host = fleet.host(visit.host);
            let part = match policy.sequencing.as_ref().unwrap_or(&fleet.set(member.set).spec.sequencing) {
                Sequencing::UpdateDomain => Part::Domain(member.domain.index()),
                Sequencing::FaultDomain => host.fault_domain.map_or(Part::Only(visit.host), |d| Part::Fault(d.index())),
                Sequencing::Zone => host.zone.map_or(Part::Only(visit.host), |z| Part::Text(fleet.text(z))),
                Sequencing::HostLabel(key) => fleet.label(visit.host, key).map_or(Part::Only(visit.host), Part::Text),
            };
            *touched.entry(member.set).or_default().entry((number, part)).or_default() += 1;
        }
    }
    for (set, parts) in touched {
        let spec = &fleet.set(set).spec;
        let rest = SignedDuration::from_secs(i64::from(policy.recovery_s.unwrap_or(spec.recovery_s)));
        let entries: Vec<_> = parts.iter().map(|((visit, part), vms)| (*visit, part, *vms)).collect();
        for (index, (later, part, _)) in entries.iter().enumerate() {
            let b = &visits[*later];
            for (earlier, other, _) in &entries[..index] {
                let a = &visits[*earlier];
                if earlier == later {
                    if part != other && !policy.allow_self_conflict.contains(b.name) {
                        report.add(Violation::SelfConflict { host: b.name.clone(), set: spec.name.clone() });
                    }
                } else if part != other && b.start < a.end {
                    report.add(Violation::TwoParts {
                        set: spec.name.clone(),
                        first: a.name.clone(),
                        second: b.name.clone(),
                        at: b.start,
                    });
                } else if part != other && b.start.duration_since(a.end) < rest {
                    report.add(Violation::Recovery {
                        set: spec.name.clone(),
                        first: a.name.clone(),
                        second: b.name.clone(),
                        rest_s: b.start.duration_since(a.end).as_secs(),
                        needed_s: rest.as_secs(),
                    });
                }
            }
            let limit = policy.limits.set_quota(sizes.get(&set).copied().unwrap_or(0));
            let mut in_work: BTreeMap<usize, u32> = BTreeMap::new();
            for (other, _, vms) in &entries {
                if visits[*other].start <= b.start && b.start < visits[*other].end {
                    *in_work.entry(*other).or_default() += vms;
                }
            }
            let vms: u32 = in_work.values().sum();
            if in_work.len() > 1 && vms > limit {
                report.add(Violation::Share { set: spec.name.clone(), at: b.start, vms, limit });
            }
        }
        report.sets += 1;
    }
}

fn limits(visits: &[Known<'_>], fleet: &Fleet, policy: &Policy, report: &mut Report) {
    if let Some(limit) = policy.limits.hosts
        && let Some((at, hosts)) = above(visits.iter(), limit.get())
    {
        report.add(Violation::Hosts { at, hosts, limit: limit.get() });
    }
    if let Some(limit) = policy.limits.hosts_per_rack {
        let mut racks: BTreeMap<&str, Vec<&Known<'_>>> = BTreeMap::new();
        for visit in visits {
            if let Some(rack) = fleet.host(visit.host).rack {
                racks.entry(fleet.text(rack)).or_default().push(visit);
            }
        }
        for (rack, visits) in racks {
            if let Some((at, hosts)) = above(visits.into_iter(), limit.get()) {
                report.add(Violation::Rack { rack: rack.to_owned(), at, hosts, limit: limit.get() });
            }
        }
    }
}

/// The first moment at which more than `limit` of the visits run.
fn above<'a>(visits: impl Iterator<Item = &'a Known<'a>>, limit: u32) -> Option<(Timestamp, u32)> {
    // `false` sorts first: what ends at a moment makes room for what begins at it.
    let mut changes: Vec<(Timestamp, bool)> = visits.flat_map(|v| [(v.start, true), (v.end, false)]).collect();
    changes.sort_unstable();
    let mut running = 0u32;
    for (at, begins) in changes {
        running = if begins { running + 1 } else { running.saturating_sub(1) };
        if running > limit {
            return Some((at, running));
        }
    }
    None
}

fn windows(visits: &[Known<'_>], fleet: &Fleet, policy: &Policy, began: Timestamp, report: &mut Report) {
    let deadline = policy.windows_end_after_s.map(|s| began + SignedDuration::from_secs(i64::from(s)));
    for visit in visits {
        let sets = fleet.vms_on(visit.host).iter().filter_map(|vm| vm.member);
        let of_sets = sets.map(|m| &*fleet.set(m.set).spec.windows);
        for list in [&*policy.windows, &*fleet.host(visit.host).windows].into_iter().chain(of_sets) {
            // Of work that is not over, only the start can be judged.
            let end = if visit.over { visit.end } else { visit.start };
            if !list.is_empty() && !covered(list, visit.start, end, deadline) {
                report.add(Violation::Window { host: visit.name.clone(), start: visit.start, end });
                break;
            }
        }
    }
}

/// Whether the windows are open from `start` to `end` without a gap.
fn covered(windows: &[Window], start: Timestamp, end: Timestamp, deadline: Option<Timestamp>) -> bool {
    let mut reached = start;
    loop {
        if deadline.is_some_and(|d| d <= reached) {
            return true;
        }
        match windows.iter().filter_map(|w| w.close_of_opening_at(reached)).max() {
            Some(close) if close >= end => return true,
            Some(close) if close > reached => reached = close,
            _ => return false,
        }
    }
}

fn complete(plan: &Plan, fleet: &Fleet, report: &mut Report) {
    let mut seen: BTreeMap<&HostName, u32> = BTreeMap::new();
    for name in plan.hosts().iter().map(|h| &h.host).chain(plan.excluded().iter().map(|e| &e.host)) {
        *seen.entry(name).or_default() += 1;
    }
    for host in fleet.hosts() {
        let wanted = plan.policy().only.as_ref().is_none_or(|only| only.contains(&host.name));
        let times = seen.get(&host.name).copied().unwrap_or(0);
        if times != u32::from(wanted) {
            report.add(Violation::Count { host: host.name.clone(), times, expected: u32::from(wanted) });
        }
    }
    for planned in plan.hosts() {
        let Some(id) = fleet.host_id(&planned.host) else { continue };
        let work = plan.policy().work_s.unwrap_or(fleet.host(id).work_s);
        if planned.end_s.checked_sub(planned.start_s) != Some(work) {
            report.add(Violation::WorkTime { host: planned.host.clone(), expected_s: work });
        }
        if fleet.host(id).cordoned {
            report.add(Violation::Cordoned { host: planned.host.clone() });
        }
    }
}

fn stages(plan: &Plan, report: &mut Report) {
    let mut spans: BTreeMap<u32, (u32, u32, &HostName)> = BTreeMap::new();
    for host in plan.hosts() {
        let span = spans.entry(host.stage).or_insert((host.start_s, host.end_s, &host.host));
        if host.start_s < span.0 {
            *span = (host.start_s, span.1, &host.host);
        }
        span.1 = span.1.max(host.end_s);
    }
    let mut before: Option<(u32, u32)> = None;
    for (stage, (start, end, first)) in spans {
        if let Some((earlier, over)) = before {
            let soak = plan.stages().get(earlier as usize).map_or(0, |s| s.soak_s);
            if start < over.saturating_add(soak) {
                report.add(Violation::Stage { host: first.clone(), stage, before: earlier });
            }
        }
        before = Some((stage, before.map_or(end, |(_, over)| over.max(end))));
    }
}
