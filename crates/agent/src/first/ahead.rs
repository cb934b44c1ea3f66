//! What the first program would have to find out while VMs stand, found out before the jump: which modules in which order, and which files
//! of the disk will be needed.
//!
//! ```text
//!  before the pause:  modprobe --show-depends (unpacked), pages of VMMs and agent ──► first.json (synced)
//!  after the jump:    first.json of this kernel ──► modules asked of the disk and loaded by the kernel at once, programs asked for meanwhile
//!                     none, or something of it fails ──► modprobe, which finds out for itself
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use fermata_first::AGENT;
use fermata_first::note::{Chain, Module, Note};

use super::mapped;
use super::unpacked::Copies;

/// Keys of locked memory modules are loaded with `libnvdimm` (ndctl, `nvdimm-security.conf`), by a program that takes its time.
const KEYS: &str = "/etc/ndctl/keys";
/// The module whose rule is left out when there is no key.
const LOCKED: &str = "libnvdimm";
/// A note for a kernel, with what these processes have in memory of their files. Where one module cannot be looked up, all are left to
/// `modprobe` after the jump. Where the agent runs `alone` first, nobody else brings the network.
pub(crate) fn note(release: &str, processes: &[i32], alone: bool) -> Note {
    let mut modules = modules(release, fermata_first::modules::names()).unwrap_or_default();
    if alone && !modules.is_empty() {
        add_network(release, &mut modules);
    }
    match Copies::begin() {
        Ok(copies) => modules.iter_mut().flatten().for_each(|module| module.file = copies.of(&module.file)),
        Err(error) => tracing::warn!(%error, "no copies of modules; the next kernel unpacks them"),
    }
    let agent = std::env::current_exe().unwrap_or_else(|_| PathBuf::from(AGENT));
    Note { release: release.to_owned(), agent, modules, parts: mapped::by(processes) }
}

/// Adds the drivers of network devices that are in use: guests' network goes through them. One that is not for us to load is left to udev, which
/// comes later.
fn add_network(release: &str, noted: &mut Vec<Chain>) {
    let mut drivers: Vec<String> = devices_in_use(Path::new("/sys/class/net")).collect();
    drivers.sort();
    drivers.dedup();
    for driver in drivers {
        let found = modules(release, std::iter::once(driver.as_str())).unwrap_or_default();
        found.into_iter().for_each(|chain| add(noted, chain));
    }
}

/// The modules of network devices with hardware that are up (`IFF_UP`, netdevice(7)).
fn devices_in_use(folder: &Path) -> impl Iterator<Item = String> {
    fs::read_dir(folder).into_iter().flatten().flatten().filter_map(|device| {
        let flags = fs::read_to_string(device.path().join("flags")).ok()?;
        let flags = u32::from_str_radix(flags.trim().strip_prefix("0x")?, 16).ok()?;
        let module = fs::read_link(device.path().join("device/driver/module")).ok()?;
        (flags & 1 == 1).then_some(module.file_name()?.to_str()?.to_owned())
    })
}

/// These modules of a kernel with all they need; `None` when one of them cannot be looked up, or is not for us to load.
pub(super) fn modules<'a>(release: &str, names: impl Iterator<Item = &'a str>) -> Option<Vec<Chain>> {
    let mut keys = fs::read_dir(KEYS).into_iter().flatten().flatten();
    let locked = keys.any(|key| key.path().extension().is_some_and(|kind| kind == "blob"));
    let told = names.map(|name| {
        let mut modprobe = Command::new("modprobe");
        modprobe.args(["--set-version", release, "--show-depends", name]).stdin(Stdio::null());
        let told = modprobe.output().ok().filter(|told| told.status.success())?;
        Some(String::from_utf8_lossy(&told.stdout).into_owned())
    });
    all_in_chains(told, &Path::new("/lib/modules").join(release), locked)
}

/// The modules of several answers, each once: all of them, or `None`. With some of them `modprobe` would not be asked for the others.
fn all_in_chains(told: impl Iterator<Item = Option<String>>, folder: &Path, locked: bool) -> Option<Vec<Chain>> {
    let mut chains = Vec::new();
    for answer in told {
        add(&mut chains, in_order(&answer?, folder, locked)?);
    }
    Some(chains)
}

/// Adds an answer: to the chains that it has modules of, which become one by that, or as one of its own.
fn add(chains: &mut Vec<Chain>, found: Chain) {
    let shares = |chain: &Chain| chain.iter().any(|module| found.contains(module));
    let at = chains.iter().position(shares).unwrap_or(chains.len());
    let mut chain: Chain = chains.extract_if(at.., |chain| shares(chain)).flatten().collect();
    let new: Vec<Module> = found.into_iter().filter(|module| !chain.contains(module)).collect();
    chain.extend(new);
    if !chain.is_empty() {
        chains.insert(at, chain);
    }
}

