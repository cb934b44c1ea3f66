//! The receiver of heartbeats: counts what each guest sends, and sends it back.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use rustix::time::ClockId;

use crate::{
    beat::{LENGTH, decode},
    clock, control,
    report::{Answer, Request, Sender, SinkReport},
};

type Senders = Arc<Mutex<BTreeMap<IpAddr, Sender>>>;

/// Takes heartbeats forever.
///
/// # Errors
/// A port cannot be taken, or the UDP socket breaks.
pub fn run(beat_port: u16, control_port: u16) -> io::Result<()> {
    let senders = Senders::default();
    let shown = Arc::clone(&senders);
    control::serve(control_port, move |request| answer(&shown, request))?;
    let listener = TcpListener::bind(("0.0.0.0", beat_port))?;
    let counted = Arc::clone(&senders);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let counted = Arc::clone(&counted);
            thread::spawn(move || tcp(stream, &counted));
        }
    });
    let socket = UdpSocket::bind(("0.0.0.0", beat_port))?;
    let mut message = [0; LENGTH];
    loop {
        let (length, from) = socket.recv_from(&mut message)?;
        if length != LENGTH {
            continue;
        }
        let (raw, wall) = (clock::ns(ClockId::MonotonicRaw), clock::ns(ClockId::Realtime));
        with(&senders, from.ip(), |sender| sender.udp.arrived(decode(&message), raw, wall));
        // An echo that cannot be sent is a lost echo: the guest counts it.
        let _ = socket.send_to(&message, from);
    }
}

fn tcp(mut stream: TcpStream, senders: &Senders) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let from = stream.peer_addr()?.ip();
    with(senders, from, |sender| sender.connections += 1);
    let mut message = [0; LENGTH];
    loop {
        stream.read_exact(&mut message)?;
        let (raw, wall) = (clock::ns(ClockId::MonotonicRaw), clock::ns(ClockId::Realtime));
        with(senders, from, |sender| sender.tcp.arrived(decode(&message), raw, wall));
        stream.write_all(&message)?;
    }
}

fn lock(senders: &Senders) -> MutexGuard<'_, BTreeMap<IpAddr, Sender>> {
    senders.lock().unwrap_or_else(PoisonError::into_inner)
}

fn with(senders: &Senders, address: IpAddr, change: impl FnOnce(&mut Sender)) {
    let mut senders = lock(senders);
    let new = Sender { address, udp: Default::default(), tcp: Default::default(), connections: 0 };
    change(senders.entry(address).or_insert(new));
}

fn answer(senders: &Senders, request: Request) -> Answer {
    match request {
        Request::Report => Answer::Sink(SinkReport { senders: lock(senders).values().cloned().collect() }),
        Request::Clock => Answer::Clock(clock::Clocks::now()),
        Request::Mark => {
            for sender in lock(senders).values_mut() {
                sender.udp.mark();
                sender.tcp.mark();
            }
            Answer::Marked
        }
        Request::VerifyMemory => Answer::Refused { reason: "a sink has no memory witness; ask the guest".to_owned() },
    }
}
