//! What goes into a host without a new image: fermata's package, keys, names, addresses.
//!
//! On the disk: 64 bytes of identity (a digest), zeros up to 64 KiB, then a tar. The host unpacks it when the identity is new, and installs
//! the package before its first program starts.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{command, image::Image, paths, spec::HostSpec};

/// Where a host finds the package to install (`assets/host/initramfs-init`).
const PACKAGE: &str = "var/lib/fermata-lab/fermata.deb";

/// Programs that go into every host.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The probe.
    pub probe: PathBuf,
    /// The Debian package of fermata.
    pub package: PathBuf,
}

/// Who a host is among the hosts of its lab.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// Name of the lab.
    pub lab: &'a str,
    /// Number of the host, from 1.
    pub number: usize,
    /// How many hosts there are.
    pub count: usize,
}

impl Identity<'_> {
    /// Host name.
    #[must_use]
    pub fn name(&self) -> String {
        format!("host{}", self.number)
    }
}

/// Writes the payload of one host to `disk`.
///
/// # Errors
/// A file cannot be read or written.
pub fn write(disk: &Path, image: &Image, programs: &Programs, who: Identity<'_>, spec: &HostSpec) -> Result<()> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.follow_symlinks(false);
    add(&mut tar, "usr/local/bin/fermata-probe", 0o755, &fs::read(&programs.probe)?)?;
    if !spec.bare {
        add(&mut tar, PACKAGE, 0o644, &fs::read(&programs.package)?)?;
    }
    let keys = Keys::ensure()?;
    add(&mut tar, "root/.ssh/authorized_keys", 0o600, &fs::read(keys.client.with_extension("pub"))?)?;
    add(&mut tar, "etc/ssh/ssh_host_ed25519_key", 0o600, &fs::read(&keys.host)?)?;
    add(&mut tar, "etc/hostname", 0o644, format!("{}\n", who.name()).as_bytes())?;
    add(&mut tar, "etc/hosts", 0o644, hosts(who).as_bytes())?;
    let machine = command::digest([who.lab.as_bytes(), who.name().as_bytes()]);
    add(&mut tar, "etc/machine-id", 0o444, format!("{}\n", &machine[..32]).as_bytes())?;
    add(&mut tar, "etc/fermata-lab/host", 0o644, format!("private_address=10.88.0.{}/24\n", who.number).as_bytes())?;
    if !spec.bare {
        add(&mut tar, "etc/fermata/agent.toml", 0o644, agent(&image.vmms()?, spec).as_bytes())?;
    }
    for (path, content) in &spec.files {
        add(&mut tar, path.trim_start_matches('/'), 0o644, content.as_bytes())?;
    }
    let tar = tar.into_inner()?;
    let mut file = File::create(disk).with_context(|| format!("write {}", disk.display()))?;
    let mut head = command::digest([&tar]).into_bytes();
    head.resize(64 * 1024, 0);
    file.write_all(&head)?;
    file.write_all(&tar)?;
    // A disk has whole sectors.
    file.set_len((head.len() + tar.len()).next_multiple_of(64 * 1024) as u64)?;
    Ok(())
}

/// Names of all hosts, for all hosts.
fn hosts(who: Identity<'_>) -> String {
    let lines = (1..=who.count).map(|number| format!("10.88.0.{number} host{number}\n"));
    std::iter::once("127.0.0.1 localhost\n".to_owned()).chain(lines).collect()
}

/// The agent's configuration on a lab host: both VMMs, a bridge for guests, and a vault where the host has one.
fn agent(vmms: &[String], spec: &HostSpec) -> String {
    let mut text = vmms.first().map_or_else(String::new, |first| format!("default_vmm = \"{first}\"\n"));
    if spec.vault_mib > 0 {
        text += "\n[vault]\nkind = \"devdax\"\n";
    }
    for version in vmms {
        text += &format!("\n[vmm.\"{version}\"]\nbinary = \"{}\"\n", vmm_binary(version));
    }
    text += "\n[[bridge]]\nname = \"br0\"\naddress = \"10.77.0.1/24\"\n";
    // Of the host's own ports, guests reach those of the probe's sink.
    if spec.imds {
        text += "\n[imds]\nopen = [{ tcp = 7070 }, { udp = 7070 }]\n";
    }
    text
}

/// Where a host has the VMM of a version.
#[must_use]
pub fn vmm_binary(version: &str) -> String {
    format!("/usr/lib/fermata-lab/vmm/{version}/bin/qemu-system-x86_64")
}

fn add(tar: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, content: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, path, content).with_context(|| format!("add {path} to the payload"))
}

/// Keys of this workspace's labs: useless anywhere else, so made once and kept under `target/lab`.
#[derive(Debug, Clone)]
pub struct Keys {
    /// Private key of the outside.
    pub client: PathBuf,
    /// Private key of all hosts.
    pub host: PathBuf,
}

impl Keys {
    /// Finds or makes them.
    ///
    /// # Errors
    /// `ssh-keygen` fails.
    pub fn ensure() -> Result<Self> {
        let folder = paths::lab().join("keys");
        fs::create_dir_all(&folder)?;
        let lock = File::create(folder.join("lock"))?;
        lock.lock()?;
        let keys = Self { client: folder.join("client"), host: folder.join("host") };
        for key in [&keys.client, &keys.host] {
            if !key.with_extension("pub").is_file() {
                let mut keygen = Command::new("ssh-keygen");
                keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "fermata-lab", "-f"]).arg(key);
                command::succeed(&mut keygen, Duration::from_secs(60))?;
            }
        }
        Ok(keys)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_host_knows_every_name() {
        let text = hosts(Identity { lab: "lab", number: 1, count: 2 });
        assert_eq!(text, "127.0.0.1 localhost\n10.88.0.1 host1\n10.88.0.2 host2\n");
    }

    #[test]
    fn the_agent_is_told_of_both_vmms() {
        let text = agent(&["10.0".to_owned(), "11.1".to_owned()], &HostSpec::default().with_vault(64));
        assert!(text.starts_with("default_vmm = \"10.0\"\n"));
        assert!(text.contains("[vmm.\"11.1\"]\nbinary = \"/usr/lib/fermata-lab/vmm/11.1/bin/qemu-system-x86_64\""));
    }
}
