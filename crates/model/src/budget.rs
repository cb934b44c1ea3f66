//! Pause budgets: the longest blackout a VM, or a host, allows.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A budget that no pause could meet, or above what Fermata promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pause budget {given} ms is out of range; use 1 to {max} ms", max = PauseBudget::HOST_MAX.as_millis())]
pub struct BudgetError {
    given: u64,
}

/// The longest blackout allowed, in whole milliseconds: 1 ms to 30 s (promise P2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct PauseBudget(u64);

impl PauseBudget {
    /// The longest pause Fermata ever makes, and the default for a VM that says nothing.
    pub const HOST_MAX: Duration = Duration::from_secs(30);

    /// The budget as a duration.
    #[must_use]
    pub const fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl Default for PauseBudget {
    fn default() -> Self {
        Self(30_000)
    }
}

impl TryFrom<u64> for PauseBudget {
    type Error = BudgetError;
    fn try_from(milliseconds: u64) -> Result<Self, BudgetError> {
        if milliseconds == 0 || milliseconds > Self::default().0 {
            return Err(BudgetError { given: milliseconds });
        }
        Ok(Self(milliseconds))
    }
}

impl From<PauseBudget> for u64 {
    fn from(budget: PauseBudget) -> u64 {
        budget.0
    }
}

impl fmt::Display for PauseBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_between_one_millisecond_and_thirty_seconds() {
        assert!(PauseBudget::try_from(0).is_err());
        assert!(PauseBudget::try_from(30_001).is_err());
        assert_eq!(PauseBudget::try_from(30_000).unwrap(), PauseBudget::default());
    }
}
