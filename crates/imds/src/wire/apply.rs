//! Hands rules and routes to the kernel. Needs `CAP_NET_ADMIN`; done by the agent, not by the service.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};

use super::{Wiring, routes, rules};

/// Why the wire could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The program is not there.
    #[error("wire: `{program}` cannot be run; install nftables and iproute2")]
    Missing {
        /// The program.
        program: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The program refused.
    #[error("wire: `{program}` refused: {said}; check that the taps and bridges exist and that this runs as root")]
    Refused {
        /// The program.
        program: &'static str,
        /// Its words.
        said: String,
    },
    /// A kernel setting could not be written.
    #[error("wire: net.ipv4.{name} cannot be set; it needs Linux 4.3 or later, the interface, and root")]
    Setting {
        /// The setting, below `net.ipv4`.
        name: String,
        /// What the system said.
        source: std::io::Error,
    },
}

fn run(program: &'static str, arguments: &[&str], input: &str) -> Result<String, WireError> {
    let missing = |source| WireError::Missing { program, source };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(missing)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends early says why on its standard error, which is read below.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(missing)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(WireError::Refused { program, said: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
}

/// The marks that already have a routing rule of ours.
fn present() -> Result<BTreeSet<u32>, WireError> {
    let priority = routes::PRIORITY.to_string();
    let text = run("ip", &["-json", "rule", "show", "priority", &priority], "")?;
    let rules: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap_or_default();
    let mark = |rule: &serde_json::Value| u32::from_str_radix(rule["fwmark"].as_str()?.strip_prefix("0x")?, 16).ok();
    Ok(rules.iter().filter_map(mark).collect())
}

/// Brings the host to `wiring`. Blocking; repeating it changes nothing.
///
/// # Errors
/// Names what refused; what was already done stays, and the next call goes on from there.
pub fn apply(wiring: &Wiring) -> Result<(), WireError> {
    // The firewall first: there is no moment in which a port is open and not yet told from others.
    run("nft", &["-f", "-"], &rules::render(wiring))?;
    for (name, value) in routes::settings(wiring) {
        std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value)
            .map_err(|source| WireError::Setting { name, source })?;
    }
    run("ip", &["-batch", "-"], &routes::render(wiring, &present()?))?;
    Ok(())
}

/// Takes everything down again.
///
/// # Errors
/// As [`apply`].
pub fn remove() -> Result<(), WireError> {
    let nothing = Wiring::default();
    let mut down = routes::render(&nothing, &present()?);
    down.push_str(&format!("address delete {}/32 dev lo\n", super::ADDRESS));
    run("ip", &["-batch", "-"], &down)?;
    run(
        "nft",
        &["-f", "-"],
        "table bridge fermata\ndelete table bridge fermata\ntable inet fermata\ndelete table inet fermata\n",
    )?;
    Ok(())
}
