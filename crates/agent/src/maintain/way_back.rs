//! When the new kernel cannot serve VMs at all (no KVM, no vault), the host goes back into the old one by kexec, once.
//!
//! ```text
//!  before the jump   the way back is noted on the disk
//!  new kernel        serves VMs ───────────────> the note is removed, VMs are restored
//!                    does not, not tried yet ──> "tried" is noted, old kernel loaded and entered: VMs are restored there
//!                    does not, tried already ──> VMs stay kept in the vault, and are reported
//! ```

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fermata_vault::memory::Kind;
use fermata_vault::{kexec, kvm};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::initrd;
use crate::config::Config;
use crate::first::Steps;
use crate::jumped;
use crate::vaults::MODULES;

/// How long what a kernel needs for VMs may take to be there.
const PATIENCE: Duration = Duration::from_secs(5);

/// The way back, on the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// The kernel to go back into.
    image: PathBuf,
    initrd: Option<PathBuf>,
    cmdline: String,
    /// The kernel that is to be entered.
    to: String,
    tried: bool,
}

fn path(config: &Config) -> PathBuf {
    config.state_dir.join("way-back.json")
}

fn write(path: &Path, note: &Note) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let draft = path.with_extension("new");
    let mut file = File::create(&draft).map_err(failed)?;
    let text = serde_json::to_vec(note).map_err(|e| e.to_string())?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&draft, path).map_err(failed)
}

/// Notes the way back from kernel `to` into the one that runs. Without the running kernel's image, or the initial RAM disk it needs, there is none, which is
/// said and is no error: a panic leads through the firmware all the same.
pub(super) fn note(config: &Config, steps: Steps, to: &str, boot: Uuid) -> Result<(), String> {
    let release = crate::host::kernel();
    let image = PathBuf::from(format!("/boot/vmlinuz-{release}"));
    if !image.is_file() {
        tracing::warn!(image = %image.display(), "not there: the new kernel cannot go back into the running one");
        return forget(config);
    }
    let usual = initrd::usual(Path::new("/boot"), &release);
    if usual.is_none() && initrd::needed() {
        tracing::warn!(release, "no initial RAM disk: the new kernel cannot go back into the running one");
        return forget(config);
    }
    let cmdline = fs::read_to_string("/proc/cmdline").map_err(|e| format!("/proc/cmdline: {e}"))?;
    let cmdline = steps.in_words(&jumped::with_word(cmdline.trim(), boot));
    let note = Note { image, initrd: usual, cmdline, to: to.to_owned(), tried: false };
    write(&path(config), &note)
}

/// Removes the note.
pub(super) fn forget(config: &Config) -> Result<(), String> {
    match fs::remove_file(path(config)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("{}: {error}", path(config).display()))
        }
        _ => Ok(()),
    }
}

/// What to do with a note, found in a kernel of a release that lacks `lacks`. Pure.
fn decide(note: &Note, release: &str, lacks: &[String]) -> Decision {
    match (note.to == release, lacks.is_empty(), note.tried) {
        (false, ..) | (true, true, _) => Decision::Stay,
        (true, false, false) => Decision::GoBack,
        (true, false, true) => Decision::GiveUp,
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Stay,
    GoBack,
    GiveUp,
}

/// Looks, when an agent starts, whether this kernel is one to go back from; if so, it does not return.
pub(crate) fn look(config: &Config) {
    let file = path(config);
    let Ok(text) = fs::read(&file) else { return };
    let note: Note = match serde_json::from_slice(&text) {
        Ok(note) => note,
        Err(error) => {
            tracing::error!(%error, file = %file.display(), "the way back cannot be read");
            return;
        }
    };
    let lacks = lacks(config);
    match decide(&note, &crate::host::kernel(), &lacks) {
        Decision::Stay => {
            if let Err(reason) = forget(config) {
                tracing::warn!(reason, "the way back stays noted");
            }
        }
        Decision::GiveUp => tracing::error!(?lacks, "neither kernel serves VMs; they stay kept in the vault"),
        Decision::GoBack => {
            tracing::error!(?lacks, "this kernel cannot serve VMs; going back into the one before");
            if let Err(reason) = go_back(&file, note) {
                tracing::error!(reason, "could not go back; VMs stay kept in the vault");
            }
        }
    }
}

fn go_back(file: &Path, mut note: Note) -> Result<(), String> {
    note.tried = true;
    write(file, &note)?;
    kexec::load(&note.image, note.initrd.as_deref(), &note.cmdline).map_err(|e| e.to_string())?;
    rustix::fs::sync();
    Err(kexec::jump().to_string())
}

#[expect(clippy::disallowed_methods, reason = "udev loads modules meanwhile, and nothing tells when it has")]
fn lacks(config: &Config) -> Vec<String> {
    let until = Instant::now() + PATIENCE;
    loop {
        let mut lacks = Vec::new();
        if let Err(error) = kvm::usable() {
            lacks.push(error.to_string());
        }
        // A device that is there and holds a damaged table would be no better under the old kernel.
        if config.vault.kind == Kind::Devdax && !config.vault.device.exists() {
            lacks.push(format!("{} is not there (modules {})", config.vault.device.display(), MODULES.join(", ")));
        }
        if lacks.is_empty() || Instant::now() >= until {
            return lacks;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_cannot_serve_vms_is_left_once() {
        let mut note =
            Note { image: "/boot/a".into(), initrd: None, cmdline: String::new(), to: "7.2".to_owned(), tried: false };
        let lacks = ["no KVM".to_owned()];
        assert_eq!(decide(&note, "7.2", &[]), Decision::Stay);
        assert_eq!(decide(&note, "7.2", &lacks), Decision::GoBack);
        // The old kernel, after the jump was refused or after going back.
        assert_eq!(decide(&note, "6.12", &lacks), Decision::Stay);
        note.tried = true;
        assert_eq!(decide(&note, "7.2", &lacks), Decision::GiveUp);
    }
}
