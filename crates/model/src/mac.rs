//! MAC addresses of virtual NICs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not the MAC address of a NIC.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not six two-digit hexadecimal numbers.
    #[error("MAC address `{0}` is not six hexadecimal bytes joined by `:`; write it like 52:54:00:12:34:56")]
    Malformed(String),
    /// A multicast address, or all zeros: no NIC can have it.
    #[error(
        "MAC address `{0}` is not a unicast address; clear the lowest bit of the first byte and use a non-zero address"
    )]
    NotUnicast(String),
}

/// A unicast MAC address, written in lower case with colons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac([u8; 6]);

impl Mac {
    /// The six bytes in transmission order.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// A locally administered address (first three bytes `52:54:00`, as QEMU's own defaults) derived from 16 bytes of
    /// identity, so that a VM keeps its address for life without anybody storing one.
    #[must_use]
    pub fn derived(identity: [u8; 16], nic_index: u8) -> Self {
        // FNV-1a: any stable, well-mixing function does; collisions are checked against the host's inventory.
        let mut hash: u32 = 0x811c_9dc5;
        for byte in identity.into_iter().chain([nic_index]) {
            hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
        let [_, a, b, c] = hash.to_be_bytes();
        Self([0x52, 0x54, 0x00, a, b, c])
    }
}

impl FromStr for Mac {
    type Err = MacError;
    fn from_str(text: &str) -> Result<Self, MacError> {
        let malformed = || MacError::Malformed(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(malformed)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| malformed())?;
        }
        if parts.next().is_some() {
            return Err(malformed());
        }
        if bytes[0] & 1 == 1 || bytes == [0; 6] {
            return Err(MacError::NotUnicast(text.to_owned()));
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Mac {
    type Error = MacError;
    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> String {
        mac.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refusals() {
        for text in
            ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "52-54-00-12-34-56", "5:54:00:12:34:56", "+2:54:00:12:34:5g"]
        {
            assert!(matches!(text.parse::<Mac>(), Err(MacError::Malformed(_))), "{text}");
        }
        assert!(matches!("01:00:5e:00:00:01".parse::<Mac>(), Err(MacError::NotUnicast(_))));
        assert!(matches!("00:00:00:00:00:00".parse::<Mac>(), Err(MacError::NotUnicast(_))));
    }

    proptest! {
        #[test]
        fn derived_addresses_are_unicast_and_stable(identity: [u8; 16], index: u8) {
            let mac = Mac::derived(identity, index);
            prop_assert_eq!(mac, Mac::derived(identity, index));
            prop_assert_eq!(mac.to_string().parse::<Mac>().unwrap(), mac);
        }
    }
}