/// The modules that `modprobe --show-depends` tells, in its order; `None` when a rule of the operator's takes part.
fn in_order(told: &str, folder: &Path, locked: bool) -> Option<Vec<Module>> {
    let mut modules = Vec::new();
    for line in told.lines() {
        let (word, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        match word {
            "insmod" => {
                let (file, options) = rest.split_once(' ').unwrap_or((rest, ""));
                modules.push(Module { file: file.into(), options: options.trim().to_owned() });
            }
            "install" if !locked && rest.contains("ndctl load-keys") => {
                modules.push(Module { file: libnvdimm(folder)?, options: String::new() });
            }
            "builtin" | "" => {}
            _ => return None,
        }
    }
    Some(modules)
}

fn libnvdimm(folder: &Path) -> Option<PathBuf> {
    let kinds = ["ko", "ko.xz", "ko.zst", "ko.gz"];
    let files = kinds.map(|kind| folder.join("kernel/drivers/nvdimm").join(format!("{LOCKED}.{kind}")));
    files.into_iter().find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_in_the_order_told() {
        let folder = tempfile::tempdir().unwrap();
        let told = "insmod /m/kvm.ko.xz ignore_msrs=1 nested=1\nbuiltin irqbypass\ninsmod /m/kvm-amd.ko.xz \n";
        let module = |file: &str, options: &str| Module { file: file.into(), options: options.to_owned() };
        let both = vec![module("/m/kvm.ko.xz", "ignore_msrs=1 nested=1"), module("/m/kvm-amd.ko.xz", "")];
        assert_eq!(in_order(told, folder.path(), false), Some(both));
        assert_eq!(in_order("install /bin/false\n", folder.path(), false), None, "the operator's rule");
    }

    #[test]
    fn drivers_are_those_of_devices_that_are_up() {
        let folder = tempfile::tempdir().unwrap();
        let devices =
            [("eth0", "0x1003\n", Some("virtio_net")), ("eth1", "0x1002\n", Some("e1000e")), ("lo", "0x9\n", None)];
        for (device, flags, module) in devices {
            let place = folder.path().join(device);
            fs::create_dir_all(place.join("device/driver")).unwrap();
            fs::write(place.join("flags"), flags).unwrap();
            if let Some(module) = module {
                let link = place.join("device/driver/module");
                std::os::unix::fs::symlink(Path::new("/sys/module").join(module), link).unwrap();
            }
        }
        assert_eq!(devices_in_use(folder.path()).collect::<Vec<_>>(), ["virtio_net"]);
    }

    #[test]
    fn one_that_is_not_ours_to_load_leaves_all_to_modprobe() {
        let folder = tempfile::tempdir().unwrap();
        let told = |answers: [Option<&str>; 3]| {
            let answers = answers.map(|answer| answer.map(str::to_owned));
            all_in_chains(answers.into_iter(), folder.path(), false).map(|chains| chains.concat().len())
        };
        let (tun, net) = (Some("insmod /m/tun.ko \n"), Some("insmod /m/tun.ko \ninsmod /m/vhost_net.ko \n"));
        assert_eq!(told([tun, net, Some("builtin bridge\n")]), Some(2), "each once");
        assert_eq!(told([tun, Some("install /sbin/tune-kvm\n"), net]), None, "the operator's rule");
        assert_eq!(told([tun, None, net]), None, "not found");
    }

    #[test]
    fn what_needs_the_same_is_in_one_chain() {
        let module = |name: &str| Module { file: name.into(), options: String::new() };
        let chain = |names: &str| names.split(' ').map(module).collect::<Chain>();
        let mut chains = Vec::new();
        for names in ["irqbypass kvm", "tun", "llc stp bridge", "tun vhost vhost_net"] {
            add(&mut chains, chain(names));
        }
        add(&mut chains, Chain::new());
        assert_eq!(chains, ["irqbypass kvm", "tun vhost vhost_net", "llc stp bridge"].map(chain));
        add(&mut chains, chain("stp irqbypass vlan"));
        assert_eq!(chains, ["irqbypass kvm llc stp bridge vlan", "tun vhost vhost_net"].map(chain));
    }

    #[test]
    fn keys_are_asked_for_only_where_there_are_some() {
        let folder = tempfile::tempdir().unwrap();
        let rule =
            "install /usr/bin/ndctl load-keys ; /sbin/modprobe --ignore-install libnvdimm \ninsmod /m/nd_e820.ko \n";
        assert_eq!(in_order(rule, folder.path(), false), None, "not where it should be");
        let place = folder.path().join("kernel/drivers/nvdimm");
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join("libnvdimm.ko.xz"), "").unwrap();
        let found = in_order(rule, folder.path(), false).unwrap();
        assert_eq!(
            found.iter().map(|module| module.file.as_path()).collect::<Vec<_>>(),
            [&place.join("libnvdimm.ko.xz"), Path::new("/m/nd_e820.ko")]
        );
        assert_eq!(in_order(rule, folder.path(), true), None, "there are keys");
    }
}
