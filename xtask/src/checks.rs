//! Images, tests and checks of dependencies.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use fermata_lab::{artifact, guests, image::Image, prerequisites};

/// Builds what labs need, so that a test does not have to.
pub(crate) fn image() -> Result<()> {
    prerequisites::ensure()?;
    let image = Image::ensure()?;
    let guests = guests::disk(&image, &artifact::probe()?, true)?;
    println!("host image    {}\nguests' disk  {}", image.disk().display(), guests.display());
    Ok(())
}

/// What a change must pass, but format, lints and [`test_hosts`].
pub(crate) fn test(words: &[String]) -> Result<()> {
    image()?;
    cargo(["test", "--workspace", "--locked"].into_iter().chain(words.iter().map(String::as_str)))
}

/// VMs, and the change of their VMM, on virtual hosts: real kernels, real QEMU, real guests.
pub(crate) fn test_hosts() -> Result<()> {
    image()?;
    let mut words = vec!["test", "--locked", "-p", "fermata-lab", "--features", "hosts"];
    words.extend(["--test", "host", "--test", "vm_life", "--test", "swap", "--test", "swap_faults"]);
    cargo(words.into_iter().chain(["--", "--nocapture"]))
}

/// Licences, bans and sources, by cargo-deny.
pub(crate) fn deny() -> Result<()> {
    let there = Command::new("cargo-deny").arg("--version").output().is_ok_and(|output| output.status.success());
    if !there {
        bail!("cargo-deny is not installed; `cargo install --locked cargo-deny` does that");
    }
    // The advisories' data base comes from the internet and changes daily: no part of a check that must give the same tomorrow.
    cargo(["deny", "--locked", "check", "licenses", "bans", "sources"])
}

fn cargo<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(program).args(words).status().context("start cargo")?;
    ensure!(status.success(), "see above");
    Ok(())
}
