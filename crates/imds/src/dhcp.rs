//! DHCP on the bridges that the agent owns: an address, a router, and the route to the metadata service.
//!
//! The answer is pure ([`respond`]); [`serve`] moves datagrams. Leases are not negotiated: a VM's address follows from its
//! MAC address, so there is nothing to remember and nothing to run out of.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use fermata_model::{BridgeName, Mac};
use tokio::net::UdpSocket;

use crate::wire::ADDRESS;

/// How long a lease holds, in seconds. Clients ask again at half of it.
const LEASE_S: u32 = 3_600;

/// What is offered on a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The bridge's own address: router and server.
    pub router: Ipv4Addr,
    /// The length of the network's prefix.
    pub prefix: u8,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// The address and name of each VM.
    pub leases: BTreeMap<Mac, (Ipv4Addr, String)>,
}

impl Offer {
    fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0))
    }
}

/// The answer to a datagram; `None` for anything that is not a request of a VM of this bridge.
#[must_use]
pub fn respond(offer: &Offer, datagram: &[u8]) -> Option<Vec<u8>> {
    let request = Message::decode(&mut Decoder::new(datagram)).ok()?;
    if request.opcode() != Opcode::BootRequest || request.giaddr() != Ipv4Addr::UNSPECIFIED {
        return None;
    }
    let bytes: [u8; 6] = request.chaddr().try_into().ok()?;
    let mac: Mac = bytes.map(|b| format!("{b:02x}")).join(":").parse().ok()?;
    let (address, name) = offer.leases.get(&mac)?;
    let options = request.opts();
    let for_other = matches!(options.get(OptionCode::ServerIdentifier), Some(DhcpOption::ServerIdentifier(id)) if *id != offer.router);
    if for_other {
        return None;
    }
    let asked = match options.get(OptionCode::RequestedIpAddress) {
        Some(DhcpOption::RequestedIpAddress(asked)) => *asked,
        _ => request.ciaddr(),
    };
    let kind = match options.msg_type()? {
        MessageType::Discover => MessageType::Offer,
        MessageType::Request if asked == *address => MessageType::Ack,
        MessageType::Request => MessageType::Nak,
        MessageType::Inform => MessageType::Ack,
        _ => return None,
    };
    let mut reply = Message::default();
    reply
        .set_opcode(Opcode::BootReply)
        .set_xid(request.xid())
        .set_flags(Flags::default().set_broadcast())
        .set_ciaddr(request.ciaddr())
        .set_siaddr(offer.router)
        .set_chaddr(request.chaddr());
    if kind == MessageType::Offer || kind == MessageType::Ack {
        if options.msg_type() != Some(MessageType::Inform) {
            reply.set_yiaddr(*address);
            reply.opts_mut().insert(DhcpOption::AddressLeaseTime(LEASE_S));
        }
        let out = reply.opts_mut();
        out.insert(DhcpOption::SubnetMask(offer.mask()));
        out.insert(DhcpOption::Router(vec![offer.router]));
        // RFC 3442: a client that knows this option ignores the router option, so the default route stands here as well.
        // The router answers for the service; a route through it needs no address resolution of its own.
        let host = ipnet(ADDRESS, 32)?;
        let default = ipnet(Ipv4Addr::UNSPECIFIED, 0)?;
        out.insert(DhcpOption::ClasslessStaticRoute(vec![(host, offer.router), (default, offer.router)]));
        if !offer.dns.is_empty() {
            out.insert(DhcpOption::DomainNameServer(offer.dns.clone()));
        }
        out.insert(DhcpOption::Hostname(name.clone()));
    }
    reply.opts_mut().insert(DhcpOption::MessageType(kind));
    reply.opts_mut().insert(DhcpOption::ServerIdentifier(offer.router));
    let mut bytes = Vec::new();
    reply.encode(&mut Encoder::new(&mut bytes)).ok()?;
    Some(bytes)
}

fn ipnet(address: Ipv4Addr, prefix: u8) -> Option<ipnet::Ipv4Net> {
    ipnet::Ipv4Net::new(address, prefix).ok()
}

/// Opens the server's socket on a bridge. Needs `CAP_NET_RAW` and a port below 1024.
///
/// # Errors
/// When another server has the port, or the bridge is not there.
pub fn bind(bridge: &BridgeName) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, Some(socket2::Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.bind_device(Some(bridge.as_str().as_bytes()))?;
    socket.set_broadcast(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 67)).into())?;
    UdpSocket::from_std(socket.into())
}

/// Answers until the task is dropped. `offer` is asked for each datagram, so that it can change; without one, nobody is
/// answered.
///
/// # Errors
/// When the socket fails.
pub async fn serve(socket: UdpSocket, offer: impl Fn() -> Option<Offer> + Send) -> io::Result<()> {
    let mut buffer = [0; 1500];
    loop {
        let (count, _) = socket.recv_from(&mut buffer).await?;
        if let Some(answer) = offer().and_then(|offer| respond(&offer, &buffer[..count])) {
            // Broadcast: the guest has no address yet, and the bridge brings it to its port.
            if let Err(error) = socket.send_to(&answer, (Ipv4Addr::BROADCAST, 68)).await {
                tracing::warn!(%error, "a DHCP answer was not sent");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn offer() -> Offer {
        let lease = ("52:54:00:00:00:01".parse().unwrap(), (Ipv4Addr::new(10, 9, 0, 5), "web0".to_owned()));
        Offer { router: Ipv4Addr::new(10, 9, 0, 1), prefix: 24, dns: vec![], leases: [lease].into() }
    }

    fn ask(kind: MessageType, last: u8, requested: Option<Ipv4Addr>) -> Option<Message> {
        let mut message = Message::default();
        message.set_opcode(Opcode::BootRequest).set_chaddr(&[0x52, 0x54, 0, 0, 0, last]).set_xid(77);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        if let Some(address) = requested {
            message.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
        }
        let bytes = message.to_vec().unwrap();
        respond(&offer(), &bytes).map(|answer| Message::from_bytes(&answer).unwrap())
    }

    #[test]
    fn an_offer_has_address_router_and_the_route_to_the_service() {
        let answer = ask(MessageType::Discover, 1, None).unwrap();
        assert_eq!((answer.xid(), answer.yiaddr()), (77, Ipv4Addr::new(10, 9, 0, 5)));
        assert_eq!(answer.opts().msg_type(), Some(MessageType::Offer));
        let Some(DhcpOption::ClasslessStaticRoute(routes)) = answer.opts().get(OptionCode::ClasslessStaticRoute) else {
            panic!("{answer:?}")
        };
        assert_eq!(routes[0].0.to_string(), "169.254.169.254/32");
        assert_eq!(routes[1].0.to_string(), "0.0.0.0/0");
        assert_eq!(answer.opts().get(OptionCode::SubnetMask), Some(&DhcpOption::SubnetMask([255, 255, 255, 0].into())));
    }

    #[test]
    fn a_request_for_another_address_is_refused_and_a_stranger_gets_nothing() {
        let kind = |answer: Option<Message>| answer.and_then(|a| a.opts().msg_type());
        assert_eq!(kind(ask(MessageType::Request, 1, Some([10, 9, 0, 5].into()))), Some(MessageType::Ack));
        assert_eq!(kind(ask(MessageType::Request, 1, Some([10, 9, 0, 6].into()))), Some(MessageType::Nak));
        assert_eq!(kind(ask(MessageType::Discover, 2, None)), None);
    }

    proptest! {
        #[test]
        fn any_datagram_is_survived(bytes: Vec<u8>) {
            let _ = respond(&offer(), &bytes);
        }
    }
}
