//! What goes wrong under a swap, and at which steps.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The steps at which faults come; `after` is when the act is done and that is not written yet.
pub const STEPS: [&str; 15] = [
    "preflight",
    "rehearse",
    "publish started",
    "start new VMM",
    "after start new VMM",
    "arm dead-man",
    "after arm dead-man",
    "hand over",
    "after hand over",
    "resume",
    "after resume",
    "retire old VMM",
    "disarm dead-man",
    "set clock",
    "end events",
];

/// The steps of the shorter set.
pub const SHORT: [&str; 3] = ["hand over", "after hand over", "retire old VMM"];

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// `kill -9` of the agent.
    AgentKilled,
    /// `kill -9` of the VMM that shall take over.
    NewVmmKilled,
    /// The VMM that runs the VM stops doing anything for a while, its monitor included.
    OldVmmHangs,
    /// The new VMM finds a device in the state that no rehearsal knew of.
    NewVmmRefuses,
    /// No room for the journal, for a while.
    DiskFull,
    /// The state folder's file system turns read-only; it is mounted anew and the agent started again.
    ReadOnly,
    /// The agent does nothing until the pause budget is over.
    DeadlinePassed,
    /// The host's power is cut.
    PowerCut,
}

impl Fault {
    /// All of them. The power cuts come before what needs a small disk: they need the host as it boots.
    pub const ALL: [Self; 8] = [
        Self::NewVmmRefuses,
        Self::NewVmmKilled,
        Self::DeadlinePassed,
        Self::AgentKilled,
        Self::OldVmmHangs,
        Self::PowerCut,
        Self::DiskFull,
        Self::ReadOnly,
    ];
    /// Those of the shorter set.
    pub const SHORT: [Self; 4] = [Self::AgentKilled, Self::NewVmmKilled, Self::DeadlinePassed, Self::NewVmmRefuses];

    /// Whether it is one at this step. Once the VM is the new VMM's, killing that is killing the VM, as at any other time.
    pub(super) fn fits(self, step: &str) -> bool {
        let at = |step: &str| STEPS.iter().position(|known| *known == step);
        match self {
            // It comes with the state, whatever came before.
            Self::NewVmmRefuses => step == "hand over",
            Self::NewVmmKilled => (at("after start new VMM")..at("resume")).contains(&at(step)),
            _ => true,
        }
    }

    pub(super) const fn needs_small_disk(self) -> bool {
        matches!(self, Self::DiskFull | Self::ReadOnly)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::AgentKilled => "agent killed",
            Self::NewVmmKilled => "new VMM killed",
            Self::OldVmmHangs => "old VMM hangs",
            Self::NewVmmRefuses => "new VMM refuses",
            Self::DiskFull => "journal disk full",
            Self::ReadOnly => "state folder read-only",
            Self::DeadlinePassed => "deadline passed",
            Self::PowerCut => "power cut",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vmm_that_has_the_vm_is_not_killed_as_a_new_one() {
        assert!(Fault::NewVmmKilled.fits("after hand over") && !Fault::NewVmmKilled.fits("resume"));
        assert!(Fault::NewVmmRefuses.fits("hand over") && !Fault::NewVmmRefuses.fits("rehearse"));
    }

    #[test]
    fn the_shorter_set_is_part_of_the_whole() {
        assert!(SHORT.iter().all(|step| STEPS.contains(step)));
        assert!(Fault::SHORT.iter().all(|fault| Fault::ALL.contains(fault)));
    }
}
