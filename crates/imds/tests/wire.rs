//! Who is asking, on a real bridge with real frames (V9): the test makes a network namespace of its own, with a bridge
//! without an address, two guests that use the *same* address behind a gateway that is not the host, and an uplink.
//!
//! Needs what `common/net.rs` says.
#![allow(clippy::unwrap_used, reason = "test support: a failure is a failed test")]

mod common;

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::net::{Space, ask, bridge, in_own_namespaces, mac, port, run, wiring};
use common::vm;
use fermata_imds::wire::apply;
use fermata_imds::*;

#[test]
fn a_vm_is_known_by_its_port_whatever_it_claims() {
    in_own_namespaces("a_vm_is_known_by_its_port_whatever_it_claims", inside_its_own_network);
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn inside_its_own_network() {
    let bridge = bridge();
    let (a, b) = (Space::new("tapa", Some(mac(1))), Space::new("tapb", Some(mac(2))));
    let uplink = Space::new("up0", None);
    for guest in [&a, &b] {
        guest.ip("address add 10.0.0.5/24 dev eth0 nodad");
        guest.ip("route add default via 10.0.0.1");
    }
    // A gateway that would itself answer for the address, if frames for it ever reached it.
    uplink.ip("address add 10.0.0.1/24 dev eth0");
    uplink.ip("address add 169.254.169.254/32 dev eth0");

    let wiring = wiring(bridge, vec![port("tapa", 1), port("tapb", 2)]);
    apply::apply(&wiring).unwrap();
    apply::apply(&wiring).expect("repeating it changes nothing");

    let store = Box::new(SqliteStore::in_memory().unwrap());
    let service = Service::open(store, Arc::new(SystemClock::default()), Settings::default()).unwrap();
    for (name, port) in [("a", port("tapa", 1)), ("b", port("tapb", 2))] {
        service.upsert(VmRecord { ports: vec![port], ..VmRecord::new(vm(name)) }).await.unwrap();
    }
    let listener = tokio::net::TcpListener::bind((wire::ADDRESS, 80)).await.unwrap();
    let task = tokio::spawn(serve(listener, service.clone(), Arc::new(ByMark(service))));
    let other = std::net::TcpListener::bind("0.0.0.0:8080").unwrap();

    // Through a gateway that is not the host: the frames are readdressed. Both have the same address, and a third is told
    // from neither.
    for round in 0..3 {
        assert_eq!((a.name_seen().as_deref(), b.name_seen().as_deref()), (Some("a"), Some("b")), "round {round}");
    }
    // On-link: the host answers ARP for the address, and the uplink's answer never comes.
    for guest in [&a, &b] {
        guest.ip("route add 169.254.169.254/32 dev eth0");
    }
    assert_eq!((a.name_seen().as_deref(), b.name_seen().as_deref()), (Some("a"), Some("b")));

    // Another address, any address.
    b.ip("address replace 10.0.0.77/24 dev eth0 nodad");
    b.ip("route replace 169.254.169.254/32 dev eth0 src 10.0.0.77");
    assert_eq!(b.name_seen().as_deref(), Some("b"));

    // A neighbour's MAC: its frames end at its port.
    b.ip("link set eth0 down");
    b.ip(&format!("link set eth0 address {}", mac(1)));
    b.ip("link set eth0 up");
    b.ip("route replace 169.254.169.254/32 dev eth0");
    assert_eq!(b.name_seen(), None);
    assert_eq!(a.name_seen().as_deref(), Some("a"), "and the neighbour is not disturbed");

    // Nothing else of the host.
    run("ip address add 10.0.0.9/24 dev br0");
    assert!(TcpStream::connect("10.0.0.9:8080").is_ok(), "the host's own service is there");
    assert!(!a.reaches(Ipv4Addr::new(10, 0, 0, 9), 8080), "but not for guests");
    assert!(!a.reaches(wire::ADDRESS, 8080), "on no address");
    assert!(a.reaches(Ipv4Addr::new(10, 0, 0, 1), 22) || true_when_refused(&a), "other hosts are not our business");
    drop(other);

    // Not over the uplink, not from the host itself.
    uplink.ip("address delete 169.254.169.254/32 dev eth0");
    uplink.ip("route add 169.254.169.254/32 via 10.0.0.9");
    assert_eq!(uplink.name_seen(), None);
    assert_eq!(
        ask(SocketAddr::from((wire::ADDRESS, 80))).unwrap_or_default(),
        "",
        "the host's own processes are nobody"
    );

    lease_over_the_wire(&a).await;

    task.abort();
    apply::remove().unwrap();
    assert!(
        !String::from_utf8_lossy(&Command::new("nft").args(["list", "tables"]).output().unwrap().stdout)
            .contains("fermata")
    );
}

/// A refusal from the gateway shows that the guest's packets arrive there.
fn true_when_refused(guest: &Space) -> bool {
    let gateway = SocketAddr::from(([10, 0, 0, 1], 22));
    guest.inside(move || {
        let error = TcpStream::connect_timeout(&gateway, Duration::from_secs(2)).err();
        error.is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
    })
}

/// A guest asks for a lease and gets address, router and the route to the service.
async fn lease_over_the_wire(guest: &Space) {
    use dhcproto::v4::{DhcpOption, Message, MessageType, OptionCode};
    use dhcproto::{Decodable, Encodable};

    let offer = dhcp::Offer {
        router: Ipv4Addr::new(10, 0, 0, 9),
        prefix: 24,
        dns: vec![],
        leases: [(mac(1), (Ipv4Addr::new(10, 0, 0, 5), "a".to_owned()))].into(),
    };
    let socket = dhcp::bind(&"br0".parse().unwrap()).unwrap();
    let server = tokio::spawn(dhcp::serve(socket, move || Some(offer.clone())));
    let answer = guest.inside(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
        socket.bind_device(Some(b"eth0")).unwrap();
        socket.set_broadcast(true).unwrap();
        socket.bind(&SocketAddr::from(([0, 0, 0, 0], 68)).into()).unwrap();
        let socket = std::net::UdpSocket::from(socket);
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut discover = Message::default();
        discover.set_chaddr(&mac(1).bytes()).opts_mut().insert(DhcpOption::MessageType(MessageType::Discover));
        socket.send_to(&discover.to_vec().unwrap(), "255.255.255.255:67").unwrap();
        let mut buffer = [0; 1500];
        let count = socket.recv(&mut buffer).unwrap();
        Message::from_bytes(&buffer[..count]).unwrap()
    });
    server.abort();
    assert_eq!(answer.yiaddr(), Ipv4Addr::new(10, 0, 0, 5));
    assert!(answer.opts().get(OptionCode::ClasslessStaticRoute).is_some());
}
