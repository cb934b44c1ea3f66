//! Faults of the emulator around virtual hosts, told from failures of what runs in them.
//!
//! Without hardware virtualisation the hosts' CPUs are emulated, and the emulator has defects that end a host in the middle of a
//! test. They have signatures. A lab that is taken down looks for them and leaves a note, so that whoever runs tests can run the
//! test again instead of calling it failed; nothing else is ever excused.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::paths;

/// What the console of a host, or its QEMU, says then.
const SIGNATURES: &[(&str, &str)] = &[
    ("Oops: int3", "an emulated CPU ran code that another had just rewritten"),
    ("tcg_handle_interrupt: assertion failed", "QEMU's emulation of SVM met a write to CR8"),
];

fn note() -> PathBuf {
    paths::lab().join("emulator-fault")
}

/// The fault that a text tells of.
fn find(text: &str) -> Option<&'static str> {
    SIGNATURES.iter().find(|(sign, _)| text.contains(sign)).map(|(_, what)| *what)
}

/// Looks for faults in what a host and its QEMU said; the last thing done with a host.
pub(crate) fn look(host: &Path) {
    let said = ["console.log", "qemu.err"].map(|name| fs::read(host.join(name)).unwrap_or_default()).concat();
    if let Some(what) = find(&String::from_utf8_lossy(&said)) {
        eprintln!("lab: the emulator broke under {}: {what}", host.display());
        // Without the note the test counts as failed, as it would without this whole module.
        let _ = fs::write(note(), what);
    }
}

/// Forgets what was seen.
///
/// # Errors
/// The note cannot be removed.
pub fn forget() -> Result<()> {
    match fs::remove_file(note()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What was seen since [`forget`].
#[must_use]
pub fn seen() -> Option<String> {
    fs::read_to_string(note()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_emulators_own_faults_are_excused() {
        assert!(find("[   57.3] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI").is_some());
        assert!(
            find("ERROR:accel/tcg/tcg-accel-ops.c:95:tcg_handle_interrupt: assertion failed: (bql_locked())").is_some()
        );
        assert!(find("Kernel panic - not syncing: Fatal exception in interrupt").is_none());
        assert!(find("BUG: kernel NULL pointer dereference").is_none());
    }
}
