//! Programs of this workspace that go into hosts and guests, built by cargo when they are needed.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{command, paths, progress::Step};

/// Time for one build from nothing on a busy machine.
const BUILD: Duration = Duration::from_secs(1800);

/// The probe: static, so that it runs in a guest of nothing else; optimised, so that it costs the guest little.
///
/// # Errors
/// It does not compile.
pub fn probe() -> Result<PathBuf> {
    alone("fermata-probe", "build the probe")
}

/// The first program of a kernel that was jumped into: static and optimised as it is shipped, for it runs while VMs stand.
///
/// # Errors
/// It does not compile.
pub fn first() -> Result<PathBuf> {
    alone("fermata-first", "build the first program")
}

/// A program that needs nothing else.
fn alone(package: &str, what: &str) -> Result<PathBuf> {
    let step = Step::begin(what);
    // Own flags need an own folder, else each build would throw away the other's work.
    let folder = paths::lab().join("cargo");
    let mut cargo = cargo();
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static").env("CARGO_TARGET_DIR", &folder);
    cargo.args(["build", "--quiet", "--locked", "--release", "--target", "x86_64-unknown-linux-gnu", "-p", package]);
    command::succeed(&mut cargo, BUILD)?;
    step.done();
    let built = folder.join("x86_64-unknown-linux-gnu/release").join(package);
    stripped(&built, package)
}

/// The `fermata` program.
///
/// # Errors
/// It does not compile.
pub fn fermata() -> Result<PathBuf> {
    let step = Step::begin("build fermata");
    let built = build("fermata", "fermata")?;
    step.done();
    stripped(&built, "fermata")
}

/// The `fermata` program as it is shipped: optimised, for whoever measures.
///
/// # Errors
/// It does not compile.
pub fn fermata_optimised() -> Result<PathBuf> {
    let step = Step::begin("build fermata, optimised");
    command::succeed(cargo().args(["build", "--quiet", "--locked", "--release", "-p", "fermata"]), BUILD)?;
    step.done();
    stripped(&target().join("release/fermata"), "fermata-optimised")
}

/// The switch process between hosts.
///
/// # Errors
/// It does not compile.
pub fn switch() -> Result<PathBuf> {
    build("fermata-lab", "fermata-lab-switch")
}

fn build(package: &str, binary: &str) -> Result<PathBuf> {
    command::succeed(cargo().args(["build", "--quiet", "--locked", "-p", package, "--bin", binary]), BUILD)?;
    Ok(target().join("debug").join(binary))
}

fn target() -> PathBuf {
    let folder = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    paths::workspace().join(folder)
}

fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(paths::workspace());
    // Flags of a surrounding cargo would make this build differ from the one by hand, and each would undo the other's.
    for (key, _) in std::env::vars_os() {
        let name = key.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST") || name == "LD_LIBRARY_PATH" {
            cargo.env_remove(&key);
        }
    }
    cargo
}

/// A copy without debug information: a tenth of the size, and it is copied into every host.
fn stripped(built: &Path, name: &str) -> Result<PathBuf> {
    let folder = paths::lab().join("bin");
    std::fs::create_dir_all(&folder)?;
    let target = folder.join(name);
    let fresh = |path: &Path| path.metadata().and_then(|meta| meta.modified());
    if fresh(&target).is_ok_and(|copy| fresh(built).is_ok_and(|source| copy > source)) {
        return Ok(target);
    }
    let part = folder.join(format!("{name}.{}", std::process::id()));
    command::succeed(Command::new("strip").arg("-o").arg(&part).arg(built), Duration::from_secs(60))?;
    std::fs::rename(&part, &target).with_context(|| format!("put {} in place", target.display()))?;
    Ok(target)
}
