//! How much one VM may ask for. Pure: time comes in.

use serde::{Deserialize, Serialize};

/// A bucket of tokens: `burst` at most, filled with `per_second`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// Tokens per second.
    pub per_second: u32,
    /// Tokens that can be saved up.
    pub burst: u32,
}

/// The limits of one VM. The default lets ordinary agents side by side; [`Limits::azure`] is the strict profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Requests for `/metadata/instance` and everything without an own bucket.
    pub instance: Rate,
    /// Requests for scheduled events and the native extensions.
    pub events: Rate,
    /// Requests for `/metadata/identity`.
    pub identity: Rate,
    /// New connections.
    pub connections: Rate,
    /// Open connections at a time.
    pub open: u32,
    /// Long polls at a time.
    pub waiters: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            instance: Rate { per_second: 20, burst: 50 },
            events: Rate { per_second: 10, burst: 30 },
            identity: Rate { per_second: 20, burst: 20 },
            connections: Rate { per_second: 50, burst: 100 },
            open: 16,
            waiters: 4,
        }
    }
}

impl Limits {
    /// Azure's documented limits: 5 requests per second, 20 for identity.
    #[must_use]
    pub fn azure() -> Self {
        let five = Rate { per_second: 5, burst: 30 };
        Self { instance: five, events: five, ..Self::default() }
    }

    /// No limit that a benchmark could reach.
    #[must_use]
    pub const fn none() -> Self {
        let all = Rate { per_second: 1_000_000_000, burst: 1_000_000_000 };
        Self { instance: all, events: all, identity: all, connections: all, open: 100_000, waiters: 100_000 }
    }
}

/// What a request is counted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Category {
    /// Scheduled events and the native extensions.
    Events,
    /// Identity.
    Identity,
    /// All other paths.
    Instance,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    milli: u64,
    at_ms: u64,
}

impl Bucket {
    const fn full(rate: Rate) -> Self {
        Self { milli: rate.burst as u64 * 1000, at_ms: 0 }
    }

    fn take(&mut self, rate: Rate, now_ms: u64) -> bool {
        let gained = now_ms.saturating_sub(self.at_ms).saturating_mul(u64::from(rate.per_second));
        self.milli = self.milli.saturating_add(gained).min(u64::from(rate.burst) * 1000);
        self.at_ms = self.at_ms.max(now_ms);
        let enough = self.milli >= 1000;
        if enough {
            self.milli -= 1000;
        }
        enough
    }
}

/// The buckets of one VM.
#[derive(Debug)]
pub struct Buckets {
    limits: Limits,
    instance: Bucket,
    events: Bucket,
    identity: Bucket,
    connections: Bucket,
}

impl Buckets {
    /// Full buckets.
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        Self {
            limits,
            instance: Bucket::full(limits.instance),
            events: Bucket::full(limits.events),
            identity: Bucket::full(limits.identity),
            connections: Bucket::full(limits.connections),
        }
    }

    /// Takes a request's token; false when there is none. `now_ms` is monotonic.
    pub fn request(&mut self, category: Category, now_ms: u64) -> bool {
        match category {
            Category::Events => self.events.take(self.limits.events, now_ms),
            Category::Identity => self.identity.take(self.limits.identity, now_ms),
            Category::Instance => self.instance.take(self.limits.instance, now_ms),
        }
    }

    /// Takes a connection's token.
    pub fn connection(&mut self, now_ms: u64) -> bool {
        self.connections.take(self.limits.connections, now_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_31_bursts_of_thirty_pass_and_a_flood_does_not() {
        for limits in [Limits::default(), Limits::azure()] {
            let mut buckets = Buckets::new(limits);
            for category in [Category::Events, Category::Instance] {
                let passed = (0..1_000).filter(|_| buckets.request(category, 5)).count();
                assert!((30..=50).contains(&passed), "{passed}");
                let rate = if category == Category::Events { limits.events } else { limits.instance };
                let one_token_ms = 1000 / u64::from(rate.per_second);
                assert!(!buckets.request(category, 5 + one_token_ms - 1));
                assert!(buckets.request(category, 5 + one_token_ms));
            }
        }
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_fills_nothing() {
        let mut buckets = Buckets::new(Limits::default());
        while buckets.request(Category::Events, 10_000) {}
        assert!(!buckets.request(Category::Events, 10_000));
        assert!(!buckets.request(Category::Events, 0));
        assert!(!buckets.request(Category::Events, 10_000));
    }
}
