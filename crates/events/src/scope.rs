//! Scopes: who sees an event, and whose approval counts.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use fermata_model::{SetName, VmName};
use serde::{Deserialize, Serialize};

use crate::time::UnixMs;

/// Who sees an event: a VM that stands alone, or every VM of an availability set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ScopeId {
    /// One VM that serves alone.
    Vm(VmName),
    /// All VMs of an availability set.
    Set(SetName),
}

impl fmt::Display for ScopeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm(name) => write!(f, "vm/{name}"),
            Self::Set(name) => write!(f, "set/{name}"),
        }
    }
}

/// A text that is not a scope.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a scope; write vm/NAME or set/NAME")]
pub struct ScopeError(String);

impl FromStr for ScopeId {
    type Err = ScopeError;
    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let bad = || ScopeError(text.to_owned());
        match text.split_once('/') {
            Some(("vm", name)) => name.parse().map(Self::Vm).map_err(|_| bad()),
            Some(("set", name)) => name.parse().map(Self::Set).map_err(|_| bad()),
            _ => Err(bad()),
        }
    }
}

impl TryFrom<String> for ScopeId {
    type Error = ScopeError;
    fn try_from(text: String) -> Result<Self, ScopeError> {
        text.parse()
    }
}

impl From<ScopeId> for String {
    fn from(scope: ScopeId) -> String {
        scope.to_string()
    }
}

/// Whose approvals let a maintenance start before `NotBefore`.
///
/// A `POST` of a VM whose approval does not count is answered like any other (the protocol knows no refusal for a valid
/// id); it is recorded and changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "who")]
pub enum ApprovalPolicy {
    /// Any VM of the scope, as on Azure.
    #[default]
    AnyInScope,
    /// Only VMs that the event lists, and each of them: nobody is paused on another's word.
    AffectedOnly,
    /// Only the VMs named here; one of them is enough.
    Named {
        /// The VMs.
        vms: BTreeSet<VmName>,
    },
    /// This many different VMs of the scope.
    Quorum {
        /// How many.
        needed: u16,
    },
    /// Only an operator; guests are told, not asked.
    OperatorOnly,
}

/// What is remembered of a scope.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Scope {
    /// Whose approvals count; fixed for an event when the event is announced.
    #[serde(default)]
    pub policy: ApprovalPolicy,
    /// The last request of a VM of the set on another host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_polled: Option<UnixMs>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_round_trip_as_text() {
        for text in ["vm/a", "set/web"] {
            assert_eq!(text.parse::<ScopeId>().unwrap().to_string(), text);
        }
        assert!("web".parse::<ScopeId>().is_err());
        assert!("set/".parse::<ScopeId>().is_err());
    }
}
