//! Fermata's initial RAM disk for the next kernel, made while VMs run (what it does there: crate `first`, [`ram`](fermata_first::ram)).
//!
//! ```text
//!  files that VMs and agent need ─► their file systems ─► plain disk? kind, identity ─► drivers' modules ─┐
//!  the distribution's initial RAM disk: what is for the kernel's first moments (microcode)               ─┼─► archive
//!  the first program, VMs' modules ───────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Whatever is not as simple is a reason, in words, to enter the host by the distribution's own: device mapper, RAID, a network, kinds of file
//! systems whose identity is not read, rules of the operator's for a module, words for another one on the command line.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use fermata_first::PROGRAM;
use fermata_first::archive::{self, Archive};
use fermata_first::note::{Chain, Module, Note};
use fermata_first::ram::{Disk, MODULES, PLAN, Plan};
use fermata_first::superblock;
use rustix::fs::{major, minor};

use super::ahead;
use crate::maintain::modules::drivers;

/// Its file, beside the rest of the agent's state.
const FILE: &str = "next-initrd.img";
/// Words of a command line that ask an initial RAM disk for something of its own: `initramfs-tools(7)`, `dracut.cmdline(7)`, kernel.
const OTHERS: [&str; 9] =
    ["rdinit=", "rd.", "break", "cryptdevice=", "nfsroot=", "boot=", "overlayroot=", "fsck.mode=force", "rescue"];
/// Kinds whose identity is read.
const KINDS: [&str; 4] = ["ext2", "ext3", "ext4", "xfs"];

/// A reason.
const LEFT: &str = "VMs' modules are left to modprobe";

/// Makes it in `folder`: for the kernel and the VMs of `note`, and a host of whose `files` each is needed. `usual` is the distribution's.
///
/// # Errors
/// Why the distribution's has to be used, in words.
pub(crate) fn make(
    folder: &Path,
    note: &Note,
    cmdline: &str,
    files: &[PathBuf],
    usual: Option<&Path>,
    alone: bool,
) -> Result<PathBuf, String> {
    if note.modules.is_empty() {
        return Err(LEFT.to_owned());
    }
    let Parts { program, disks, disks_modules } = Parts::of(&note.release, cmdline, files)?;
    let first = usual.map(read).transpose()?;
    let mut archive = Archive::after(archive::early(first.as_deref().unwrap_or_default()).to_vec());
    archive.file("init", 0o755, &program);
    archive.folder(MODULES);
    let mut put = |chains: &[Chain], prefix: &str| -> Result<Vec<Chain>, String> {
        let mut nth = 0..;
        let mut place = |module: &Module| placed(&mut archive, prefix, nth.next().unwrap_or_default(), module);
        chains.iter().map(|chain| chain.iter().map(&mut place).collect()).collect()
    };
    let plan = Plan {
        disks_modules: put(&disks_modules, "disk")?,
        alone,
        modules: put(&note.modules, "vm")?,
        disks: disks.into_iter().map(|(disk, _)| disk).collect(),
        parts: note.parts.clone(),
    };
    archive.file(PLAN, 0o644, &serde_json::to_vec(&plan).map_err(|error| error.to_string())?);
    let file = folder.join(FILE);
    write(&file, &archive.done()).map_err(|error| format!("{}: {error}", file.display()))?;
    tracing::info!(
        disks = plan.disks.len(),
        modules = plan.disks_modules.iter().chain(&plan.modules).map(Vec::len).sum::<usize>(),
        "an initial RAM disk is made"
    );
    Ok(file)
}

/// Why the distribution's would have to be used for that kernel, in words, told without making one; `None` where nothing is in the way.
pub(crate) fn obstacle(release: &str, cmdline: &str, files: &[PathBuf]) -> Option<String> {
    let left = || ahead::modules(release, fermata_first::modules::names()).is_none_or(|modules| modules.is_empty());
    Parts::of(release, cmdline, files).err().or_else(|| left().then(|| LEFT.to_owned()))
}

/// What goes into one for the way to the root.
struct Parts {
    program: Vec<u8>,
    /// With the numbers of their devices.
    disks: Vec<(Disk, String)>,
    disks_modules: Vec<Chain>,
}

