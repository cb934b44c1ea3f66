//! What a VMM binary is and can do on this host.
//!
//! A version number on a package says little; so the binary is started without a guest (`-machine none`) and asked. Done
//! when a VMM is configured and again in the preflight of an update, never in a pause.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use fermata_model::{MachineType, VmmVersion};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use crate::command::Accelerator;
use crate::qmp::{self, CpuDefinition, Mode, Qmp, QmpError};

/// The oldest QEMU that Fermata can use: the first with `cpr-transfer`.
pub const OLDEST: VmmVersion = VmmVersion { major: 10, minor: 0 };

/// CPU models from new to old, per vendor; always versioned, because an unversioned name changes with the binary.
const PREFERRED_AMD: &[&str] = &[
    "EPYC-Turin-v1",
    "EPYC-Genoa-v2",
    "EPYC-Genoa-v1",
    "EPYC-Milan-v3",
    "EPYC-Milan-v2",
    "EPYC-Milan-v1",
    "EPYC-Rome-v5",
    "EPYC-Rome-v4",
    "EPYC-Rome-v3",
    "EPYC-Rome-v1",
    "EPYC-v5",
    "EPYC-v4",
    "EPYC-v3",
    "EPYC-v2",
    "EPYC-v1",
    "Opteron_G5-v1",
    "Opteron_G4-v1",
    "Opteron_G3-v1",
    "Opteron_G2-v1",
    "Opteron_G1-v1",
];
const PREFERRED_INTEL: &[&str] = &[
    "GraniteRapids-v3",
    "GraniteRapids-v2",
    "GraniteRapids-v1",
    "SapphireRapids-v4",
    "SapphireRapids-v3",
    "SapphireRapids-v2",
    "SapphireRapids-v1",
    "Icelake-Server-v7",
    "Icelake-Server-v6",
    "Icelake-Server-v5",
    "Icelake-Server-v4",
    "Icelake-Server-v3",
    "Icelake-Server-v2",
    "Icelake-Server-v1",
    "Cascadelake-Server-v5",
    "Cascadelake-Server-v4",
    "Cascadelake-Server-v3",
    "Cascadelake-Server-v1",
    "Skylake-Server-v5",
    "Skylake-Server-v4",
    "Skylake-Server-v3",
    "Skylake-Server-v1",
    "Broadwell-v4",
    "Broadwell-v3",
    "Broadwell-v1",
    "Haswell-v4",
    "Haswell-v3",
    "Haswell-v1",
    "IvyBridge-v2",
    "IvyBridge-v1",
    "SandyBridge-v2",
    "SandyBridge-v1",
    "Westmere-v2",
    "Westmere-v1",
    "Nehalem-v2",
    "Nehalem-v1",
];
/// Supported by everything; the last resort of any vendor.
const PREFERRED_ANY: &[&str] = &["qemu64-v1", "kvm64-v1", "qemu32-v1"];

/// What a VMM binary is and can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmInfo {
    /// The binary.
    pub binary: PathBuf,
    /// Its version.
    pub version: VmmVersion,
    /// Its version in full, with the packager's addition.
    pub full_version: String,
    /// Versioned q35 machine types, oldest first.
    pub machines: BTreeSet<MachineType>,
    /// Device types.
    pub devices: BTreeSet<String>,
    /// CPU models that this host supports in full with the accelerator asked for.
    pub cpus: BTreeSet<String>,
    /// Whether it can hand a VM over to another VMM.
    pub cpr_transfer: bool,
    /// Whether it can leave a VM's memory in place while the host is replaced.
    pub cpr_reboot: bool,
}

impl VmmInfo {
    /// Whether it has a vmclock device.
    #[must_use]
    pub fn has_vmclock(&self) -> bool {
        self.devices.contains("vmclock")
    }

    /// Its newest machine type.
    #[must_use]
    pub fn newest_machine(&self) -> Option<MachineType> {
        self.machines.last().copied()
    }
}

/// Why a binary cannot be used as VMM.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// There is none.
    #[error("VMM {0} does not exist; install it or correct the path")]
    Missing(PathBuf),
    /// A file that cannot be run.
    #[error("VMM {path} cannot be run: {source}; it must be an executable file")]
    NotExecutable {
        /// The binary.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// It runs and is something else.
    #[error("{path} is not a QEMU system emulator: {what}")]
    NotQemu {
        /// The binary.
        path: PathBuf,
        /// What it did.
        what: String,
    },
    /// It is a QEMU that lacks what Fermata needs.
    #[error("VMM {path} is QEMU {version}; Fermata needs {OLDEST} or newer to update VMs in place")]
    TooOld {
        /// The binary.
        path: PathBuf,
        /// Its version.
        version: VmmVersion,
    },
    /// It did not answer.
    #[error("VMM {path} did not answer within {limit:?}")]
    Timeout {
        /// The binary.
        path: PathBuf,
        /// How long was waited.
        limit: Duration,
    },
    /// It answered oddly.
    #[error("VMM {path}: {source}")]
    Qmp {
        /// The binary.
        path: PathBuf,
        /// What went wrong.
        source: QmpError,
    },
}

