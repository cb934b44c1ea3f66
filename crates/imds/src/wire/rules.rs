//! The firewall, as text for `nft -f -`. Replaces the former one in one transaction.

use super::{ADDRESS, Mark, Open, Wiring};

fn elements<T>(items: impl IntoIterator<Item = T>, show: impl Fn(T) -> String) -> String {
    let all: Vec<String> = items.into_iter().map(show).collect();
    if all.is_empty() { String::new() } else { format!(" elements = {{ {} }}", all.join(", ")) }
}

/// The rules for `wiring`.
#[must_use]
pub fn render(wiring: &Wiring) -> String {
    let ports = || wiring.ports.iter();
    let mark = |number: u16| format!("{:#010x}", Mark(number).value());
    let taps = elements(ports(), |port| format!("\"{}\"", port.tap));
    let guests = elements(ports(), |port| format!("\"{}\" . {}", port.tap, port.mac));
    let marks = elements(ports(), |port| format!("\"{}\" : {}", port.tap, mark(port.number)));
    let owners = elements(ports(), |port| format!("\"{}\" . {}", port.tap, mark(port.number)));
    let home = elements(
        ports().filter_map(|port| wiring.bridge(&port.bridge).map(|bridge| (port, bridge))),
        |(port, bridge)| format!("\"{}\" : {}", port.tap, bridge.mac),
    );
    let dhcp = elements(wiring.bridges.iter().filter(|bridge| bridge.dhcp), |bridge| format!("\"{}\"", bridge.name));
    let open: String = wiring
        .open
        .iter()
        .map(|open| match open {
            Open::Tcp(port) => format!("\t\ttcp dport {port} accept comment \"opened by the operator\"\n"),
            Open::Udp(port) => format!("\t\tudp dport {port} accept comment \"opened by the operator\"\n"),
        })
        .collect();
    let (mask, metadata, guest) = (Mark::MASK, Mark::METADATA, Mark::GUEST);
    format!(
        r#"table bridge fermata
delete table bridge fermata
table bridge fermata {{
	set taps {{ type ifname;{taps} }}
	set guests {{ type ifname . ether_addr;{guests} }}
	set owners {{ type ifname . mark;{owners} }}
	map marks {{ type ifname : mark;{marks} }}
	map home {{ type ifname : ether_addr;{home} }}

	chain prerouting {{
		type filter hook prerouting priority -250; policy accept;
		iifname . ether saddr @guests goto guest
		iifname @taps drop comment "a MAC address that is not the port's"
		ip daddr {ADDRESS} drop comment "not from an uplink"
		arp daddr ip {ADDRESS} drop
	}}
	chain guest {{
		ether type arp iifname . arp saddr ether != @guests drop comment "an ARP sender that is not the port's"
		arp saddr ip {ADDRESS} drop comment "nobody else has the address"
		ip saddr {ADDRESS} drop
		arp daddr ip {ADDRESS} meta mark set iifname map @marks accept
		ip daddr {ADDRESS} meta mark set iifname map @marks ether daddr set iifname map @home meta pkttype set host accept
		meta mark set {guest:#010x}
	}}
	chain forward {{
		type filter hook forward priority -250; policy accept;
		ip daddr {ADDRESS} drop comment "never leaves the host"
		arp daddr ip {ADDRESS} drop
	}}
	chain output {{
		type filter hook output priority -250; policy accept;
		meta mark & {mask:#010x} == {metadata:#010x} oifname . meta mark != @owners drop comment "answers leave through the port of the question"
	}}
}}
table inet fermata
delete table inet fermata
table inet fermata {{
	set dhcp {{ type ifname;{dhcp} }}

	chain input {{
		type filter hook input priority -10; policy accept;
		meta mark & {mask:#010x} == {metadata:#010x} goto metadata
		meta mark & {mask:#010x} == {guest:#010x} goto guest
		iifname != "lo" ip daddr {ADDRESS} drop comment "not over a guest's port"
	}}
	chain metadata {{
		ip daddr {ADDRESS} tcp dport 80 accept
		drop
	}}
	chain guest {{
		iifname @dhcp udp sport 68 udp dport 67 accept
		ct state established,related accept comment "answers to what the host asked of the guest"
{open}		drop comment "guests reach nothing else of the host"
	}}
	chain output {{
		type filter hook output priority -10; policy accept;
		oifname != "lo" ip daddr {ADDRESS} drop
	}}
}}
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ruleset_is_the_reviewed_one() {
        let rendered = render(&super::super::example());
        assert_eq!(rendered, include_str!("golden.nft"), "review the change, then store it in src/wire/golden.nft");
    }

    #[test]
    fn no_port_no_element() {
        assert!(!render(&Wiring::default()).contains("elements"));
    }
}
