//! The api-versions of `/metadata/instance`.

/// All of them, oldest first.
const ALL: [&str; 35] = [
    "2017-03-01",
    "2017-04-02",
    "2017-08-01",
    "2017-10-01",
    "2017-12-01",
    "2018-02-01",
    "2018-04-02",
    "2018-10-01",
    "2019-02-01",
    "2019-03-11",
    "2019-04-30",
    "2019-06-01",
    "2019-06-04",
    "2019-08-01",
    "2019-08-15",
    "2019-11-01",
    "2020-06-01",
    "2020-07-15",
    "2020-09-01",
    "2020-10-01",
    "2020-12-01",
    "2021-01-01",
    "2021-02-01",
    "2021-03-01",
    "2021-05-01",
    "2021-08-01",
    "2021-10-01",
    "2021-11-01",
    "2021-11-15",
    "2021-12-13",
    "2023-07-01",
    "2023-11-15",
    "2024-03-15",
    "2024-07-17",
    "2025-04-07",
];

/// An api-version of `/metadata/instance`; ordered by date.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceVersion(&'static str);

impl InstanceVersion {
    /// Every version, oldest first.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> {
        ALL.into_iter().map(Self)
    }

    /// The version that a request names.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        ALL.into_iter().find(|known| *known == text).map(Self)
    }

    /// The newest version.
    #[must_use]
    pub const fn newest() -> Self {
        Self(ALL[ALL.len() - 1])
    }

    /// The version as it stands in a request.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.0
    }

    /// Whether a field introduced at `since` belongs to this version.
    pub(crate) fn has(self, since: &str) -> bool {
        since <= self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ascending_dates() {
        assert!(ALL.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(InstanceVersion::parse("2020-07-01"), None, "a version of another category");
        assert_eq!(InstanceVersion::newest().as_str(), "2025-04-07");
    }
}
