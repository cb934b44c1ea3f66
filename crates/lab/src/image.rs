//! The disk image of the hosts: built once from Debian packages, found again by the content of its recipe.
//!
//! ```text
//!  recipe (assets, package list, suite) ─ digest ─► target/lab/image/<digest>/ exists? ── yes ─► use it
//!                                                        │ no
//!                                         mmdebstrap ► customize.sh ► mkfs.ext4 ► rename into place
//! ```
//! Invariant: a folder under `target/lab/image` without `.part` in its name is complete.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{command, packages, paths, prerequisites, progress::Step, spec::Kernel};

/// Packages of a virtual host beyond Debian's minimum.
const HOST: &[&str] = &[
    "systemd",
    "systemd-sysv",
    "dbus",
    "udev",
    "kmod",
    "openssh-server",
    "iproute2",
    "nftables",
    "iputils-ping",
    "procps",
    "qemu-system-x86",
    "qemu-utils",
    "qemu-guest-agent",
    "ovmf",
    "kexec-tools",
    "xz-utils",
    "zstd",
    "ndctl",
    "busybox-static",
    "socat",
    "tcpdump",
    "curl",
];

/// An image that is ready for use.
#[derive(Debug, Clone)]
pub struct Image {
    folder: PathBuf,
}

impl Image {
    /// The image of the present recipe, built if it is not there yet.
    ///
    /// # Errors
    /// Something is missing on this machine, or a package cannot be had; the error ends with the builder's last words.
    pub fn ensure() -> Result<Self> {
        let images = paths::lab().join("image");
        fs::create_dir_all(&images)?;
        let image = Self { folder: images.join(&recipe()?[..16]) };
        if image.disk().is_file() {
            return Ok(image);
        }
        prerequisites::ensure()?;
        // Several tests may find the image missing at the same time.
        let lock = File::create(images.join("lock"))?;
        lock.lock().context("wait for another build of the image")?;
        if !image.disk().is_file() {
            let step = Step::begin("build the host image");
            image.build()?;
            step.done();
        }
        Ok(image)
    }

    /// The root file system, shared and never written.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.folder.join("host.ext4")
    }

    /// Identity of the image.
    #[must_use]
    pub fn digest(&self) -> String {
        self.folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
    }

    /// What a host starts from: kernel and initramfs; inside the host they lie under `/boot`.
    ///
    /// # Errors
    /// The image is damaged.
    pub fn boot(&self, kernel: Kernel) -> Result<(PathBuf, PathBuf)> {
        let release = self.release(kernel)?;
        Ok((self.folder.join(format!("vmlinuz-{release}")), self.folder.join(format!("initrd.img-{release}"))))
    }

    /// Release (`uname -r`) of a kernel.
    ///
    /// # Errors
    /// The image is damaged.
    pub fn release(&self, kernel: Kernel) -> Result<String> {
        let text = fs::read_to_string(self.folder.join("kernels")).context("read the image's list of kernels")?;
        let line = text.lines().nth(match kernel {
            Kernel::Stable => 0,
            Kernel::Backports => 1,
        });
        Ok(line.context("the image lacks a kernel; remove target/lab/image")?.to_owned())
    }

    /// Versions (`major.minor`) of the two VMMs, older first.
    ///
    /// # Errors
    /// The image is damaged.
    pub fn vmms(&self) -> Result<Vec<String>> {
        let text = fs::read_to_string(self.folder.join("vmms")).context("read the image's list of VMMs")?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    }

    /// A file of the image's folder, such as `guest-small.initrd`.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn build(&self) -> Result<()> {
        let part = self.folder.with_extension("part");
        if part.exists() {
            fs::remove_dir_all(&part)?;
        }
        fs::create_dir_all(&part)?;
        // Without root, the builder is another user (of a user namespace) than we are.
        fs::set_permissions(&part, fs::Permissions::from_mode(0o777))?;
        debootstrap(HOST, "host/customize.sh", &part)?;
        ensure!(
            part.join("host.ext4").is_file(),
            "the recipe made no disk image; see crates/lab/assets/host/customize.sh"
        );
        fs::set_permissions(&part, fs::Permissions::from_mode(0o755))?;
        fs::rename(&part, &self.folder).context("put the image in place")
    }
}

/// Builds a tree from packages and runs a recipe on it, which leaves its results in `out`.
pub(crate) fn debootstrap(wanted: &[&str], recipe: &str, out: &Path) -> Result<()> {
    let assets = paths::assets();
    let sources = out.join("sources.list");
    fs::write(&sources, packages::sources()?.join("\n") + "\n")?;
    let hook = format!(
        "sh {} \"$1\" {} {} {}-backports",
        quote(&assets.join(recipe))?,
        quote(out)?,
        quote(&assets)?,
        packages::SUITE
    );
    let preferences = format!(
        "mkdir -p \"$1/etc/apt/preferences.d\" && cp {} \"$1/etc/apt/preferences.d/fermata-lab\"",
        quote(&assets.join("preferences"))?
    );
    let mode = if rustix::process::geteuid().is_root() { "root" } else { "unshare" };
    let mut builder = Command::new("mmdebstrap");
    builder
        .args(["--variant=minbase", "--format=null", "--aptopt=APT::Install-Recommends \"false\""])
        .args(["--aptopt=Acquire::Languages \"none\"", "--dpkgopt=path-exclude=/usr/share/doc/*"])
        .args(["--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*"])
        .arg(format!("--mode={mode}"))
        .arg(format!("--include={}", wanted.join(",")))
        .arg(format!("--setup-hook={preferences}"))
        .arg(format!("--customize-hook={hook}"))
        .args([packages::SUITE, "/dev/null"])
        .arg(&sources)
        .stdin(std::process::Stdio::null());
    command::succeed(&mut builder, Duration::from_secs(900)).context("build a tree from Debian packages")?;
    Ok(())
}

fn quote(path: &Path) -> Result<String> {
    let text = path.to_str().context("the workspace's path is not UTF-8")?;
    ensure!(!text.contains(['\'', '"', '$', '\\', '`']), "the workspace's path {text} has quotes in it; move it");
    Ok(format!("'{text}'"))
}

/// Digest of all that goes into an image but the packages' content.
fn recipe() -> Result<String> {
    let mut parts = vec![packages::SUITE.as_bytes().to_vec()];
    parts.extend(HOST.iter().map(|name| name.as_bytes().to_vec()));
    for folder in ["", "host", "guest"] {
        add(&paths::assets().join(folder), !folder.is_empty(), &mut parts)?;
    }
    Ok(command::digest(parts))
}

pub(crate) fn add(folder: &Path, deep: bool, parts: &mut Vec<Vec<u8>>) -> Result<()> {
    let mut entries: Vec<_> = fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if entry.file_type()?.is_dir() {
            if deep {
                add(&entry.path(), deep, parts)?;
            }
        } else {
            parts.push(entry.path().strip_prefix(paths::assets())?.as_os_str().as_encoded_bytes().to_vec());
            parts.push(entry.metadata()?.permissions().mode().to_le_bytes().to_vec());
            parts.push(fs::read(entry.path())?);
        }
    }
    Ok(())
}
