//! Update domains, fault domains and membership in an availability set.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::name::SetName;

/// A number outside the range that Azure's availability sets define.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} domain {given} does not exist; use 0 to {max}")]
pub struct DomainError {
    kind: &'static str,
    given: u32,
    max: u8,
}

macro_rules! domain_type {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $count:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "u32", into = "u32")]
        pub struct $type(u8);

        impl $type {
            /// How many domains a set can have at most.
            pub const MAX_COUNT: u8 = $count;

            /// The zero-based number of the domain.
            #[must_use]
            pub const fn index(self) -> u8 {
                self.0
            }
        }

        impl TryFrom<u32> for $type {
            type Error = DomainError;
            fn try_from(given: u32) -> Result<Self, DomainError> {
                match u8::try_from(given) {
                    Ok(index) if index < $count => Ok(Self(index)),
                    _ => Err(DomainError { kind: $kind, given, max: $count - 1 }),
                }
            }
        }

        impl From<$type> for u32 {
            fn from(domain: $type) -> u32 {
                u32::from(domain.0)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

domain_type!(
    /// A part of an availability set that may be under maintenance while the other parts are not: 0 to 19.
    UpdateDomain, "update", 20
);
domain_type!(
    /// A part of a fleet that can fail together (rack, power): 0 to 2.
    FaultDomain, "fault", 3
);

/// A VM's place in an availability set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// The set.
    pub name: SetName,
    /// The VM's update domain; the controller assigns the next one round-robin when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update_domain: Option<UpdateDomain>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn update_domains_are_0_to_19() {
        assert_eq!(UpdateDomain::try_from(19).unwrap().index(), 19);
        let refusal = UpdateDomain::try_from(20).unwrap_err().to_string();
        assert_eq!(refusal, "update domain 20 does not exist; use 0 to 19");
        assert!(FaultDomain::try_from(3).is_err());
        assert!(serde_json::from_str::<UpdateDomain>("300").is_err());
    }
}
