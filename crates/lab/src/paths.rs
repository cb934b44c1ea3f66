//! Where the lab keeps its things: all under the workspace's `target/lab`, but sockets, whose paths must be short.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::command::digest;

/// Root of the workspace that this library was built from.
#[must_use]
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// `target/lab`.
#[must_use]
pub fn lab() -> PathBuf {
    workspace().join("target/lab")
}

/// The recipes of the images.
#[must_use]
pub fn assets() -> PathBuf {
    workspace().join("crates/lab/assets")
}

/// State of all running labs.
#[must_use]
pub fn runs() -> PathBuf {
    lab().join("run")
}

/// State of one running lab.
#[must_use]
pub fn run(lab: &str) -> PathBuf {
    runs().join(lab)
}

/// Folder for a lab's sockets: a socket's path has at most 107 bytes, a workspace may lie deep. Made here, ours alone.
///
/// # Errors
/// It cannot be made, or belongs to somebody else.
pub fn sockets(lab: &str) -> Result<PathBuf> {
    let name = format!("fermata-lab-{}", &digest([run(lab).as_os_str().as_encoded_bytes()])[..12]);
    let folder = std::env::temp_dir().join(name);
    match fs::DirBuilder::new().mode(0o700).create(&folder) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let owner = fs::symlink_metadata(&folder)?;
            if !owner.is_dir() || owner.uid() != rustix::process::geteuid().as_raw() {
                bail!("{} belongs to somebody else; remove it or set TMPDIR", folder.display());
            }
        }
        Err(error) => return Err(error).with_context(|| format!("make {}", folder.display())),
    }
    Ok(folder)
}
