//! Connections whose other end vanished.
//!
//! A host that loses its power, or changes its kernel, closes nothing: who waits for an answer from it would wait for ever. So
//! the kernel is asked to look after the other end (tcp(7): keep-alive, user timeout). A host that is back answers such a look with a
//! reset, one that is gone does not answer at all; either ends the connection.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Silence after which the other end is looked after, and the time between looks.
const LOOK: Duration = Duration::from_secs(5);
/// Looks without an answer after which it is gone.
const LOOKS: u32 = 3;
/// How long what was sent may stay unheard.
const UNHEARD: Duration = Duration::from_secs(20);

/// Ends the connection when its other end is gone.
///
/// # Errors
/// The kernel refuses an option.
pub(crate) fn watch(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(LOOK).with_interval(LOOK).with_retries(LOOKS))?;
    socket.set_tcp_user_timeout(Some(UNHEARD))
}
