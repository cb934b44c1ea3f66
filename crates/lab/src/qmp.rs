//! The little of QMP that the lab needs of a virtual host's own QEMU.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Runs one command on a QEMU's monitor socket; gives its return value.
///
/// # Errors
/// No QEMU listens there, it takes longer than 20 s, or it refuses.
pub fn execute(socket: &Path, command: &str, arguments: &Value) -> Result<Value> {
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("reach the host's QEMU at {}", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    for (command, arguments) in [("qmp_capabilities", &json!({})), (command, arguments)] {
        stream.write_all(
            format!("{}\n", json!({"execute": command, "arguments": arguments, "id": command})).as_bytes(),
        )?;
    }
    for line in &mut lines {
        let message: Value = serde_json::from_str(&line?)?;
        if message["id"] != command {
            continue;
        }
        if let Some(error) = message.get("error") {
            bail!("QEMU refuses {command}: {}", error["desc"].as_str().unwrap_or("no reason given"));
        }
        return Ok(message["return"].clone());
    }
    bail!("QEMU closed its monitor before it answered {command}")
}

/// The port on the loopback that QEMU's user network forwards to the host's SSH; QEMU chose it.
///
/// # Errors
/// As [`execute`], or there is no such forward.
pub fn ssh_port(socket: &Path) -> Result<u16> {
    let text = execute(socket, "human-monitor-command", &json!({"command-line": "info usernet"}))?;
    let text = text.as_str().unwrap_or_default();
    parse_forward(text).with_context(|| format!("QEMU's user network forwards no port:\n{text}"))
}

/// `  TCP[HOST_FORWARD]  14       127.0.0.1 40831       10.0.2.15    22     0     0`
fn parse_forward(text: &str) -> Option<u16> {
    let line = text.lines().find(|line| line.contains("HOST_FORWARD"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forwarded_port_is_read_from_qemus_table() {
        let text = "Hub -1 (n0):\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\n  \
                    TCP[HOST_FORWARD]  14       127.0.0.1 40831       10.0.2.15    22     0     0\n";
        assert_eq!(parse_forward(text), Some(40_831));
    }
}
