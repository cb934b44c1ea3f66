//! Which mechanism, per VM: the smallest that does the job, or a refusal with its reason. Pure.
//!
//! The shell gathers [`HostFacts`] and [`VmFacts`]; [`choose`] answers for every VM. It is asked twice: when the
//! maintenance is planned (`fermata update check` shows the answer) and again in preflight, right before anything is
//! touched. What changed in between can make the answer a refusal, but never a harsher mechanism (promise P7, held by
//! [`crate::machine`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use fermata_model::{MachineType, Mechanism, PauseBudget, VmName, VmmVersion};
use serde::{Deserialize, Serialize};

use crate::forecast::{Forecast, History, forecast};
use crate::time::human;
use crate::update::{Change, OnRefusal, Section, Update};

/// What a host says about one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmFacts {
    /// The VM.
    pub vm: VmName,
    /// The VMM it runs on now.
    pub vmm: VmmVersion,
    /// Its machine type, fixed for life.
    pub machine: MachineType,
    /// All RAM is shared memory that the agent can hand over.
    pub shared_memory: bool,
    /// Its memory is in a vault that outlives the kernel.
    pub memory_outlives_kernel: bool,
    /// What the VMM itself names as obstacles to migration (QMP `query-migrate`, `blocked-reasons`).
    pub blockers: Vec<String>,
    /// Devices of the host given to the VM.
    pub pass_through: Vec<String>,
    /// The longest blackout it allows.
    pub budget: PauseBudget,
    /// Stopped by its operator: stays stopped.
    pub paused: bool,
}

/// What a host says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostFacts {
    /// The VMMs it knows, including one that the update brings.
    pub vmms: BTreeMap<VmmVersion, VmmFacts>,
    /// Why kexec with kept memory is impossible here, if it is.
    pub kexec_obstacles: Vec<String>,
    /// What was measured here.
    pub history: History,
}

/// What a host says about one VMM binary. The agent finds out by running it, not by trusting its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmmFacts {
    /// Why it cannot be used at all: missing, not executable, not a QEMU.
    pub unusable: Option<String>,
    /// Versioned machine types it knows.
    pub machines: BTreeSet<MachineType>,
    /// The migration mode `cpr-transfer` is there (QEMU 10.0).
    pub cpr_transfer: bool,
    /// The migration mode `cpr-reboot` is there (QEMU 8.2).
    pub cpr_reboot: bool,
}

/// What will happen to one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[must_use]
pub struct VmPlan {
    /// The VM.
    pub vm: VmName,
    /// How the update reaches it.
    pub mechanism: Mechanism,
    /// The blackout to expect.
    pub forecast: Forecast,
    /// The longest blackout it allows.
    pub budget: PauseBudget,
    /// Stopped by its operator: stays stopped.
    pub paused: bool,
    /// Why it is not touched, where that needs saying.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// A VM that cannot take part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The VM.
    pub vm: VmName,
    /// The reason.
    pub reason: Reason,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VM {}: {}", self.vm, self.reason)
    }
}

/// Why a VM cannot take part; the text carries the way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Reason {
    /// The host does not know the VMM.
    #[error(
        "VMM {version} is not known to this host; name its `binary` in the update, or add [vmm.\"{version}\"] to the agent's configuration"
    )]
    VmmUnknown {
        /// The version asked for.
        version: VmmVersion,
    },
    /// The VMM's binary is no use.
    #[error("VMM {version}: {problem}; install it in a [[prepare]] step of an earlier update or correct the path")]
    VmmUnusable {
        /// The version asked for.
        version: VmmVersion,
        /// What is wrong.
        problem: String,
    },
    /// One of the two VMMs is too old.
    #[error(
        "VMM {version} cannot hand a VM over (no cpr mode for {mechanism}); it needs QEMU 10.0 for swap, 8.2 for kexec"
    )]
    VmmTooOld {
        /// The VMM.
        version: VmmVersion,
        /// What it cannot do.
        mechanism: Mechanism,
    },
    /// The target does not know what the guest sees.
    #[error(
        "VMM {version} does not know machine type {machine}, which the guest sees for life; choose a VMM that knows it"
    )]
    MachineUnknown {
        /// The VMM asked for.
        version: VmmVersion,
        /// The VM's machine type.
        machine: MachineType,
    },
    /// Memory that nobody can hand over.
    #[error(
        "its memory is not shared, so it cannot be handed over; shut the VM down once and start it under Fermata's vault"
    )]
    MemoryNotShared,
    /// Memory that ends with the kernel.
    #[error(
        "its memory does not outlive the host's kernel; set the host up with `fermata host prepare`, then stop and start the VM once"
    )]
    MemoryEndsWithKernel,
    /// Host devices inside.
    #[error("it uses host devices that cannot be handed over ({}); detach them, or move the VM", devices.join(", "))]
    PassThrough {
        /// The devices.
        devices: Vec<String>,
    },
    /// The VMM itself says no.
    #[error("its VMM names obstacles: {}; remove what they name, then check again", blockers.join("; "))]
    Blocked {
        /// The VMM's words.
        blockers: Vec<String>,
    },
    /// The host cannot jump.
    #[error("this host cannot replace its kernel under VMs: {}; see `fermata host check`", obstacles.join("; "))]
    HostCannotKexec {
        /// The host's obstacles.
        obstacles: Vec<String>,
    },
    /// The pause would be too long.
    #[error("its pause budget of {budget} is below the forecast of {}; raise the budget or move the VM", human(*.upper))]
    BudgetBelowForecast {
        /// What the VM allows.
        budget: PauseBudget,
        /// What is to be expected.
        #[serde(with = "crate::time::micros")]
        upper: Duration,
    },
}

