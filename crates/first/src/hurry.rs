//! What a kernel leaves out while VMs stand: waiting for grace periods, and its self-tests of ciphers.
//!
//! Invariant: once the rest of the host starts, both are as the operator has them. A word of ours on the command line is told from the
//! operator's by how it is spelled.

use std::fs;

/// Whether grace periods are asked for by interrupts instead of waited for, tens of milliseconds each (Linux, `Documentation/admin-guide/kernel-parameters.txt`,
/// `rcupdate.rcu_expedited`, and `kernel/ksysfs.c`). Control groups, networks and modules have some on the way of each VM.
const GRACE: &str = "/sys/kernel/rcu_expedited";
/// On the next kernel's command line: it does not test its ciphers while it starts (the same page, `cryptomgr.notests`; `crypto/testmgr.c`). Not heeded in FIPS mode.
pub const UNTESTED: &str = "cryptomgr.notests=1";
/// What the operator would say about the same.
pub const ON_TESTS: &str = "cryptomgr.notests";
/// The same in the kernel that runs.
const TESTS_LEFT_OUT: &str = "/sys/module/cryptomgr/parameters/notests";

/// The hurry, until it is over.
#[derive(Debug)]
pub(crate) struct Hurry {
    /// What [`GRACE`] was before, where that is known.
    grace: Option<String>,
}

impl Hurry {
    /// Sees to it that nobody waits for grace periods.
    pub(crate) fn begin() -> Self {
        let before = fs::read_to_string(GRACE).ok();
        Self { grace: before.filter(|_| fs::write(GRACE, "1").is_ok()) }
    }

    /// The rest of the host starts: grace periods as they were, and what is loaded from now on is tested.
    pub(crate) fn end(self) {
        // Files of this kernel; one that lacks them has nothing to set back.
        if let Some(grace) = self.grace {
            fs::write(GRACE, grace).unwrap_or_default();
        }
        if is_ours(&fs::read_to_string("/proc/cmdline").unwrap_or_default()) {
            fs::write(TESTS_LEFT_OUT, "N").unwrap_or_default();
        }
    }
}

fn is_ours(cmdline: &str) -> bool {
    cmdline.split_whitespace().any(|word| word == UNTESTED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_operator_left_out_stays_left_out() {
        assert!(is_ours("quiet cryptomgr.notests=1"));
        assert!(!is_ours("quiet cryptomgr.notests"));
        assert!(!is_ours("quiet cryptomgr.notests=0"));
    }
}
