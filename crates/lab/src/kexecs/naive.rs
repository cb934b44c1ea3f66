//! What one does without Fermata: every VM to disk with its memory, the host restarted, every VM from disk again.

use std::time::Duration;

use anyhow::Result;

use super::{
    change::UP,
    measure::{self, Felt},
};
use crate::{
    host::Host,
    swaps::{bare::Bare, guest::Guest},
};

/// Takes VMs like these (which run under Fermata, and are ended for it) through a restart of the host by hand, and tells what they
/// felt. They have other addresses, from 101 on.
///
/// # Errors
/// A VMM refuses, or the host does not come back.
pub fn restart(host: &Host, peer: &Host, like: &[Guest]) -> Result<Vec<Felt>> {
    let mut bare = Vec::new();
    for (guest, last) in like.iter().zip(101..) {
        bare.push(Bare::start(host, guest, last)?);
        host.run(&format!("fermata vm stop --force {}", guest.name))?;
    }
    let guests: Vec<Guest> = bare.iter().map(|bare| bare.guest().clone()).collect();
    let before = measure::before(host, peer, &guests)?;
    for bare in &bare {
        bare.suspend()?;
    }
    let boot = host.boot_id()?;
    host.run("systemctl reboot")?;
    host.wait_boot_after(&boot, UP)?;
    host.wait_agent_ready(Duration::from_secs(120))?;
    for bare in &mut bare {
        bare.wake()?;
    }
    let felt = measure::since(&before, peer, &guests, None)?;
    for bare in bare {
        bare.end();
    }
    Ok(felt)
}
