//! Units by systemd's own commands, for the time in which a host has no bus yet.
//!
//! After a jump into another kernel VMs stand still until the agent starts their VMMs, and the bus comes up seconds after
//! that is possible. `systemd-run` and `systemctl` speak to systemd directly (over `/run/systemd/private`, whose messages no library
//! for the bus accepts), so nothing has to wait.

use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;

use super::confined::{CONFINED, DEVICES, GROUPED};
use super::{UnitError, VmUnit};

/// Starts a VM's unit and waits until its program runs.
///
/// # Errors
/// [`UnitError`].
pub(super) async fn start(unit: &VmUnit, limit: Duration) -> Result<(), UnitError> {
    let mut words = vec!["--quiet".to_owned(), "--collect".to_owned(), "--service-type=exec".to_owned()];
    words.push(format!("--unit={}", unit.name));
    words.push(format!("--description={}", unit.description));
    words.push(format!("--uid={}", unit.user));
    words.push(format!("--slice={}", unit.slice));
    words.extend(properties(unit).map(|property| format!("--property={property}")));
    words.push("--".to_owned());
    words.extend(unit.command.iter().cloned());
    run("systemd-run", &words, "start", &unit.name, limit).await.map(drop)
}

/// What [`super::Units::start`] says of the unit over the bus, in the words of unit files.
fn properties(unit: &VmUnit) -> impl Iterator<Item = String> {
    let fixed = GROUPED.iter().chain(&CONFINED).map(|(name, setting)| format!("{name}={}", setting.in_unit_files()));
    let devices = DEVICES.iter().map(|(device, rights)| format!("DeviceAllow={device} {rights}"));
    let vault = unit.vault.iter().map(|device| format!("DeviceAllow={} rw", device.display()));
    let log = format!("StandardError=append:{}", unit.log.display());
    fixed.chain(devices).chain(vault).chain([log])
}

/// Stops a unit and waits until nothing of it is left. A unit that is gone already is no error.
///
/// # Errors
/// [`UnitError`].
pub(super) async fn stop(unit: &str, limit: Duration) -> Result<(), UnitError> {
    if !is_loaded(unit, limit).await? {
        return Ok(());
    }
    run("systemctl", &["stop", unit], "stop", unit, limit).await.map(drop)
}

/// Kills every process of a unit at once.
///
/// # Errors
/// [`UnitError`].
pub(super) async fn kill(unit: &str, limit: Duration) -> Result<(), UnitError> {
    if !is_loaded(unit, limit).await? {
        return Ok(());
    }
    run("systemctl", &["kill", "--signal=KILL", unit], "kill", unit, limit).await.map(drop)
}

/// The main process of a unit; `None` when the unit is gone or its process is.
///
/// # Errors
/// [`UnitError`].
pub(super) async fn main_pid(unit: &str, limit: Duration) -> Result<Option<u32>, UnitError> {
    let words = ["show", "--property=MainPID", "--value", unit];
    let output = run("systemctl", &words, "ask for", unit, limit).await?;
    let pid = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap_or(0);
    Ok((pid != 0).then_some(pid))
}

async fn is_loaded(unit: &str, limit: Duration) -> Result<bool, UnitError> {
    let output = run("systemctl", &["show", "--property=LoadState", "--value", unit], "ask for", unit, limit).await?;
    Ok(output.stdout.trim_ascii() == b"loaded")
}

async fn run(
    program: &'static str,
    words: &[impl AsRef<std::ffi::OsStr>],
    act: &'static str,
    unit: &str,
    limit: Duration,
) -> Result<Output, UnitError> {
    let failed = |result: String| UnitError::Job { act, unit: unit.to_owned(), result };
    let command = Command::new(program).args(words).stdin(Stdio::null()).kill_on_drop(true).output();
    let ended = tokio::time::timeout(limit, command).await;
    let output = ended
        .map_err(|_| UnitError::Slow { act, unit: unit.to_owned() })?
        .map_err(|error| failed(format!("{program} cannot be run: {error}")))?;
    if output.status.success() {
        Ok(output)
    } else {
        Err(failed(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_is_confined_as_over_the_bus() {
        let unit = VmUnit {
            name: "fermata-vm-a-1.service".to_owned(),
            description: "a".to_owned(),
            command: vec!["/usr/bin/fermata".to_owned()],
            user: "fermata-vm".to_owned(),
            slice: "fermata.slice".to_owned(),
            log: "/run/fermata/vm/a/1/vmm.log".into(),
            vault: Some("/dev/dax0.0".into()),
        };
        let said: Vec<String> = properties(&unit).collect();
        for expected in [
            "NoNewPrivileges=yes",
            "RestrictNamespaces=yes",
            "SupplementaryGroups=kvm",
            "TimeoutStopSec=10",
            "DevicePolicy=closed",
            "DeviceAllow=/dev/kvm rw",
            "DeviceAllow=/dev/dax0.0 rw",
            "StandardError=append:/run/fermata/vm/a/1/vmm.log",
            "Before=fermata-guests.service shutdown.target",
            "DefaultDependencies=no",
        ] {
            assert!(said.iter().any(|word| word == expected), "{expected} in {said:?}");
        }
    }
}
