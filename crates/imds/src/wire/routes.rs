//! Addresses, routes and neighbours, as text for `ip -batch -`, and the kernel settings they need.

use std::collections::{BTreeMap, BTreeSet};

use super::{ADDRESS, Mark, Wiring};
use crate::service::Port;

/// The priority of our routing rules: ahead of the main table's.
pub const PRIORITY: u32 = 8_200;

/// Kernel settings, as names below `net.ipv4` and values.
#[must_use]
pub fn settings(wiring: &Wiring) -> Vec<(String, &'static str)> {
    let mut settings = vec![("tcp_fwmark_accept".to_owned(), "1")];
    for bridge in &wiring.bridges {
        // Whether a source is plausible is judged in the port's own table, where it always is: the port is the identity.
        settings.push((format!("conf/{}/src_valid_mark", bridge.name), "1"));
        settings.push((format!("conf/{}/rp_filter", bridge.name), "0"));
    }
    settings
}

/// Commands that bring the host from the `present` marks to `wiring`. Written so that repeating them changes nothing.
#[must_use]
pub fn render(wiring: &Wiring, present: &BTreeSet<u32>) -> String {
    let mut lines = vec![format!("address replace {ADDRESS}/32 dev lo scope host")];
    let wanted: BTreeSet<u32> = wiring.ports.iter().map(|port| Mark(port.number).value()).collect();
    for mark in present.difference(&wanted) {
        lines.push(format!("rule delete priority {PRIORITY} fwmark {mark:#x} lookup {mark}"));
        lines.push(format!("route flush table {mark}"));
    }
    // The taps of one NIC have one number, and with it one way back.
    let by_number: BTreeMap<u16, &Port> = wiring.ports.iter().map(|port| (port.number, port)).collect();
    for port in by_number.into_values() {
        let (mark, hop, bridge) = (Mark(port.number).value(), Mark(port.number).next_hop(), &port.bridge);
        lines.push(format!("neighbour replace {hop} lladdr {} dev {bridge} nud permanent", port.mac));
        lines.push(format!("route replace default via {hop} dev {bridge} onlink table {mark}"));
        if !present.contains(&mark) {
            lines.push(format!("rule add priority {PRIORITY} fwmark {mark:#x} lookup {mark}"));
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_taps_of_a_nic_share_one_way_back() {
        let mut wiring = super::super::example();
        let once = render(&wiring, &BTreeSet::new());
        let twin = Port { tap: "fm1-b".to_owned(), ..wiring.ports[0].clone() };
        wiring.ports.push(twin);
        assert_eq!(render(&wiring, &BTreeSet::new()), once);
        let rules = super::super::rules::render(&wiring);
        assert!(rules.contains("\"fm1\" : 0x4d460001") && rules.contains("\"fm1-b\" : 0x4d460001"), "{rules}");
    }

    #[test]
    fn what_is_gone_is_taken_down_and_what_is_there_stays() {
        let present = [Mark(1).value(), Mark(9).value()].into();
        assert_eq!(
            render(&super::super::example(), &present),
            "address replace 169.254.169.254/32 dev lo scope host\n\
             rule delete priority 8200 fwmark 0x4d460009 lookup 1296433161\n\
             route flush table 1296433161\n\
             neighbour replace 198.18.0.1 lladdr 52:54:00:72:61:4c dev br0 nud permanent\n\
             route replace default via 198.18.0.1 dev br0 onlink table 1296433153\n\
             neighbour replace 198.18.0.2 lladdr 52:54:00:72:66:05 dev br0 nud permanent\n\
             route replace default via 198.18.0.2 dev br0 onlink table 1296433154\n\
             rule add priority 8200 fwmark 0x4d460002 lookup 1296433154\n\
             neighbour replace 198.18.0.3 lladdr 52:54:00:72:64:72 dev fermata0 nud permanent\n\
             route replace default via 198.18.0.3 dev fermata0 onlink table 1296433155\n\
             rule add priority 8200 fwmark 0x4d460003 lookup 1296433155\n"
        );
    }
}
