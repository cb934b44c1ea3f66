//! The order for one maintenance: what was decided, and what guests were told. It never changes afterwards.

use std::time::Duration;

use fermata_model::{Impact, Mechanism, PauseBudget, VmName};
use serde::{Deserialize, Serialize};

use crate::id::MaintenanceId;
use crate::mechanism::{Choice, Refusal, VmPlan};
use crate::time::Wall;
use crate::update::{Section, Step, Update};

/// Time at the end of a pause that is kept for taking VMs back: a quarter of the budget, at most 1 s.
///
/// The agent gives up at `budget - reserve`; the dead-man, being the last resort, at `budget - reserve / 2`.
#[must_use]
pub fn reserve(budget: PauseBudget) -> Duration {
    (budget.duration() / 4).min(Duration::from_secs(1))
}

/// When the maintenance may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    /// The earliest begin without approval (promise P5).
    pub not_before: Wall,
    /// How long `Started` is published before a VM is paused, so that pollers see it. 5 s is usual, 2 s the minimum.
    #[serde(with = "crate::time::micros")]
    pub lead: Duration,
    /// Who says that the notice is over.
    #[serde(default)]
    pub keeper: Keeper,
}

/// Who opens the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keeper {
    /// The clock, at `not_before`; an approval opens it earlier.
    #[default]
    Clock,
    /// The metadata service alone: it knows what each guest is owed, who approved, who asked for more time. `not_before` is
    /// then what the update asked for, and its word comes as [`crate::machine::Input::Approved`].
    Events,
}

/// One update on one host, decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Its identity.
    pub id: MaintenanceId,
    /// The update.
    pub update: Update,
    /// Every VM of the host with what will happen to it.
    pub vms: Vec<VmPlan>,
    /// When it may begin.
    pub gate: Gate,
    /// How many VMs are restored at once after a change of the kernel, the most urgent first. More at once than the host has
    /// processors for would make every one as late as the last.
    #[serde(default = "all_at_once")]
    pub restores_at_once: usize,
}

const fn all_at_once() -> usize {
    usize::MAX
}

/// Why there is no order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// VMs that cannot take part.
    #[error("update {update} is refused, nothing was done:\n{}", list(refusals))]
    Refused {
        /// The update's id.
        update: String,
        /// By name.
        refusals: Vec<Refusal>,
    },
    /// Harsher than the file allows.
    #[error(
        "update {update} would need \"{needed}\", but allows \"{allowed}\" at most; set `harshest = \"{needed}\"` in the file if that is meant"
    )]
    TooHarsh {
        /// The update's id.
        update: String,
        /// What would happen.
        needed: Mechanism,
        /// What the file allows.
        allowed: Mechanism,
    },
}

fn list(refusals: &[Refusal]) -> String {
    refusals.iter().map(|refusal| format!("  {refusal}")).collect::<Vec<_>>().join("\n")
}

impl Order {
    /// Makes an order from an answer of [`crate::mechanism::choose`].
    ///
    /// # Errors
    /// [`OrderError`] when a VM must take part and cannot, or when the file forbids what would be needed.
    pub fn new(id: MaintenanceId, update: Update, choice: Choice, gate: Gate) -> Result<Self, OrderError> {
        if !choice.refusals.is_empty() {
            return Err(OrderError::Refused { update: update.id.to_string(), refusals: choice.refusals });
        }
        let needed = choice.mechanism();
        if needed > update.harshest {
            let allowed = update.harshest;
            return Err(OrderError::TooHarsh { update: update.id.to_string(), needed, allowed });
        }
        Ok(Self { id, update, vms: choice.plans, gate, restores_at_once: all_at_once() })
    }

    /// The same for a host that restores no more than so many VMs at once.
    #[must_use]
    pub fn restoring_at_once(self, restores: usize) -> Self {
        Self { restores_at_once: restores.max(1), ..self }
    }

    /// The VMs, those first that allow the shortest pause.
    #[must_use]
    pub fn by_urgency(&self) -> Vec<&VmPlan> {
        let mut plans: Vec<&VmPlan> = self.vms.iter().collect();
        plans.sort_by_key(|plan| plan.budget.duration());
        plans
    }

    /// How the update reaches this host.
    ///
    /// That of the harshest VM, or, on a host without VMs, what the kind needs: a kernel is changed there as well.
    #[must_use]
    pub fn mechanism(&self) -> Mechanism {
        let vms = self.vms.iter().map(|plan| plan.mechanism).max();
        match self.update.change.mechanism() {
            kind @ (Mechanism::Hold | Mechanism::Kexec) => vms.map_or(kind, |vms| vms.max(kind)),
            Mechanism::None | Mechanism::Swap | Mechanism::Reboot => vms.unwrap_or(Mechanism::None),
        }
    }

    /// The harshest impact announced.
    #[must_use]
    pub fn impact(&self) -> Impact {
        self.vms.iter().map(|plan| plan.mechanism.impact()).max().unwrap_or(Impact::None)
    }

    /// The plan for `vm`.
    #[must_use]
    pub fn plan(&self, vm: &VmName) -> Option<&VmPlan> {
        self.vms.iter().find(|plan| plan.vm == *vm)
    }

    /// A step of the update.
    #[must_use]
    pub fn step(&self, section: Section, index: u16) -> Option<&Step> {
        self.update.steps(section).get(usize::from(index))
    }

    /// The smallest budget of the VMs that are paused together.
    #[must_use]
    pub fn common_budget(&self) -> PauseBudget {
        let paused = self.vms.iter().filter(|plan| plan.mechanism.impact() == Impact::Freeze);
        paused.map(|plan| plan.budget).min().unwrap_or_default()
    }
}
