//! Would the next kernel find what VMs need? Asked while nothing has happened yet: after the jump it is too late.
//!
//! What is needed is read off the kernel that runs: the vault, KVM with the processor's own module, taps and bridges, and
//! per file that a VM or the agent needs its file system and the drivers of the disks below. What the next kernel has is
//! what its folder under `/lib/modules` lists, as a module or built in (kmod's `modules.dep`, `modules.builtin`).

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};

use crate::vaults::MODULES;

/// Where the kernel tells of itself.
const SYSFS: &str = "/sys";

/// The names of all modules of a kernel, as modules or built in, by its folder.
fn listed(folder: &Path) -> BTreeSet<String> {
    let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
    names(&(read("modules.dep") + "\n" + &read("modules.builtin")))
}

/// Module names of lines such as `kernel/drivers/dax/device_dax.ko.xz: ...`, spelt as the kernel spells them.
pub(crate) fn names(lists: &str) -> BTreeSet<String> {
    lists
        .lines()
        .filter_map(|line| Path::new(line.split(':').next()?.trim()).file_name()?.to_str()?.split('.').next())
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

/// What the next kernel lacks, in words; `Ok` when it has everything that is in use here.
///
/// # Errors
/// The list, with what each missing module is for and the way out.
pub(super) fn check(release: &str, vault: bool, files: &[PathBuf]) -> Result<(), String> {
    let folder = Path::new("/lib/modules").join(release);
    if !folder.is_dir() {
        return Err(format!("{} is not there; install the modules of kernel {release}", folder.display()));
    }
    let there = listed(&folder);
    let lacks: Vec<String> = needed(vault, files)
        .into_iter()
        .filter(|(module, _)| !there.contains(module))
        .map(|(module, what)| format!("{module} ({what})"))
        .collect();
    if lacks.is_empty() {
        return Ok(());
    }
    Err(format!(
        "kernel {release} has no {}, and VMs could not go on in it; install its modules (Debian: linux-image-{release} whole), or \
         use a kernel that has them",
        lacks.join(", ")
    ))
}

/// Modules in use here without which VMs could not go on, and what each is for.
fn needed(vault: bool, files: &[PathBuf]) -> BTreeSet<(String, String)> {
    let mut needed = BTreeSet::new();
    let mut add = |module: &str, what: &str| {
        needed.insert((module.replace('-', "_"), what.to_owned()));
    };
    for module in MODULES.into_iter().filter(|_| vault) {
        add(module, "the vault");
    }
    for module in ["kvm", "kvm_amd", "kvm_intel", "tun", "bridge", "sch_plug"] {
        if loaded(module) {
            add(module, if module.starts_with("kvm") { "KVM" } else { "guests' network" });
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for file in files {
        let Ok(found) = fs::metadata(file) else { continue };
        let device = format!("{}:{}", major(found.dev()), minor(found.dev()));
        let what = format!("for {}", file.display());
        // Built in here, it may be a module there; a file system of no module of its own (tmpfs) is in every kernel.
        if let Some(kind) = file_system(&mounts, &device).filter(|kind| loaded(kind)) {
            add(kind, &what);
        }
        for driver in drivers(&device) {
            add(&driver, &what);
        }
    }
    needed
}

/// Whether a module is loaded; one that is built in has no `refcnt`.
fn loaded(module: &str) -> bool {
    Path::new(SYSFS).join("module").join(module).join("refcnt").exists()
}

/// The kind of the file system on a device, by proc(5)'s mountinfo.
fn file_system<'a>(mounts: &'a str, device: &str) -> Option<&'a str> {
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some(device))?;
    line.split_once(" - ")?.1.split(' ').next()
}

