//! Guest memory that outlives the VMM.
//!
//! A [`Provider`] gives out [`Region`]s. A region is a descriptor and the place in it that is the guest's; the VMM inherits
//! it and maps it shared through the path `/proc/self/fd/N`, so the same command line works for every kind of memory.
//!
//! | kind | memory survives |
//! |---|---|
//! | [`Memfd`] | the VMM, and the agent as long as one of the two lives |
//! | [`Devdax`] | the kernel, when the next one is entered by kexec |
//!
//! Invariant: a region's size never changes; a descriptor that cannot promise this is not a region.

pub mod devdax;
mod memfd;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

use fermata_model::Size;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::process::Process;

pub use devdax::Devdax;
pub use memfd::Memfd;

/// The kinds of memory a host can be configured with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Anonymous shared memory: survives the VMM, not the kernel.
    #[default]
    Memfd,
    /// Memory set aside on the kernel command line: survives kexec on any kernel.
    Devdax,
    /// Anonymous shared memory handed over by the kernel's live update orchestrator.
    Luo,
}

/// Memory of one VM.
#[derive(Debug)]
pub struct Region {
    fd: OwnedFd,
    size: Size,
    offset: u64,
    align: Option<Size>,
}

impl Region {
    /// The size in bytes, exactly the guest's memory.
    #[must_use]
    pub const fn size(&self) -> Size {
        self.size
    }

    /// Where in the descriptor the guest's memory begins, in bytes.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// The alignment that mappings of it need, or can have huge pages with, where it is more than a page.
    #[must_use]
    pub const fn align(&self) -> Option<Size> {
        self.align
    }

    /// How a VMM that inherited this region under the descriptor number `target` names it.
    #[must_use]
    pub fn vmm_path(target: RawFd) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{target}"))
    }
}

impl AsFd for Region {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Region> for OwnedFd {
    fn from(region: Region) -> Self {
        region.fd
    }
}

/// A process that holds a region, and under which number: how memory that belongs to nobody's file system is found
/// again after the agent restarted.
#[derive(Debug)]
pub struct Holder<'a> {
    /// The VMM.
    pub process: &'a Process,
    /// The number of the descriptor in that process.
    pub fd: RawFd,
}

/// How much memory a provider can still give, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// All it has.
    pub total: Size,
    /// What is left for new VMs.
    pub free: Size,
}

/// Why memory was not given or not found again.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The provider has too little.
    #[error("VM {vm}: {wanted} of memory asked, {free} left on this host; stop a VM or ask for less")]
    Exhausted {
        /// Whose memory.
        vm: Uuid,
        /// What was asked for.
        wanted: Size,
        /// What is left.
        free: Size,
    },
    /// A system call failed.
    #[error("memory of VM {vm}: {what}: {source}")]
    System {
        /// Whose memory.
        vm: Uuid,
        /// What was being done.
        what: &'static str,
        /// The kernel's reason.
        source: std::io::Error,
    },
    /// Nothing holds the region any more.
    #[error("memory of VM {vm} is gone: nobody holds it (neither the agent nor a VMM); the VM must be started anew")]
    Lost {
        /// Whose memory.
        vm: Uuid,
    },
    /// The descriptor is something else than this VM's memory.
    #[error("descriptor offered as memory of VM {vm} is not it: {found}; it was left untouched")]
    NotTheRegion {
        /// Whose memory.
        vm: Uuid,
        /// What it is instead.
        found: String,
    },
}

/// A source of guest memory.
pub trait Provider: Send + Sync + std::fmt::Debug {
    /// What kind of memory this is.
    fn kind(&self) -> Kind;

    /// What the host has and what is left.
    ///
    /// # Errors
    /// The kernel's reason, when the figures cannot be read.
    fn capacity(&self) -> std::io::Result<Capacity>;

    /// New, zeroed memory for a VM.
    ///
    /// # Errors
    /// [`MemoryError::Exhausted`] or [`MemoryError::System`]; nothing is left behind.
    fn allocate(&self, vm: Uuid, size: Size) -> Result<Region, MemoryError>;

    /// The memory a VM already has, after the agent (or the kernel) was replaced.
    ///
    /// # Errors
    /// [`MemoryError::Lost`] when no one holds it, [`MemoryError::NotTheRegion`] when `holder` holds something else.
    fn reclaim(&self, vm: Uuid, size: Size, holder: Option<Holder<'_>>) -> Result<Region, MemoryError>;

    /// Takes a descriptor that was kept elsewhere (systemd's descriptor store, a unix socket) as the VM's memory.
    ///
    /// # Errors
    /// [`MemoryError::NotTheRegion`] when it is something else.
    fn adopt(&self, vm: Uuid, size: Size, fd: OwnedFd) -> Result<Region, MemoryError>;

    /// Gives memory back. The VMM must be gone.
    ///
    /// # Errors
    /// [`MemoryError::System`] when the provider could not note it.
    fn release(&self, vm: Uuid, region: Region) -> Result<(), MemoryError>;
}
