//! Why an operation on a VM was refused or failed.

use std::path::PathBuf;

use fermata_model::{Mac, MachineType, Size, VmName, VmmVersion};
use uuid::Uuid;

use crate::api::types::VmState;
use crate::events::EventsError;
use crate::inventory::InventoryError;
use crate::links::LinkError;
use crate::units::UnitError;
use fermata_vault::launch::LaunchError;

/// Why an operation on a VM was refused or failed. Refusals changed nothing; failures were undone.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// No VM of that name.
    #[error("VM `{0}` does not exist; `fermata vm list` shows those that do")]
    NoSuchVm(VmName),
    /// The name is taken.
    #[error("name: VM `{0}` exists; delete it or choose another name")]
    NameTaken(VmName),
    /// The uuid is taken, or too like another one to tell their taps apart.
    #[error("uuid: {uuid} is taken by VM `{holder}`; leave it out to have a new one made")]
    UuidTaken {
        /// The uuid.
        uuid: Uuid,
        /// Who has it.
        holder: VmName,
    },
    /// The MAC address is taken.
    #[error("nic {nic}: MAC {mac} is taken by VM `{holder}`; leave it out to have one derived")]
    MacTaken {
        /// Index of the NIC.
        nic: usize,
        /// The address.
        mac: Mac,
        /// Who has it.
        holder: VmName,
    },
    /// Another VM's disk.
    #[error(
        "disk {disk}: `{path}` is a disk of VM `{holder}`; two VMs can share an image only when both have it readonly"
    )]
    DiskTaken {
        /// Index of the disk.
        disk: usize,
        /// The image.
        path: PathBuf,
        /// Who has it.
        holder: VmName,
    },
    /// An image that cannot be used.
    #[error("disk {disk}: {source}")]
    Image {
        /// Index of the disk.
        disk: usize,
        /// Why.
        source: fermata_vmm::images::ImageError,
    },
    /// A file the VM boots from is not there or cannot be read by the VMM's user.
    #[error("{field}: `{path}`: {reason}")]
    File {
        /// Where in the specification.
        field: String,
        /// The file.
        path: PathBuf,
        /// Why, and the way out.
        reason: String,
    },
    /// A VMM that is not configured.
    #[error(
        "vmm: {wanted} is not among this host's VMMs ({known}); choose one, or name it in the agent's configuration"
    )]
    UnknownVmm {
        /// The version asked for.
        wanted: VmmVersion,
        /// The versions there are.
        known: String,
    },
    /// A VMM that cannot be used.
    #[error("vmm {version}: {reason}")]
    BrokenVmm {
        /// The version.
        version: VmmVersion,
        /// Why.
        reason: String,
    },
    /// A machine type from the VMM's future.
    #[error("machine: {machine} needs VMM {needed} or newer, this VM starts on {vmm}; use pc-q35-{vmm} or set vmm = \"{needed}\"", needed = .machine.0)]
    VmmTooOld {
        /// The machine type.
        machine: MachineType,
        /// The VMM.
        vmm: VmmVersion,
    },
    /// A machine type that the VMM does not know (any more).
    #[error("machine: {machine} is not known to VMM {vmm}; it knows {known}")]
    UnknownMachine {
        /// The machine type.
        machine: MachineType,
        /// The VMM.
        vmm: VmmVersion,
        /// Versioned types it knows.
        known: String,
    },
    /// A CPU model that the VMM does not know, or that this host cannot run whole.
    #[error("cpu: {reason}")]
    Cpu {
        /// Why, and the way out.
        reason: String,
    },
    /// More memory than the host has.
    #[error("memory: {wanted} is more than this host has ({total} in all); give less")]
    MemoryAbsurd {
        /// What was asked for.
        wanted: Size,
        /// What there is.
        total: Size,
    },
    /// More memory than is free.
    #[error("memory: {wanted} is more than can be had now ({available} available); stop another VM or give less")]
    MemoryShort {
        /// What was asked for.
        wanted: Size,
        /// What there is.
        available: Size,
    },
    /// A bridge or tap.
    #[error("nic {nic}: {source}")]
    Nic {
        /// Index of the NIC.
        nic: usize,
        /// Why.
        source: LinkError,
    },
    /// Its ports could not be wired to the metadata service; a guest that is not would reach the host.
    #[error("the ports of VM `{name}` were not wired: {source}")]
    Wire {
        /// The VM.
        name: VmName,
        /// Why not.
        source: Box<EventsError>,
    },
    /// Not in this state.
    #[error("VM `{name}` is {state}; it must be {needed} to {act}")]
    WrongState {
        /// The VM.
        name: VmName,
        /// What it is doing.
        state: VmState,
        /// What it would have to be doing.
        needed: &'static str,
        /// What was asked for.
        act: &'static str,
    },
    /// The guest did not end.
    #[error(
        "VM `{name}`: the guest did not shut down within {seconds} s; it runs on. Give it more time (--timeout), or end it at once (--force)"
    )]
    GuestWouldNot {
        /// The VM.
        name: VmName,
        /// The time it had.
        seconds: u64,
    },
    /// This host cannot run VMs.
    #[error("host: {0}")]
    NoKvm(String),
    /// The VMM would not start.
    #[error("VM `{name}`: {source}")]
    Launch {
        /// The VM.
        name: VmName,
        /// Why.
        source: LaunchError,
    },
    /// No memory for it.
    #[error("VM `{name}`: {source}")]
    Memory {
        /// The VM.
        name: VmName,
        /// Why.
        source: fermata_vault::memory::MemoryError,
    },
    /// A tap could not be made.
    #[error("nic {nic}: {source}")]
    Tap {
        /// Index of the NIC.
        nic: usize,
        /// Why.
        source: fermata_vault::tap::TapError,
    },
    /// There is no command line for it.
    #[error("VM `{name}`: {source}")]
    Command {
        /// The VM.
        name: VmName,
        /// Why.
        source: fermata_vmm::command::CommandError,
    },
    /// The VMM ended at once.
    #[error("VM `{name}` did not start; {words}")]
    VmmRefused {
        /// The VM.
        name: VmName,
        /// What the VMM said.
        words: String,
    },
    /// The VMM did not do as told.
    #[error("VM `{name}`, {act}: {source}")]
    Qmp {
        /// The VM.
        name: VmName,
        /// What was asked.
        act: &'static str,
        /// The answer.
        source: fermata_vmm::qmp::QmpError,
    },
    /// A change of VMM.
    #[error("VM `{name}`: {source}")]
    Handover {
        /// The VM.
        name: VmName,
        /// Why.
        source: fermata_vmm::handover::HandoverError,
    },
    /// The new VMM did not take the VM up. It is dead for certain, and the VM's vCPUs have not run in it: the old one still can.
    #[error("VM `{name}`: the new VMM did not let it run and was ended ({source}); see its log")]
    NeverRan {
        /// The VM.
        name: VmName,
        /// Why.
        source: fermata_vmm::qmp::QmpError,
    },
    /// There is no way back: the old VMM's picture of the VM may be history.
    #[error("VM `{0}` may have run in its new VMM already; it stays there")]
    Ran(VmName),
    /// The way back from a change of VMM.
    #[error("VM `{name}`: {source}")]
    TakeBack {
        /// The VM.
        name: VmName,
        /// Why.
        source: fermata_vmm::handover::TakeBackError,
    },
    /// The moment before the VM stops was missed.
    #[error("VM `{name}`: {source}")]
    Relay {
        /// The VM.
        name: VmName,
        /// Why.
        source: fermata_vault::relay::RelayError,
    },
    /// A process that should be gone.
    #[error("VM `{name}`: {source}")]
    Process {
        /// The VM.
        name: VmName,
        /// Why.
        source: fermata_vault::process::ProcessError,
    },
    /// Its memory and state are kept for another try.
    #[error(
        "VM `{name}`: its memory and the state of its devices are kept in the vault, and were not loaded; take it up with `fermata vm restore {name}`, or give it up with `fermata vm stop --force {name}`"
    )]
    Kept {
        /// The VM.
        name: VmName,
    },
    /// Memory that went through a restart by firmware.
    #[error(
        "VM `{name}`: the host was restarted through its firmware after its state was saved, and memory is not to be trusted after that; it can be started from its disks only"
    )]
    NotTrusted {
        /// The VM.
        name: VmName,
    },
    /// The vault.
    #[error("VM `{name}`: {reason}")]
    Vault {
        /// The VM.
        name: VmName,
        /// Why.
        reason: String,
    },
    /// Two VMMs do not understand each other.
    #[error(
        "VM `{name}` cannot go from VMM {from} to {to} ({tried}); it runs on as it is: choose a version in between, or shut it down and start it on {to}"
    )]
    NoWay {
        /// The VM.
        name: VmName,
        /// The VMM it runs on.
        from: VmmVersion,
        /// The VMM it should go to.
        to: VmmVersion,
        /// What was tried and what came of it.
        tried: String,
    },
    /// Nothing stands beside.
    #[error("VM `{0}`: no other VMM stands beside the one that runs it")]
    NoneBeside(VmName),
    /// The VM is in a maintenance.
    #[error(
        "VM `{name}` is under maintenance {maintenance}; wait for its end (`fermata maintenance show {maintenance}`), or abort it"
    )]
    UnderMaintenance {
        /// The VM.
        name: VmName,
        /// Which.
        maintenance: String,
    },
    /// A unit.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// The data base.
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// A file of the agent's own.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was done.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A task of the agent's own ended by a panic, which its log shows.
    #[error("the agent failed inside; its log says where")]
    Inside,
}