impl Parts {
    fn of(release: &str, cmdline: &str, files: &[PathBuf]) -> Result<Self, String> {
        if let Some(word) = cmdline.split_whitespace().find(|word| OTHERS.iter().any(|other| word.starts_with(other))) {
            return Err(format!("the command line says `{word}`"));
        }
        let program = read(Path::new(PROGRAM))?;
        if !stands_alone(&program) {
            return Err(format!("{PROGRAM} needs libraries"));
        }
        let mounts = read_text("/proc/self/mountinfo")?;
        let disks = disks(&mounts, files)?;
        let needed: BTreeSet<String> = disks.iter().flat_map(|(disk, number)| needs(disk, number)).collect();
        let disks_modules = ahead::modules(release, needed.iter().map(String::as_str))
            .ok_or("a module of a disk is not found, or has a rule of the operator's")?;
        Ok(Self { program, disks, disks_modules })
    }
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    fs::read(file).map_err(|error| format!("{}: {error}", file.display()))
}

fn read_text(file: &str) -> Result<String, String> {
    fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))
}

fn write(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    // Made anew: one of before may be open to others.
    fs::remove_file(file).unwrap_or_default();
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file)?.write_all(bytes)
}

/// Whether a program asks for no loader: ELF of 64 bits (`elf(5)`), no program header of kind 3 (`PT_INTERP`).
fn stands_alone(program: &[u8]) -> bool {
    let number = |at: usize, length: usize| {
        let bytes = program.get(at..at.checked_add(length)?)?;
        Some(bytes.iter().rev().fold(0_usize, |sum, byte| (sum << 8) | usize::from(*byte)))
    };
    let interpreters = || {
        let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        (0..count)
            .map(|nth| number(table.checked_add(nth * size)?, 4))
            .try_fold(0, |sum, kind| Some(sum + usize::from(kind? == 3)))
    };
    program.starts_with(b"\x7fELF\x02\x01") && interpreters() == Some(0)
}

/// A module's file goes into the archive; the module by its name there.
fn placed(archive: &mut Archive, prefix: &str, nth: usize, module: &Module) -> Result<Module, String> {
    let name = module.file.file_name().and_then(|name| name.to_str()).ok_or("a module without a name")?;
    let place = format!("{MODULES}/{prefix}-{nth}-{name}");
    archive.file(&place, 0o644, &read(&module.file)?);
    Ok(Module { file: Path::new("/").join(place), options: module.options.clone() })
}

/// The file systems that hold the root and these files, the root first, with the numbers of their devices.
fn disks(mounts: &str, files: &[PathBuf]) -> Result<Vec<(Disk, String)>, String> {
    let mut found: Vec<(Disk, String)> = Vec::new();
    for file in std::iter::once(Path::new("/")).chain(files.iter().map(PathBuf::as_path)) {
        // What is not there is not needed there.
        let Ok(meta) = file.metadata() else { continue };
        let number = format!("{}:{}", major(meta.dev()), minor(meta.dev()));
        if found.iter().any(|(_, known)| *known == number) {
            continue;
        }
        let failed = |why: &str| format!("{}: {why}", file.display());
        let at = mounted(mounts, &number).ok_or_else(|| failed("its file system is mounted in no simple way"))?;
        let disk = disk(&at, &number).map_err(|why| failed(&why))?;
        found.push((disk, number));
    }
    Ok(found)
}

/// A mount, by proc(5)'s mountinfo.
#[derive(Debug, PartialEq, Eq)]
struct Mounted<'a> {
    at: &'a str,
    words: &'a str,
    kind: &'a str,
    options: &'a str,
}

/// Where all of the file system on a device is mounted first.
fn mounted<'a>(mounts: &'a str, number: &str) -> Option<Mounted<'a>> {
    mounts.lines().find_map(|line| {
        let (place, source) = line.split_once(" - ")?;
        let place: Vec<&str> = place.split(' ').collect();
        let source: Vec<&str> = source.split(' ').collect();
        let (&[_, _, device, root, at, words, ..], &[kind, _, options]) = (place.as_slice(), source.as_slice()) else {
            return None;
        };
        // A backslash stands for a character that would end the name.
        (device == number && root == "/" && !at.contains('\\')).then_some(Mounted { at, words, kind, options })
    })
}

