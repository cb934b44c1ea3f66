//! The clocks that the state machine's times come from.

use std::time::Duration;

use fermata_maintenance::dead_man::mono_now;
use fermata_maintenance::time::{Mono, Now, Wall};
use rustix::time::{ClockId, clock_gettime};

/// This moment: monotonic since boot, and wall time.
pub(super) fn now() -> Now {
    let wall = clock_gettime(ClockId::Realtime);
    let wall = wall.tv_sec.unsigned_abs() * 1_000_000 + wall.tv_nsec.unsigned_abs() / 1_000;
    Now { mono: mono_now(), wall: Wall(wall) }
}

/// How long until a moment.
pub(super) fn left(by: Mono) -> Duration {
    by.since(now().mono)
}

/// Sleeps until a moment, or for ever.
pub(super) async fn until(wake: Option<Mono>) {
    match wake {
        Some(wake) => tokio::time::sleep(left(wake)).await,
        None => std::future::pending().await,
    }
}
