//! The two clocks of a host, and the protocol's date format.
//!
//! What guests read is derived from the wall clock; what the host waits for is measured on the monotonic clock, so that
//! a step of the wall clock can neither shorten a notice nor end it early.

use std::ops::Add;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The host's wall clock: milliseconds since 1970-01-01 00:00:00 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMs(pub i64);

/// The host's monotonic clock in milliseconds; the origin means nothing and changes with every boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MonoMs(pub u64);

/// Both clocks, read together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Now {
    /// Wall clock.
    pub wall: UnixMs,
    /// Monotonic clock.
    pub mono: MonoMs,
}

impl Now {
    /// The moment `by` later on both clocks.
    #[must_use]
    pub fn later(self, by: Duration) -> Self {
        Self { wall: self.wall + by, mono: self.mono + by }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Add<Duration> for UnixMs {
    type Output = Self;
    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add_unsigned(millis(by)))
    }
}

impl Add<Duration> for MonoMs {
    type Output = Self;
    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(millis(by)))
    }
}

impl UnixMs {
    /// The time from `earlier` to `self`; zero when `earlier` is the later one.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The next whole second, because `NotBefore` has no fractions and must never be early.
    #[must_use]
    pub fn ceil_second(self) -> Self {
        Self(self.0.saturating_add(999).div_euclid(1000).saturating_mul(1000))
    }

    /// The time as RFC 3339 with milliseconds, in UTC.
    #[must_use]
    pub fn rfc3339(self) -> String {
        let clamped = self.0.clamp(-62_135_596_800_000, 253_402_207_200_000);
        let civil = jiff::Timestamp::from_millisecond(clamped).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        format!("{civil:.3}")
    }

    /// The date as `ddd, dd MMM yyyy HH:mm:ss GMT`: 29 bytes, English, with the true weekday, because .NET's `R` parser
    /// checks it. Times outside the years 1 to 9999 are shown as the nearest one inside.
    #[must_use]
    pub fn http_date(self) -> String {
        let seconds = self.0.div_euclid(1000).clamp(-62_135_596_800, 253_402_207_200);
        let civil = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        civil.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rule_14_the_date_has_29_bytes_and_the_true_weekday() {
        assert_eq!(UnixMs(1_685_551_440_000).http_date(), "Wed, 31 May 2023 16:44:00 GMT");
        assert_eq!(UnixMs(0).http_date(), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(UnixMs(1_709_164_800_999).http_date(), "Thu, 29 Feb 2024 00:00:00 GMT");
        assert_eq!(UnixMs(i64::MAX).http_date().len(), 29);
    }

    proptest! {
        #[test]
        fn rule_14_every_date_parses_strictly_and_names_the_same_second(seconds in 0i64..4_102_444_800) {
            let text = UnixMs(seconds * 1000).http_date();
            prop_assert_eq!(text.len(), 29);
            let parsed = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(&text).unwrap();
            prop_assert_eq!(parsed.as_second(), seconds);
        }

        #[test]
        fn a_second_is_never_rounded_down(ms in 0i64..4_102_444_800_000) {
            let up = UnixMs(ms).ceil_second().0;
            prop_assert!(up >= ms && up - ms < 1000 && up % 1000 == 0);
        }
    }
}
