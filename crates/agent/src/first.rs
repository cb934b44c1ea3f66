//! After a jump into another kernel the host comes up in steps: VMs first, everything else then.
//!
//! ```text
//!  jump ──► first program of the kernel (crate `first`): the agent alone
//!             ├─ no VM stands any more, clocks are right ───┐
//!             ├─ a VM waits for something of the host ──────┼──► systemd, with fermata-first.target:
//!             ├─ a VM could not be restored at once ────────┤    an agent once more, and what was added to the target
//!             └─ a minute has passed ───────────────────────┘      └─ the same reasons ──► fermata-others.service ──► default.target
//! ```
//!
//! That is for hosts of few processors, on which everything that starts at once takes them from VMs that stand. Others start everything
//! at once: their network, which VMs need too, takes seconds of its own and should not wait. What VMs need in the first step are
//! programs in `/etc/fermata/first.d`, in the second one units (`systemctl add-wants fermata-first.target UNIT`).
//!
//! The next kernel's command line asks for both by words (`init=`, `systemd.unit=`), which only a jump puts there, as it does the one that puts off
//! tests of the kernel's own while VMs stand ([`fermata_first::hurry`]). A host whose agent needs
//! a file system that others must mount first, or that names programs or units of its own, comes up in one step; one whose VMs' disks are
//! elsewhere leaves out the first.
//!
//! Going over to the next step is a restart of the agent like any other: it ends, and the one that comes goes on by the journal. Guests that
//! run are answered all along: by a metadata service that the first agent starts ([`metadata`]), then by the host's own. What
//! restores VMs there comes before VMs that run again ([`crate::urgency`]).

pub(crate) mod ahead;
mod log;
mod mapped;
pub(crate) mod metadata;
pub(crate) mod ram;
mod unpacked;

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fermata_first::hurry::{ON_TESTS, UNTESTED};
use fermata_first::{ALONE, CGROUPS, PROGRAM};
use fermata_model::VmName;
use rustix::process::{Signal, getpid, kill_process};
use tokio::process::Command;

use crate::config::Config;

/// Kernel command line: the first program.
const INIT_KEY: &str = "init=";
/// Where a security module that labels processes by their start shows itself: it would not know those that start before its policy.
const SELINUX: &str = "/sys/fs/selinux";

/// systemd(1), kernel command line: the unit to start instead of the default target.
const KEY: &str = "systemd.unit=";
/// What the host starts first.
const TARGET: &str = "fermata-first.target";
/// Starts everything else, once.
const OTHERS: &str = "fermata-others.service";
/// Where units are, `systemd.unit(5)`.
const UNITS: [&str; 3] = ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

/// With more processors than these, everything starts at once.
const FEW: usize = 4;
/// How long everything else waits for the clocks of VMs that run again.
const FOR_CLOCKS: Duration = Duration::from_secs(4);
/// The same before there is a service manager: what is not done then waits for an agent that comes half a minute later on an emulated host.
const FOR_CLOCKS_ALONE: Duration = Duration::from_secs(10);

/// How long VMs on their way are waited for, when others wait for the host.
const FOR_OTHERS: Duration = Duration::from_secs(30);
/// Between two looks whether they have arrived.
const LOOK: Duration = Duration::from_millis(20);

static ON_THEIR_WAY: Mutex<BTreeSet<VmName>> = Mutex::new(BTreeSet::new());
static DONE: AtomicBool = AtomicBool::new(false);
static SOON: AtomicBool = AtomicBool::new(false);
static MUTE: AtomicBool = AtomicBool::new(false);

/// The steps in which the next kernel comes up, before everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Steps {
    /// The agent as the service manager's first unit.
    first: bool,
    /// The agent before the service manager.
    alone: bool,
}

impl Steps {
    /// Those in which this host can come up, with VMs that run from `disks`.
    pub(crate) fn of(config: &Config, disks: &[PathBuf]) -> Self {
        let installed = |unit: &str| UNITS.iter().any(|folder| Path::new(folder).join(unit).exists());
        let on_root = on_one_file_system(["/usr/bin".as_ref(), "/etc".as_ref(), config.state_dir.as_path()]);
        let first = processors_are_few() && on_root && installed(TARGET) && installed(OTHERS);
        let unified = Path::new(CGROUPS).join("cgroup.controllers").exists();
        // A disk that others must mount or activate first would be waited for in vain.
        let alone = on_one_file_system(disks.iter().map(PathBuf::as_path)) && unified && !Path::new(SELINUX).exists();
        Self { first, alone: first && alone && Path::new(PROGRAM).exists() }
    }

    /// Whether the agent comes before the service manager.
    pub(crate) const fn alone(self) -> bool {
        self.alone
    }

    /// A command line with the words for them, and without those for others.
    pub(crate) fn in_words(self, cmdline: &str) -> String {
        let (init, unit) = (format!("{INIT_KEY}{PROGRAM}"), format!("{KEY}{TARGET}"));
        let ours = [init.as_str(), unit.as_str(), UNTESTED];
        let mut words: Vec<&str> = cmdline.split_whitespace().filter(|word| !ours.contains(word)).collect();
        let others = |key: &str| words.iter().any(|word| word.starts_with(key));
        let (first, alone) = (self.first && !others(KEY), self.alone && !others(INIT_KEY));
        // Whoever leaves the tests out has to be there to end that.
        let untested = first && alone && !others(ON_TESTS);
        let asked = [(first && alone, init.as_str()), (first, unit.as_str()), (untested, UNTESTED)];
        words.extend(asked.iter().filter(|(asked, _)| *asked).map(|(_, word)| *word));
        words.join(" ")
    }
}

