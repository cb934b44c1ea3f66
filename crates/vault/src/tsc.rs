//! The time stamp counter: the one clock that runs on through a kexec and through a pause of the guest.

#![expect(unsafe_code, reason = "the counter is read by an intrinsic")]

/// The time stamp counter of the CPU this runs on, in ticks.
///
/// Not ordered against surrounding loads: good for instants, not for timing a handful of instructions.
#[must_use]
pub fn rdtsc() -> u64 {
    // SAFETY: RDTSC exists on every x86-64 CPU; it faults only under CR4.TSD, which Linux sets only for a process
    // that asked for it with PR_SET_TSC.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_counts() {
        let before = rdtsc();
        let after = (0..1_000_000).map(|_| rdtsc()).find(|now| *now > before);
        assert!(after.is_some());
    }
}
