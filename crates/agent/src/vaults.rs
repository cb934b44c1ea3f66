//! Where VMs' memory comes from on this host: the vaults, by kind.
//!
//! The vault of new VMs is the operator's choice ([`crate::config::VaultConfig`]); a VM that runs stays in the vault it was
//! started in, so both kinds can be in use at the same time.

use std::fs::OpenOptions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use fermata_model::{Size, VmDefinition};
use fermata_vault::memory::devdax::namespace;
use fermata_vault::memory::{Devdax, Holder, Kind, Memfd, MemoryError, Provider, Region};
use uuid::Uuid;

use crate::config::VaultConfig;
use crate::users::User;

pub use fermata_first::modules::VAULT as MODULES;

/// How long the vault's device may take to come.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks for it.
const LOOK: Duration = Duration::from_millis(20);
/// Between two tries to open a vault that could not be opened when the agent started.
const AGAIN: Duration = Duration::from_secs(2);

/// The vaults of a host.
#[derive(Debug)]
pub struct Vaults {
    kind: Kind,
    device: PathBuf,
    user: Option<User>,
    devdax: OnceLock<Arc<Devdax>>,
    closed: Mutex<Closed>,
}

/// Why there is no vault, and when that was seen last.
#[derive(Debug, Default)]
struct Closed {
    reason: String,
    seen: Option<Instant>,
}

impl Vaults {
    /// Opens what the configuration names. A vault that cannot be opened is no error here: VMs in other vaults do not
    /// depend on it, and it is tried again when it is needed (its device may come late in a host's start).
    #[must_use]
    pub fn open(config: &VaultConfig, user: Option<&User>) -> Self {
        let vaults = Self {
            kind: config.kind,
            device: config.device.clone(),
            user: user.copied(),
            devdax: OnceLock::new(),
            closed: Mutex::default(),
        };
        if let (Kind::Devdax, Err(reason)) = (vaults.kind, vaults.devdax()) {
            tracing::error!(reason, "the vault cannot be used");
        }
        vaults
    }

    /// Makes the device of a devdax vault, where there is none yet. Why it cannot be made is told when it is opened.
    pub(crate) fn make_device(config: &VaultConfig) {
        if config.kind == Kind::Devdax
            && let Err(reason) = await_device(&config.device)
        {
            tracing::warn!(reason, "no device for the vault");
        }
    }

    /// The kind that new VMs get.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// The vault that outlives the kernel, or why there is none.
    pub(crate) fn devdax(&self) -> Result<&Arc<Devdax>, String> {
        if let Some(vault) = self.devdax.get() {
            return Ok(vault);
        }
        if self.kind != Kind::Devdax {
            return Err("this host is not set up for it; see `fermata host prepare`".to_owned());
        }
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if self.devdax.get().is_none() && closed.seen.is_none_or(|seen| seen.elapsed() >= AGAIN) {
            match open_devdax(&self.device, self.user.as_ref()) {
                Ok(vault) => return Ok(self.devdax.get_or_init(|| Arc::new(vault))),
                Err(reason) => *closed = Closed { reason, seen: Some(Instant::now()) },
            }
        }
        self.devdax.get().ok_or_else(|| closed.reason.clone())
    }

    /// The device that a VMM must be allowed to open, for memory of a kind.
    #[must_use]
    pub fn device(&self, kind: Kind) -> Option<&Path> {
        (kind == Kind::Devdax).then_some(self.device.as_path())
    }

    /// One line for people.
    #[must_use]
    pub fn describe(&self) -> String {
        match (self.kind, self.devdax()) {
            (Kind::Devdax, Ok(vault)) => {
                let capacity = vault.capacity().map(|c| format!("{}, at most {} for one more VM", c.total, c.free));
                format!("devdax {}: {}", self.device.display(), capacity.unwrap_or_default())
            }
            (Kind::Devdax, Err(reason)) => format!("devdax, cannot be used: {reason}"),
            (Kind::Memfd | Kind::Luo, _) => "memfd".to_owned(),
        }
    }

    fn usable(&self, vm: Uuid) -> Result<&Arc<Devdax>, MemoryError> {
        self.devdax().map_err(|reason| MemoryError::System {
            vm,
            what: "use the vault",
            source: std::io::Error::other(reason),
        })
    }

