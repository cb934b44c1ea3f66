//! The wire between guests and the service.
//!
//! ```text
//!  guest --tap--> bridge --[nft bridge prerouting: is it this port's MAC? which port?]--> mark --> host IP --> listener
//!    ^                                                                                               169.254.169.254
//!    |   answers: packet mark -> own routing table -> fixed neighbour -> [nft bridge output: only this port] --+
//! ```
//!
//! A guest is known by the port its frames come in on. The firewall writes the port's number into the packet mark; the
//! kernel copies it to the accepted socket (`tcp_fwmark_accept`), and [`crate::caller_of::ByMark`] reads it there. The way
//! back does not depend on anything a guest says either: each mark has a routing table of one route, to a next hop whose
//! neighbour entry is fixed to the VM's MAC address. So two guests may use the same address, or claim each other's, and
//! still get their own answers only; poisoned ARP answers are not looked at.
//!
//! Also enforced: frames with a foreign source MAC are dropped at the port; frames for the address never leave the host
//! and are not taken from uplinks; guests reach nothing of the host but the service (and DHCP on bridges that offer it).
//!
//! [`rules`] and [`routes`] are pure and give text; [`apply`] hands it to `nft` and `ip`.

pub mod apply;
pub mod routes;
pub mod rules;

use std::net::Ipv4Addr;

use fermata_model::{BridgeName, Mac};
use serde::{Deserialize, Serialize};

use crate::service::Port;

/// The address of the service.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// The packet mark of a port. The upper half tells metadata traffic from other traffic of guests, the lower half is the
/// port's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(pub u16);

impl Mark {
    /// The bits that tell the class.
    pub const MASK: u32 = 0xffff_0000;
    /// Packets of a guest for the service.
    pub const METADATA: u32 = 0x4d46_0000;
    /// Any other packet of a guest.
    pub const GUEST: u32 = 0x4d47_0000;

    /// The mark as the kernel sees it.
    #[must_use]
    pub const fn value(self) -> u32 {
        Self::METADATA | self.0 as u32
    }

    /// The port's number in a mark; `None` for any mark that is not one of metadata traffic.
    #[must_use]
    pub fn number_of(mark: u32) -> Option<u16> {
        (mark & Self::MASK == Self::METADATA).then(|| u16::try_from(mark & !Self::MASK).ok()).flatten()
    }

    /// The next hop of the port's answers. It stands in no packet: its neighbour entry is fixed, so nobody is asked for it.
    /// The block is the one reserved for benchmarks (RFC 2544), which no guest's network is made of.
    #[must_use]
    pub fn next_hop(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + u32::from(self.0))
    }
}

/// A bridge with guests on it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bridge {
    /// Its name.
    pub name: BridgeName,
    /// Its own MAC address; frames for the service are readdressed to it, whatever gateway the guest sends them to.
    pub mac: Mac,
    /// Whether the agent offers DHCP on it.
    #[serde(default)]
    pub dhcp: bool,
}

/// Everything the wire needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wiring {
    /// The bridges.
    pub bridges: Vec<Bridge>,
    /// The ports of guests. A NIC has two while its VMM changes, under one number: both are wired all the time, so that
    /// nothing has to be changed at the moment of the change.
    pub ports: Vec<Port>,
    /// Services of the host that guests may reach after all, such as a name server; none by default.
    #[serde(default)]
    pub open: Vec<Open>,
}

/// A port of the host that guests may reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Open {
    /// Over TCP.
    Tcp(u16),
    /// Over UDP.
    Udp(u16),
}

impl Wiring {
    fn bridge(&self, name: &BridgeName) -> Option<&Bridge> {
        self.bridges.iter().find(|bridge| bridge.name == *name)
    }
}

#[cfg(test)]
pub(crate) fn example() -> Wiring {
    let port = |number: u16, bridge: &str| Port {
        tap: format!("fm{number}"),
        bridge: bridge.parse().unwrap(),
        mac: Mac::derived([0; 16], u8::try_from(number).unwrap()),
        number,
    };
    let bridge = |name: &str, mac: &str, dhcp| Bridge { name: name.parse().unwrap(), mac: mac.parse().unwrap(), dhcp };
    Wiring {
        bridges: vec![bridge("br0", "02:00:00:00:00:01", false), bridge("fermata0", "02:00:00:00:00:02", true)],
        ports: vec![port(1, "br0"), port(2, "br0"), port(3, "fermata0")],
        open: vec![],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_metadata_marks_name_a_port() {
        assert_eq!(Mark::number_of(Mark(7).value()), Some(7));
        for other in [0, 7, Mark::GUEST | 7, 0xffff_ffff] {
            assert_eq!(Mark::number_of(other), None, "{other:x}");
        }
        assert_eq!(Mark(0x0102).next_hop().to_string(), "198.18.1.2");
        assert_eq!(Mark(u16::MAX).next_hop().to_string(), "198.18.255.255");
    }
}
