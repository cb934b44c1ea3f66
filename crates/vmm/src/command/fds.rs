//! The numbers under which a VMM has what the agent lends it.
//!
//! Fixed, so that an agent that was restarted knows where to find each descriptor in a running VMM.

use std::os::fd::RawFd;

/// The most NICs: as many as there are numbers set aside.
pub const MAX_NICS: usize = 32;

/// Guest memory.
pub const MEMORY: RawFd = 10;

/// The tap queue of a NIC.
///
/// # Panics
/// For a NIC beyond [`MAX_NICS`].
#[must_use]
pub fn tap(nic: usize) -> RawFd {
    number(20, nic)
}

/// vhost-net of a NIC.
///
/// # Panics
/// For a NIC beyond [`MAX_NICS`].
#[must_use]
pub fn vhost(nic: usize) -> RawFd {
    number(20 + MAX_NICS, nic)
}

fn number(base: usize, nic: usize) -> RawFd {
    assert!(nic < MAX_NICS, "a VM has at most {MAX_NICS} NICs");
    RawFd::try_from(base + nic).expect("both are below 100")
}
