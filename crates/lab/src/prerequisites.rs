//! What the machine must have: Debian's tools for images and virtual machines.

use std::{env, path::Path, process::Command, time::Duration};

use anyhow::{Result, bail};

use crate::{command, progress::Step};

/// A program and the Debian package that brings it.
const PROGRAMS: &[(&str, &str)] = &[
    ("qemu-img", "qemu-utils"),
    ("mmdebstrap", "mmdebstrap"),
    ("mkfs.ext4", "e2fsprogs"),
    ("cpio", "cpio"),
    ("xz", "xz-utils"),
    ("ssh", "openssh-client"),
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
    ("unshare", "util-linux"),
    ("strip", "binutils"),
    ("mcopy", "mtools"),
    ("mkfs.vfat", "dosfstools"),
    ("sfdisk", "fdisk"),
    // Build of the workspace's own dependencies (bundled SQLite, etcd's protocol).
    ("cc", "gcc"),
    ("protoc", "protobuf-compiler"),
];

/// What makes Debian packages.
const PACKAGING: &[(&str, &str)] = &[("dh", "debhelper"), ("dpkg-buildpackage", "dpkg-dev"), ("strip", "binutils")];

/// What is missing of these, as packages.
fn missing(programs: &[(&str, &'static str)]) -> Vec<&'static str> {
    let mut path = env::var_os("PATH").unwrap_or_default();
    // Where Debian keeps mkfs and friends, outside of the usual path of a person.
    path.push(":/usr/sbin:/sbin");
    let present = |program: &str| env::split_paths(&path).any(|folder| folder.join(program).is_file());
    programs.iter().filter(|(program, _)| !present(program)).map(|(_, package)| *package).collect()
}

/// Installs what is missing for images and virtual hosts, where that is allowed.
///
/// # Errors
/// Not root, or no Debian, or the installation failed: says what to install.
pub fn ensure() -> Result<()> {
    install(PROGRAMS)
}

/// Installs what is missing for making packages, where that is allowed.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_packaging() -> Result<()> {
    install(PACKAGING)
}

fn install(programs: &[(&str, &'static str)]) -> Result<()> {
    let packages = missing(programs);
    if packages.is_empty() {
        return Ok(());
    }
    let advice = format!("apt-get install -y --no-install-recommends {}", packages.join(" "));
    if !rustix::process::geteuid().is_root() || !Path::new("/etc/debian_version").exists() {
        bail!("this machine lacks {}; as root, run: {advice}", packages.join(", "));
    }
    let step = Step::begin("install missing packages");
    let apt = || {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-o", "DPkg::Lock::Timeout=300"]);
        apt
    };
    let install = || {
        command::succeed(
            apt().args(["install", "-y", "--no-install-recommends"]).args(&packages),
            Duration::from_secs(900),
        )
    };
    if install().is_err() {
        // Package lists may be missing or old.
        command::succeed(apt().arg("update"), Duration::from_secs(300))?;
        install()?;
    }
    step.done();
    Ok(())
}
