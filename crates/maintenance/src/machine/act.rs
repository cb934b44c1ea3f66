//! What the core asks the shell to do, and what the shell answers.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use fermata_model::VmName;
use fermata_vmm::handover::Way;
use serde::{Deserialize, Serialize};

use crate::clock::ClockOutcome;
use crate::mechanism::Choice;
use crate::time::{Mono, Wall, micros};
use crate::update::Section;

/// The kind of an act. Every one is idempotent: done twice, it leaves what it leaves when done once; an attempt begun
/// after a restart first ends what an earlier attempt left behind (a process, a file, a half-made unit).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Host: publish the scheduled events of all VMs concerned.
    Announce,
    /// Host: set the events to `Started`.
    PublishStarted,
    /// Host: remove the events; also when they never started (= cancelled). The event of a VM that is down (preserved,
    /// lost) stays until the VM runs again or is deleted: its removal tells guests that it is over.
    EndEvents,
    /// Host: gather the facts again and answer with [`Evidence::Preflight`]; check room for journal and state files.
    Preflight,
    /// Host: run a step of the update; the deadline is the act's `by`, after it everything the step started is killed.
    Run {
        /// Which part.
        section: Section,
        /// Index of the step in it.
        index: u16,
    },
    /// Host: kill whatever is left of steps of this maintenance, for certain.
    KillStep,
    /// Host: load the kernel to jump into (kexec).
    LoadKernel,
    /// Host: unload it again.
    UnloadKernel,
    /// Host (hold, kexec) or VM (swap): arm the dead-man for the act's `by`.
    ArmDeadMan,
    /// Host or VM: disarm it; answer with [`Evidence::DeadMan`].
    DisarmDeadMan,
    /// VM: rehearse with a twin, never run: saved by the VMM in use, loaded by the one to be used.
    Rehearse,
    /// VM: start the new VMM, stopped (`-S`), limited and ready to take over. It must never run by itself.
    StartNew,
    /// VM: make certain (pidfd) that the new VMM is dead and nothing of it is left.
    DiscardNew,
    /// VM: stop the vCPUs on the old VMM (hold).
    Hold,
    /// VM: stop, save, hand over, load: ends with the new VMM loaded and stopped, the old one stopped.
    HandOver,
    /// VM: stop and save the device state into the vault (kexec).
    Save,
    /// VM: let the vCPUs run on the VMM that the journal names as the owner.
    Resume,
    /// VM: end any act under way on it, make certain that the new VMM is dead, then let the old one run.
    TakeBack,
    /// VM: make certain that the old VMM is dead and nothing of it is left.
    Retire,
    /// Host: sync everything, then jump into the loaded kernel. Answers only when the jump was refused. Looks at its
    /// deadline right before the system call: after it, VMs run again and a jump would lose them.
    Jump,
    /// VM: start its VMM in the new kernel and load its state, stopped.
    Restore,
    /// Host: is the kernel that runs the one that was to be entered? A power cut or a panic can lead elsewhere.
    CheckKernel,
    /// Host: put the wall clock right from the time-stamp counter across the jump.
    SetHostClock,
    /// VM: put the guest's clock right ([`crate::clock`]); answer with [`Evidence::Clock`].
    SetClock,
    /// VM: shut the guest down cleanly, with a limit.
    ShutDown,
    /// Host: reboot through firmware. Answers only when refused.
    Reboot,
    /// VM: start it again from its disks. When it ran all the time, answer [`Evidence::Resumed`] without a time stamp, so
    /// that nobody is told of a restart that was none.
    Restart,
}

impl Op {
    /// Whether nothing but the journal could tell that it may have begun, were the journal's file system to lose what was not synced
    /// under VMs that live on. That a VM ran in its new VMM is known otherwise ([`FailureKind::Ran`]).
    pub(super) const fn is_told_by_the_journal_alone(self) -> bool {
        match self {
            Self::Hold | Self::HandOver | Self::Save | Self::Run { .. } | Self::Jump | Self::Reboot => true,
            // A VM that runs again tells nobody whether it was started anew.
            Self::Restart => true,
            _ => false,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Run { section, index } => return write!(f, "{section} step {}", index + 1),
            Self::Announce => "announce",
            Self::PublishStarted => "publish started",
            Self::EndEvents => "end events",
            Self::Preflight => "preflight",
            Self::KillStep => "kill step",
            Self::LoadKernel => "load kernel",
            Self::UnloadKernel => "unload kernel",
            Self::ArmDeadMan => "arm dead-man",
            Self::DisarmDeadMan => "disarm dead-man",
            Self::Rehearse => "rehearse",
            Self::StartNew => "start new VMM",
            Self::DiscardNew => "discard new VMM",
            Self::Hold => "hold",
            Self::HandOver => "hand over",
            Self::Save => "save",
            Self::Resume => "resume",
            Self::TakeBack => "take back",
            Self::Retire => "retire old VMM",
            Self::Jump => "jump",
            Self::Restore => "restore",
            Self::CheckKernel => "check kernel",
            Self::SetHostClock => "set host clock",
            Self::SetClock => "set clock",
            Self::ShutDown => "shut down",
            Self::Reboot => "reboot",
            Self::Restart => "restart",
        })
    }
}

