//! Immutable plans: which host, from when to when, and what the schedule was made from.
//!
//! A [`Plan`] is never changed. Its id is a digest of its content, so two equal plans have one id and a changed plan
//! cannot keep its own; its parent is the plan it replaces. Making a plan the target is a compare-and-swap on the
//! parent, which is the store's business.

mod critical;
mod make;
pub(crate) mod render;
mod stage;

use std::collections::HashMap;
use std::fmt;

use fermata_model::HostName;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use critical::{CriticalStep, Link, critical_path};
pub use make::{Effort, PlanError, PlanRequest, make};

use crate::fleet::{Fleet, SelfConflict};
use crate::policy::Policy;

/// A SHA-256, shown by its first 12 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    pub(crate) fn of(hash: Sha256) -> Self {
        Self(hash.finalize().into())
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl TryFrom<String> for Digest {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let refusal = || format!("`{text}` is not a digest; give its 64 hexadecimal digits");
        if text.len() != 64 || !text.is_ascii() {
            return Err(refusal());
        }
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).map_err(|_| refusal())?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The identity of a plan: the digest of its content.
pub type PlanId = Digest;

/// One host's place in a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedHost {
    /// The host.
    pub host: HostName,
    /// When its maintenance starts, in seconds after the plan's start.
    pub start_s: u32,
    /// When its VMs are healthy again, in seconds after the plan's start.
    pub end_s: u32,
    /// Its stage: a position in [`Plan::stages`].
    pub stage: u32,
}

/// Why a host is not in a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exclusion {
    /// It is cordoned.
    Cordoned,
    /// It carries two update domains of one set.
    SelfConflict(SelfConflict),
    /// None of its windows is as long as its work.
    NoWindow {
        /// The host's work time in seconds.
        work_s: u32,
    },
}

impl fmt::Display for Exclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cordoned => f.write_str("is cordoned; uncordon it to maintain it"),
            Self::SelfConflict(conflict) => conflict.fmt(f),
            Self::NoWindow { work_s } => {
                write!(f, "has no window of {} in the next half year; widen a window", render::duration(*work_s))
            }
        }
    }
}

/// A host left out of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExcludedHost {
    /// The host.
    pub host: HostName,
    /// Why.
    pub why: Exclusion,
}

/// A stage as planned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedStage {
    /// What operators call it.
    pub name: String,
    /// How many hosts it has.
    pub hosts: u32,
    /// How long it is watched after its last host, in seconds.
    pub soak_s: u32,
    /// Whether an operator must say go before the next stage.
    pub approval: bool,
}

/// Times that no plan for these inputs can beat, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LowerBounds {
    /// The slowest set on its own.
    pub set_s: u32,
    /// All work, under the limits for hosts and racks.
    pub capacity_s: u32,
    /// A group of hosts of which no two may be in work together (found greedily).
    pub clique_s: u32,
    /// Soak times and the longest host of each stage.
    pub stages_s: u32,
    /// Whether there are windows: the bounds count as if there were none.
    pub without_windows: bool,
}

impl LowerBounds {
    /// The best of them.
    #[must_use]
    pub fn best_s(&self) -> u32 {
        self.set_s.max(self.capacity_s).max(self.clique_s).max(self.stages_s)
    }

    /// What the best of them rests on.
    #[must_use]
    pub fn best_kind(&self) -> &'static str {
        let best = self.best_s();
        match () {
            () if self.set_s == best => "the slowest set",
            () if self.clique_s == best => "hosts that exclude each other",
            () if self.capacity_s == best => "the limit of hosts at once",
            () => "the stages",
        }
    }
}

/// Where the winning order came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Classes of the host label that the policy names.
    Label,
    /// Classes inferred from update domains.
    InferredLabel,
    /// Colour classes.
    Dsatur,
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Label => "host label",
            Self::InferredLabel => "update domains",
            Self::Dsatur => "colouring",
        })
    }
}

/// Everything a plan holds besides its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Content {
    parent: Option<PlanId>,
    inventory_revision: u64,
    inputs: Digest,
    policy: Policy,
    starts_at: Timestamp,
    stages: Vec<PlannedStage>,
    hosts: Vec<PlannedHost>,
    excluded: Vec<ExcludedHost>,
    bounds: LowerBounds,
    strategy: Strategy,
    steps: u32,
    seed: u64,
}

impl Content {
    /// Everything that makes this plan differ from another, in a fixed order and form.
    fn digest(&self) -> Digest {
        let mut hash = Sha256::new();
        hash.update(b"fermata plan 1\n");
        let json = serde_json::to_vec(self).expect("a plan is plain data with text keys");
        hash.update(&json);
        Digest::of(hash)
    }
}

/// An immutable plan of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StoredPlan", into = "StoredPlan")]
#[must_use = "a plan does nothing until it is made the target of a rollout"]
pub struct Plan {
    id: PlanId,
    content: Content,
}

/// A plan as it is stored: the id travels with the content and is compared on reading.
#[derive(Serialize, Deserialize)]
struct StoredPlan {
    id: PlanId,
    #[serde(flatten)]
    content: Content,
}

impl From<Plan> for StoredPlan {
    fn from(plan: Plan) -> Self {
        Self { id: plan.id, content: plan.content }
    }
}