    /// New memory for a VM, of the kind for new VMs. Takes the time to wipe it.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn allocate(&self, definition: &VmDefinition) -> Result<Region, MemoryError> {
        let (vm, size) = (definition.uuid, definition.memory);
        match self.kind {
            Kind::Devdax => self.usable(vm)?.allocate(vm, size),
            Kind::Memfd | Kind::Luo => Memfd::default().allocate(vm, size),
        }
    }

    /// Memory that a VM has already.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub fn reclaim(
        &self,
        kind: Kind,
        definition: &VmDefinition,
        holder: Option<Holder<'_>>,
    ) -> Result<Region, MemoryError> {
        let (vm, size) = (definition.uuid, definition.memory);
        match kind {
            Kind::Devdax => self.usable(vm)?.reclaim(vm, size, holder),
            Kind::Memfd | Kind::Luo => Memfd::default().reclaim(vm, size, holder),
        }
    }

    /// Gives up memory whose VMM is gone. Memory in a vault that cannot be opened stays as it is.
    pub(crate) fn free(&self, kind: Kind, vm: Uuid) {
        if kind != Kind::Devdax {
            return;
        }
        let freed = self.devdax().and_then(|vault| vault.free(vm).map_err(|e| e.to_string()));
        if let Err(reason) = freed {
            tracing::error!(%vm, reason, "its memory in the vault was not given up");
        }
    }

    /// How much more memory a VM can have.
    pub(crate) fn room(&self) -> std::io::Result<Size> {
        match self.devdax() {
            Ok(vault) => Ok(vault.capacity()?.free),
            Err(reason) if self.kind == Kind::Devdax => Err(std::io::Error::other(reason)),
            Err(_) => Ok(Memfd::default().capacity()?.free),
        }
    }

    /// Whether the state of a VM's devices is kept: it was saved, and has not run since.
    #[must_use]
    pub fn keeps(&self, vm: Uuid) -> bool {
        self.devdax().is_ok_and(|vault| vault.saved(vm).is_some())
    }
}

/// Makes the device and waits until it can be opened. After a jump the kernel makes it by itself, a moment after its modules are loaded;
/// meanwhile making it is refused as busy, and the node may be there before its driver is.
#[expect(clippy::disallowed_methods, reason = "the kernel works on it meanwhile, and nothing tells when it has done")]
fn await_device(device: &Path) -> Result<(), String> {
    let until = Instant::now() + PATIENCE;
    let opened = || OpenOptions::new().read(true).write(true).open(device).map(drop);
    loop {
        let made = make_device(device).and_then(|()| opened().map_err(|e| format!("{}: {e}", device.display())));
        if made.is_ok() || Instant::now() >= until {
            return made;
        }
        std::thread::sleep(LOOK);
    }
}

fn make_device(device: &Path) -> Result<(), String> {
    if device.exists() {
        return Ok(());
    }
    load_modules();
    match region_of(device) {
        Some(region) => namespace::ensure(region).map(drop).map_err(|error| crate::chain(&error)),
        None => Ok(()),
    }
}

fn open_devdax(device: &Path, user: Option<&User>) -> Result<Devdax, String> {
    make_device(device)?;
    let vault = Devdax::open(device).map_err(|error| crate::chain(&error))?;
    if let Some(user) = user {
        open_to(device, user).map_err(|error| format!("{}: {error}", device.display()))?;
    }
    Ok(vault)
}

/// The VMM opens the device once more through its inherited descriptor, so the VMMs' group may; nobody else.
fn open_to(device: &Path, user: &User) -> std::io::Result<()> {
    let meta = std::fs::metadata(device)?;
    if meta.gid() != user.gid {
        chown(device, Some(0), Some(user.gid))?;
    }
    std::fs::set_permissions(device, std::fs::Permissions::from_mode(0o660))
}

/// The number of the region in `/dev/daxN.0`.
fn region_of(device: &Path) -> Option<u32> {
    device.file_name()?.to_str()?.strip_prefix("dax")?.strip_suffix(".0")?.parse().ok()
}

fn load_modules() {
    let mut modprobe = Command::new("modprobe");
    modprobe.arg("--quiet").arg("--all").args(MODULES).stdin(Stdio::null());
    // What is missing afterwards shows in the device, with a reason of its own.
    if let Err(error) = modprobe.status() {
        tracing::warn!(%error, "modprobe cannot be run");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_devices_of_the_usual_name_are_made() {
        assert_eq!(region_of(Path::new("/dev/dax3.0")), Some(3));
        assert_eq!(region_of(Path::new("/dev/dax0.1")), None);
        assert_eq!(region_of(Path::new("/dev/pmem0")), None);
    }

    #[test]
    fn a_vault_that_comes_late_is_opened_when_it_is_needed() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("region");
        let vaults = Vaults::open(&VaultConfig { kind: Kind::Devdax, device: device.clone() }, None);
        assert!(vaults.devdax().unwrap_err().contains("region"));
        std::fs::File::create(&device).unwrap().set_len(64 << 20).unwrap();
        // Not at every question: a vault that is not there is asked for often.
        assert!(vaults.devdax().is_err());
        vaults.closed.lock().unwrap().seen = None;
        assert!(vaults.describe().starts_with("devdax "), "{}", vaults.describe());
        assert!(vaults.devdax().is_ok());
    }

    #[test]
    fn a_vault_that_cannot_be_opened_names_the_device_and_memfd_goes_on() {
        let config = VaultConfig { kind: Kind::Devdax, device: "/nowhere/region".into() };
        let vaults = Vaults::open(&config, None);
        assert!(vaults.describe().contains("/nowhere/region"), "{}", vaults.describe());
        assert!(!vaults.keeps(Uuid::from_u128(1)));
    }
}
