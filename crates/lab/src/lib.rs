//! Virtual hosts: real kernels, real VMMs and real guests on any machine.
//!
//! A virtual host is a QEMU machine that runs Debian with systemd; KVM works inside it, on hardware where the CPU has it and
//! on QEMU's emulation of AMD SVM else. Nothing outside of the build folder is changed on the machine the lab runs on.
//!
//! ```text
//!  Debian packages ──► image (cached by content) ──┐
//!  cargo build ──► payload, guests' disk ──────────┼──► host1..N = QEMU process + overlay disk, joined by a switch process
//!  LabSpec ────────────────────────────────────────┘
//! ```
//!
//! | module | what it is for |
//! |---|---|
//! | [`lab`] | [`lab::Lab`]: several hosts and the network between them |
//! | [`host`] | [`host::Host`]: run commands, copy files, reset, wait |
//! | [`guest`] | the probes inside the guests, read as data |
//! | [`spec`] | what a lab shall be |
//! | [`image`] | the disk image of the hosts, and its cache |
//! | [`guests`] | the images of the guests |
//! | [`payload`] | what goes into a host without a new image |
//! | `debian` | the disk of the Debian guest |
//! | [`artifact`] | programs of this workspace that go into hosts and guests |
//! | [`prerequisites`] | what the machine must have, and its installation |
//! | [`packages`] | where Debian packages come from |
//! | [`machine`] | the QEMU command line of a virtual host |
//! | [`qmp`] | the little of QMP the lab needs |
//! | [`process`] | detached processes, found again for certain |
//! | [`command`] | outside commands with time limits and errors that tell |
//! | [`fault`] | defects of the emulator, told from failures of Fermata |
//! | [`package`] | the Debian package |
//! | [`paths`] | where everything lies |
//! | [`network`] | the switch between hosts |
//! | `cases` | what was tried under faults and what came of it |
//! | [`fleet`] | hosts that joined a controller |
//! | [`kexecs`] | kernels of hosts that change under such guests |
//! | [`swaps`] | VMMs that change under guests which notice everything |
//!
//! Everything here blocks; a test that is asynchronous calls it from a blocking thread.

pub mod artifact;
mod cases;
pub mod command;
mod debian;
pub mod fault;
pub mod fleet;
pub mod guest;
pub mod guests;
pub mod host;
pub mod image;
pub mod kexecs;
pub mod lab;
pub mod machine;
pub mod network;
pub mod package;
pub mod packages;
pub mod paths;
pub mod payload;
pub mod prerequisites;
pub mod process;
pub mod progress;
pub mod qmp;
pub mod spec;
pub mod swaps;

pub use host::{Host, Output};
pub use lab::Lab;
pub use spec::{HostSpec, Kernel, LabSpec};