/// Asks a VMM binary what it is, within `limit`. The process it starts is gone when this returns.
///
/// # Errors
/// [`InspectError`] with what is in the way of using it.
pub async fn inspect(binary: &Path, accelerator: Accelerator, limit: Duration) -> Result<VmmInfo, InspectError> {
    check_file(binary)?;
    let not_executable = |source| InspectError::NotExecutable { path: binary.to_owned(), source };
    let mut child = Command::new(binary)
        .args(["-machine", "none", "-nodefaults", "-no-user-config", "-display", "none", "-S", "-qmp", "stdio"])
        .args(match accelerator {
            Accelerator::Kvm => ["-accel", "kvm"],
            Accelerator::Tcg => ["-accel", "tcg"],
        })
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(not_executable)?;
    let asked = tokio::time::timeout(limit, ask(&mut child, binary, limit)).await;
    // Whatever it said, it is not needed any more; failing to kill means that it is gone.
    let _ = child.kill().await;
    match asked {
        Err(_) | Ok(Err(InspectError::Qmp { source: QmpError::Timeout { .. }, .. })) => {
            Err(InspectError::Timeout { path: binary.to_owned(), limit })
        }
        Ok(Err(InspectError::Qmp { source: QmpError::Closed { .. } | QmpError::Protocol { .. }, .. })) => {
            Err(InspectError::NotQemu { path: binary.to_owned(), what: last_words(&mut child).await })
        }
        Ok(result) => result,
    }
}

fn check_file(binary: &Path) -> Result<(), InspectError> {
    let not_executable = |source| InspectError::NotExecutable { path: binary.to_owned(), source };
    match std::fs::metadata(binary) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(InspectError::Missing(binary.to_owned())),
        Err(error) => Err(not_executable(error)),
        Ok(metadata) if !metadata.is_file() => Err(not_executable(io::Error::other("it is not a file"))),
        Ok(metadata) if metadata.permissions().mode() & 0o111 == 0 => {
            Err(not_executable(io::ErrorKind::PermissionDenied.into()))
        }
        Ok(_) => Ok(()),
    }
}

async fn last_words(child: &mut Child) -> String {
    let mut words = Vec::new();
    if let Some(stderr) = &mut child.stderr {
        // It is dead: this ends at once. A reader's failure leaves what was read.
        let _ = stderr.take(500).read_to_end(&mut words).await;
    }
    match String::from_utf8_lossy(&words).trim() {
        "" => "it ended without speaking QMP".to_owned(),
        text => text.to_owned(),
    }
}

async fn ask(child: &mut Child, binary: &Path, limit: Duration) -> Result<VmmInfo, InspectError> {
    let failed = |source| InspectError::Qmp { path: binary.to_owned(), source };
    let stdin = child.stdin.take().expect("stdin was asked for above");
    let stdout = child.stdout.take().expect("stdout was asked for above");
    let qmp = Qmp::over(stdout, stdin, limit).await.map_err(failed)?;
    let (major, minor, micro) = qmp.greeting().version;
    let version = VmmVersion { major, minor };
    if version < OLDEST {
        return Err(InspectError::TooOld { path: binary.to_owned(), version });
    }
    let machines = qmp.execute(&qmp::QueryMachines {}).await.map_err(failed)?;
    let devices = qmp.execute(&qmp::QomListTypes { implements: "device".to_owned() }).await.map_err(failed)?;
    let cpus = qmp.execute(&qmp::QueryCpuDefinitions {}).await.map_err(failed)?;
    Ok(VmmInfo {
        binary: binary.to_owned(),
        version,
        full_version: format!("{major}.{minor}.{micro} {}", qmp.greeting().package).trim().to_owned(),
        machines: machines.iter().filter_map(|machine| machine.name.parse().ok()).collect(),
        devices: devices.into_iter().map(|device| device.name).collect(),
        cpus: cpus.into_iter().filter(is_supported).map(|cpu| cpu.name).collect(),
        cpr_transfer: knows(&qmp, Mode::CprTransfer).await.map_err(failed)?,
        cpr_reboot: knows(&qmp, Mode::CprReboot).await.map_err(failed)?,
    })
}

fn is_supported(cpu: &CpuDefinition) -> bool {
    cpu.unavailable_features.as_ref().is_some_and(Vec::is_empty)
}

/// Whether the VMM has a mode: tried on a VMM without a guest, where it changes nothing.
async fn knows(qmp: &Qmp, mode: Mode) -> Result<bool, QmpError> {
    match qmp.execute(&qmp::MigrateSetParameters { mode: Some(mode) }).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_refusal() => Ok(false),
        Err(error) => Err(error),
    }
}

/// The newest CPU model that every one of `vmms` supports in full on this host.
#[must_use]
pub fn best_cpu(vmms: &[VmmInfo], intel: bool) -> Option<&'static str> {
    let preferred = if intel { PREFERRED_INTEL } else { PREFERRED_AMD };
    preferred
        .iter()
        .chain(PREFERRED_ANY)
        .copied()
        .find(|model| !vmms.is_empty() && vmms.iter().all(|vmm| vmm.cpus.contains(*model)))
}

/// The newest machine type that every one of `vmms` knows.
#[must_use]
pub fn best_machine(vmms: &[VmmInfo]) -> Option<MachineType> {
    let (first, rest) = vmms.split_first()?;
    first.machines.iter().rev().copied().find(|machine| rest.iter().all(|vmm| vmm.machines.contains(machine)))
}

/// Whether this host's processor is Intel's.
#[must_use]
pub fn host_is_intel() -> bool {
    std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("GenuineIntel"))
}

#[cfg(test)]
mod tests;
