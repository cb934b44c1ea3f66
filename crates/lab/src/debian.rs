//! The Debian guest: an ordinary disk that BIOS and UEFI boot, with systemd, chrony and the QEMU guest agent.
//!
//! ```text
//!  recipe ─ digest ─► target/lab/debian/<digest>/ {root.ext4, boot.img, core.img, grub.efi}
//!                            │ + probe
//!                            └─► one disk: MBR, GRUB in the gap behind it, EFI partition, root partition ─► qcow2
//! ```
//! No step needs root or a loop device: the parts are laid at their places in a plain file. A new probe makes a new disk in
//! seconds, as it is written into the finished file system.

use std::{
    fs::{self, File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{command, image, packages, paths, progress::Step};

/// Packages beyond Debian's minimum; the last ones are clients of the metadata service and of Scheduled Events.
const PACKAGES: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "dbus",
    "udev",
    "kmod",
    "iproute2",
    "iputils-ping",
    "procps",
    "curl",
    "chrony",
    "qemu-guest-agent",
    "initramfs-tools",
    "lz4",
    "linux-image-cloud-amd64",
    "grub-pc-bin",
    "grub-efi-amd64-bin",
    "python3",
    "cloud-init",
    "resource-agents",
    "waagent",
    "facter",
];

const MIB: u64 = 1 << 20;
/// Where the EFI partition begins; GRUB's BIOS part lies in the gap before it.
const EFI_AT: u64 = MIB;
const EFI_SIZE: u64 = 16 * MIB;
const ROOT_AT: u64 = EFI_AT + EFI_SIZE;
/// Bytes of the first sector that are code; the table of partitions follows.
const BOOT_CODE: usize = 440;

/// The parts of the disk, built if they are not there yet.
fn parts() -> Result<(PathBuf, String)> {
    let folder = paths::lab().join("debian");
    fs::create_dir_all(&folder)?;
    let digest = recipe()?;
    let done = folder.join(&digest[..16]);
    let lock = File::create(folder.join("lock"))?;
    lock.lock()?;
    if !done.is_dir() {
        let step = Step::begin("build the Debian guest");
        let part = done.with_extension("part");
        if part.exists() {
            fs::remove_dir_all(&part)?;
        }
        fs::create_dir_all(&part)?;
        fs::set_permissions(&part, fs::Permissions::from_mode(0o777))?;
        image::debootstrap(PACKAGES, "debian/customize.sh", &part)?;
        ensure!(part.join("root.ext4").is_file(), "the recipe made no file system; see crates/lab/assets/debian");
        fs::rename(&part, &done).context("put the Debian guest in place")?;
        step.done();
    }
    Ok((done, digest))
}

/// What decides whether a disk is the present one.
///
/// # Errors
/// The recipe cannot be read.
pub(crate) fn recipe() -> Result<String> {
    let mut parts: Vec<Vec<u8>> = vec![packages::SUITE.into(), include_bytes!("debian.rs").to_vec()];
    image::add(&paths::assets().join("debian"), true, &mut parts)?;
    parts.push(fs::read(paths::assets().join("recipe.sh"))?);
    Ok(command::digest(parts))
}

/// Writes the disk with a probe in it to `disk` (qcow2).
///
/// # Errors
/// A tool fails, or a package cannot be had.
pub(crate) fn write(disk: &Path, probe: &Path) -> Result<()> {
    let (parts, _) = parts()?;
    let raw = disk.with_extension("raw");
    let root = disk.with_extension("root");
    // Sparse, as the file system is.
    command::succeed(Command::new("cp").arg("--sparse=always").arg(parts.join("root.ext4")).arg(&root), LIMIT)?;
    put_probe(&root, probe)?;
    let size = ROOT_AT + fs::metadata(&root)?.len();
    File::create(&raw)?.set_len(size)?;
    let table = format!(
        "label: dos\nlabel-id: 0x4665726d\nstart={},size={},type=ef\nstart={},type=83,bootable\n",
        EFI_AT / 512,
        EFI_SIZE / 512,
        ROOT_AT / 512
    );
    let script = disk.with_extension("table");
    fs::write(&script, table)?;
    let mut sfdisk = Command::new("/sbin/sfdisk");
    sfdisk.arg("-q").arg(&raw).stdin(File::open(&script)?);
    command::succeed(&mut sfdisk, LIMIT)?;
    let efi = efi_partition(&parts, disk)?;
    boot_code(&parts, &raw)?;
    for (at, from) in [(EFI_AT, &efi), (ROOT_AT, &root)] {
        let mut dd = Command::new("dd");
        dd.arg(format!("if={}", from.display())).arg(format!("of={}", raw.display()));
        dd.args(["bs=1M", "conv=notrunc,sparse", "status=none"]).arg(format!("seek={}", at / MIB));
        command::succeed(&mut dd, LIMIT)?;
    }
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-q", "-f", "raw", "-O", "qcow2"]).arg(&raw).arg(disk);
    command::succeed(&mut convert, LIMIT)?;
    for part in [raw, root, script, efi] {
        fs::remove_file(part)?;
    }
    Ok(())
}

const LIMIT: Duration = Duration::from_secs(180);

/// GRUB for the BIOS: its first stage loads the second from the sector behind itself, which is where both expect it by default.
fn boot_code(parts: &Path, raw: &Path) -> Result<()> {
    let (first, second) = (fs::read(parts.join("boot.img"))?, fs::read(parts.join("core.img"))?);
    ensure!(second.len() as u64 + 512 <= EFI_AT, "GRUB's second stage of {} bytes does not fit its gap", second.len());
    let disk = OpenOptions::new().write(true).open(raw)?;
    disk.write_all_at(&first[..BOOT_CODE], 0)?;
    disk.write_all_at(&second, 512)?;
    Ok(())
}

fn efi_partition(parts: &Path, disk: &Path) -> Result<PathBuf> {
    let efi = disk.with_extension("efi");
    File::create(&efi)?.set_len(EFI_SIZE)?;
    command::succeed(Command::new("/sbin/mkfs.vfat").args(["-n", "EFI"]).arg(&efi), LIMIT)?;
    for folder in ["::/EFI", "::/EFI/BOOT"] {
        command::succeed(Command::new("mmd").arg("-i").arg(&efi).arg(folder), LIMIT)?;
    }
    let mut copy = Command::new("mcopy");
    copy.arg("-i").arg(&efi).arg(parts.join("grub.efi")).arg("::/EFI/BOOT/BOOTX64.EFI");
    command::succeed(&mut copy, LIMIT)?;
    Ok(efi)
}

/// Writes the probe into a file system without mounting it.
fn put_probe(root: &Path, probe: &Path) -> Result<()> {
    let target = "/usr/local/bin/fermata-probe";
    let script = root.with_extension("debugfs");
    let mut commands = File::create(&script)?;
    writeln!(commands, "write {} {target}\nset_inode_field {target} mode 0100755", probe.display())?;
    commands.seek(SeekFrom::Start(0))?;
    let mut debugfs = Command::new("/sbin/debugfs");
    command::succeed(debugfs.arg("-w").arg("-f").arg(&script).arg(root), LIMIT)?;
    fs::remove_file(script)?;
    // debugfs ends well whatever its commands did.
    let listed =
        command::succeed(Command::new("/sbin/debugfs").args(["-R", &format!("stat {target}")]).arg(root), LIMIT)?;
    ensure!(listed.contains("Mode:  0755"), "the probe did not get into {}:\n{listed}", root.display());
    Ok(())
}
