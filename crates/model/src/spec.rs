//! The VM specification an operator writes in TOML.
//!
//! A [`VmSpec`] that exists is sound in itself: sizes are in range, firmware fits the guest system, no disk or MAC
//! appears twice. Whether it fits a *host* (bridge there, image free, VMM new enough) is the agent's question.

mod check;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::budget::PauseBudget;
use crate::domain::Membership;
use crate::mac::Mac;
use crate::name::{BridgeName, VmName};
use crate::size::Size;
use crate::vmm::{MachineType, VmmVersion};

pub use check::SpecError;

/// What a VM is. Absent fields are filled by the agent when the VM is created and never change afterwards, because the
/// guest sees them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    /// The VM's name; guests see it as `compute.name`.
    pub name: VmName,
    /// SMBIOS UUID; a random one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// Number of virtual CPUs, 1 to 255.
    pub vcpus: u16,
    /// Guest memory, 64 MiB to 16 TiB, a multiple of 2 MiB (the vault's alignment).
    pub memory: Size,
    /// QEMU CPU model; the newest model this host supports fully when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// Versioned machine type; the newest that the host's oldest VMM knows when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineType>,
    /// The VMM to start the VM on; the host's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm: Option<VmmVersion>,
    /// What runs inside.
    #[serde(default)]
    pub os: GuestOs,
    /// How the guest boots; BIOS for Linux and UEFI for Windows when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub firmware: Option<Firmware>,
    /// Start the VM when the host boots.
    #[serde(default)]
    pub autostart: bool,
    /// A channel for qemu-guest-agent.
    #[serde(default = "yes")]
    pub guest_agent: bool,
    /// A vmclock device (QEMU 10.0, Linux 6.13) where the VMM has it.
    #[serde(default = "yes")]
    pub vmclock: bool,
    /// The longest blackout this VM allows.
    #[serde(default)]
    pub pause_budget_ms: PauseBudget,
    /// The shortest notice of maintenance this VM is given once programs in it asked for events, in seconds.
    #[serde(default)]
    pub min_notice_s: u32,
    /// The availability set the VM serves in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub availability_set: Option<Membership>,
    /// Disks, in the guest's order.
    #[serde(default, rename = "disk", skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    /// NICs, in the guest's order; the first is the primary one.
    #[serde(default, rename = "nic", skip_serializing_if = "Vec::is_empty")]
    pub nics: Vec<Nic>,
    /// Free labels for selection.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

const fn yes() -> bool {
    true
}

/// The kind of guest system; decides clock devices and paravirtual interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestOs {
    /// Linux: kvmclock, RTC in UTC.
    #[default]
    Linux,
    /// Windows: Hyper-V enlightenments with reference TSC and synthetic timers, RTC in local time.
    Windows,
}

/// How a guest boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Firmware {
    /// SeaBIOS.
    Bios,
    /// OVMF with variables of the VM's own.
    Uefi,
    /// A Linux kernel given directly.
    Kernel(DirectKernel),
}

/// A kernel started without firmware.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DirectKernel {
    /// The kernel image (bzImage).
    pub image: PathBuf,
    /// The initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The kernel command line.
    #[serde(default)]
    pub cmdline: String,
}

/// A virtio-blk disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The image file or block device.
    pub path: PathBuf,
    /// The image's format. Never guessed: a raw image could pose as qcow2 and read host files.
    pub format: DiskFormat,
    /// Refuse writes of the guest.
    #[serde(default)]
    pub readonly: bool,
}

/// Image formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// QEMU copy on write, version 2 or 3.
    Qcow2,
    /// Plain bytes.
    Raw,
}

impl DiskFormat {
    /// The name of the QEMU block driver.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// A virtio-net NIC on a bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// The bridge its tap is attached to.
    pub bridge: BridgeName,
    /// The MAC address; derived from the VM's uuid when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
}

impl VmSpec {
    /// Reads a specification from TOML and checks it.
    ///
    /// # Errors
    /// [`SpecError`] with the field, the reason and the way out.
    pub fn from_toml(text: &str) -> Result<Self, SpecError> {
        let spec: Self = toml::from_str(text)?;
        spec.check()?;
        Ok(spec)
    }

    /// The firmware in effect.
    #[must_use]
    pub fn firmware(&self) -> Firmware {
        self.firmware.clone().unwrap_or(match self.os {
            GuestOs::Linux => Firmware::Bios,
            GuestOs::Windows => Firmware::Uefi,
        })
    }
}
