//! The largest gaps between samples, on the raw monotonic clock and on the time stamp counter.
//!
//! The two clocks tell different stories: a hypervisor may stop the guest's clocks in a pause, so a gap that only the TSC
//! shows is one that the guest's own clocks were shielded from. Invariant: [`Gaps::largest`] is sorted, largest first, and
//! never longer than [`KEPT`]; a gap is ranked by the larger of its two measures.

use serde::{Deserialize, Serialize};

/// How many gaps are remembered.
pub const KEPT: usize = 64;

/// One instant as the sampler sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// `CLOCK_MONOTONIC_RAW`, in nanoseconds.
    pub raw_ns: u64,
    /// Time stamp counter.
    pub tsc: u64,
    /// Wall clock, in nanoseconds since 1970.
    pub wall_ns: u64,
}

/// The time between two samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Wall clock at its end, in nanoseconds since 1970.
    pub end_wall_ns: u64,
    /// Raw monotonic clock at its end, in nanoseconds.
    pub end_raw_ns: u64,
    /// Length on the raw monotonic clock, in nanoseconds.
    pub raw_ns: u64,
    /// Length on the time stamp counter, in nanoseconds by the frequency measured at the start.
    pub tsc_ns: u64,
}

impl Gap {
    /// The larger of the two measures, in nanoseconds.
    #[must_use]
    pub fn ns(&self) -> u64 {
        self.raw_ns.max(self.tsc_ns)
    }
}

/// Gaps since the last mark.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gaps {
    /// Samples taken.
    pub samples: u64,
    /// Time stamp counter, kHz, as measured at the start; 0 until then.
    pub tsc_khz: u64,
    /// Raw monotonic clock at the mark, in nanoseconds.
    pub since_raw_ns: u64,
    /// Samples that came more than 10 ms after the one before.
    pub over_10_ms: u64,
    /// Samples that came more than 50 ms after the one before.
    pub over_50_ms: u64,
    /// The largest gaps, largest first.
    pub largest: Vec<Gap>,
}

impl Gaps {
    /// The largest gap since the mark, in nanoseconds; 0 if there is none.
    #[must_use]
    pub fn max_ns(&self) -> u64 {
        self.largest.first().map_or(0, Gap::ns)
    }
}

/// Keeps [`Gaps`] from sample to sample.
#[derive(Debug, Clone)]
pub struct Recorder {
    last: Sample,
    gaps: Gaps,
}

impl Recorder {
    /// Starts at a sample, with the frequency that turns TSC ticks into time.
    #[must_use]
    pub fn new(first: Sample, tsc_khz: u64) -> Self {
        Self { last: first, gaps: Gaps { tsc_khz, since_raw_ns: first.raw_ns, ..Gaps::default() } }
    }

    /// Takes the next sample, and tells how long after the one before it came.
    pub fn sample(&mut self, now: Sample) -> Gap {
        let ticks = now.tsc.saturating_sub(self.last.tsc);
        let tsc_ns = u128::from(ticks) * 1_000_000 / u128::from(self.gaps.tsc_khz.max(1));
        let gap = Gap {
            end_wall_ns: now.wall_ns,
            end_raw_ns: now.raw_ns,
            raw_ns: now.raw_ns.saturating_sub(self.last.raw_ns),
            tsc_ns: u64::try_from(tsc_ns).unwrap_or(u64::MAX),
        };
        self.last = now;
        self.gaps.samples += 1;
        self.gaps.over_10_ms += u64::from(gap.ns() > 10_000_000);
        self.gaps.over_50_ms += u64::from(gap.ns() > 50_000_000);
        let rank = self.gaps.largest.partition_point(|kept| kept.ns() >= gap.ns());
        if rank < KEPT {
            self.gaps.largest.insert(rank, gap);
            self.gaps.largest.truncate(KEPT);
        }
        gap
    }

    /// Forgets what was, and measures from the last sample on.
    pub fn mark(&mut self) {
        *self = Self::new(self.last, self.gaps.tsc_khz);
    }

    /// What was seen since the mark.
    #[must_use]
    pub fn gaps(&self) -> &Gaps {
        &self.gaps
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> Sample {
        Sample { raw_ns: ms * 1_000_000, tsc: ms * 2_000_000, wall_ns: ms * 1_000_000 }
    }

    #[test]
    fn a_gap_only_the_tsc_saw_is_ranked_by_the_tsc() {
        let mut recorder = Recorder::new(at(0), 2_000_000);
        recorder.sample(at(1));
        recorder.sample(Sample { tsc: at(101).tsc, ..at(2) });
        assert_eq!(recorder.gaps().largest[0].tsc_ns, 100_000_000);
        assert_eq!(recorder.gaps().largest[0].raw_ns, 1_000_000);
        assert_eq!(recorder.gaps().over_50_ms, 1);
    }

    #[test]
    fn a_mark_forgets_but_the_pause_across_it_is_still_seen() {
        let mut recorder = Recorder::new(at(0), 2_000_000);
        recorder.sample(at(500));
        recorder.mark();
        assert_eq!(recorder.gaps().max_ns(), 0);
        recorder.sample(at(700));
        assert_eq!(recorder.gaps().max_ns(), 200_000_000);
    }

    proptest! {
        #[test]
        fn the_largest_gaps_are_kept_and_sorted(steps in proptest::collection::vec(1u64..10_000, 1..100)) {
            let mut recorder = Recorder::new(at(0), 2_000_000);
            let mut now = 0;
            for step in &steps {
                now += step;
                recorder.sample(at(now));
            }
            let mut expected: Vec<u64> = steps.iter().map(|ms| ms * 1_000_000).collect();
            expected.sort_unstable_by(|a, b| b.cmp(a));
            expected.truncate(KEPT);
            let kept: Vec<u64> = recorder.gaps().largest.iter().map(Gap::ns).collect();
            prop_assert_eq!(kept, expected);
        }
    }
}
