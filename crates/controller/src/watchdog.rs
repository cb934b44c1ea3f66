//! What really happened to sets, looked at across all rollouts: from their logs alone, sharing nothing with the locks that prevented it.
//!
//! One rollout's log is checked against its plan by the planner's checker. That cannot see two rollouts at once; this can. A visit counts from the
//! moment its host was first heard to be at work until its VMs were healthy.

use std::collections::BTreeMap;

use fermata_model::{HostName, SetName};
use fermata_planner::check::Visit;
use jiff::Timestamp;

use crate::order::{Outcome, Part, RolloutId, Standing};
use crate::rollout::{Definition, Entry, Input};

/// The visits that a log tells of, with the times between which VMs may have been touched.
#[must_use]
pub fn visits(log: &[Entry]) -> Vec<Visit> {
    let mut visits: Vec<Visit> = Vec::new();
    for entry in log {
        match &entry.input {
            // A report of the end may be the first that is heard of a visit.
            Input::Report(report) => {
                let begun = match &report.standing {
                    Standing::InWork => true,
                    Standing::Finished(outcome) => !matches!(outcome, Outcome::Refused(_)),
                    Standing::Idle | Standing::Announced { .. } | Standing::StoodDown => false,
                };
                let open = visits.iter().any(|visit| visit.host == report.host && visit.healthy.is_none());
                if begun && !open {
                    visits.push(Visit { host: report.host.clone(), started: entry.at, healthy: None });
                }
            }
            Input::Health { host, unhealthy } if unhealthy.is_empty() => {
                let open = visits.iter_mut().rev().find(|visit| visit.host == *host && visit.healthy.is_none());
                if let Some(visit) = open {
                    visit.healthy = Some(entry.at);
                }
            }
            _ => {}
        }
    }
    visits
}

/// A set that was touched through a host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Touch {
    from: Timestamp,
    /// The end of time while it lasts.
    to: Timestamp,
    set: SetName,
    part: Part,
    host: HostName,
    rollout: RolloutId,
}

/// Everything that a rollout touched.
#[must_use]
pub fn touches(definition: &Definition, log: &[Entry]) -> Vec<Touch> {
    let mut found = Vec::new();
    for visit in visits(log) {
        let Some(task) = definition.hosts.get(&visit.host) else { continue };
        found.extend(task.sets.iter().map(|(set, member)| Touch {
            from: visit.started,
            to: visit.healthy.unwrap_or(Timestamp::MAX),
            set: set.clone(),
            part: member.part.clone(),
            host: visit.host.clone(),
            rollout: definition.id.clone(),
        }));
    }
    found
}

/// Every pair of touches of one set in two of its parts at once; `now` ends those that last.
#[must_use]
pub fn overlaps<'a>(touches: impl IntoIterator<Item = &'a Touch>) -> Vec<String> {
    let mut sets: BTreeMap<&SetName, Vec<&Touch>> = BTreeMap::new();
    for touch in touches {
        sets.entry(&touch.set).or_default().push(touch);
    }
    let mut found = Vec::new();
    for (set, mut touches) in sets {
        touches.sort();
        let mut open: Vec<&Touch> = Vec::new();
        for touch in touches {
            open.retain(|other| other.to > touch.from);
            found.extend(open.iter().filter(|other| other.part != touch.part).map(|other| {
                format!(
                    "availability set {set}: part {} on {} (rollout {}) was touched from {} while part {} on {} (rollout {}) was",
                    touch.part, touch.host, touch.rollout, touch.from, other.part, other.host, other.rollout
                )
            }));
            open.push(touch);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(rollout: &str, host: &str, part: &str, from: i64, to: i64) -> Touch {
        let at = |second| Timestamp::from_second(second).unwrap();
        let set = "web".parse().unwrap();
        Touch {
            from: at(from),
            to: at(to),
            set,
            part: part.into(),
            host: host.parse().unwrap(),
            rollout: rollout.into(),
        }
    }

    #[test]
    fn two_parts_of_a_set_at_once_are_found_across_rollouts() {
        let first = touch("r1", "h1", "0", 0, 10);
        let found = overlaps([&first, &touch("r2", "h2", "1", 9, 20)]);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("rollout r1") && found[0].contains("rollout r2"), "{found:?}");
    }

    #[test]
    fn one_after_the_other_and_one_part_on_two_hosts_are_lawful() {
        let touches = [touch("r1", "h1", "0", 0, 10), touch("r1", "h3", "0", 2, 8), touch("r2", "h2", "1", 10, 20)];
        assert_eq!(overlaps(&touches), Vec::<String>::new());
    }
}
