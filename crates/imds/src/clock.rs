//! The clocks, as a trait so that tests move them.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use fermata_events::{MonoMs, Now, UnixMs};

/// Reads both clocks.
pub trait Clock: Send + Sync {
    /// Now, on both.
    fn now(&self) -> Now;
}

/// The host's clocks.
#[derive(Debug)]
pub struct SystemClock {
    origin: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { origin: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        let wall = match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX),
        };
        let mono = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(u64::MAX);
        Now { wall: UnixMs(wall), mono: MonoMs(mono) }
    }
}
