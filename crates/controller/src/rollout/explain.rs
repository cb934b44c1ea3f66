//! Why a host is not in work: a typed reason, the object that is in the way, the earliest possible start.

use std::fmt;

use fermata_model::{HostName, SetName};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{HostPhase, Rollout, View};
use crate::order::{Part, RolloutId};

/// What a host waits for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "for")]
pub enum Wait {
    /// It does not wait.
    NotWaiting {
        /// Where it stands.
        phase: String,
    },
    /// The rollout does not run.
    Rollout {
        /// Its phase.
        phase: String,
    },
    /// An earlier stage.
    Stage {
        /// Its name.
        stage: String,
        /// Its hosts that are not through.
        hosts_left: u32,
    },
    /// An earlier stage is being watched.
    StageSoaks {
        /// Its name.
        stage: String,
        /// Until then.
        until: Timestamp,
    },
    /// An operator's word after a stage.
    StageApproval {
        /// Its name.
        stage: String,
    },
    /// It was paused by an operator.
    Held,
    /// An operator's word for this host.
    HostApproval,
    /// The last preflight was refused.
    Preflight {
        /// Why.
        reason: String,
        /// The next try.
        again_at: Timestamp,
    },
    /// It is cordoned.
    Cordoned,
    /// Another rollout's visit is open.
    HostBusy {
        /// Whose.
        rollout: RolloutId,
    },
    /// Its windows.
    Window {
        /// The windows of which none is open long enough.
        windows: String,
    },
    /// A limit of hosts at once.
    Limit {
        /// Which.
        what: String,
        /// The limit.
        limit: u32,
        /// How many are in work.
        in_work: u32,
    },
    /// Another part of a set, or another rollout, is in work.
    SetInWork {
        /// The set.
        set: SetName,
        /// The part in work.
        part: Part,
        /// For whom.
        owner: RolloutId,
        /// On these hosts.
        hosts: Vec<HostName>,
    },
    /// A set recovers.
    SetRecovers {
        /// The set.
        set: SetName,
        /// From this part.
        part: Part,
        /// Until then.
        until: Timestamp,
    },
    /// Too many of a set's VMs would be in work.
    SetShare {
        /// The set.
        set: SetName,
        /// Most VMs of the set at once.
        limit: u32,
        /// VMs in work.
        in_work: u32,
        /// The set's VMs on this host.
        vms: u32,
    },
}

impl Wait {
    /// Before this time the host cannot start for this reason; nothing when nobody knows.
    #[must_use]
    pub const fn earliest(&self) -> Option<Timestamp> {
        match self {
            Self::StageSoaks { until, .. } | Self::SetRecovers { until, .. } => Some(*until),
            Self::Preflight { again_at, .. } => Some(*again_at),
            _ => None,
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotWaiting { phase } => write!(f, "it is {phase}"),
            Self::Rollout { phase } => write!(f, "the rollout is {phase}"),
            Self::Stage { stage, hosts_left } => write!(f, "stage `{stage}` has {hosts_left} hosts to go"),
            Self::StageSoaks { stage, until } => write!(f, "stage `{stage}` is watched until {until}"),
            Self::StageApproval { stage } => {
                write!(f, "stage `{stage}` is through; an operator must say go: `rollout approve --stage`")
            }
            Self::Held => f.write_str("it is paused by an operator: `rollout resume --host`"),
            Self::HostApproval => f.write_str("an operator must approve it: `rollout approve --host`"),
            Self::Preflight { reason, again_at } => write!(f, "preflight: {reason}; next try {again_at}"),
            Self::Cordoned => f.write_str("it is cordoned: `host uncordon`"),
            Self::HostBusy { rollout } => write!(f, "rollout {rollout} is visiting it"),
            Self::Window { windows } => write!(f, "none of its windows is open for long enough: {windows}"),
            Self::Limit { what, limit, in_work } => write!(f, "limit of {limit} {what}, {in_work} in work"),
            Self::SetInWork { set, part, owner, hosts } => {
                write!(f, "set {set}: part {part} is in work for {owner} on ")?;
                f.write_str(&hosts.iter().map(HostName::as_str).collect::<Vec<_>>().join(", "))
            }
            Self::SetRecovers { set, part, until } => write!(f, "set {set} recovers from part {part} until {until}"),
            Self::SetShare { set, limit, in_work, vms } => {
                write!(f, "set {set}: at most {limit} VMs at once, {in_work} in work, {vms} on this host")
            }
        }
    }
}

/// The answer to "why is this host where it is?".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The host.
    pub host: HostName,
    /// Where it stands.
    pub phase: HostPhase,
    /// What it waits for; nothing when it does not wait, or may be begun at once.
    pub wait: Option<Wait>,
    /// Before this time it cannot start; nothing when nobody knows.
    pub earliest: Option<Timestamp>,
    /// Something a person should look at.
    pub warning: Option<String>,
}

impl Rollout {
    /// Why a host stands where it stands; `None` for a host of another rollout.
    #[must_use]
    pub fn explain(&self, host: &HostName, view: &View, now: Timestamp) -> Option<Explanation> {
        let state = self.state.hosts.get(host)?;
        let wait = match state.phase {
            HostPhase::Waiting => self.admit(host, view, now).err(),
            _ => None,
        };
        let earliest = wait.as_ref().and_then(Wait::earliest);
        Some(Explanation {
            host: host.clone(),
            phase: state.phase.clone(),
            wait,
            earliest,
            warning: self.warning(host, now),
        })
    }

    fn warning(&self, host: &HostName, now: Timestamp) -> Option<String> {
        let state = &self.state.hosts[host];
        let since = match &state.phase {
            HostPhase::Ordered { since, .. }
            | HostPhase::InWork { since, .. }
            | HostPhase::StandingDown { since, .. }
            | HostPhase::Checking { since, .. } => *since,
            _ => return None,
        };
        let late = now >= super::step::after(since, self.definition.rules.warn_after);
        late.then(|| match state.unhealthy.as_slice() {
            [] => format!("{} since {since}, longer than usual; see the host", state.phase.word()),
            [first, ..] => format!("VM {} is not healthy: {}", first.vm, first.seen),
        })
    }
}
