//! Which initial RAM disk a kernel is entered with: the update's own, else one of Fermata's, else the distribution's.
//!
//! Invariant: a host that came up by an initial RAM disk never enters a kernel without one. Its root would not be found, which is a panic, and VMs
//! would start again from their disks.

use std::path::{Path, PathBuf};

use fermata_first::note::Note;
use fermata_maintenance::update::KernelChange;

use super::target::Target;
use crate::first::ram;

/// What the running kernel was started with.
const PARAMETERS: &str = "/sys/kernel/boot_params/data";
/// `ramdisk_size`: Documentation/arch/x86/boot.rst.
const SIZE_AT: usize = 0x21c;

/// The distribution's for a kernel, beside its image: as Debian and Ubuntu, as Fedora and its kin, as openSUSE name it.
pub(super) fn usual(folder: &Path, release: &str) -> Option<PathBuf> {
    names(release).into_iter().map(|name| folder.join(name)).find(|file| file.is_file())
}

fn names(release: &str) -> [String; 3] {
    [format!("initrd.img-{release}"), format!("initramfs-{release}.img"), format!("initrd-{release}")]
}

/// The one to enter `target` with; Fermata's is made in `folder`.
///
/// # Errors
/// There is none, and this host needs one.
pub(super) fn chosen(
    change: &KernelChange,
    target: &Target,
    folder: &Path,
    note: &Note,
    files: &[PathBuf],
    alone: bool,
) -> Result<Option<PathBuf>, String> {
    let made = match no_own(change) {
        Some(why) => Err(why),
        None => ram::make(folder, note, &target.cmdline, files, target.initrd.as_deref(), alone),
    };
    match made {
        Ok(made) => Ok(Some(made)),
        Err(why) => {
            tracing::info!(why, initrd = ?target.initrd, "the host comes up by another initial RAM disk than Fermata's");
            enough(target, &why).map(|()| target.initrd.clone())
        }
    }
}

/// Which it would be, in words, without making one.
///
/// # Errors
/// As [`chosen`].
pub(super) fn foreseen(change: &KernelChange, target: &Target, files: &[PathBuf]) -> Result<String, String> {
    let obstacle = no_own(change).or_else(|| ram::obstacle(&target.release, &target.cmdline, files));
    let Some(why) = obstacle else {
        return Ok("initial RAM disk: Fermata's, made for this host before the pause".to_owned());
    };
    enough(target, &why)?;
    let other = target.initrd.as_ref().map_or_else(|| "none".to_owned(), |file| file.display().to_string());
    Ok(format!("initial RAM disk: {other}, not one of Fermata's: {why}"))
}

/// Why one of Fermata's is not wanted.
fn no_own(change: &KernelChange) -> Option<String> {
    let named = change.initrd.is_some().then(|| "the update names one".to_owned());
    named.or_else(|| change.as_is.then(|| "the update says `as_is`".to_owned()))
}

/// Whether the host can come up by what there is besides Fermata's.
fn enough(target: &Target, why: &str) -> Result<(), String> {
    if target.initrd.is_some() || !needed() {
        return Ok(());
    }
    let release = &target.release;
    Err(format!(
        "kernel {release} has no initial RAM disk ({}), and there is none of Fermata's ({why}); make one (Debian: update-initramfs -c -k {release}), \
         or name it by `initrd`",
        names(release).join(", ")
    ))
}

/// Whether this host came up by one, and so needs one.
pub(super) fn needed() -> bool {
    had_one(&std::fs::read(PARAMETERS).unwrap_or_default())
}

/// Whether a kernel that was started with these parameters had an initial RAM disk.
fn had_one(parameters: &[u8]) -> bool {
    parameters.get(SIZE_AT..SIZE_AT + 4).is_some_and(|size| size.iter().any(|byte| *byte != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_one_is_found_by_each_distributions_name() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(usual(folder.path(), "7.3"), None);
        for name in names("7.3").into_iter().rev() {
            std::fs::write(folder.path().join(&name), "").unwrap();
            assert_eq!(usual(folder.path(), "7.3"), Some(folder.path().join(name)));
        }
        assert_eq!(usual(folder.path(), "7.3.1"), None);
    }

    #[test]
    fn a_start_without_one_is_told_from_one_with() {
        let mut parameters = vec![0; 4096];
        assert!(!had_one(&parameters) && !had_one(&[]));
        parameters[SIZE_AT + 2] = 1;
        assert!(had_one(&parameters));
    }
}
