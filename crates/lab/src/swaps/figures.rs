//! Many measurements in few numbers.

use serde::Serialize;

/// Median, 99th percentile and largest of some measurements; all `null` where nothing was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Figures {
    /// How many.
    pub count: usize,
    /// The middle one; of an even number half of what the two in the middle are together.
    pub median: Option<f64>,
    /// The one that 99 of 100 do not exceed; below 100 measurements that is the largest.
    pub p99: Option<f64>,
    /// The largest.
    pub max: Option<f64>,
}

impl Figures {
    /// Of these measurements, in any order.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let rank = |per_cent: usize| (sorted.len() * per_cent).div_ceil(100).max(1) - 1;
        let middle = sorted.get((sorted.len().max(1) - 1) / 2).zip(sorted.get(sorted.len() / 2));
        Self {
            count: sorted.len(),
            median: middle.map(|(lower, upper)| f64::midpoint(*lower, *upper)),
            p99: sorted.get(rank(99)).copied(),
            max: sorted.last().copied(),
        }
    }

    /// `median / p99 / max` with one digit, for a table.
    #[must_use]
    pub fn text(&self) -> String {
        let one = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.1}"));
        format!("{} / {} / {}", one(self.median), one(self.p99), one(self.max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_hundred_are_the_middle_the_99th_and_the_last() {
        let figures = Figures::of((1..=100).rev().map(f64::from));
        assert_eq!((figures.median, figures.p99, figures.max), (Some(50.5), Some(99.0), Some(100.0)));
        assert_eq!(figures.text(), "50.5 / 99.0 / 100.0");
    }

    #[test]
    fn nothing_measured_is_no_number() {
        assert_eq!(Figures::of([]).max, None);
        let one = Figures::of([7.0]);
        assert_eq!((one.median, one.p99), (Some(7.0), Some(7.0)));
        assert_eq!(Figures::of([4.0, 6.0]).median, Some(5.0), "neither of the two");
        assert_eq!(Figures::of([]).text(), "- / - / -");
    }
}
