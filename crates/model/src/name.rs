//! Names: hosts, VMs, availability sets, bridges.
//!
//! Host, VM and set names follow RFC 1123 host-name labels, because a VM's name becomes `compute.name` in the metadata
//! service, part of a systemd unit name and part of file names; none of these may need quoting.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("{kind} name is empty; give 1 to {max} characters")]
    Empty {
        /// What was being named.
        kind: &'static str,
        /// Longest allowed length in bytes.
        max: usize,
    },
    /// The text is longer than the name's use allows.
    #[error("{kind} name `{text}` has {len} characters; shorten it to {max}")]
    TooLong {
        /// What was being named.
        kind: &'static str,
        /// The refused text.
        text: String,
        /// Its length in bytes.
        len: usize,
        /// Longest allowed length in bytes.
        max: usize,
    },
    /// A character outside the allowed set.
    #[error(
        "{kind} name `{text}` contains `{found}`; use lower-case letters, digits and `-`, beginning and ending with a letter or digit"
    )]
    BadCharacter {
        /// What was being named.
        kind: &'static str,
        /// The refused text.
        text: String,
        /// The first offending character.
        found: char,
    },
}

fn check_label(kind: &'static str, text: &str, max: usize) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty { kind, max });
    }
    if text.len() > max {
        return Err(NameError::TooLong { kind, text: text.to_owned(), len: text.len(), max });
    }
    let bad = text.chars().find(|c| !(c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-'));
    let edge = [text.chars().next(), text.chars().next_back()].into_iter().flatten().find(|c| *c == '-');
    match bad.or(edge) {
        Some(found) => Err(NameError::BadCharacter { kind, text: text.to_owned(), found }),
        None => Ok(()),
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident, $kind:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $type(String);

        impl $type {
            /// Longest allowed length in bytes.
            pub const MAX_LEN: usize = $max;

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                check_label($kind, text, $max)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
                String::deserialize(de)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name_type!(
    /// A host that runs VMs: one RFC 1123 label.
    HostName, "host", 63
);
name_type!(
    /// A VM: one RFC 1123 label, at most 63 characters; unique on a host and in a fleet.
    VmName, "VM", 63
);
name_type!(
    /// An availability set: one RFC 1123 label.
    SetName, "availability set", 63
);
name_type!(
    /// A bridge on the host: a label of at most 15 characters (Linux `IFNAMSIZ` less the terminator).
    BridgeName, "bridge", 15
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_refusal_names_the_reason_and_the_way_out() {
        let message = "web_1".parse::<VmName>().unwrap_err().to_string();
        assert!(message.contains("`_`") && message.contains("lower-case"), "{message}");
        assert!("".parse::<HostName>().is_err());
        assert!("-a".parse::<HostName>().is_err());
        assert!("a-".parse::<SetName>().is_err());
        assert!("a".repeat(16).parse::<BridgeName>().is_err());
        assert!("Web".parse::<VmName>().is_err());
    }

    proptest! {
        #[test]
        fn every_accepted_name_needs_no_quoting(text in "\\PC{0,70}") {
            if let Ok(name) = text.parse::<VmName>() {
                prop_assert!(name.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'));
                prop_assert!(!name.as_str().starts_with('-') && name.as_str().len() <= VmName::MAX_LEN);
            }
        }

        #[test]
        fn labels_round_trip(text in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?") {
            let name: VmName = text.parse().unwrap();
            let json = serde_json::to_string(&name).unwrap();
            prop_assert_eq!(serde_json::from_str::<VmName>(&json).unwrap(), name);
        }
    }
}
