//! Fermata's initial RAM disk: as much as it takes to the root file system, in one program.
//!
//! ```text
//!  before the jump  agent: disks' modules, file systems by identity, VMs' modules ─► [`Plan`], in an archive with them and this program
//!  after it         modules of the disks ─► a device appears ─► its identity? ─► mounted below /root, one after the other
//!                   ─► the disk is asked for programs ─► /root becomes /, modules are loaded there ─► [`crate::program`]
//! ```
//!
//! Modules are loaded when the host's root is there, for drivers ask for their firmware's files.
//!
//! A distribution's finds out which hardware there is, by many programs; this is for the host that left a moment ago. It is made for
//! file systems on plain disks and partitions: a host with others is entered by its own one. Invariant: nothing is mounted whose identity is
//! not the noted one. A file system that does not come is said, and holds up nobody for long; where it is the root, the end of this program is a panic of the kernel, which restarts the host
//! (`panic=`).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::mount::mount_move;
use rustix::process::{chdir, chroot};
use serde::{Deserialize, Serialize};

use crate::modules::Loading;
use crate::note::{self, Chain, Part};
use crate::{mounts, say, superblock};

/// This program there, and what tells that it is there.
const INIT: &str = "/init";
/// The plan, by its place in the archive.
pub const PLAN: &str = "plan.json";
/// The folder of modules in the archive.
pub const MODULES: &str = "modules";
/// Where the host's root is before it becomes that.
const ROOT: &str = "/root";
/// How long the disk of the root may take to appear.
const FOR_ROOT: Duration = Duration::from_secs(30);
/// How long others may: VMs whose disks are there stand meanwhile.
const FOR_OTHERS: Duration = Duration::from_secs(2);
/// Between two looks at devices that none appeared beside: one may answer only after it appeared.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// A file system of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The device's name when it was noted; where several hold a copy of the file system, this one is meant.
    pub name: String,
    /// As [`superblock::of`] tells.
    pub identity: String,
    /// Its kind, such as `ext4`.
    pub kind: String,
    /// Where it is mounted on the host.
    pub at: PathBuf,
    /// Words of the mount, such as `rw,noatime`.
    pub words: String,
    /// Options of the file system.
    pub options: String,
}

impl Disk {
    fn is_root(&self) -> bool {
        self.at == Path::new("/")
    }
}

/// What is done, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What the disks need.
    pub disks_modules: Vec<Chain>,
    /// File systems, the root first.
    pub disks: Vec<Disk>,
    /// Whether the agent runs alone first, or everything starts at once.
    pub alone: bool,
    /// What VMs need, and the host's network where the agent runs alone.
    pub modules: Vec<Chain>,
    /// What will be asked of the disk.
    pub parts: Vec<Part>,
}

impl Plan {
    /// The one beside this program; none on a host.
    pub(crate) fn read() -> Option<Self> {
        serde_json::from_slice(&fs::read(Path::new("/").join(PLAN)).ok()?).ok()
    }
}

/// Whether this is an initial RAM disk of Fermata's.
pub(crate) fn is_here() -> bool {
    std::env::args_os().next().is_some_and(|program| program == INIT) && Path::new("/").join(PLAN).exists()
}

/// How the initial RAM disk was left.
#[derive(Debug)]
pub(crate) struct Left {
    /// VMs' modules, on their way into the kernel.
    pub(crate) loading: Loading,
    /// Whether the agent runs alone first.
    pub(crate) alone: bool,
}

/// Goes from the initial RAM disk to the host's root.
///
/// # Errors
/// In words; the host's root is not there.
pub(crate) fn leave() -> Result<Left, String> {
    let plan = Plan::read().ok_or("the plan cannot be read")?;
    say("the initial RAM disk");
    if let Err(reason) = note::load(&plan.disks_modules) {
        // What has no module in this kernel may be built in: the disk comes, or does not.
        say(&reason);
    }
    for disk in &plan.disks {
        match bring(disk) {
            Ok(()) => {}
            Err(error) if disk.is_root() => return Err(format!("the root file system: {error}")),
            // Others are waited for where they are needed, with a reason of their own.
            Err(error) => say(&format!("{}: {error}", disk.at.display())),
        }
    }
    say("disks are there");
    note::fetch(Path::new(ROOT), &plan.parts);
    // It stays where this program was until now, and the modules are there.
    let mut loading = Loading::prepared(INIT);
    switch().map_err(|error| format!("{ROOT} does not become the root: {error}"))?;
    loading.begin();
    Ok(Left { loading, alone: plan.alone })
}

/// Gives back the memory that the initial RAM disk took, from inside.
pub(crate) fn clear() {
    // Memory that is not given back is no reason to stop.
    fs::remove_dir_all(Path::new("/").join(MODULES)).unwrap_or_default();
    [Path::new(INIT), &Path::new("/").join(PLAN)].iter().for_each(|file| fs::remove_file(file).unwrap_or_default());
}

