//! The first program of a kernel that was jumped into: the agent runs alone until VMs run, then the host's own first program takes over.
//!
//! ```text
//!  kernel ─► Fermata's initial RAM disk ([`ram`]): disk's modules, root file system, VMs' modules ─┐
//!         ─► the distribution's, `init=/usr/lib/fermata/first` ───────────────────────────────────┴─► [`program`]
//!
//!  program: modules beside the agent's start ─► first.d, agent ─► VMs run ─► agent ends ─► /sbin/init ─► fermata-first.target ─► ...
//!              │                   (or it failed twice, or a minute passed)         ▲
//!              └──────────────────────── whatever fails here ──────────────────────┘
//! ```
//!
//! A service manager needs seconds until it starts its first unit where processors are few, and VMs stand meanwhile. This program is small
//! and brings its libraries with it: it is started while VMs stand, where an emulated or slow host has to read and to translate each
//! page of it. What it needs to know was found out before the jump by the agent, which shares [`note`], [`ram::Plan`] and [`archive`].

pub mod archive;
mod children;
pub mod hurry;
pub mod modules;
mod mounts;
pub mod note;
pub mod program;
pub mod ram;
pub mod superblock;

use rustix::process::setpriority_process;

/// This program on a host: its name on the next kernel's command line.
pub const PROGRAM: &str = "/usr/lib/fermata/first";
/// Tells the agent, in its environment, that there is no service manager yet.
pub const ALONE: &str = "FERMATA_ALONE";
/// Where control groups are (systemd(1)).
pub const CGROUPS: &str = "/sys/fs/cgroup";
/// Where a package puts the agent's program.
pub const AGENT: &str = "/usr/bin/fermata";

/// The priority of what restores VMs: about nine times the share of others (Linux, `sched_prio_to_weight`), so VMs that run again still get a part.
pub const URGENT: i32 = -10;

/// Starts something urgent: whatever it starts is urgent, too.
pub fn urgently<T>(start: impl FnOnce() -> T) -> T {
    // What cannot be urgent is as any other.
    setpriority_process(None, URGENT).ok();
    let started = start();
    setpriority_process(None, 0).ok();
    started
}

/// For people, in the kernel's log, at the level of information (`Documentation/ABI/testing/dev-kmsg`).
fn say(what: &str) {
    use std::io::Write;
    if let Ok(mut log) = std::fs::OpenOptions::new().write(true).open("/dev/kmsg") {
        // Nobody could be told that this failed.
        log.write_all(format!("<6>fermata-first: {what}\n").as_bytes()).ok();
    }
}
