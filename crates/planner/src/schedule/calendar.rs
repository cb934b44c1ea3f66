//! Windows compiled to openings in seconds since an origin, intersected, merged and sorted.

use jiff::Timestamp;

use super::{NEVER, Seconds};
use crate::policy::Window;

/// How far ahead windows are looked at. A host without an opening in half a year has no window in practice.
const HORIZON_DAYS: u32 = 183;

/// When a host may be in work. Empty `openings` with `always` unset: never.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Calendar {
    always: bool,
    /// Disjoint, sorted `[open, close)`.
    openings: Vec<(Seconds, Seconds)>,
}

impl Calendar {
    pub(crate) const ALWAYS: Self = Self { always: true, openings: Vec::new() };

    /// The union of weekly windows; no windows: always.
    pub(crate) fn of(windows: &[Window], origin: Timestamp) -> Self {
        if windows.is_empty() {
            return Self::ALWAYS;
        }
        let clamp =
            |at: Timestamp| u32::try_from((at.as_second() - origin.as_second()).max(0)).map_or(NEVER, |s| s.min(NEVER));
        let mut openings: Vec<_> = windows
            .iter()
            .flat_map(|window| window.openings(origin, HORIZON_DAYS))
            .map(|(open, close)| (clamp(open), clamp(close)))
            .filter(|(open, close)| open < close)
            .collect();
        openings.sort_unstable();
        Self { always: false, openings: merge(openings) }
    }

    /// Times that lie in both.
    pub(crate) fn and(&self, other: &Self) -> Self {
        if self.always {
            return other.clone();
        }
        if other.always {
            return self.clone();
        }
        let (mut i, mut j) = (0, 0);
        let mut both = Vec::new();
        while let (Some(&(a, b)), Some(&(c, d))) = (self.openings.get(i), other.openings.get(j)) {
            let (open, close) = (a.max(c), b.min(d));
            if open < close {
                both.push((open, close));
            }
            if b < d { i += 1 } else { j += 1 }
        }
        Self { always: false, openings: both }
    }

    /// The same, and from `at` on always.
    pub(crate) fn open_from(&self, at: Seconds) -> Self {
        if self.always {
            return self.clone();
        }
        let mut openings = self.openings.clone();
        openings.push((at, NEVER));
        openings.sort_unstable();
        Self { always: false, openings: merge(openings) }
    }

    /// The first time from `t` on at which `work` fits into one opening; [`NEVER`] when there is none.
    pub(crate) fn fit(&self, t: Seconds, work: Seconds) -> Seconds {
        if self.always {
            return t;
        }
        let first = self.openings.partition_point(|(_, close)| *close <= t);
        self.openings[first..]
            .iter()
            .map(|(open, close)| (t.max(*open), *close))
            .find(|(start, close)| *close == NEVER || start.saturating_add(work) <= *close)
            .map_or(NEVER, |(start, _)| start)
    }
}

fn merge(sorted: Vec<(Seconds, Seconds)>) -> Vec<(Seconds, Seconds)> {
    let mut merged: Vec<(Seconds, Seconds)> = Vec::with_capacity(sorted.len());
    for (open, close) in sorted {
        match merged.last_mut() {
            Some((_, last)) if open <= *last => *last = (*last).max(close),
            _ => merged.push((open, close)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weekly(days: &str, from: &str, to: &str, zone: &str) -> Window {
        serde_json::from_str(&format!(r#"{{"days":[{days}],"from":"{from}:00","to":"{to}:00","time_zone":"{zone}"}}"#))
            .unwrap()
    }

    #[test]
    fn a_night_window_crosses_midnight_and_the_change_to_summer_time() {
        // 2026-03-29 02:00 Europe/Berlin does not exist: that night is an hour shorter.
        let origin: Timestamp = "2026-03-28T12:00:00Z".parse().unwrap();
        let calendar = Calendar::of(&[weekly("\"sat\"", "22:00", "06:00", "Europe/Berlin")], origin);
        let open = calendar.fit(0, 60);
        assert_eq!(open, 9 * 3600);
        assert_eq!(calendar.fit(0, 7 * 3600), open);
        // Eight hours never fit that Saturday; they do a week later.
        assert_eq!(calendar.fit(0, 8 * 3600), 8 * 3600 + 7 * 86_400);
    }

    #[test]
    fn windows_of_host_and_rollout_are_both_kept() {
        let origin: Timestamp = "2026-11-23T00:00:00Z".parse().unwrap();
        let day = Calendar::of(&[weekly("", "08:00", "18:00", "UTC")], origin);
        let monday = Calendar::of(&[weekly("\"mon\"", "16:00", "20:00", "UTC")], origin);
        let both = day.and(&monday);
        assert_eq!(both.fit(0, 2 * 3600), 16 * 3600);
        assert_eq!(both.fit(17 * 3600, 2 * 3600), 7 * 86_400 + 16 * 3600);
        assert_eq!(both.fit(0, 3 * 3600), NEVER);
        assert_eq!(both.open_from(86_400).fit(0, 3 * 3600), 86_400);
    }
}
