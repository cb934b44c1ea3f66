//! Making the device: a region of `memmap=nn!ss` is a legacy persistent-memory region to the kernel, and becomes
//! `/dev/daxX.Y` when a namespace says so. The namespace's header lies in the region itself, so after a kexec with the same
//! `memmap=` the kernel makes the device by itself; after a power cut it has to be made again.
//!
//! Through sysfs (`Documentation/ABI/testing/sysfs-bus-nvdimm`), as `ndctl create-namespace --mode=devdax --map=mem` does.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The kernel knows no such region.
    #[error(
        "no memory is set aside ({0} has no region); the kernel's command line needs memmap=SIZE!START, see `fermata host prepare`"
    )]
    NoRegion(PathBuf),
    /// Sysfs refused.
    #[error("making the vault's device: {what} ({path}): {source}")]
    Sysfs {
        /// What was being done.
        what: &'static str,
        /// The attribute.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
}

const BUS: &str = "/sys/bus/nd";

fn put(path: &Path, value: &str, what: &'static str) -> Result<(), NamespaceError> {
    fs::write(path, value).map_err(|source| NamespaceError::Sysfs { what, path: path.to_owned(), source })
}

fn get(path: &Path, what: &'static str) -> Result<String, NamespaceError> {
    let text = fs::read_to_string(path);
    text.map(|text| text.trim().to_owned()).map_err(|source| NamespaceError::Sysfs {
        what,
        path: path.to_owned(),
        source,
    })
}

/// Makes sure that the region numbered `region` is a device of kind devdax. The modules `nd_e820`, `nd_pmem`, `dax_pmem` and
/// `device_dax` must be loaded. What a device holds that is there already is not touched.
///
/// # Errors
/// [`NamespaceError`].
pub fn ensure(region: u32) -> Result<PathBuf, NamespaceError> {
    let device = PathBuf::from(format!("/dev/dax{region}.0"));
    if !device.exists() {
        make(Path::new(BUS), region)?;
    }
    Ok(device)
}

fn make(bus: &Path, region: u32) -> Result<(), NamespaceError> {
    let (devices, drivers) = (bus.join("devices"), bus.join("drivers"));
    let namespace = format!("namespace{region}.0");
    if !devices.join(&namespace).exists() {
        return Err(NamespaceError::NoRegion(devices));
    }
    let start = |taker: &str| put(&drivers.join("dax_pmem/bind"), taker, "start its driver");
    // The kernel found its header, or an earlier try ended here.
    let holder = get(&devices.join(&namespace).join("holder"), "ask who has the region")?;
    if holder.starts_with("dax") {
        return start(&holder);
    }
    // As a block device it has no use here; one without driver answers with an error, which does no harm.
    fs::write(drivers.join("nd_pmem/unbind"), &namespace).ok();
    // Its number is not the region's: while the kernel looks for a header it uses one up, sometimes before this one is named.
    let seed = get(&devices.join(format!("region{region}/dax_seed")), "ask for a free device")?;
    let folder = devices.join(&seed);
    put(&folder.join("align"), &super::UNIT.to_string(), "set its alignment")?;
    // The kernel's own bookkeeping in ordinary memory: the region is the VMs' alone.
    put(&folder.join("mode"), "ram", "say where the kernel's bookkeeping goes")?;
    put(&folder.join("uuid"), &Uuid::new_v4().to_string(), "name it")?;
    put(&folder.join("namespace"), &namespace, "take the region")?;
    start(&seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What sysfs shows of a region whose free device is `seed` and that `holder` has.
    fn bus(seed: &str, holder: &str) -> tempfile::TempDir {
        let bus = tempfile::tempdir().unwrap();
        for folder in [&format!("devices/{seed}"), "devices/region0", "devices/namespace0.0", "drivers/dax_pmem"] {
            fs::create_dir_all(bus.path().join(folder)).unwrap();
        }
        fs::write(bus.path().join("devices/region0/dax_seed"), format!("{seed}\n")).unwrap();
        fs::write(bus.path().join("devices/namespace0.0/holder"), format!("{holder}\n")).unwrap();
        bus
    }

    #[test]
    fn the_free_device_is_asked_for_and_not_guessed() {
        for seed in ["dax0.0", "dax0.1"] {
            let bus = bus(seed, "");
            make(bus.path(), 0).unwrap();
            let read = |file: &str| fs::read_to_string(bus.path().join(file)).unwrap();
            assert_eq!(read(&format!("devices/{seed}/namespace")), "namespace0.0");
            assert_eq!(read(&format!("devices/{seed}/mode")), "ram");
            assert_eq!(read("drivers/dax_pmem/bind"), seed);
        }
    }

    #[test]
    fn one_that_has_the_region_already_is_started_as_it_is() {
        let bus = bus("dax0.1", "dax0.0");
        make(bus.path(), 0).unwrap();
        assert_eq!(fs::read_to_string(bus.path().join("drivers/dax_pmem/bind")).unwrap(), "dax0.0");
        assert!(!bus.path().join("devices/dax0.1/namespace").exists());
        assert!(matches!(make(bus.path(), 1), Err(NamespaceError::NoRegion(_))));
    }
}
