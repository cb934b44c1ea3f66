//! The state machine against a virtual host with a virtual clock: every promise of one maintenance.
#![expect(clippy::unwrap_used, reason = "tests")]

mod crashes;
mod examples;
mod random;
mod shell;
mod world;
