//! The arguments of a VMM.
//!
//! [`arguments`] is a pure function of the VM's [`VmDefinition`] and the [`Runtime`] of one start. Everything the guest can
//! see comes from the definition alone, so every start of a VM (first boot, successor in a swap, restore after a kexec,
//! twin) has identical hardware: state saved by one loads in the other.
//!
//! What differs between starts:
//!
//! | role | guest runs | state comes from |
//! |---|---|---|
//! | [`Role::Run`] | at once | nowhere: a cold boot |
//! | [`Role::IncomingCpr`] | when told (`cont`) | two unix sockets, `cpr-transfer` |
//! | [`Role::IncomingDefer`] | when told (`cont`) | a file named later by `migrate-incoming` |
//!
//! A *twin* ([`Runtime::twin`]) of any role never runs, has its own memory and never opens the VM's disks: it rehearses a
//! hand over.
//!
//! Invariants: no path of two living VMMs of one VM is the same ([`Paths`] of a folder per start), because QEMU takes a
//! socket's path over from whoever had it; PCI addresses depend on the definition only.

mod devices;
mod environment;
mod fds;
mod parts;

use std::path::{Path, PathBuf};

use fermata_model::VmDefinition;
use fermata_model::spec::Firmware;

use crate::images::Backend;

pub use environment::environment;
pub use fds::{MAX_NICS, MEMORY, tap, vhost};

/// Where a start's sockets are. Unix socket paths are limited to 107 bytes; keep the folder short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paths {
    folder: PathBuf,
}

impl Paths {
    /// All in `folder`, which belongs to this start alone and which the VM's user may write.
    #[must_use]
    pub fn in_folder(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The agent's monitor.
    #[must_use]
    pub fn qmp(&self) -> PathBuf {
        self.folder.join("qmp")
    }

    /// A second monitor, for the process that resumes the VM when the agent dies in a pause.
    #[must_use]
    pub fn rescue(&self) -> PathBuf {
        self.folder.join("rescue")
    }

    /// The serial console.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.folder.join("console")
    }

    /// The guest agent's channel.
    #[must_use]
    pub fn guest_agent(&self) -> PathBuf {
        self.folder.join("qga")
    }

    /// Where a successor receives device state.
    #[must_use]
    pub fn incoming(&self) -> PathBuf {
        self.folder.join("incoming")
    }

    /// Where a successor receives descriptors.
    #[must_use]
    pub fn incoming_cpr(&self) -> PathBuf {
        self.folder.join("cpr")
    }
}

/// How a start begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A cold boot.
    Run,
    /// The successor in a swap: waits for the predecessor on [`Paths::incoming_cpr`], and has neither devices nor a
    /// monitor until then; takes the state on [`Paths::incoming`] and stays stopped until `cont`.
    IncomingCpr,
    /// Waits for `migrate-incoming`, then for `cont`.
    IncomingDefer,
}

/// What runs vCPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The kernel.
    Kvm,
    /// QEMU's emulator: for tests on machines without hardware virtualisation, never chosen by itself.
    Tcg,
}

/// The files of UEFI firmware.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UefiFiles {
    /// The firmware itself, shared by all VMs.
    pub code: PathBuf,
    /// The VM's own variables, a copy of the firmware's template.
    pub vars: PathBuf,
    /// The size of `vars`, in bytes.
    pub vars_bytes: u64,
}

/// What one start of a VM needs besides the definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// How it begins.
    pub role: Role,
    /// Whether this is a twin: never runs, opens no disk of the VM.
    pub twin: bool,
    /// What runs vCPUs.
    pub accelerator: Accelerator,
    /// Where its sockets are.
    pub paths: Paths,
    /// The console's log, the same file for every start.
    pub console_log: PathBuf,
    /// How each disk of the definition is opened, in order, as [`crate::images::inspect`] found it.
    pub disks: Vec<Backend>,
    /// Whether NICs use vhost-net: then a descriptor [`vhost`] is lent for each.
    pub vhost: bool,
    /// The firmware's files; needed for UEFI only.
    pub uefi: Option<UefiFiles>,
    /// Where in the descriptor [`MEMORY`] the VM's memory is.
    pub memory: MemoryPlace,
}

/// Where in its descriptor a VM's memory is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryPlace {
    /// Bytes from its start.
    pub offset: u64,
    /// Alignment of mappings, in bytes, where a page is not enough.
    pub align: Option<u64>,
}

impl MemoryPlace {
    /// Where a region is.
    #[must_use]
    pub fn of(region: &fermata_vault::memory::Region) -> Self {
        Self { offset: region.offset(), align: region.align().map(fermata_model::Size::bytes) }
    }
}

/// Why there are no arguments.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// UEFI without firmware files.
    #[error("VM {vm} boots by UEFI, but this host has no UEFI firmware; install the package `ovmf`")]
    NoUefi {
        /// The VM.
        vm: fermata_model::VmName,
    },
    /// The runtime does not describe every disk.
    #[error("VM {vm} has {disks} disks, but {found} were inspected")]
    Disks {
        /// The VM.
        vm: fermata_model::VmName,
        /// Disks of the definition.
        disks: usize,
        /// Disks of the runtime.
        found: usize,
    },
    /// More devices than slots.
    #[error("VM {vm} has {devices} devices, but the machine has {max} slots; use fewer disks or NICs")]
    TooManyDevices {
        /// The VM.
        vm: fermata_model::VmName,
        /// Devices wanted.
        devices: usize,
        /// Slots there are.
        max: usize,
    },
    /// A socket's path is too long.
    #[error("socket path {path} has {len} bytes; Linux allows 107, choose a shorter run folder")]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        len: usize,
    },
}

/// The arguments of a VMM (without the name of the program).
///
/// # Errors
/// [`CommandError`] when definition and runtime do not fit together.
pub fn arguments(vm: &VmDefinition, runtime: &Runtime) -> Result<Vec<String>, CommandError> {
    check(vm, runtime)?;
    let mut args = Vec::new();
    parts::process(vm, &mut args);
    parts::machine(vm, runtime, &mut args);
    parts::firmware(vm, runtime, &mut args)?;
    parts::channels(vm, runtime, &mut args);
    devices::all(vm, runtime, &mut args)?;
    parts::role(runtime, &mut args);
    Ok(args)
}

fn check(vm: &VmDefinition, runtime: &Runtime) -> Result<(), CommandError> {
    if runtime.disks.len() != vm.disks.len() {
        return Err(CommandError::Disks { vm: vm.name.clone(), disks: vm.disks.len(), found: runtime.disks.len() });
    }
    if matches!(vm.firmware, Firmware::Uefi) && runtime.uefi.is_none() {
        return Err(CommandError::NoUefi { vm: vm.name.clone() });
    }
    let longest = runtime.paths.incoming();
    let len = longest.as_os_str().len();
    if len > 107 {
        return Err(CommandError::PathTooLong { path: longest, len });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
