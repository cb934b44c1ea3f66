//! What the operator asks of a rollout besides the update itself: limits, stages, windows, what separates a set.

mod window;

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use fermata_model::HostName;
use serde::{Deserialize, Serialize};

pub use window::{Day, Window, WindowError};

use crate::fleet::Sequencing;

/// Limits that hold at every instant of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Most hosts in work at once; absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hosts: Option<NonZeroU32>,
    /// Most hosts in work at once in one rack; absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hosts_per_rack: Option<NonZeroU32>,
    /// Most of a set's VMs in work at once, in percent, rounded down. One host is always allowed, whatever it carries.
    pub set_share_percent: u8,
    /// Sets with fewer VMs than this go host by host.
    pub one_by_one_below: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { hosts: None, hosts_per_rack: None, set_share_percent: 20, one_by_one_below: 10 }
    }
}

impl Limits {
    /// How many VMs of a set of `size` VMs may be in work at once; at least one.
    #[must_use]
    pub fn set_quota(&self, size: u32) -> u32 {
        if size < self.one_by_one_below {
            return 1;
        }
        let share = u64::from(size) * u64::from(self.set_share_percent) / 100;
        u32::try_from(share).unwrap_or(u32::MAX).max(1)
    }
}

/// How many hosts a stage takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageSize {
    /// So many hosts, chosen by the planner: those that touch the fewest sets first.
    Hosts(u32),
    /// So many percent of the rollout's hosts, rounded up.
    Percent(u8),
    /// These hosts.
    Named(BTreeSet<HostName>),
}

/// A part of a rollout that ends, and proves itself, before the next begins: a canary, or a wave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// What operators call it.
    pub name: String,
    /// Its hosts.
    pub size: StageSize,
    /// How long it is watched after its last host is healthy, in seconds.
    #[serde(default)]
    pub soak_s: u32,
    /// Whether an operator must say go before the next stage.
    #[serde(default)]
    pub approval: bool,
}

/// What the operator asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Limits at every instant.
    pub limits: Limits,
    /// Stages in order; hosts left over form a last one. Empty: one stage.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<Stage>,
    /// When any host may be in work; empty: at any time. Combined with the windows of the host and of its sets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<Window>,
    /// After so many seconds hosts are maintained outside their windows too. Off when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub windows_end_after_s: Option<u32>,
    /// What separates the parts of every set, instead of what the set says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequencing: Option<Sequencing>,
    /// The recovery time of every set, instead of what the set says, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery_s: Option<u32>,
    /// The work time of every host, instead of what the host says, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work_s: Option<u32>,
    /// The host label whose values the planner tries as an order of classes; inferred from the sets when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub order_label: Option<String>,
    /// Hosts to maintain although they carry two update domains of a set. Needs an administrator, and is audited.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub allow_self_conflict: BTreeSet<HostName>,
    /// The hosts of the rollout; absent: the whole fleet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub only: Option<BTreeSet<HostName>>,
}
