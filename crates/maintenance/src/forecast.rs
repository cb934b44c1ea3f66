//! How long will the blackout be? From what this host measured, never from hope.
//!
//! A [`Forecast`] is an upper bound and says where it comes from. As long as a host has measured nothing, a cautious
//! default stands in, labelled as such; a step with a declared deadline counts with its deadline. A few samples say what a
//! pause takes, not what a busy host can make of it: until there are more, short pauses are not forecast below the default.
//! Promise P10: what is reported as measured was measured, and a forecast is called a forecast.

use std::fmt;
use std::time::Duration;

use fermata_model::Mechanism;
use serde::{Deserialize, Serialize};

use crate::time::human;

/// How many of the newest samples of a mechanism count: enough for a p99, few enough to follow a change of the host.
pub const WINDOW: usize = 100;
/// With fewer samples the one disturbance in ten has hardly been seen.
const FEW: usize = 10;

/// Blackouts measured on this host, newest last, per mechanism.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct History {
    /// Hold: the time beside the step itself (stopping and continuing).
    pub hold_overhead: Vec<Duration>,
    /// Swap: STOP to RESUME.
    pub swap: Vec<Duration>,
    /// Kexec: STOP to RESUME across the jump.
    pub kexec: Vec<Duration>,
}

/// An upper bound for a blackout to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// The blackout is expected to stay below this.
    #[serde(rename = "upper_us", with = "crate::time::micros")]
    pub upper: Duration,
    /// Where the number comes from.
    pub basis: Basis,
}

/// Where a forecast comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Basis {
    /// The VM is not paused.
    NotPaused,
    /// The worst of the newest `samples` on this host and a margin.
    Measured {
        /// How many samples.
        samples: u32,
    },
    /// Nothing was measured on this host yet.
    Default,
}

impl fmt::Display for Forecast {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.basis {
            Basis::NotPaused => f.write_str("not paused"),
            Basis::Measured { samples } => {
                write!(f, "forecast at most {} (from {samples} measured here)", human(self.upper))
            }
            Basis::Default => write!(f, "forecast at most {} (nothing measured here yet)", human(self.upper)),
        }
    }
}

impl Forecast {
    /// The forecast for a VM that is not paused.
    pub const NOT_PAUSED: Self = Self { upper: Duration::ZERO, basis: Basis::NotPaused };
}

/// Stopping and continuing; emulated hosts take 20 ms, a busy one several times as long.
const HOLD: Duration = Duration::from_millis(100);
/// Emulated hosts with one processor swap in 0.1 s when nothing else is going on, and took 1.5 s at most; hardware 3 to 10 ms.
const SWAP: Duration = Duration::from_secs(2);
/// Emulated hosts jump in 9 to 22 s; published figures for servers are 1 to 10 s.
const KEXEC: Duration = Duration::from_secs(25);

/// The forecast for one VM. `step` is what runs while it is held: change and undo deadlines together.
#[must_use]
pub fn forecast(mechanism: Mechanism, step: Duration, history: &History) -> Forecast {
    let (samples, default, least) = match mechanism {
        // A reboot is no pause: its length is not bounded by a budget.
        Mechanism::None | Mechanism::Reboot => return Forecast::NOT_PAUSED,
        Mechanism::Hold => (&history.hold_overhead, HOLD, HOLD),
        Mechanism::Swap => (&history.swap, SWAP, SWAP),
        // What disturbs it is small against what it takes.
        Mechanism::Kexec => (&history.kexec, KEXEC, Duration::ZERO),
    };
    let newest = &samples[samples.len().saturating_sub(WINDOW)..];
    let (bound, basis) = match percentile_99(newest) {
        Some(worst) => {
            let samples = u32::try_from(newest.len()).unwrap_or(u32::MAX);
            let least = if newest.len() < FEW { least } else { Duration::ZERO };
            (with_margin(worst, newest.len()).max(least), Basis::Measured { samples })
        }
        None => (default, Basis::Default),
    };
    Forecast { upper: step + bound, basis }
}

/// With up to 100 samples the nearest-rank p99 is the largest or the second largest.
fn percentile_99(samples: &[Duration]) -> Option<Duration> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * 99).div_ceil(100);
    sorted.get(rank.checked_sub(1)?).copied()
}

/// A quarter more, and the less was seen the more: with n samples the next one exceeds them all with a chance of
/// 1/(n+1), so a handful of samples is worth less than a hundred.
fn with_margin(worst: Duration, samples: usize) -> Duration {
    let few = if samples < FEW { 2 } else { 1 };
    worst + worst / 4 * few + Duration::from_millis(5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_measured_is_said_so() {
        let forecast = forecast(Mechanism::Swap, Duration::ZERO, &History::default());
        assert_eq!(forecast.basis, Basis::Default);
        assert!(forecast.to_string().contains("nothing measured"), "{forecast}");
    }

    #[test]
    fn a_held_step_counts_with_its_deadline() {
        let step = Duration::from_secs(4);
        assert!(forecast(Mechanism::Hold, step, &History::default()).upper > step);
    }

    #[test]
    fn only_the_newest_samples_count() {
        let mut swap = vec![Duration::from_secs(20)];
        swap.extend(std::iter::repeat_n(Duration::from_millis(4), WINDOW));
        let history = History { swap, ..History::default() };
        assert!(forecast(Mechanism::Swap, Duration::ZERO, &history).upper < Duration::from_millis(20));
    }

    #[test]
    fn a_few_quick_swaps_do_not_say_what_a_busy_host_takes() {
        let after = |samples| {
            let swap = vec![Duration::from_millis(90); samples];
            forecast(Mechanism::Swap, Duration::ZERO, &History { swap, ..History::default() })
        };
        assert_eq!((after(1).upper, after(9).upper), (SWAP, SWAP));
        assert_eq!(after(9).basis, Basis::Measured { samples: 9 });
        assert!(after(10).upper < Duration::from_millis(150));
        let kexec = vec![Duration::from_secs(4)];
        let once = forecast(Mechanism::Kexec, Duration::ZERO, &History { kexec, ..History::default() });
        assert!(once.upper < Duration::from_secs(7), "a server's own figure counts at once: {once}");
    }

    proptest! {
        #[test]
        fn a_measured_forecast_is_above_all_but_one_percent_of_its_samples(
            samples in proptest::collection::vec(1u64..30_000, 1..300)
        ) {
            let swap: Vec<_> = samples.iter().copied().map(Duration::from_millis).collect();
            let newest = swap[swap.len().saturating_sub(WINDOW)..].to_vec();
            let upper = forecast(Mechanism::Swap, Duration::ZERO, &History { swap, ..History::default() }).upper;
            prop_assert!(newest.iter().filter(|sample| **sample >= upper).count() * 100 <= newest.len());
        }
    }
}