impl TryFrom<StoredPlan> for Plan {
    type Error = String;
    fn try_from(stored: StoredPlan) -> Result<Self, String> {
        let id = stored.content.digest();
        if id != stored.id {
            return Err(format!("plan {} was changed after it was made (its content is {id}); plan again", stored.id));
        }
        Ok(Self { id, content: stored.content })
    }
}

impl Plan {
    fn seal(content: Content) -> Self {
        Self { id: content.digest(), content }
    }

    /// The plan's identity.
    #[must_use]
    pub const fn id(&self) -> PlanId {
        self.id
    }

    /// The plan this one replaces.
    #[must_use]
    pub const fn parent(&self) -> Option<PlanId> {
        self.content.parent
    }

    /// The revision of the inventory it was made from.
    #[must_use]
    pub const fn inventory_revision(&self) -> u64 {
        self.content.inventory_revision
    }

    /// The digest of everything in the inventory that decided it; see [`inputs_digest`].
    #[must_use]
    pub const fn inputs(&self) -> Digest {
        self.content.inputs
    }

    /// What was asked for.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.content.policy
    }

    /// When the first host may start.
    #[must_use]
    pub const fn starts_at(&self) -> Timestamp {
        self.content.starts_at
    }

    /// The hosts, by start, then name.
    #[must_use]
    pub fn hosts(&self) -> &[PlannedHost] {
        &self.content.hosts
    }

    /// The hosts left out, with reasons.
    #[must_use]
    pub fn excluded(&self) -> &[ExcludedHost] {
        &self.content.excluded
    }

    /// The stages, in order.
    #[must_use]
    pub fn stages(&self) -> &[PlannedStage] {
        &self.content.stages
    }

    /// What no plan can beat.
    #[must_use]
    pub const fn bounds(&self) -> LowerBounds {
        self.content.bounds
    }

    /// Where the order came from.
    #[must_use]
    pub const fn strategy(&self) -> Strategy {
        self.content.strategy
    }

    /// From the plan's start until its last host is healthy, in seconds.
    #[must_use]
    pub fn makespan_s(&self) -> u32 {
        self.content.hosts.iter().map(|h| h.end_s).max().unwrap_or(0)
    }

    /// When the last host is healthy, if all goes as planned.
    #[must_use]
    pub fn eta(&self) -> Timestamp {
        self.at(self.makespan_s())
    }

    /// How far the plan is above the best lower bound: 0 is optimal, 0.5 is half as long again.
    #[must_use]
    pub fn gap(&self) -> f64 {
        match self.content.bounds.best_s() {
            0 => 0.0,
            bound => f64::from(self.makespan_s()) / f64::from(bound) - 1.0,
        }
    }

    /// A moment of the plan.
    #[must_use]
    pub fn at(&self, seconds: u32) -> Timestamp {
        // A plan spans at most half a year of windows after a start that is itself a timestamp.
        self.content.starts_at.checked_add(SignedDuration::from_secs(i64::from(seconds))).unwrap_or(Timestamp::MAX)
    }

    /// The place of each host by name.
    #[must_use]
    pub fn by_host(&self) -> HashMap<&HostName, &PlannedHost> {
        self.content.hosts.iter().map(|h| (&h.host, h)).collect()
    }

    /// Whether the inventory still says what it said when the plan was made.
    ///
    /// # Errors
    /// [`StalePlan`] when anything that decides the order has changed. A higher revision alone is no reason.
    pub fn check_inputs(&self, fleet: &Fleet) -> Result<(), StalePlan> {
        if inputs_digest(fleet) == self.content.inputs {
            return Ok(());
        }
        Err(StalePlan { plan: self.id, made_for: self.content.inventory_revision, now: fleet.revision() })
    }
}

/// A plan made for an inventory that has changed since.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "plan {plan} was made for inventory revision {made_for}, and hosts, VMs or sets have changed until revision {now}; plan again with this plan as parent"
)]
pub struct StalePlan {
    /// The plan.
    pub plan: PlanId,
    /// The revision it was made for.
    pub made_for: u64,
    /// The revision now.
    pub now: u64,
}

/// A digest of everything in an inventory that decides the order of a rollout: hosts with their labels, work times,
/// cordons and windows, sets, and where each set's VMs are. VMs without a set do not count.
#[must_use]
pub fn inputs_digest(fleet: &Fleet) -> Digest {
    let mut hash = Sha256::new();
    let mut line = String::new();
    for set in fleet.sets() {
        hash.update(serde_json::to_vec(&set.spec).expect("a set is plain data with text keys"));
    }
    for id in fleet.host_ids() {
        use fmt::Write as _;
        let host = fleet.host(id);
        let text = |id: Option<crate::id::TextId>| id.map_or("", |id| fleet.text(id));
        line.clear();
        // Writing to a String cannot fail.
        let _ = write!(line, "\n{} {} {:?}", host.name, host.work_s, (text(host.rack), text(host.zone)));
        let _ = write!(line, "{:?}{:?}{:?}", host.fault_domain, host.cordoned, host.windows);
        for (key, value) in fleet.labels(id) {
            let _ = write!(line, "{key:?}{value:?}");
        }
        for (name, member) in fleet.vms_on(id).iter().filter_map(|vm| vm.member.map(|m| (&vm.name, m))) {
            let _ = write!(line, ",{name}:{}:{}", member.set.0, member.domain);
        }
        hash.update(&line);
    }
    Digest::of(hash)
}
