//! What the first program would have to find out while VMs stand, found out before the jump: which modules in which order, and which files
//! of the disk will be needed.
//!
//! ```text
//!  before the pause:  modprobe --show-depends (unpacked), pages of VMMs and agent ──► first.json (synced)
//!  after the jump:    first.json of this kernel ──► modules asked of the disk and loaded by the kernel at once, programs asked for meanwhile
//!                     none, or something of it fails ──► modprobe, which finds out for itself
//! ```
//!
//! Invariant: a note is a shortcut and nothing else. One that is missing, of another kernel, or wrong costs time only.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Advice, fadvise};
use rustix::io::Errno;
use rustix::system::finit_module;
use serde::{Deserialize, Serialize};

use super::mapped::{self, Part};
use super::unpacked::Copies;
use crate::vaults;

/// Where the note is: the first program reads no configuration.
const NOTE: &str = "/var/lib/fermata/first.json";
/// What VMs need of the kernel for their networks.
const NETWORK: [&str; 3] = ["tun", "vhost_net", "bridge"];
/// Keys of locked memory modules are loaded with `libnvdimm` (ndctl, `nvdimm-security.conf`), by a program that takes its time.
const KEYS: &str = "/etc/ndctl/keys";
/// The module whose rule is left out when there is no key.
const LOCKED: &str = "libnvdimm";
/// `linux/module.h`, `MODULE_INIT_COMPRESSED_FILE`: the kernel unpacks the file itself, or says that it cannot.
const COMPRESSED: i32 = 4;

/// One module, in the order in which they are loaded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Module {
    file: PathBuf,
    options: String,
}

/// What was found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// The kernel it is for.
    release: String,
    modules: Vec<Module>,
    /// What of programs and libraries will be asked of the disk.
    parts: Vec<Part>,
}

/// All modules that VMs need, by name.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    let svm = fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.split_whitespace().any(|word| word == "svm"));
    std::iter::once(if svm { "kvm_amd" } else { "kvm_intel" }).chain(NETWORK).chain(vaults::MODULES)
}

impl Note {
    /// For a kernel, with what these processes have in memory of their files. Where one module cannot be looked up, all are left to
    /// `modprobe` after the jump.
    pub(crate) fn of(release: &str, processes: &[i32]) -> Self {
        let mut modules = modules(release).unwrap_or_default();
        match Copies::begin() {
            Ok(copies) => modules.iter_mut().for_each(|module| module.file = copies.of(&module.file)),
            Err(error) => tracing::warn!(%error, "no copies of modules; the next kernel unpacks them"),
        }
        Self { release: release.to_owned(), modules, parts: mapped::by(processes) }
    }

    /// Puts it where the first program looks, on the disk.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn write(&self) -> io::Result<()> {
        let draft = Path::new(NOTE).with_extension("new");
        let mut file = File::create(&draft)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(draft, NOTE)
    }

    /// The one for the kernel that runs.
    pub(super) fn read() -> Option<Self> {
        let note: Self = serde_json::from_slice(&fs::read(NOTE).ok()?).ok()?;
        (note.release == crate::host::kernel()).then_some(note)
    }

    /// Asks the disk for the modules, and does not wait for them.
    pub(super) fn fetch_modules(&self) {
        for module in &self.modules {
            fetch(&Part::whole(module.file.clone()));
        }
    }

    /// The same for everything else.
    pub(super) fn fetch_programs(&self) {
        self.parts.iter().for_each(fetch);
    }

    /// Loads the modules, in order.
    ///
    /// # Errors
    /// The first that could not be loaded, in words; those before it are there.
    pub(super) fn load(&self) -> Result<(), String> {
        for module in &self.modules {
            let failed = |error: io::Error| format!("{}: {error}", module.file.display());
            let options = CString::new(module.options.as_str()).map_err(|error| failed(error.into()))?;
            let packed = module.file.extension().is_some_and(|kind| kind != "ko");
            let file = File::open(&module.file).map_err(failed)?;
            match finit_module(&file, &options, if packed { COMPRESSED } else { 0 }) {
                // Another one brought it already.
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        if self.modules.is_empty() { Err("none is noted".to_owned()) } else { Ok(()) }
    }
}

fn fetch(part: &Part) {
    if let Ok(file) = File::open(&part.file) {
        // Whoever needs it reads it, at the latest.
        fadvise(&file, part.from, part.length.and_then(NonZeroU64::new), Advice::WillNeed).ok();
    }
}

/// All modules that VMs need of a kernel, in order; `None` when one of them cannot be looked up, or is not for us to load.
fn modules(release: &str) -> Option<Vec<Module>> {
    let mut keys = fs::read_dir(KEYS).into_iter().flatten().flatten();
    let locked = keys.any(|key| key.path().extension().is_some_and(|kind| kind == "blob"));
    let told = names().map(|name| {
        let mut modprobe = Command::new("modprobe");
        modprobe.args(["--set-version", release, "--show-depends", name]).stdin(Stdio::null());
        let told = modprobe.output().ok().filter(|told| told.status.success())?;
        Some(String::from_utf8_lossy(&told.stdout).into_owned())
    });
    all_in_order(told, &Path::new("/lib/modules").join(release), locked)
}

/// The modules of several answers, each once: all of them, or `None`. With some of them `modprobe` would not be asked for the others.
fn all_in_order(told: impl Iterator<Item = Option<String>>, folder: &Path, locked: bool) -> Option<Vec<Module>> {
    let mut modules: Vec<Module> = Vec::new();
    for answer in told {
        let found = in_order(&answer?, folder, locked)?;
        let new: Vec<Module> = found.into_iter().filter(|module| !modules.contains(module)).collect();
        modules.extend(new);
    }
    Some(modules)
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
    fn one_that_is_not_ours_to_load_leaves_all_to_modprobe() {
        let folder = tempfile::tempdir().unwrap();
        let told = |answers: [Option<&str>; 3]| {
            let answers = answers.map(|answer| answer.map(str::to_owned));
            all_in_order(answers.into_iter(), folder.path(), false).map(|modules| modules.len())
        };
        let (tun, net) = (Some("insmod /m/tun.ko \n"), Some("insmod /m/tun.ko \ninsmod /m/vhost_net.ko \n"));
        assert_eq!(told([tun, net, Some("builtin bridge\n")]), Some(2), "each once");
        assert_eq!(told([tun, Some("install /sbin/tune-kvm\n"), net]), None, "the operator's rule");
        assert_eq!(told([tun, None, net]), None, "not found");
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
