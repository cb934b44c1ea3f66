//! QEMU, as Fermata uses it.
//!
//! | module | what it is for |
//! |---|---|
//! | [`command`] | the arguments of a VMM: pure, one function of the VM's definition and what this start needs |
//! | [`qmp`] | QEMU's monitor: typed commands with time limits, and its events |
//! | [`qga`] | the agent inside the guest: time, shutdown |
//! | [`inspect`] | what a VMM binary is and can do on this host |
//! | [`handover`] | a VM changes its VMM, or its host's kernel: the steps, and the way back |
//! | [`images`] | what a disk image is, and whether somebody uses it |
//!
//! Nothing here decides: these are the hands of the agent and of the maintenance state machine. No module opens taps or
//! memory; descriptors come from `fermata-vault` and are named here by number only.

pub mod command;
pub mod handover;
pub mod images;
pub mod inspect;
pub mod qga;
pub mod qmp;
