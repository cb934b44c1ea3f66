//! The network between hosts: a learning switch for QEMU's datagram sockets, no root and no kernel network needed.
//!
//! Every host sends its frames to the switch's socket and reads them from its own; the sender's path is the port. Invariant:
//! a frame is never sent back to its port, and a full port loses frames rather than stopping the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
};

type Mac = [u8; 6];

/// What a switch knows: pure, so that it can be tested without sockets.
#[derive(Debug, Default)]
pub struct Switch<Port> {
    ports: BTreeSet<Port>,
    learned: BTreeMap<Mac, Port>,
}

impl<Port: Ord + Clone> Switch<Port> {
    /// A switch with all its ports.
    pub fn new(ports: impl IntoIterator<Item = Port>) -> Self {
        Self { ports: ports.into_iter().collect(), learned: BTreeMap::new() }
    }

    /// Takes a frame from a port; gives the ports it goes to.
    pub fn forward(&mut self, from: &Port, frame: &[u8]) -> Vec<Port> {
        let (Some(target), Some(source)) = (mac(frame, 0), mac(frame, 6)) else { return Vec::new() };
        if source[0] & 1 == 0 {
            self.learned.insert(source, from.clone());
        }
        match self.learned.get(&target) {
            Some(port) if port == from => Vec::new(),
            Some(port) => vec![port.clone()],
            None => self.ports.iter().filter(|port| *port != from).cloned().collect(),
        }
    }
}

fn mac(frame: &[u8], at: usize) -> Option<Mac> {
    frame.get(at..at + 6)?.try_into().ok()
}

/// Where the switch of a lab listens.
#[must_use]
pub fn switch_socket(sockets: &Path) -> PathBuf {
    sockets.join("switch")
}

/// Where a host listens for frames.
#[must_use]
pub fn port_socket(sockets: &Path, host: &str) -> PathBuf {
    sockets.join(format!("{host}.port"))
}

/// Forwards frames between hosts until the socket breaks.
///
/// # Errors
/// The socket cannot be made or read.
pub fn run(sockets: &Path, hosts: &[String]) -> io::Result<()> {
    let socket = UnixDatagram::bind(switch_socket(sockets))?;
    let sender = UnixDatagram::unbound()?;
    sender.set_nonblocking(true)?;
    let mut switch = Switch::new(hosts.iter().map(|host| port_socket(sockets, host)));
    let mut frame = vec![0; 128 * 1024];
    loop {
        let (length, from) = socket.recv_from(&mut frame)?;
        let Some(from) = from.as_pathname() else { continue };
        for port in switch.forward(&from.to_path_buf(), &frame[..length]) {
            // A host that is down or busy loses the frame, as on a wire.
            let _ = sender.send_to(&frame[..length], port);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(to: u8, from: u8) -> Vec<u8> {
        [[to * 2; 6], [from * 2; 6]].concat()
    }

    #[test]
    fn frames_flood_until_the_address_is_learned_and_never_return() {
        let mut switch = Switch::new([1, 2, 3]);
        assert_eq!(switch.forward(&1, &frame(2, 1)), vec![2, 3]);
        assert_eq!(switch.forward(&2, &frame(1, 2)), vec![1]);
        assert_eq!(switch.forward(&1, &frame(2, 1)), vec![2]);
        assert_eq!(switch.forward(&1, &frame(1, 1)), Vec::<i32>::new());
    }

    #[test]
    fn an_address_that_moved_is_found_at_its_new_port() {
        let mut switch = Switch::new([1, 2, 3]);
        switch.forward(&1, &frame(9, 1));
        switch.forward(&3, &frame(9, 1));
        assert_eq!(switch.forward(&2, &frame(1, 2)), vec![3]);
    }

    #[test]
    fn a_stump_of_a_frame_goes_nowhere() {
        assert!(Switch::new([1, 2]).forward(&1, &[0; 11]).is_empty());
    }
}
