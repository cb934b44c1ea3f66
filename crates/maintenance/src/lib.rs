//! One maintenance on one host: the pure core, its journal, and the two small helpers that must work when nothing else
//! does (the step runner and the dead-man).
//!
//! | module | concern |
//! |---|---|
//! | [`update`] | update files: read, checked, identified by digest |
//! | [`mechanism`] | per VM the smallest mechanism that does the job, or a refusal |
//! | [`forecast`] | how long the blackout will be, from what was measured here |
//! | [`order`] | what was decided and announced |
//! | [`machine`] | the state machine: (state, input, now) -> (entries, state, acts) |
//! | [`journal`] | the entries on disk |
//! | [`clock`] | guests' clocks after a pause |
//! | [`runner`] | steps under a hard deadline |
//! | [`authority`] | one lock: who may act on VMs |
//! | [`dead_man`] | frees paused VMs when the agent does not |
//! | [`witness`] | that a VM may have run in its new VMM, in memory |
//! | [`report`] | what happened, from the journal alone |
//!
//! # How a shell drives it
//!
//! 1. Read the file ([`update::Update::from_toml`]), gather facts, [`mechanism::choose`], [`order::Order::new`].
//!    `fermata update check` stops here and shows the answer.
//! 2. [`machine::Maintenance::begin`] with an open [`journal::Journal`]. It returns the first acts.
//! 3. Execute acts, those of different VMs side by side; each ends in [`machine::Input::Ended`] with what was found.
//!    Feed every input to [`machine::Maintenance::handle`] and execute what comes back. Sleep until
//!    [`machine::Maintenance::wake_at`], then feed [`machine::Input::Tick`].
//! 4. When [`machine::State::outcome`] is there, it is over: [`report::Report::of`] the journal's entries, and
//!    [`journal::Journal::record`] what the report measured.
//! 5. When the agent starts: for each of [`journal::Journal::unfinished`], [`machine::Maintenance::recover`].
//!
//! What a shell owes: acts are idempotent (an attempt first ends what an earlier one left); a new VMM is started stopped
//! and runs only by `Resume`; `TakeBack` cancels what is under way on its VM and is certain of the new VMM's death
//! before the old one runs. `tests/machine/shell.rs` is a whole shell, on virtual VMs.

pub mod authority;
pub mod clock;
pub mod dead_man;
pub mod forecast;
pub mod id;
pub mod journal;
pub mod machine;
pub mod mechanism;
pub mod order;
pub mod report;
pub mod runner;
pub mod time;
pub mod update;
pub mod witness;
