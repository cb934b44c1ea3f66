//! The api-versions of Scheduled Events and the members each of them has.

use std::fmt;

/// An api-version of `/metadata/scheduledevents`, oldest first. The list is this category's own: `2020-07-01` is not a
/// version of `/metadata/instance`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ApiVersion {
    /// Preview: resource names carry a leading `_`.
    V2017_03_01,
    /// General availability.
    V2017_08_01,
    /// Brought `Preempt`.
    V2017_11_01,
    /// Brought `Terminate`.
    V2019_01_01,
    /// Brought `Description`.
    V2019_04_01,
    /// Brought `EventSource`.
    V2019_08_01,
    /// Brought `DurationInSeconds`; the newest.
    V2020_07_01,
}

impl ApiVersion {
    /// Every version, oldest first.
    pub const ALL: [Self; 7] = [
        Self::V2017_03_01,
        Self::V2017_08_01,
        Self::V2017_11_01,
        Self::V2019_01_01,
        Self::V2019_04_01,
        Self::V2019_08_01,
        Self::V2020_07_01,
    ];

    /// The newest version.
    pub const NEWEST: Self = Self::V2020_07_01;

    /// The version as it stands in a request.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V2017_03_01 => "2017-03-01",
            Self::V2017_08_01 => "2017-08-01",
            Self::V2017_11_01 => "2017-11-01",
            Self::V2019_01_01 => "2019-01-01",
            Self::V2019_04_01 => "2019-04-01",
            Self::V2019_08_01 => "2019-08-01",
            Self::V2020_07_01 => "2020-07-01",
        }
    }

    /// The version that a request names, if there is one.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|version| version.as_str() == text)
    }

    /// The position in [`ApiVersion::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether resource names carry a leading `_`.
    #[must_use]
    pub const fn underscores_resources(self) -> bool {
        matches!(self, Self::V2017_03_01)
    }

    /// Whether events have `Description`.
    #[must_use]
    pub fn has_description(self) -> bool {
        self >= Self::V2019_04_01
    }

    /// Whether events have `EventSource`.
    #[must_use]
    pub fn has_source(self) -> bool {
        self >= Self::V2019_08_01
    }

    /// Whether events have `DurationInSeconds`.
    #[must_use]
    pub fn has_duration(self) -> bool {
        self >= Self::V2020_07_01
    }
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_08_the_list_is_the_categorys_own() {
        assert_eq!(ApiVersion::ALL.map(|v| ApiVersion::parse(v.as_str()).unwrap()), ApiVersion::ALL);
        for other in ["", "latest", "2021-02-01", "2020-07-15", "2020-07-01 ", "2020-7-1"] {
            assert_eq!(ApiVersion::parse(other), None, "{other}");
        }
        assert!(ApiVersion::ALL.iter().enumerate().all(|(i, v)| v.index() == i));
    }
}
