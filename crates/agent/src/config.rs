//! The agent's configuration: one TOML file, checked before anything starts.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use fermata_imds::fermata_events::event::DeferLimits;
use fermata_imds::wire::Open;
use fermata_model::{BridgeName, VmmVersion};
use fermata_vault::memory::Kind;
use serde::{Deserialize, Serialize};

/// Where the configuration is looked for when nothing else is said.
pub const DEFAULT_PATH: &str = "/etc/fermata/agent.toml";

/// What the operator decides about a host.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Durable state: the data base, firmware variables.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Sockets and logs of what runs now; emptied by a boot.
    #[serde(default = "default_run_dir")]
    pub run_dir: PathBuf,
    /// The unprivileged user that VMMs run as.
    #[serde(default = "default_vm_user")]
    pub vm_user: String,
    /// The slice that VMs' units live in.
    #[serde(default = "default_slice")]
    pub slice: String,
    /// The program that a VM's unit starts; it receives its descriptors from the agent and becomes the VMM.
    #[serde(default = "default_launcher")]
    pub launcher: PathBuf,
    /// The VMM that new VMs start on; the newest known one when absent.
    #[serde(default)]
    pub default_vmm: Option<VmmVersion>,
    /// VMMs side by side, by version.
    pub vmm: BTreeMap<VmmVersion, VmmConfig>,
    /// OVMF images for VMs with UEFI.
    #[serde(default)]
    pub firmware: FirmwareConfig,
    /// Where VMs' memory comes from.
    #[serde(default)]
    pub vault: VaultConfig,
    /// The fleet that the host belongs to.
    #[serde(default)]
    pub fleet: crate::fleet::FleetConfig,
    /// Bridges for VMs' NICs.
    #[serde(default, rename = "bridge")]
    pub bridges: Vec<BridgeConfig>,
    /// The metadata service; without this, guests are told nothing.
    #[serde(default)]
    pub imds: Option<ImdsConfig>,
}

/// How guests are told what is coming.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImdsConfig {
    /// The metadata service's control socket.
    #[serde(default = "default_control")]
    pub control: PathBuf,
    /// How long `Started` is visible before a pause, in milliseconds: 2,000 to 60,000.
    #[serde(default = "default_lead_ms")]
    pub lead_ms: u64,
    /// How far guests may push a maintenance; not at all when absent.
    #[serde(default)]
    pub defer: DeferLimits,
    /// Offer addresses by DHCP on the bridges that the agent makes.
    #[serde(default = "yes")]
    pub dhcp: bool,
    /// Name servers that DHCP names.
    #[serde(default)]
    pub dns: Vec<Ipv4Addr>,
    /// Ports of this host that guests may reach besides the service, as `{ tcp = 53 }` or `{ udp = 53 }`; none when absent.
    #[serde(default)]
    pub open: Vec<Open>,
    /// `location` in the instance document.
    #[serde(default)]
    pub location: Option<String>,
    /// `zone`.
    #[serde(default)]
    pub zone: Option<String>,
    /// `resourceGroupName`.
    #[serde(default)]
    pub resource_group: Option<String>,
    /// `subscriptionId`.
    #[serde(default)]
    pub subscription_id: Option<String>,
}

/// One VMM.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmmConfig {
    /// The QEMU binary.
    pub binary: PathBuf,
}

/// Firmware images.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirmwareConfig {
    /// OVMF's code, mapped read-only.
    #[serde(default = "default_ovmf_code")]
    pub ovmf_code: PathBuf,
    /// OVMF's empty variables, copied for each VM.
    #[serde(default = "default_ovmf_vars")]
    pub ovmf_vars: PathBuf,
}

impl Default for FirmwareConfig {
    fn default() -> Self {
        Self { ovmf_code: default_ovmf_code(), ovmf_vars: default_ovmf_vars() }
    }
}

/// Where VMs' memory comes from.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultConfig {
    /// What kind of memory new VMs get. `devdax` outlives the host's kernel; `fermata host prepare` sets a host up for it.
    #[serde(default)]
    pub kind: Kind,
    /// The device of a `devdax` vault.
    #[serde(default = "default_vault_device")]
    pub device: PathBuf,
}

impl Default for VaultConfig {
    fn default() -> Self {
        Self { kind: Kind::default(), device: default_vault_device() }
    }
}

/// A bridge that VMs may be attached to.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeConfig {
    /// Its name.
    pub name: BridgeName,
    /// The agent makes the bridge and gives it this address; a bridge without address is only used, never made.
    #[serde(default)]
    pub address: Option<BridgeAddress>,
}

