//! What a lab shall be: its name, its hosts, and how each differs from the usual one.

use std::{fmt, str::FromStr};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::machine::Acceleration;

/// A lab: hosts that share a private network.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LabSpec {
    /// Name, unique on this machine; tests and people use their own.
    pub name: String,
    /// The hosts, in order: `host1`, `host2`, and so on.
    pub hosts: Vec<HostSpec>,
    /// Whether its hosts have the Debian guest's disk too; it takes a minute or two to build once.
    pub debian_guest: bool,
    /// Whether its hosts have `fermata` as it is shipped, optimised; else as tests build it. On an emulated host that shows.
    #[serde(default)]
    pub as_shipped: bool,
}

impl LabSpec {
    /// A lab of `count` usual hosts.
    #[must_use]
    pub fn new(name: &str, count: usize) -> Self {
        let host = HostSpec { cpus: Acceleration::processors(count), ..HostSpec::default() };
        Self { name: name.to_owned(), hosts: vec![host; count], debian_guest: false, as_shipped: false }
    }

    /// A lab for a test: its name tells the process, so that tests at the same time do not meet.
    #[must_use]
    pub fn for_test(test: &str, count: usize) -> Self {
        Self::new(&format!("test-{test}-{}", std::process::id()), count)
    }

    /// Whether the lab can be made at all.
    ///
    /// # Errors
    /// Says which field is out of its range.
    pub fn check(&self) -> Result<()> {
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if self.name.is_empty() || self.name.len() > 40 || !plain(&self.name) {
            bail!("lab name {:?}: use 1 to 40 letters, digits and '-'", self.name);
        }
        if !(1..=9).contains(&self.hosts.len()) {
            bail!("{} hosts: a lab has 1 to 9", self.hosts.len());
        }
        if let Some(host) = self.hosts.iter().find(|host| !(512..=65_536).contains(&host.memory_mib)) {
            bail!("a host with {} MiB: use 512 to 65536", host.memory_mib);
        }
        // Of the memory of a machine 2 GiB lie below the hole for devices (QEMU, q35), the rest above.
        let above = |host: &HostSpec| host.memory_mib.saturating_sub(2048);
        if let Some(host) = self.hosts.iter().find(|host| host.vault_mib > above(host)) {
            bail!("{} MiB for VMs of {} MiB: the host needs 2048 MiB besides", host.vault_mib, host.memory_mib);
        }
        if let Some(host) = self.hosts.iter().find(|host| !(1..=16).contains(&host.cpus)) {
            bail!("a host with {} processors: use 1 to 16", host.cpus);
        }
        Ok(())
    }
}

/// One virtual host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HostSpec {
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Virtual processors: two, or one of many emulated hosts ([`Acceleration::processors`](crate::machine::Acceleration::processors)).
    pub cpus: u32,
    /// Kernel it boots; both are installed, so a test can change to the other one by kexec.
    pub kernel: Kernel,
    /// More words for the kernel's command line.
    pub cmdline: String,
    /// Part of the memory that its kernels leave alone, for VMs that outlive them, in MiB; see [`Self::with_vault`].
    #[serde(default)]
    pub vault_mib: u64,
    /// Whether its guests are told what is coming, by the metadata service; they then reach nothing else of it but the sink.
    #[serde(default)]
    pub imds: bool,
    /// Whether it comes without Fermata: for a test that installs the package.
    #[serde(default)]
    pub bare: bool,
    /// Files (path inside the host, content) added to the payload: configuration of this host.
    pub files: Vec<(String, String)>,
}

impl Default for HostSpec {
    fn default() -> Self {
        Self {
            memory_mib: 3072,
            cpus: Acceleration::PROCESSORS,
            kernel: Kernel::Stable,
            cmdline: String::new(),
            vault_mib: 0,
            imds: false,
            bare: false,
            files: Vec::new(),
        }
    }
}

impl HostSpec {
    /// With so much memory for VMs that outlive its kernels, besides what it has for itself.
    #[must_use]
    pub fn with_vault(self, mib: u64) -> Self {
        Self { memory_mib: self.memory_mib + mib - self.vault_mib, vault_mib: mib, ..self }
    }

    /// All words of its own for its kernel's command line.
    #[must_use]
    pub fn words(&self) -> String {
        // Memory above the hole for devices begins there; below it is too little for both.
        let vault = if self.vault_mib > 0 { format!("memmap={}M!4G ", self.vault_mib) } else { String::new() };
        vault + &self.cmdline
    }
}

/// The two kernels of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kernel {
    /// That of Debian stable (6.12).
    Stable,
    /// That of Debian stable's backports (7.2).
    Backports,
}

impl FromStr for Kernel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "stable" | "6.12" => Ok(Self::Stable),
            "backports" | "7.2" => Ok(Self::Backports),
            _ => Err(format!("no kernel {text:?}: use 6.12 (stable) or 7.2 (backports)")),
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stable => "stable",
            Self::Backports => "backports",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vault_comes_on_top_of_what_a_host_has() {
        let spec = HostSpec { cmdline: "quiet".to_owned(), ..HostSpec::default() }.with_vault(512).with_vault(1024);
        assert_eq!((spec.memory_mib, spec.words().as_str()), (3072 + 1024, "memmap=1024M!4G quiet"));
        assert_eq!(HostSpec::default().words(), "");
    }

    #[test]
    fn a_lab_that_cannot_be_is_refused_with_the_way_out() {
        assert!(LabSpec::new("lab", 1).check().is_ok());
        assert!(LabSpec::new("../x", 1).check().unwrap_err().to_string().contains("letters"));
        assert!(LabSpec::new("lab", 0).check().unwrap_err().to_string().contains("1 to 9"));
        let mut spec = LabSpec::new("lab", 1);
        spec.hosts[0].vault_mib = 2048;
        assert!(spec.check().unwrap_err().to_string().contains("2048 MiB besides"));
        spec.hosts[0].memory_mib = 64;
        assert!(spec.check().unwrap_err().to_string().contains("512"));
    }
}