/// Whether what runs beside VMs takes processors from them.
pub(crate) fn processors_are_few() -> bool {
    std::thread::available_parallelism().is_ok_and(|count| count.get() <= FEW)
}

/// Whether all is on the root file system.
fn on_one_file_system<'a>(paths: impl IntoIterator<Item = &'a Path>) -> bool {
    let device = |path: &Path| path.metadata().map(|meta| meta.dev()).ok();
    let root = device(Path::new("/"));
    root.is_some() && paths.into_iter().all(|path| device(path) == root)
}

/// Whether this agent runs before there is a service manager.
pub(crate) fn is_alone() -> bool {
    std::env::var_os(ALONE).is_some()
}

/// Waits for what loads modules beside the start of an agent that is alone: it ends the agent's input.
pub(crate) async fn modules_are_there() {
    if is_alone() {
        // An input that breaks, or is none, is over as well.
        let read = || std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).unwrap_or_default();
        tokio::task::spawn_blocking(read).await.unwrap_or_default();
    }
}

/// Sees to it that an agent that starts before the rest of the host is heard.
pub(crate) fn begin() {
    MUTE.store(is_asked_for() && log::to_the_kernel(), Ordering::Relaxed);
}

fn is_asked_for() -> bool {
    std::fs::read_to_string("/proc/cmdline").is_ok_and(|text| is_on(&text))
}

fn is_on(cmdline: &str) -> bool {
    cmdline.split_whitespace().any(|word| word.strip_prefix(KEY) == Some(TARGET))
}

/// Lets everything else start; does nothing when it did already, or when this host came up in one step.
pub(crate) fn let_others_start(why: &str) {
    if DONE.swap(true, Ordering::Relaxed) || !is_asked_for() {
        return;
    }
    tracing::info!(why, "the rest of the host starts");
    if is_alone() {
        tokio::spawn(end());
        return;
    }
    if MUTE.load(Ordering::Relaxed) {
        tokio::spawn(log::to_the_journal());
    }
    // The unit stays active, so an agent that starts later starts nothing once more.
    let started = Command::new("systemctl").args(["--no-block", "start", OTHERS]).stdin(Stdio::null()).spawn();
    match started {
        Ok(mut child) => drop(tokio::spawn(async move { child.wait().await })),
        Err(error) => tracing::error!(%error, "systemctl cannot be run; a timer starts the rest of the host"),
    }
}

/// Ends this agent, when no VM is on its way that would have to begin anew.
async fn end() {
    let until = tokio::time::Instant::now() + FOR_OTHERS;
    while !on_their_way().is_empty() && tokio::time::Instant::now() < until {
        tokio::time::sleep(LOOK).await;
    }
    metadata::begin().await;
    if let Err(error) = kill_process(getpid(), Signal::TERM) {
        tracing::error!(%error, "this agent cannot end itself; the first program does after a minute");
    }
}

fn on_their_way() -> MutexGuard<'static, BTreeSet<VmName>> {
    ON_THEIR_WAY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A VM is on its way into a VMM, and does not wait for anything of the host. Only an agent that is alone asks who is; one that an operator
/// has restored by hand may stay on the list.
pub(crate) fn departs(vm: &VmName) {
    on_their_way().insert(vm.clone());
}

/// It runs and the journal says so, or it waits, or does not get there now.
pub(crate) fn arrives(vm: &VmName) {
    on_their_way().remove(vm);
}

/// Lets everything else start when the clocks of VMs that run again have had their time: guests answer late beside it.
pub(crate) fn let_others_start_soon() {
    if !SOON.swap(true, Ordering::Relaxed) && is_asked_for() {
        tokio::spawn(async {
            metadata::begin().await;
            tokio::time::sleep(if is_alone() { FOR_CLOCKS_ALONE } else { FOR_CLOCKS }).await;
            let_others_start("no VM stands; clocks are still being put right");
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_there_once_and_never_beside_those_of_the_operator() {
        let steps = |first, alone| Steps { first, alone };
        let once = steps(true, true).in_words("root=/dev/vda quiet");
        let words = "init=/usr/lib/fermata/first systemd.unit=fermata-first.target";
        assert_eq!(once, format!("root=/dev/vda quiet {words} cryptomgr.notests=1"));
        assert_eq!(steps(true, true).in_words(&once), once);
        assert_eq!(steps(true, false).in_words(&once), "root=/dev/vda quiet systemd.unit=fermata-first.target");
        assert_eq!(steps(false, false).in_words(&once), "root=/dev/vda quiet");
        assert_eq!(steps(true, true).in_words("systemd.unit=rescue.target"), "systemd.unit=rescue.target");
        assert_eq!(steps(true, true).in_words("init=/bin/sh"), "init=/bin/sh systemd.unit=fermata-first.target");
        assert_eq!(steps(true, true).in_words("cryptomgr.notests=0"), format!("cryptomgr.notests=0 {words}"));
        assert!(is_on(&once) && !is_on("systemd.unit=rescue.target"));
    }

    #[test]
    fn what_lies_elsewhere_has_to_be_mounted_first() {
        assert!(on_one_file_system([Path::new("/")]));
        assert!(!on_one_file_system([Path::new("/"), Path::new("/proc")]));
        assert!(!on_one_file_system([Path::new("/nowhere")]));
    }
}
