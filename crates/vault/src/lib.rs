//! Memory and descriptors that outlive the process that uses them.
//!
//! A VMM may be replaced under its VM only because nothing the VM needs belongs to the VMM: memory, taps and sockets are
//! opened by the agent and *lent* to the VMM as descriptors. This crate opens them, lends them, finds them again after
//! the agent restarted, and is sure about processes (a pidfd, never a bare pid).
//!
//! | module | what it is for |
//! |---|---|
//! | [`memory`] | guest memory: the [`memory::Provider`] trait and its kinds |
//! | [`tap`] | tap devices, vhost-net |
//! | [`process`] | processes by pidfd: wait, kill for certain, take a descriptor out of one |
//! | [`launch`] | start a program inside a unit with descriptors that the agent owns |
//! | [`confine`] | group, user and limits for a program where no service manager gives them |
//! | [`seclude`] | files that can be read only, but for its own, where no service manager sees to that |
//! | [`relay`] | passes descriptors between two VMMs, and stops time just before the hand over |
//! | [`locks`] | who holds an open-file-description lock on a file |
//! | [`kvm`] | whether KVM works here, and the TSC frequency it gives guests |
//! | [`tsc`] | the time stamp counter |
//! | [`arrival`] | files that appear in a folder, told by the kernel |
//! | [`kexec`] | another kernel: loaded, entered |
//!
//! This is the only room with `unsafe` code: each block says why it is sound, and each module that has one says so with
//! an `expect(unsafe_code)`.

pub mod arrival;
pub mod confine;
pub mod kexec;
pub mod kvm;
pub mod launch;
pub mod locks;
pub mod memory;
pub mod process;
pub mod relay;
pub mod seclude;
pub mod tap;
pub mod tsc;

pub use rustix::process::Signal;