/// An IPv4 address with its prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BridgeAddress {
    /// The host's address on the bridge.
    pub address: Ipv4Addr,
    /// Prefix length, 1 to 30.
    pub prefix: u8,
}

impl FromStr for BridgeAddress {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let refusal = || format!("bridge address `{text}` is not ADDRESS/PREFIX; write it like 10.77.0.1/24");
        let (address, prefix) = text.split_once('/').ok_or_else(refusal)?;
        let address = address.parse().map_err(|_| refusal())?;
        let prefix = prefix.parse().ok().filter(|p| (1..=30).contains(p)).ok_or_else(refusal)?;
        Ok(Self { address, prefix })
    }
}

impl TryFrom<String> for BridgeAddress {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<BridgeAddress> for String {
    fn from(value: BridgeAddress) -> String {
        format!("{}/{}", value.address, value.prefix)
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("configuration {path}: {source}; write one, see /usr/share/doc/fermata/agent.toml")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is no configuration, and no VMM either.
    #[error("no QEMU is installed (looked for {looked}); install one, or write a configuration that names one")]
    NoneInstalled {
        /// Where it was looked for.
        looked: String,
    },
    /// Not TOML, an unknown field or a bad value.
    #[error("configuration {path}: {source}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        source: Box<toml::de::Error>,
    },
    /// No VMM at all.
    #[error("configuration {path}: no VMM is named; add [vmm.\"10.0\"] with binary = \"/path/to/qemu-system-x86_64\"")]
    NoVmm {
        /// The file.
        path: PathBuf,
    },
    /// The default is not among the VMMs.
    #[error(
        "configuration {path}: default_vmm = \"{given}\" is not among the VMMs named ({known}); name it under [vmm.\"{given}\"] or choose another"
    )]
    UnknownDefault {
        /// The file.
        path: PathBuf,
        /// The default that was asked for.
        given: VmmVersion,
        /// The versions there are.
        known: String,
    },
    /// A vault that this version does not have.
    #[error("configuration {path}: vault.kind = \"luo\" is not there yet; use \"devdax\", or \"memfd\"")]
    NoSuchVault {
        /// The file.
        path: PathBuf,
    },
    /// A lead that pollers could miss, or that nobody would wait for.
    #[error("configuration {path}: [imds] lead_ms = {given} is out of range; use 2000 to 60000")]
    Lead {
        /// The file.
        path: PathBuf,
        /// The lead that was asked for.
        given: u64,
    },
    /// Two bridges of one name.
    #[error("configuration {path}: bridge `{name}` is named twice; remove one")]
    SameBridge {
        /// The file.
        path: PathBuf,
        /// The name.
        name: BridgeName,
    },
}

impl Config {
    /// Reads and checks the configuration.
    ///
    /// # Errors
    /// [`ConfigError`] with the file, the reason and the way out.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    pub(crate) fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let path = path.to_owned();
        let config: Self = toml::from_str(text)
            .map_err(|source| ConfigError::Syntax { path: path.clone(), source: Box::new(source) })?;
        if config.vmm.is_empty() {
            return Err(ConfigError::NoVmm { path });
        }
        if let Some(given) = config.default_vmm.filter(|v| !config.vmm.contains_key(v)) {
            let known = config.vmm.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            return Err(ConfigError::UnknownDefault { path, given, known });
        }
        if config.vault.kind == Kind::Luo {
            return Err(ConfigError::NoSuchVault { path });
        }
        for (index, bridge) in config.bridges.iter().enumerate() {
            if config.bridges[..index].iter().any(|other| other.name == bridge.name) {
                return Err(ConfigError::SameBridge { path, name: bridge.name.clone() });
            }
        }
        if let Some(given) = config.imds.as_ref().map(|imds| imds.lead_ms).filter(|ms| !(2_000..=60_000).contains(ms)) {
            return Err(ConfigError::Lead { path, given });
        }
        Ok(config)
    }

    /// A configuration for a host that has none: the VMM that is installed, everything else as usual.
    ///
    /// # Errors
    /// [`ConfigError::NoneInstalled`].
    pub async fn of_this_host() -> Result<Self, ConfigError> {
        let mut looked = Vec::new();
        for binary in INSTALLED.map(PathBuf::from) {
            let output = tokio::process::Command::new(&binary).arg("--version").output().await;
            let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
            match version_said(&text) {
                Some(version) => {
                    let text = format!("[vmm.\"{version}\"]\nbinary = \"{}\"\n", binary.display());
                    return Self::parse(&text, Path::new("(none)"));
                }
                None => looked.push(binary.display().to_string()),
            }
        }
        Err(ConfigError::NoneInstalled { looked: looked.join(", ") })
    }

    /// The VMM that new VMs start on.
    #[must_use]
    pub fn default_vmm(&self) -> VmmVersion {
        let newest = || *self.vmm.keys().next_back().expect("a configuration without VMM is refused");
        self.default_vmm.unwrap_or_else(newest)
    }

    /// The agent's API socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }

    /// The lock that says who may act on this host's VMs.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.run_dir.join("authority")
    }

    /// The agent's data base.
    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.state_dir.join("agent.db")
    }
}