/// Modules of the drivers that a block device hangs on, also through device mapper and RAID. What is never a module may have such
/// a name, too (`pcieportdrv`, ports of PCI Express, seen in 6.12.117); no list of modules knows it, so those that this kernel's do not know are
/// left out.
pub(crate) fn drivers(device: &str) -> BTreeSet<String> {
    let here = listed(&Path::new("/lib/modules").join(crate::host::kernel()));
    let mut found = drivers_in(Path::new(SYSFS), device);
    found.retain(|driver| loaded(driver) || here.contains(driver));
    found
}

fn drivers_in(sysfs: &Path, device: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let Ok(place) = fs::canonicalize(sysfs.join("dev/block").join(device)) else { return found };
    for ancestor in place.ancestors().take_while(|ancestor| ancestor.starts_with(sysfs)) {
        if let Ok(module) = fs::read_link(ancestor.join("driver/module"))
            && let Some(name) = module.file_name().and_then(|name| name.to_str())
        {
            found.insert(name.to_owned());
        }
        for below in fs::read_dir(ancestor.join("slaves")).into_iter().flatten().flatten() {
            let number = fs::read_to_string(below.path().join("dev")).unwrap_or_default();
            found.extend(drivers_in(sysfs, number.trim()));
        }
        if ancestor.file_name().is_some_and(|name| name == "devices") {
            break;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn modules_are_found_whatever_their_file_is_called() {
        let lists = "kernel/drivers/nvdimm/nd_e820.ko.xz: kernel/drivers/nvdimm/libnvdimm.ko.xz\n\
                     kernel/drivers/nvdimm/nd-pmem.ko:\n\nkernel/fs/ext4/ext4.ko.zst\n";
        let names = names(lists);
        assert_eq!(names.iter().map(String::as_str).collect::<Vec<_>>(), ["ext4", "nd_e820", "nd_pmem"]);
    }

    #[test]
    fn a_kernel_that_is_not_installed_is_refused_with_the_way_out() {
        let refused = check("0.0.1-nobody", true, &[]).unwrap_err();
        assert!(refused.contains("/lib/modules/0.0.1-nobody") && refused.contains("install"), "{refused}");
    }

    #[test]
    fn the_file_system_of_a_device_is_read_from_the_mounts() {
        let mounts = "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n30 22 0:26 / /run rw - tmpfs tmpfs rw\n";
        assert_eq!(file_system(mounts, "254:1"), Some("ext4"));
        assert_eq!(file_system(mounts, "8:0"), None);
    }

    #[test]
    fn drivers_are_those_of_the_disk_and_of_what_is_below_it() {
        let sysfs = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(sysfs.path()).unwrap();
        let disk = root.join("devices/pci0/0000:00:05.0/virtio2/block/vda");
        let mapped = root.join("devices/virtual/block/dm-0");
        for folder in [disk.join("vda1"), mapped.join("slaves/vda1"), root.join("dev/block"), root.join("module")] {
            fs::create_dir_all(folder).unwrap();
        }
        for (at, module) in
            [("devices/pci0/0000:00:05.0", "virtio_pci"), ("devices/pci0/0000:00:05.0/virtio2", "virtio_blk")]
        {
            let driver = root.join("bus").join(module);
            fs::create_dir_all(&driver).unwrap();
            fs::create_dir_all(root.join("module").join(module)).unwrap();
            symlink(root.join("module").join(module), driver.join("module")).unwrap();
            symlink(&driver, root.join(at).join("driver")).unwrap();
        }
        symlink(disk.join("vda1"), root.join("dev/block/254:1")).unwrap();
        symlink(&mapped, root.join("dev/block/253:0")).unwrap();
        fs::write(mapped.join("slaves/vda1/dev"), "254:1\n").unwrap();
        let both = BTreeSet::from(["virtio_blk".to_owned(), "virtio_pci".to_owned()]);
        assert_eq!(drivers_in(&root, "254:1"), both);
        assert_eq!(drivers_in(&root, "253:0"), both, "through the device mapper");
        assert!(drivers_in(&root, "9:9").is_empty());
    }
}
