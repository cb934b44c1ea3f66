//! Who is asking: decided by the wire a connection came in on, never by what the guest says.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{PoisonError, RwLock};

use fermata_model::VmName;
use tokio::net::TcpStream;

use crate::service::Service;
use crate::wire::Mark;

/// Finds the VM behind an accepted connection. `None` closes it.
pub trait CallerOf: Send + Sync {
    /// The VM, if the connection is one of a VM.
    fn caller(&self, stream: &TcpStream, peer: SocketAddr) -> Option<VmName>;
}

/// Production: the packet mark that the host's firewall gave to the connection's first packet because of the port it came
/// in on, kept on the accepted socket (`net.ipv4.tcp_fwmark_accept`). Nothing that the guest sends has a part in it; the
/// host's own processes carry no mark and reach nobody's metadata.
#[derive(Debug, Clone)]
pub struct ByMark(pub Service);

impl CallerOf for ByMark {
    fn caller(&self, stream: &TcpStream, _peer: SocketAddr) -> Option<VmName> {
        let mark = socket2::SockRef::from(stream).mark().ok()?;
        let number = Mark::number_of(mark)?;
        self.0.vm_at(number)
    }
}

/// Tests and benchmarks: the source address stands for the VM. Never for guests.
#[derive(Debug, Default)]
pub struct BySource(RwLock<BTreeMap<IpAddr, VmName>>);

impl BySource {
    /// Says which VM an address stands for.
    pub fn set(&self, address: IpAddr, vm: VmName) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(address, vm);
    }
}

impl CallerOf for BySource {
    fn caller(&self, _stream: &TcpStream, peer: SocketAddr) -> Option<VmName> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&peer.ip()).cloned()
    }
}

/// Tests: every connection of a listener is one VM's, so a listener stands for a VM. Never for guests.
#[derive(Debug, Clone)]
pub struct ByListener(pub VmName);

impl CallerOf for ByListener {
    fn caller(&self, _stream: &TcpStream, _peer: SocketAddr) -> Option<VmName> {
        Some(self.0.clone())
    }
}
