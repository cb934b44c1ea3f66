//! VMM versions and versioned machine types.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not a version or a machine type.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VmmNameError {
    /// Not `MAJOR.MINOR`.
    #[error("VMM version `{0}` is not MAJOR.MINOR; write it like 10.0")]
    Version(String),
    /// Not a versioned q35 machine type.
    #[error(
        "machine type `{0}` is not a versioned one; write it like pc-q35-10.0 (an unversioned type changes under the VM at every update)"
    )]
    Machine(String),
}

/// A VMM version as operators name it: `MAJOR.MINOR`, ordered by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmmVersion {
    /// Major version.
    pub major: u16,
    /// Minor version.
    pub minor: u16,
}

impl FromStr for VmmVersion {
    type Err = VmmNameError;
    fn from_str(text: &str) -> Result<Self, VmmNameError> {
        let number = |part: &str| {
            (!part.is_empty() && part.bytes().all(|b| b.is_ascii_digit())).then(|| part.parse().ok()).flatten()
        };
        text.split_once('.')
            .and_then(|(major, minor)| Some(Self { major: number(major)?, minor: number(minor)? }))
            .ok_or_else(|| VmmNameError::Version(text.to_owned()))
    }
}

impl fmt::Display for VmmVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A versioned machine type, `pc-q35-MAJOR.MINOR`: the guest-visible hardware, fixed for the life of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MachineType(
    /// The VMM version that introduced the type: any VMM from this version on can run it.
    pub VmmVersion,
);

impl FromStr for MachineType {
    type Err = VmmNameError;
    fn from_str(text: &str) -> Result<Self, VmmNameError> {
        text.strip_prefix("pc-q35-")
            .and_then(|version| version.parse().ok())
            .map(Self)
            .ok_or_else(|| VmmNameError::Machine(text.to_owned()))
    }
}

impl fmt::Display for MachineType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pc-q35-{}", self.0)
    }
}

macro_rules! text_serde {
    ($type:ty) => {
        impl TryFrom<String> for $type {
            type Error = VmmNameError;
            fn try_from(text: String) -> Result<Self, VmmNameError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }
    };
}

text_serde!(VmmVersion);
text_serde!(MachineType);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_order_by_number_not_by_text() {
        let parse = |text: &str| text.parse::<VmmVersion>().unwrap();
        assert!(parse("9.2") < parse("10.0"));
        assert!("10".parse::<VmmVersion>().is_err());
        assert!("10.".parse::<VmmVersion>().is_err());
        assert!("+1.0".parse::<VmmVersion>().is_err());
        assert_eq!("pc-q35-11.1".parse::<MachineType>().unwrap().to_string(), "pc-q35-11.1");
        assert!("q35".parse::<MachineType>().is_err());
    }
}