/// Waits for a file system and mounts it below the host's root.
fn bring(disk: &Disk) -> io::Result<()> {
    let device = find(disk)?;
    let at = Path::new(ROOT).join(disk.at.strip_prefix("/").unwrap_or(&disk.at));
    fs::create_dir_all(&at)?;
    mounts::mount_disk(&device, &at, &disk.kind, &disk.words, &disk.options)
}

/// The host's root becomes the root, for this process and what looks for files in the kernel's name.
fn switch() -> io::Result<()> {
    for place in mounts::kernels() {
        mount_move(place, format!("{ROOT}{place}"))?;
    }
    chdir(ROOT)?;
    mount_move(".", "/")?;
    chroot(".")?;
    Ok(chdir("/")?)
}

/// The device that holds a file system, as soon as it is there.
fn find(disk: &Disk) -> io::Result<PathBuf> {
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    // Older than the first look, so nothing appears unseen.
    inotify::add_watch(&watch, "/dev", WatchFlags::CREATE | WatchFlags::ATTRIB)?;
    let until = Instant::now() + if disk.is_root() { FOR_ROOT } else { FOR_OTHERS };
    loop {
        if let Some(name) = chosen(disk, &holders(disk)?) {
            return Ok(Path::new("/dev").join(name));
        }
        if Instant::now() > until {
            return Err(io::Error::other(format!("no device holds {} {}", disk.kind, disk.identity)));
        }
        let mut polled = [PollFd::new(&watch, PollFlags::IN)];
        poll(&mut polled, Some(&LOOK))?;
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut events = Reader::new(&watch, &mut space);
        while events.next().is_ok() {}
    }
}

/// The names of devices that hold a file system. The one it was on before is looked at first, and the others only where it is not there.
fn holders(disk: &Disk) -> io::Result<BTreeSet<String>> {
    let holds =
        |name: &str| superblock::of(&Path::new("/dev").join(name)).is_ok_and(|it| it.as_ref() == Some(&disk.identity));
    if holds(&disk.name) {
        return Ok(BTreeSet::from([disk.name.clone()]));
    }
    let told = fs::read_to_string("/proc/partitions")?;
    Ok(names(&told).filter(|name| holds(name)).map(str::to_owned).collect())
}

/// Names of block devices: `254 0 6291456 vda` (proc(5)).
fn names(partitions: &str) -> impl Iterator<Item = &str> {
    partitions.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.next()?.parse::<u32>().ok()?;
        words.nth(2)
    })
}

/// Of several that hold the same, none: they are copies, and which one is meant nobody knows.
fn chosen<'a>(disk: &Disk, holders: &'a BTreeSet<String>) -> Option<&'a String> {
    if holders.len() == 1 { holders.first() } else { holders.get(&disk.name) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::note::Module;

    fn disk() -> Disk {
        let text = |text: &str| text.to_owned();
        Disk {
            name: text("vda1"),
            identity: text("00"),
            kind: text("ext4"),
            at: "/".into(),
            words: text("rw,relatime"),
            options: String::new(),
        }
    }

    #[test]
    fn devices_are_named_by_the_kernel() {
        let told = "major minor  #blocks  name\n\n 254        0    6291456 vda\n 254        1    6290432 vda1\n";
        assert_eq!(names(told).collect::<Vec<_>>(), ["vda", "vda1"]);
        assert_eq!(names("").count(), 0);
    }

    #[test]
    fn a_copy_is_never_taken_for_the_file_system() {
        let holders = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
        assert_eq!(chosen(&disk(), &holders(&[])), None);
        assert_eq!(chosen(&disk(), &holders(&["vdb1"])).map(String::as_str), Some("vdb1"), "found in another order");
        assert_eq!(chosen(&disk(), &holders(&["vdb1", "vdc1"])), None);
        assert_eq!(chosen(&disk(), &holders(&["vda1", "vdc1"])).map(String::as_str), Some("vda1"));
    }

    #[test]
    fn a_plan_is_read_as_it_was_written() {
        let module = Module { file: "/modules/0-ext4.ko".into(), options: "a=1".to_owned() };
        let part = Part { file: "/usr/bin/fermata".into(), from: 4096, length: Some(8192) };
        let plan = Plan {
            disks_modules: vec![vec![module.clone()]],
            disks: vec![disk()],
            alone: true,
            modules: vec![vec![module]],
            parts: vec![part],
        };
        let read: Plan = serde_json::from_slice(&serde_json::to_vec(&plan).unwrap()).unwrap();
        assert_eq!(read, plan);
    }
}
