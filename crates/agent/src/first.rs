//! After a jump into another kernel the host comes up in two steps: VMs first, everything else then.
//!
//! ```text
//!  jump ──► fermata-first.target: the agent, and nothing else that takes the processor
//!             ├─ no VM stands any more, clocks are right ───┐
//!             ├─ a VM waits for something of the host ──────┼──► fermata-others.service ──► default.target
//!             ├─ a VM could not be restored at once ────────┤
//!             └─ a minute has passed (fermata-others.timer) ┘
//! ```
//!
//! That is for hosts of few processors, on which everything that starts at once takes them from VMs that stand. Others start everything
//! at once: their network, which VMs need too, takes seconds of its own and should not wait. Units that VMs need in the first step are
//! added to it (`systemctl add-wants fermata-first.target UNIT`).
//!
//! The next kernel's command line asks for it by a word (`systemd.unit=`), which only a jump puts there. A host whose agent needs a file
//! system that others must mount first, or that names a unit of its own, comes up in one step.

mod log;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::process::Command;

use crate::config::Config;

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

static DONE: AtomicBool = AtomicBool::new(false);
static SOON: AtomicBool = AtomicBool::new(false);
static MUTE: AtomicBool = AtomicBool::new(false);

/// Whether this host can come up in two steps.
pub(crate) fn possible(config: &Config) -> bool {
    let installed = |unit: &str| UNITS.iter().any(|folder| Path::new(folder).join(unit).exists());
    let few = std::thread::available_parallelism().is_ok_and(|count| count.get() <= FEW);
    few && installed(TARGET)
        && installed(OTHERS)
        && on_one_file_system(&["/usr/bin".as_ref(), "/etc".as_ref(), &config.state_dir])
}

fn on_one_file_system(paths: &[&Path]) -> bool {
    let device = |path: &Path| path.metadata().map(|meta| meta.dev()).ok();
    let root = device(Path::new("/"));
    root.is_some() && paths.iter().all(|path| device(path) == root)
}

/// A command line with the word for it, or without.
pub(crate) fn with_word(cmdline: &str, wanted: bool) -> String {
    let word = format!("{KEY}{TARGET}");
    let mut words: Vec<&str> = cmdline.split_whitespace().filter(|other| *other != word).collect();
    if wanted && !words.iter().any(|word| word.starts_with(KEY)) {
        words.push(&word);
    }
    words.join(" ")
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

/// Lets everything else start when the clocks of VMs that run again have had their time: guests answer late beside it.
pub(crate) fn let_others_start_soon() {
    if !SOON.swap(true, Ordering::Relaxed) && is_asked_for() {
        tokio::spawn(async {
            tokio::time::sleep(FOR_CLOCKS).await;
            let_others_start("no VM stands; clocks are still being put right");
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_is_there_once_and_never_beside_another_unit() {
        let once = with_word("root=/dev/vda quiet", true);
        assert_eq!(once, "root=/dev/vda quiet systemd.unit=fermata-first.target");
        assert_eq!(with_word(&once, true), once);
        assert_eq!(with_word(&once, false), "root=/dev/vda quiet");
        assert_eq!(with_word("systemd.unit=rescue.target", true), "systemd.unit=rescue.target");
        assert!(is_on(&once) && !is_on("systemd.unit=rescue.target"));
    }

    #[test]
    fn what_lies_elsewhere_has_to_be_mounted_first() {
        assert!(on_one_file_system(&["/".as_ref()]));
        assert!(!on_one_file_system(&["/proc".as_ref()]));
        assert!(!on_one_file_system(&["/nowhere".as_ref()]));
    }
}