/// Which act, apart from attempts: on a VM or on the host.
pub type Key = (Option<VmName>, Op);

/// The identity of an act within its maintenance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ActId {
    /// The VM; `None` for acts on the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmName>,
    /// What is done.
    pub op: Op,
    /// 1 for the first attempt. An answer to an attempt that was given up is ignored.
    pub attempt: u32,
}

impl ActId {
    /// Without the attempt.
    #[must_use]
    pub fn key(&self) -> Key {
        (self.vm.clone(), self.op)
    }
}

impl fmt::Display for ActId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.vm {
            Some(vm) => write!(f, "{} of VM {vm}", self.op),
            None => write!(f, "{}", self.op),
        }?;
        if self.attempt > 1 { write!(f, " (attempt {})", self.attempt) } else { Ok(()) }
    }
}

/// Something to do. Comes out of a journal only: see [`crate::machine::Journalled`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[must_use]
pub struct Act {
    /// Which.
    #[serde(flatten)]
    pub id: ActId,
    /// Its deadline. The shell gives up on its own by then where it can; the core does in any case.
    pub by: Mono,
}

/// What an act found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Evidence {
    /// Nothing but that it is done.
    Done,
    /// `Preflight`: the answer of [`crate::mechanism::choose`] with fresh facts.
    Preflight {
        /// The answer.
        choice: Choice,
    },
    /// `Rehearse`.
    Rehearsed {
        /// The way that the VM will go, for a swap.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        way: Option<Way>,
        /// The error of the guest's clock while it runs, in microseconds, where its agent told.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        clock_us: Option<i64>,
    },
    /// `Hold`, `HandOver`, `Save`: when the vCPUs stopped (time stamp of QMP's STOP event).
    Stopped {
        /// The time stamp.
        at: Wall,
    },
    /// `Resume`, `TakeBack`: when they ran again (time stamp of QMP's RESUME event); `None` when they never stopped.
    Resumed {
        /// The time stamp.
        at: Option<Wall>,
    },
    /// `Resume` after a jump: the whole blackout, which the shell computes across the two kernels.
    ResumedAfter {
        /// STOP to RESUME.
        #[serde(rename = "blackout_us", with = "micros")]
        blackout: Duration,
    },
    /// `DisarmDeadMan`.
    DeadMan {
        /// It had to act.
        fired: bool,
        /// When it let which VM run. Entries of an earlier version have none.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        freed: BTreeMap<VmName, Mono>,
    },
    /// `Run`: the end of what the step printed.
    Output {
        /// At most a few kilobytes.
        tail: String,
    },
    /// `SetClock`, `SetHostClock`.
    Clock {
        /// What came of it.
        outcome: ClockOutcome,
    },
}

/// Why an act did not work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind that the core decides by.
    pub kind: FailureKind,
    /// For people: what happened, with the evidence.
    pub text: String,
}

/// What the core needs to know about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// It did not work.
    Failed,
    /// It was not done by its deadline.
    Overdue,
    /// The agent was restarted while it was under way.
    Interrupted,
    /// The VMM that should run is dead: the VM's memory is lost.
    VmmDead,
    /// `Resume` after a hand over: the new VMM is dead for certain and the VM never ran in it, so the old one may have it back.
    /// `Resume`, `TakeBack` after a save: the VMM is dead and the VM's state is in the vault still.
    NeverRan,
    /// `TakeBack`, `DiscardNew`: the VM may have run in its new VMM. The journal lost what said so (its file system lost what was not
    /// synced, under VMs that live on), and the old VMM's picture of the VM is history.
    Ran,
    /// The vault has nothing for this VM: its memory is lost.
    MemoryGone,
}

impl Failure {
    /// An ordinary failure.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self { kind: FailureKind::Failed, text: text.into() }
    }
}

/// The answer to an act.
pub type ActResult = Result<Evidence, Failure>;
