//! How an update reaches a host, and what a VM feels of it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How an update reaches a host, from the mildest to the harshest. The order is the one in which they are preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mechanism {
    /// Applied while VMs run.
    None,
    /// vCPUs stopped while a step runs under a deadline.
    Hold,
    /// The VMM replaced under the VM; memory and descriptors handed over.
    Swap,
    /// The host kernel replaced by kexec; memory stays in the vault.
    Kexec,
    /// Guests shut down, host reboots, guests start again. Never chosen by itself.
    Reboot,
}

impl Mechanism {
    /// What a VM feels of this mechanism.
    #[must_use]
    pub const fn impact(self) -> Impact {
        match self {
            Self::None => Impact::None,
            Self::Hold | Self::Swap | Self::Kexec => Impact::Freeze,
            Self::Reboot => Impact::Reboot,
        }
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Hold => "hold",
            Self::Swap => "swap",
            Self::Kexec => "kexec",
            Self::Reboot => "reboot",
        })
    }
}

/// What a VM feels. The order is the one of harshness (promise P7 compares with it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Impact {
    /// Nothing.
    None,
    /// Paused for milliseconds to seconds; memory, open files and connections kept.
    Freeze,
    /// Memory lost: shut down and started again.
    Reboot,
    /// Moved to another host; ephemeral disks lost.
    Redeploy,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preserving_mechanisms_are_felt_as_a_freeze_at_most() {
        for mechanism in [Mechanism::None, Mechanism::Hold, Mechanism::Swap, Mechanism::Kexec] {
            assert!(mechanism.impact() <= Impact::Freeze, "{mechanism}");
        }
        assert!(Mechanism::Reboot.impact() > Impact::Freeze);
    }
}
