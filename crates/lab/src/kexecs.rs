//! Kernels that change under guests which notice everything: what the benchmark, the faults and the tests of `kexec` share.
//!
//! ```text
//!  guests on host1, their connections end on host2, which lives through it and whose clock tells how long they stood
//!    ──► change ── one maintenance with a jump ──► Jump, one per guest ──┐
//!  host1 without VMs ──► floor ── the same jump into an empty /init ─────┼──► bench ──► table, JSON
//!  the same guests by hand ──► naive ── to disk, restart, from disk ─────┘
//! ```
//!
//! | module | what it is for |
//! |---|---|
//! | [`change`] | one update of the kernel, and its report |
//! | [`measure`] | what every guest and its peer felt of something |
//! | [`floor`] | how long a jump takes until anything could be restored at all |
//! | [`naive`] | what one does without Fermata |
//! | [`bench`] | `cargo xtask bench kexec` |
//! | [`faults`] | `cargo xtask faults kexec` |

pub mod bench;
pub mod change;
pub mod faults;
pub mod floor;
pub mod measure;
pub mod naive;