/// The answer for all VMs of a host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[must_use]
pub struct Choice {
    /// VMs that take part, and VMs that are left alone on purpose, by name.
    pub plans: Vec<VmPlan>,
    /// VMs that cannot take part although they must: nothing may start while this is not empty.
    pub refusals: Vec<Refusal>,
}

impl Choice {
    /// The harshest mechanism of all plans.
    #[must_use]
    pub fn mechanism(&self) -> Mechanism {
        self.plans.iter().map(|plan| plan.mechanism).max().unwrap_or(Mechanism::None)
    }
}

/// Chooses for every VM. The order of the answer is that of the names.
pub fn choose(update: &Update, host: &HostFacts, vms: &[VmFacts]) -> Choice {
    let mut choice = Choice::default();
    for vm in vms {
        match plan(update, host, vm) {
            Ok(plan) => choice.plans.push(plan),
            Err(reason) => match update.on_refusal(&vm.vm) {
                OnRefusal::Deny => choice.refusals.push(Refusal { vm: vm.vm.clone(), reason }),
                OnRefusal::Skip => choice.plans.push(stays(vm, Some(format!("left alone: {reason}")))),
                OnRefusal::Shutdown => choice.plans.push(VmPlan {
                    mechanism: Mechanism::Reboot,
                    ..stays(vm, Some(format!("shut down and started again: {reason}")))
                }),
            },
        }
    }
    choice.plans.sort_by(|a, b| a.vm.cmp(&b.vm));
    choice.refusals.sort_by(|a, b| a.vm.cmp(&b.vm));
    choice
}

fn stays(vm: &VmFacts, note: Option<String>) -> VmPlan {
    VmPlan {
        vm: vm.vm.clone(),
        mechanism: Mechanism::None,
        forecast: Forecast::NOT_PAUSED,
        budget: vm.budget,
        paused: vm.paused,
        note,
    }
}

fn plan(update: &Update, host: &HostFacts, vm: &VmFacts) -> Result<VmPlan, Reason> {
    match &update.change {
        Change::Package { .. } => return Ok(stays(vm, None)),
        Change::Service { .. } if vm.paused => {
            return Ok(stays(vm, Some("stopped by its operator, so there is nothing to hold".to_owned())));
        }
        Change::Service { .. } => {}
        Change::Vmm { version, again: false, .. } if *version == vm.vmm => {
            return Ok(stays(vm, Some(format!("runs on VMM {version} already"))));
        }
        Change::Vmm { version, .. } => {
            usable(host, *version, vm, Mechanism::Swap)?;
            able_to_save(host, vm, Mechanism::Swap)?;
            if !vm.shared_memory {
                return Err(Reason::MemoryNotShared);
            }
        }
        Change::Kernel(kernel) => {
            if !host.kexec_obstacles.is_empty() {
                return Err(Reason::HostCannotKexec { obstacles: host.kexec_obstacles.clone() });
            }
            usable(host, kernel.vmm.unwrap_or(vm.vmm), vm, Mechanism::Kexec)?;
            able_to_save(host, vm, Mechanism::Kexec)?;
            if !vm.memory_outlives_kernel {
                return Err(Reason::MemoryEndsWithKernel);
            }
        }
    }
    let mechanism = update.change.mechanism();
    let held = if mechanism == Mechanism::Hold {
        update.longest(Section::Change) + update.longest(Section::Undo)
    } else {
        Duration::ZERO
    };
    let forecast = forecast(mechanism, held, &host.history);
    // A pause ends early enough to leave time for taking the VM back, so that reserve is not available to the forecast.
    if forecast.upper + crate::order::reserve(vm.budget) > vm.budget.duration() {
        return Err(Reason::BudgetBelowForecast { budget: vm.budget, upper: forecast.upper });
    }
    Ok(VmPlan { mechanism, forecast, ..stays(vm, None) })
}

/// Can `version` take the VM in? Up or down makes no difference: what counts is the machine type.
fn usable(host: &HostFacts, version: VmmVersion, vm: &VmFacts, mechanism: Mechanism) -> Result<(), Reason> {
    let facts = host.vmms.get(&version).ok_or(Reason::VmmUnknown { version })?;
    if let Some(problem) = &facts.unusable {
        return Err(Reason::VmmUnusable { version, problem: problem.clone() });
    }
    if !cpr(facts, mechanism) {
        return Err(Reason::VmmTooOld { version, mechanism });
    }
    if !facts.machines.contains(&vm.machine) {
        return Err(Reason::MachineUnknown { version, machine: vm.machine });
    }
    Ok(())
}

/// Can the VMM it runs on let it go?
fn able_to_save(host: &HostFacts, vm: &VmFacts, mechanism: Mechanism) -> Result<(), Reason> {
    if !vm.pass_through.is_empty() {
        return Err(Reason::PassThrough { devices: vm.pass_through.clone() });
    }
    // The running VMM may be gone from the configuration; its capability then follows from its version.
    let able = host.vmms.get(&vm.vmm).map_or_else(
        || {
            let since = if mechanism == Mechanism::Swap { (10, 0) } else { (8, 2) };
            (vm.vmm.major, vm.vmm.minor) >= since
        },
        |facts| cpr(facts, mechanism),
    );
    if !able {
        return Err(Reason::VmmTooOld { version: vm.vmm, mechanism });
    }
    if !vm.blockers.is_empty() {
        return Err(Reason::Blocked { blockers: vm.blockers.clone() });
    }
    Ok(())
}

const fn cpr(facts: &VmmFacts, mechanism: Mechanism) -> bool {
    match mechanism {
        Mechanism::Swap => facts.cpr_transfer,
        Mechanism::None | Mechanism::Hold | Mechanism::Kexec | Mechanism::Reboot => facts.cpr_reboot,
    }
}
