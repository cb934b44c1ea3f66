//! Modules unpacked before the jump: Debian packs them (`.ko.xz`), and unpacking takes longer than reading what is unpacked.
//!
//! Copies are what the package's own files hold, signature and all, in a folder that only root can write to; the kernel checks them as any. They
//! are on the disk before VMs stand, and replaced with each update of a kernel. Where a program to unpack with is missing, a module stays packed.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where copies are: the first program reads no configuration.
const FOLDER: &str = "/var/lib/fermata/modules";

/// Copies of modules, in a folder that holds nothing else.
#[derive(Debug)]
pub(super) struct Copies {
    folder: PathBuf,
}

impl Copies {
    /// None yet; those of the update before are gone.
    pub(super) fn begin() -> io::Result<Self> {
        Self::within(Path::new(FOLDER))
    }

    fn within(folder: &Path) -> io::Result<Self> {
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => DirBuilder::new().mode(0o700).create(folder)?,
        }
        Ok(Self { folder: folder.to_owned() })
    }

    /// A module unpacked, on the disk; the packed one where that cannot be had.
    pub(super) fn of(&self, packed: &Path) -> PathBuf {
        self.copied(packed).unwrap_or_else(|| packed.to_owned())
    }

    fn copied(&self, packed: &Path) -> Option<PathBuf> {
        let program = match packed.extension()?.to_str()? {
            "xz" => "xz",
            "zst" => "zstd",
            "gz" => "gzip",
            _ => return None,
        };
        let copy = self.folder.join(packed.file_stem()?);
        let file = File::create_new(&copy).ok()?;
        let mut command = Command::new(program);
        command.arg("-dc").arg(packed).stdin(Stdio::null()).stdout(file.try_clone().ok()?).stderr(Stdio::null());
        let done = command.status().is_ok_and(|status| status.success()) && file.sync_all().is_ok();
        if !done {
            fs::remove_file(&copy).unwrap_or_default();
        }
        done.then_some(copy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_unpacked_or_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        fs::write(place("tun.ko"), "a module").unwrap();
        let packed = Command::new("gzip").arg("-k").arg(place("tun.ko")).status().unwrap();
        assert!(packed.success());
        fs::write(place("broken.ko.gz"), "no such format").unwrap();
        let copies = place("copies");
        fs::create_dir(&copies).unwrap();
        fs::write(copies.join("old.ko"), "of the update before").unwrap();

        let all = Copies::within(&copies).unwrap();
        assert_eq!(all.of(&place("tun.ko.gz")), copies.join("tun.ko"));
        assert_eq!(fs::read(copies.join("tun.ko")).unwrap(), b"a module");
        assert_eq!(all.of(&place("tun.ko")), place("tun.ko"));
        assert_eq!(all.of(&place("broken.ko.gz")), place("broken.ko.gz"));
        assert_eq!(fs::read_dir(&copies).unwrap().count(), 1, "the one that is whole");
    }
}
