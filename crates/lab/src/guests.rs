//! The images of the guests: a read-only disk that every host mounts at `/var/lib/fermata-lab/images`.
//!
//! | image | what it is |
//! |---|---|
//! | `small/vmlinuz`, `small/initrd.img` | Debian's kernel, busybox, guest agent and the probe; direct kernel boot, seconds |
//! | `debian/disk.qcow2` | Debian with systemd, chrony, guest agent and the probe as a service; BIOS or UEFI; in labs that ask for it |
//!
//! It is a disk of its own, so that a new probe does not make a new host image.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use fermata_first::archive::Archive;

use crate::{command, debian, image::Image, paths, progress::Step, spec::Kernel};

/// Where a host finds the images.
pub const FOLDER: &str = "/var/lib/fermata-lab/images";

/// Specification of a small guest: `words` more for its kernel's command line, `extra` more lines before its NIC. By the lab's
/// rule the last byte of its MAC is the last byte of its address.
#[must_use]
pub fn small_spec(name: &str, last: u8, memory_mib: u64, words: &str, extra: &str) -> String {
    format!(
        r#"name = "{name}"
vcpus = 1
memory = "{memory_mib}MiB"
firmware = {{ kernel = {{ image = "{FOLDER}/small/vmlinuz", initrd = "{FOLDER}/small/initrd.img", cmdline = "console=ttyS0 quiet {words}" }} }}
{extra}
[[nic]]
bridge = "br0"
mac = "52:54:00:00:00:{last:02x}"
"#
    )
}

/// The disk with all images, made if it is not there yet.
///
/// # Errors
/// A tool fails.
pub fn disk(image: &Image, probe: &Path, with_debian: bool) -> Result<PathBuf> {
    let content = fs::read(probe)?;
    let debian_recipe = if with_debian { debian::recipe()? } else { String::new() };
    let digest =
        command::digest([image.digest().as_bytes(), &content, include_bytes!("guests.rs"), debian_recipe.as_bytes()]);
    let folder = paths::lab().join("guests");
    fs::create_dir_all(&folder)?;
    let disk = folder.join(format!("{}.ext4", &digest[..16]));
    let lock = File::create(folder.join("lock"))?;
    lock.lock()?;
    if disk.is_file() {
        return Ok(disk);
    }
    let step = Step::begin("build the guests' disk");
    let tree = folder.join("tree.part");
    if tree.exists() {
        fs::remove_dir_all(&tree)?;
    }
    small(image, &content, &tree.join("small"))?;
    if with_debian {
        fs::create_dir_all(tree.join("debian"))?;
        debian::write(&tree.join("debian/disk.qcow2"), probe)?;
    }
    let part = folder.join("disk.part");
    File::create(&part)?.set_len(if with_debian { 4 << 30 } else { 1 << 30 })?;
    let mut mkfs = Command::new("/sbin/mkfs.ext4");
    mkfs.args(["-q", "-F", "-L", "fermata-guests", "-O", "^has_journal", "-m", "0", "-d"]).arg(&tree).arg(&part);
    command::succeed(&mut mkfs, Duration::from_secs(120))?;
    fs::rename(&part, &disk)?;
    fs::remove_dir_all(&tree)?;
    step.done();
    Ok(disk)
}

/// The Debian guest's disk by itself (qcow2), for tests that need no host.
///
/// # Errors
/// As [`disk`].
pub fn debian(probe: &Path) -> Result<PathBuf> {
    let digest = command::digest([debian::recipe()?.as_bytes(), &fs::read(probe)?]);
    let folder = paths::lab().join("guests");
    fs::create_dir_all(&folder)?;
    let disk = folder.join(format!("debian-{}.qcow2", &digest[..16]));
    let lock = File::create(folder.join("lock"))?;
    lock.lock()?;
    if !disk.is_file() {
        let part = folder.join("debian.part");
        debian::write(&part, probe)?;
        fs::rename(&part, &disk)?;
    }
    Ok(disk)
}

/// Kernel and initramfs; the probe is a second archive behind the first, as the kernel allows.
fn small(image: &Image, probe: &[u8], folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    fs::copy(image.boot(Kernel::Stable)?.0, folder.join("vmlinuz")).context("copy the small guest's kernel")?;
    let archive = fs::read(image.file("guest-small.initrd")).context("read the small guest's base")?;
    let mut archive = Archive::after(archive);
    archive.file("bin/fermata-probe", 0o755, probe);
    fs::write(folder.join("initrd.img"), archive.done())?;
    Ok(())
}