const fn yes() -> bool {
    true
}

fn default_control() -> PathBuf {
    "/run/fermata-imds/control.sock".into()
}

const fn default_lead_ms() -> u64 {
    5_000
}

/// Where distributions put QEMU.
const INSTALLED: [&str; 3] =
    ["/usr/bin/qemu-system-x86_64", "/usr/local/bin/qemu-system-x86_64", "/usr/libexec/qemu-kvm"];

/// `QEMU emulator version 10.0.2 (...)` says 10.0.
fn version_said(text: &str) -> Option<VmmVersion> {
    let number = text.split_whitespace().skip_while(|word| *word != "version").nth(1)?;
    let mut parts = number.split('.');
    format!("{}.{}", parts.next()?, parts.next()?).parse().ok()
}

fn default_state_dir() -> PathBuf {
    "/var/lib/fermata".into()
}

fn default_run_dir() -> PathBuf {
    "/run/fermata".into()
}

fn default_vm_user() -> String {
    "fermata-vm".to_owned()
}

fn default_vault_device() -> PathBuf {
    "/dev/dax0.0".into()
}

fn default_slice() -> String {
    "fermata.slice".to_owned()
}

fn default_launcher() -> PathBuf {
    "/usr/bin/fermata".into()
}

fn default_ovmf_code() -> PathBuf {
    "/usr/share/OVMF/OVMF_CODE_4M.fd".into()
}

fn default_ovmf_vars() -> PathBuf {
    "/usr/share/OVMF/OVMF_VARS_4M.fd".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const VMM: &str = "[vmm.\"10.0\"]\nbinary = \"/opt/qemu\"\n[vmm.\"11.1\"]\nbinary = \"/opt/qemu11\"\n";

    fn parse(head: &str) -> Result<Config, ConfigError> {
        Config::parse(&format!("{head}\n{VMM}"), Path::new("agent.toml"))
    }

    #[test]
    fn the_default_vmm_is_the_newest_unless_named() {
        assert_eq!(parse("").unwrap().default_vmm().to_string(), "11.1");
        assert_eq!(parse("default_vmm = \"10.0\"").unwrap().default_vmm().to_string(), "10.0");
    }

    #[test]
    fn a_vmm_is_known_by_what_it_says() {
        let said = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright (c) 2003-2025";
        assert_eq!(version_said(said).unwrap().to_string(), "10.0");
        assert!(version_said("command not found").is_none());
    }

    #[test]
    fn a_host_of_a_fleet_names_its_controller() {
        let config = parse("[fleet]\ncontroller = \"10.0.0.1:7440\"\nrack = \"r1\"\nfault_domain = 1\n").unwrap();
        assert_eq!(config.fleet.controller.as_deref(), Some("10.0.0.1:7440"));
        assert!(parse("[fleet]\nfault_domain = 9\n").is_err());
        assert!(parse("").unwrap().fleet.controller.is_none());
    }

    #[test]
    fn refusals_name_file_reason_and_way_out() {
        let text = |head: &str| parse(head).unwrap_err().to_string();
        assert!(text("default_vmm = \"9.2\"").contains("10.0, 11.1"));
        assert!(text("stat_dir = \"/x\"").contains("stat_dir"));
        assert!(text("[[bridge]]\nname = \"br0\"\naddress = \"10.0.0.1\"").contains("10.77.0.1/24"));
        assert!(text("[[bridge]]\nname = \"br0\"\n[[bridge]]\nname = \"br0\"").contains("twice"));
        let imds = |rest: &str| Config::parse(&format!("{VMM}[imds]\n{rest}"), Path::new("agent.toml"));
        assert!(imds("lead_ms = 900").unwrap_err().to_string().contains("2000 to 60000"));
        let open = imds("open = [{ udp = 53 }]").unwrap().imds.unwrap();
        assert_eq!((open.open, open.lead_ms, open.dhcp), (vec![Open::Udp(53)], 5_000, true));
        let none = Config::parse("[vmm]", Path::new("agent.toml")).unwrap_err().to_string();
        assert!(none.contains("no VMM"), "{none}");
    }
}