impl VmError {
    /// Whether nothing was begun.
    #[must_use]
    pub const fn is_refusal(&self) -> bool {
        !matches!(
            self,
            Self::Launch { .. }
                | Self::Memory { .. }
                | Self::Tap { .. }
                | Self::VmmRefused { .. }
                | Self::Qmp { .. }
                | Self::Handover { .. }
                | Self::NeverRan { .. }
                | Self::Ran(_)
                | Self::TakeBack { .. }
                | Self::Relay { .. }
                | Self::Process { .. }
                | Self::Vault { .. }
                | Self::NoneBeside(_)
                | Self::NoWay { .. }
                | Self::Unit(_)
                | Self::Inventory(_)
                | Self::Wire { .. }
                | Self::Io { .. }
                | Self::Inside
        )
    }

    /// The kind of error, for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NoSuchVm(_) => "no-such-vm",
            Self::NameTaken(_) => "name-taken",
            Self::UuidTaken { .. } => "uuid-taken",
            Self::MacTaken { .. } => "mac-taken",
            Self::DiskTaken { .. } => "disk-taken",
            Self::Image { .. } => "bad-image",
            Self::File { .. } => "bad-file",
            Self::UnknownVmm { .. } => "unknown-vmm",
            Self::BrokenVmm { .. } => "broken-vmm",
            Self::VmmTooOld { .. } => "vmm-too-old",
            Self::UnknownMachine { .. } => "unknown-machine",
            Self::Cpu { .. } => "bad-cpu",
            Self::MemoryAbsurd { .. } => "memory-absurd",
            Self::MemoryShort { .. } => "memory-short",
            Self::Nic { .. } => "bad-nic",
            Self::Wire { .. } => "not-wired",
            Self::WrongState { .. } => "wrong-state",
            Self::GuestWouldNot { .. } => "guest-would-not",
            Self::NoKvm(_) => "no-kvm",
            Self::Launch { .. } => "launch-failed",
            Self::Memory { .. } => "memory-failed",
            Self::Tap { .. } => "tap-failed",
            Self::Command { .. } => "no-command",
            Self::VmmRefused { .. } => "vmm-refused",
            Self::Qmp { .. } => "vmm-failed",
            Self::Handover { .. } => "handover-failed",
            Self::NeverRan { .. } => "never-ran",
            Self::Ran(_) => "ran",
            Self::TakeBack { .. } => "take-back-failed",
            Self::Relay { .. } => "relay-failed",
            Self::Process { .. } => "process-failed",
            Self::Kept { .. } => "kept",
            Self::NotTrusted { .. } => "not-trusted",
            Self::Vault { .. } => "vault-failed",
            Self::NoneBeside(_) => "none-beside",
            Self::NoWay { .. } => "no-way",
            Self::UnderMaintenance { .. } => "under-maintenance",
            Self::Unit(_) => "unit-failed",
            Self::Inventory(_) => "inventory-failed",
            Self::Io { .. } => "io-failed",
            Self::Inside => "inside",
        }
    }
}