fn disk(mounted: &Mounted<'_>, number: &str) -> Result<Disk, String> {
    if !KINDS.contains(&mounted.kind) {
        return Err(format!("a file system of kind {}", mounted.kind));
    }
    let place = fs::canonicalize(Path::new("/sys/dev/block").join(number)).map_err(|_| "no block device".to_owned())?;
    if place.starts_with("/sys/devices/virtual") {
        return Err(format!("{} is no plain disk", place.display()));
    }
    let name = place.file_name().and_then(|name| name.to_str()).ok_or("a device without a name")?;
    let device = Path::new("/dev").join(name);
    let identity = superblock::of(&device).map_err(|error| format!("{}: {error}", device.display()))?;
    Ok(Disk {
        name: name.to_owned(),
        identity: identity.ok_or("a file system without an identity")?,
        kind: mounted.kind.to_owned(),
        at: mounted.at.into(),
        words: mounted.words.to_owned(),
        options: options(mounted),
    })
}

/// The options of a file system. XFS shows some that newer kernels do not take; those it has by itself.
fn options(mounted: &Mounted<'_>) -> String {
    if mounted.kind == "xfs" {
        return String::new();
    }
    let own = |word: &&str| *word != "rw" && *word != "ro";
    mounted.options.split(',').filter(own).collect::<Vec<_>>().join(",")
}

/// The modules that a file system needs: its kind's, and those of the drivers below it.
fn needs(disk: &Disk, number: &str) -> Vec<String> {
    // ext4 serves the older kinds, too, where their own modules are not built.
    let kind = if disk.kind.starts_with("ext") { "ext4" } else { &disk.kind };
    drivers(number).into_iter().chain([kind.to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "22 1 254:1 / / rw,noatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro\n\
        30 22 0:26 / /run rw,nosuid shared:2 - tmpfs tmpfs rw\n\
        31 22 254:2 /vms /srv/vms rw shared:3 - xfs /dev/vda2 rw,attr2\n\
        32 22 254:2 / /srv rw,relatime shared:3 - xfs /dev/vda2 rw,attr2,inode64\n\
        33 22 254:3 / /with\\040space rw - ext4 /dev/vda3 rw\n";

    #[test]
    fn a_mount_is_found_by_its_device_and_whole() {
        let root = mounted(MOUNTS, "254:1").unwrap();
        assert_eq!((root.at, root.words, root.kind), ("/", "rw,noatime", "ext4"));
        assert_eq!(options(&root), "errors=remount-ro");
        let srv = mounted(MOUNTS, "254:2").unwrap();
        assert_eq!((srv.at, options(&srv)), ("/srv", String::new()), "not the part that is elsewhere");
        assert_eq!((mounted(MOUNTS, "254:3"), mounted(MOUNTS, "8:1")), (None, None));
    }

    #[test]
    fn what_is_no_plain_disk_is_left_to_the_distribution() {
        let refused = disks("", &[]).unwrap_err();
        assert!(refused.starts_with("/: "), "{refused}");
        let tmpfs = Mounted { at: "/", words: "rw", kind: "tmpfs", options: "rw" };
        assert_eq!(disk(&tmpfs, "0:26").unwrap_err(), "a file system of kind tmpfs");
        let nowhere = Mounted { at: "/", words: "rw", kind: "ext4", options: "rw" };
        assert_eq!(disk(&nowhere, "0:0").unwrap_err(), "no block device");
    }

    #[test]
    fn words_for_another_one_are_the_operators() {
        let note = Note { release: "1".to_owned(), agent: "/a".into(), modules: Vec::new(), parts: Vec::new() };
        assert_eq!(make(Path::new("/nowhere"), &note, "quiet", &[], None, true).unwrap_err(), LEFT);
        assert_eq!(obstacle("1", "quiet rd.break", &[]).unwrap(), "the command line says `rd.break`");
    }

    #[test]
    fn a_program_with_a_loader_is_told_from_one_without() {
        let mut program = vec![0; 64 + 2 * 56];
        program[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (program[32], program[54], program[56]) = (64, 56, 2);
        program[64] = 1;
        assert!(stands_alone(&program));
        program[64 + 56] = 3;
        assert!(!stands_alone(&program));
        assert!(!stands_alone(&program[..100]) && !stands_alone(b"#!/bin/sh"));
        assert!(!stands_alone(&fs::read("/bin/ls").unwrap()));
    }
}
