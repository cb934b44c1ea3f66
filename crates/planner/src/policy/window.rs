//! Weekly windows: when hosts may be in work, in the operator's own time zone.

use std::fmt;

use jiff::civil::{Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};
use serde::{Deserialize, Serialize};

/// A day of the week, written `mon` to `sun`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "days of the week")]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl From<Weekday> for Day {
    fn from(day: Weekday) -> Self {
        match day {
            Weekday::Monday => Self::Mon,
            Weekday::Tuesday => Self::Tue,
            Weekday::Wednesday => Self::Wed,
            Weekday::Thursday => Self::Thu,
            Weekday::Friday => Self::Fri,
            Weekday::Saturday => Self::Sat,
            Weekday::Sunday => Self::Sun,
        }
    }
}

/// Why a window cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// The time zone is not in the system's data base.
    #[error("time zone `{0}` is not known; write an IANA name like Europe/Berlin, or UTC")]
    TimeZone(String),
}

/// A time of the week in which hosts may be in work, from its start to healthy VMs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// The days on which the window opens; empty: every day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<Day>,
    /// When it opens, in civil time.
    pub from: Time,
    /// When it closes; at or before `from`: on the next day.
    pub to: Time,
    /// The IANA name of the time zone that `from` and `to` are meant in.
    pub time_zone: String,
}

impl Window {
    /// Checks what the type does not: that the time zone exists.
    ///
    /// # Errors
    /// [`WindowError`] with the way out.
    pub fn check(&self) -> Result<(), WindowError> {
        self.zone().map(|_| ())
    }

    fn zone(&self) -> Result<TimeZone, WindowError> {
        TimeZone::get(&self.time_zone).map_err(|_| WindowError::TimeZone(self.time_zone.clone()))
    }

    /// When the opening that `at` lies in closes; `None` when the window is closed at `at`. Looks at the civil days around
    /// `at`, one by one.
    #[must_use]
    pub fn close_of_opening_at(&self, at: Timestamp) -> Option<Timestamp> {
        let today = at.to_zoned(self.zone().ok()?);
        [-1i64, 0]
            .into_iter()
            .filter_map(|shift| today.checked_add(Span::new().days(shift)).ok())
            .filter_map(|day| self.opening_on(&day))
            .filter(|(open, close)| *open <= at && at < *close)
            .map(|(_, close)| close)
            .max()
    }

    /// The openings that begin on the civil days from the one before `from` until `days` later, as timestamps.
    pub(crate) fn openings(&self, from: Timestamp, days: u32) -> Vec<(Timestamp, Timestamp)> {
        let Ok(zone) = self.zone() else { return Vec::new() };
        let first = from.to_zoned(zone);
        (-1..=i64::from(days))
            .filter_map(|shift| first.checked_add(Span::new().days(shift)).ok())
            .filter_map(|day| self.opening_on(&day))
            .collect()
    }

    /// The opening that begins on the civil day of `day`. A civil time that a clock change skips or repeats is taken
    /// as jiff's "compatible" rule does: the later one of a gap, the earlier one of a fold.
    fn opening_on(&self, day: &Zoned) -> Option<(Timestamp, Timestamp)> {
        if !self.days.is_empty() && !self.days.contains(&Day::from(day.weekday())) {
            return None;
        }
        let date = day.date();
        let close_date = if self.to <= self.from { date.tomorrow().ok()? } else { date };
        let at = |date: jiff::civil::Date, time| {
            date.to_datetime(time).to_zoned(day.time_zone().clone()).ok().map(|z| z.timestamp())
        };
        Some((at(date, self.from)?, at(close_date, self.to)?))
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days.is_empty() {
            f.write_str("daily")?;
        }
        for (index, day) in self.days.iter().enumerate() {
            write!(f, "{}{day:?}", if index == 0 { "" } else { "," })?;
        }
        write!(f, " {}-{} {}", self.from.strftime("%H:%M"), self.to.strftime("%H:%M"), self.time_zone)
    }
}
