//! What goes wrong under a change of the kernel, and at which steps.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The steps at which agents and hosts die; what comes after `jump` happens in the new kernel.
pub const STEPS: [&str; 16] = [
    "preflight",
    "rehearse",
    "load kernel",
    "after load kernel",
    "publish started",
    "arm dead-man",
    "save",
    "after save",
    "jump",
    "restore",
    "after restore",
    "resume",
    "after resume",
    "set host clock",
    "set clock",
    "end events",
];

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// `kill -9` of the agent.
    AgentKilled,
    /// `kill -9` of the VMM of one VM.
    VmmKilled,
    /// The host's power is cut.
    PowerCut,
    /// The kernel to enter was unloaded by something else.
    JumpRefused,
    /// The new kernel has no modules for the vault.
    NoVaultModules,
    /// The new kernel panics at its start.
    Panic,
    /// The disk of one VM is not there after the jump.
    DiskMissing,
    /// One bit of the saved state of each VM is flipped.
    StateFlipped,
    /// One bit of the vault's table of contents is flipped, in both copies.
    TableFlipped,
    /// The agent does nothing until the pause budget is over.
    DeadlinePassed,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::StateFlipped,
        Self::DiskMissing,
        Self::TableFlipped,
        Self::JumpRefused,
        Self::DeadlinePassed,
        Self::NoVaultModules,
        Self::Panic,
        Self::VmmKilled,
        Self::AgentKilled,
        Self::PowerCut,
    ];

    /// The steps at which it is one.
    pub(super) fn steps(self) -> &'static [&'static str] {
        match self {
            Self::AgentKilled => &STEPS,
            Self::VmmKilled => &["rehearse", "publish started", "save", "after save", "jump"],
            Self::PowerCut => &["rehearse", "after load kernel", "save", "after save", "jump"],
            Self::DeadlinePassed => &["save", "after save", "jump"],
            Self::JumpRefused
            | Self::NoVaultModules
            | Self::Panic
            | Self::DiskMissing
            | Self::StateFlipped
            | Self::TableFlipped => &["jump"],
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::AgentKilled => "agent killed",
            Self::VmmKilled => "VMM killed",
            Self::PowerCut => "power cut",
            Self::JumpRefused => "jump refused",
            Self::NoVaultModules => "no modules for the vault",
            Self::Panic => "new kernel panics",
            Self::DiskMissing => "a disk is missing",
            Self::StateFlipped => "saved states damaged",
            Self::TableFlipped => "table of contents damaged",
            Self::DeadlinePassed => "deadline passed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_of_every_fault_is_one() {
        for fault in Fault::ALL {
            assert!(!fault.steps().is_empty() && fault.steps().iter().all(|step| STEPS.contains(step)), "{fault}");
        }
    }
}
