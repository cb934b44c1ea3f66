//! VMMs that change under guests which notice everything: what the benchmark, the faults and the tests of `swap` share.
//!
//! ```text
//!  guest ── started on a host ──► measure ── one maintenance, every guest before and after ──► Swap, one per guest
//!    │                                                                                          │
//!    └── the same command line, run by hand ──► bare ── the floor ──────────────────────────────┴──► bench ──► table, JSON
//! ```
//!
//! | module | what it is for |
//! |---|---|
//! | [`guest`] | guests with a probe, a memory witness and a disk witness |
//! | [`measure`] | one maintenance, and what every guest and its peer felt |
//! | [`bare`] | the same swap by bare QMP commands |
//! | [`leaks`] | what a host holds: descriptors, processes, files |
//! | [`pings`] | what a host sends of its own accord, also in the pause |
//! | [`figures`] | median, p99 and largest (pure) |
//! | [`plan`] | how much the benchmark measures (pure) |
//! | [`bench`] | `cargo xtask bench swap` |
//! | `summary` | what it found: the numbers of the promises (pure), the table |
//! | [`faults`] | `cargo xtask faults swap` |

pub mod bare;
pub mod bench;
pub mod faults;
pub mod figures;
pub mod guest;
pub mod leaks;
pub mod measure;
pub mod pings;
pub mod plan;
mod summary;
