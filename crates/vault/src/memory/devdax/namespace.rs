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

const DEVICES: &str = "/sys/bus/nd/devices";
const DRIVERS: &str = "/sys/bus/nd/drivers";

fn put(path: &Path, value: &str, what: &'static str) -> Result<(), NamespaceError> {
    fs::write(path, value).map_err(|source| NamespaceError::Sysfs { what, path: path.to_owned(), source })
}

/// Makes sure that the region numbered `region` is a device of kind devdax. The modules `nd_e820`, `nd_pmem`, `dax_pmem` and
/// `device_dax` must be loaded. What a device holds that is there already is not touched.
///
/// # Errors
/// [`NamespaceError`].
pub fn ensure(region: u32) -> Result<PathBuf, NamespaceError> {
    let device = PathBuf::from(format!("/dev/dax{region}.0"));
    if device.exists() {
        return Ok(device);
    }
    let (namespace, seed) = (format!("namespace{region}.0"), format!("dax{region}.0"));
    let folder = Path::new(DEVICES).join(&seed);
    if !Path::new(DEVICES).join(&namespace).exists() {
        return Err(NamespaceError::NoRegion(DEVICES.into()));
    }
    // As a block device it has no use here; one without driver answers with an error, which does no harm.
    fs::write(Path::new(DRIVERS).join("nd_pmem/unbind"), &namespace).ok();
    put(&folder.join("align"), &super::UNIT.to_string(), "set its alignment")?;
    // The kernel's own bookkeeping in ordinary memory: the region is the VMs' alone.
    put(&folder.join("mode"), "ram", "say where the kernel's bookkeeping goes")?;
    put(&folder.join("uuid"), &Uuid::new_v4().to_string(), "name it")?;
    put(&folder.join("namespace"), &namespace, "take the region")?;
    put(&Path::new(DRIVERS).join("dax_pmem/bind"), &seed, "start its driver")?;
    Ok(device)
}
