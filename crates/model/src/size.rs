//! Sizes of memory and disks, always with a unit.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// No unit, an unknown unit, or not a whole number.
    #[error("size `{0}` is not a whole number with a unit; write it like 512MiB or 4GiB (B, KiB, MiB, GiB, TiB)")]
    Malformed(String),
    /// More bytes than 64 bits can count.
    #[error("size `{0}` is larger than 16777215 TiB; use a smaller number")]
    Overflow(String),
}

/// A number of bytes, written with a binary unit (`512MiB`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size(u64);

const UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl Size {
    /// A size of whole bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// A size of whole mebibytes.
    #[must_use]
    pub const fn from_mib(mib: u32) -> Self {
        Self((mib as u64) << 20)
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The size in mebibytes, rounded down.
    #[must_use]
    pub const fn mib(self) -> u64 {
        self.0 >> 20
    }

    /// Whether the size is a whole multiple of `unit`.
    #[must_use]
    pub const fn is_multiple_of(self, unit: Size) -> bool {
        unit.0 != 0 && self.0.is_multiple_of(unit.0)
    }
}

impl FromStr for Size {
    type Err = SizeError;
    fn from_str(text: &str) -> Result<Self, SizeError> {
        let malformed = || SizeError::Malformed(text.to_owned());
        let (digits, unit) = UNITS
            .iter()
            .find_map(|(suffix, unit)| text.strip_suffix(suffix).map(|digits| (digits.trim_end(), *unit)))
            .ok_or_else(malformed)?;
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(malformed());
        }
        let overflow = || SizeError::Overflow(text.to_owned());
        let count: u64 = digits.parse().map_err(|_| overflow())?;
        count.checked_mul(unit).map(Self).ok_or_else(overflow)
    }
}

impl TryFrom<String> for Size {
    type Error = SizeError;
    fn try_from(text: String) -> Result<Self, SizeError> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> String {
        size.to_string()
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = UNITS.iter().find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit));
        let (suffix, unit) = whole.unwrap_or(&("B", 1));
        write!(f, "{}{suffix}", self.0 / unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_size_needs_a_unit() {
        assert_eq!("512MiB".parse::<Size>().unwrap().mib(), 512);
        assert_eq!("4 GiB".parse::<Size>().unwrap(), Size::from_mib(4096));
        for text in ["512", "GiB", "1.5GiB", "-1GiB", "4GB", "+4GiB", "4G"] {
            assert!(matches!(text.parse::<Size>(), Err(SizeError::Malformed(_))), "{text}");
        }
        assert!(matches!("99999999999999999999TiB".parse::<Size>(), Err(SizeError::Overflow(_))));
        assert!(matches!("16777216TiB".parse::<Size>(), Err(SizeError::Overflow(_))));
    }

    proptest! {
        #[test]
        fn every_size_round_trips(bytes: u64) {
            let size = Size::from_bytes(bytes);
            prop_assert_eq!(size.to_string().parse::<Size>().unwrap(), size);
        }
    }
}
