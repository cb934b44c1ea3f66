//! Update files: what an operator, or the author of an update, writes.
//!
//! An [`Update`] that exists is sound in itself: its kind has all it needs, commands are absolute, deadlines are
//! possible, an undo is there where one is needed. Whether it fits a *host* (binary there, VMs able to take part) is
//! decided by [`crate::mechanism::choose`] from the host's facts. `docs/src/updates.md` is the reference for people.
//!
//! The identity of an update is the SHA-256 of its file ([`Update::digest`]): a changed file under an old id is refused
//! by the journal and by the controller, so two hosts never run different things under one name.

mod check;
mod step;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use fermata_model::{Mechanism, VmName, VmmVersion};
use serde::{Deserialize, Serialize};

pub use check::UpdateError;
pub use step::{Command, Section, Step};

use crate::id::{Digest, UpdateId};

/// An update, read and checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// The author's name for it.
    pub id: UpdateId,
    /// One line for people; guests see it in the event's description.
    pub title: String,
    /// SHA-256 of the file.
    pub digest: Digest,
    /// What is changed.
    pub change: Change,
    /// The harshest mechanism allowed; the kind's own when the file says nothing.
    pub harshest: Mechanism,
    /// Notice owed to guests between the announcement and `NotBefore`.
    #[serde(with = "crate::time::micros")]
    pub notice: Duration,
    /// How many VMs may be in the air at once (swap).
    pub parallelism: u16,
    /// What to do with a VM that cannot take part, unless [`Self::vms`] says otherwise.
    pub on_refusal: OnRefusal,
    /// Per-VM policy.
    pub vms: BTreeMap<VmName, OnRefusal>,
    /// Steps while VMs run, before anything else.
    pub prepare: Vec<Step>,
    /// Steps that tell whether the update works.
    pub verify: Vec<Step>,
    /// Steps that take the change back.
    pub undo: Vec<Step>,
}

/// What an update changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Change {
    /// Things that running VMs do not notice: packages, livepatches, daemons.
    Package {
        /// What to run while VMs run.
        step: Step,
    },
    /// A service, driver or firmware step that must not race with guests.
    Service {
        /// What to run while VMs are held.
        step: Step,
    },
    /// The VMM of the VMs.
    Vmm {
        /// The version to bring the VMs to.
        version: VmmVersion,
        /// Its binary, when the host does not know the version yet.
        binary: Option<PathBuf>,
        /// Also for VMs that run on this version already: their binary was replaced under its name.
        #[serde(default)]
        again: bool,
    },
    /// The host's kernel.
    Kernel(KernelChange),
}

/// A host kernel to jump into.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelChange {
    /// The kernel image.
    pub image: PathBuf,
    /// The initial RAM disk; built by the agent when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The command line; the running one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// The VMM that continues the VMs in the new kernel; the one they run on when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm: Option<VmmVersion>,
    /// Whether the image is entered as it is, rather than unpacked before the pause.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub as_is: bool,
}

impl Change {
    /// The mildest mechanism that can do this.
    #[must_use]
    pub const fn mechanism(&self) -> Mechanism {
        match self {
            Self::Package { .. } => Mechanism::None,
            Self::Service { .. } => Mechanism::Hold,
            Self::Vmm { .. } => Mechanism::Swap,
            Self::Kernel(_) => Mechanism::Kexec,
        }
    }

    /// The step of kinds that have one.
    #[must_use]
    pub const fn step(&self) -> Option<&Step> {
        match self {
            Self::Package { step } | Self::Service { step } => Some(step),
            Self::Vmm { .. } | Self::Kernel(_) => None,
        }
    }
}

/// What to do with a VM that cannot take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnRefusal {
    /// Refuse the whole maintenance (the default: nothing is decided silently).
    #[default]
    Deny,
    /// Leave this VM as it is: only for `vmm`, where the VM simply stays on its old VMM.
    Skip,
    /// Shut this VM down cleanly and start it again afterwards: only where `harshest = "reboot"`.
    Shutdown,
}

impl Update {
    /// Reads an update file and checks it.
    ///
    /// # Errors
    /// [`UpdateError`] with the place, the reason and the way out.
    pub fn from_toml(text: &str) -> Result<Self, UpdateError> {
        check::read(text)
    }

    /// The steps of a section, in order.
    #[must_use]
    pub fn steps(&self, section: Section) -> &[Step] {
        match section {
            Section::Prepare => &self.prepare,
            Section::Change => self.change.step().map_or(&[], std::slice::from_ref),
            Section::Verify => &self.verify,
            Section::Undo => &self.undo,
        }
    }

    /// The longest time all steps of a section may take together.
    #[must_use]
    pub fn longest(&self, section: Section) -> Duration {
        self.steps(section).iter().map(|step| step.timeout).sum()
    }

    /// What to do with `vm` when it cannot take part.
    #[must_use]
    pub fn on_refusal(&self, vm: &VmName) -> OnRefusal {
        self.vms.get(vm).copied().unwrap_or(self.on_refusal)
    }
}
