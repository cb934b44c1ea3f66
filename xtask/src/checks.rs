//! Images, tests and checks of dependencies.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use fermata_lab::{artifact, fault, guests, image::Image, package, paths, prerequisites};

/// Builds what labs need, so that a test does not have to.
pub(crate) fn image(with_debian: bool) -> Result<()> {
    prerequisites::ensure()?;
    let image = Image::ensure()?;
    let guests = guests::disk(&image, &artifact::probe()?, with_debian)?;
    println!("host image    {}\nguests' disk  {}", image.disk().display(), guests.display());
    Ok(())
}

/// Makes the Debian package, of what is shipped unless another binary is named.
pub(crate) fn package(binary: Option<PathBuf>, version: &str) -> Result<()> {
    let binary = binary.map_or_else(artifact::fermata_optimised, Ok)?;
    println!("{}", package::make(&binary, version)?.display());
    Ok(())
}

/// The tests on virtual hosts that every change must pass; the others are for [`test_hosts`].
const DAILY: &[&str] = &["host", "two_hosts", "vm_life"];

/// What a change must pass, but format and lints; with words of its own, only what they choose of the workspace's tests.
pub(crate) fn test(words: &[String]) -> Result<()> {
    image(false)?;
    cargo(["test", "--workspace", "--locked"].into_iter().chain(words.iter().map(String::as_str)))?;
    if words.is_empty() { DAILY.iter().try_for_each(|name| test_host(name)) } else { Ok(()) }
}

/// The promises of a hand over between two real VMMs on this machine, and both firmwares, without a virtual host.
pub(crate) fn test_vmm() -> Result<()> {
    prerequisites::ensure()?;
    let image = Image::ensure()?;
    let disk = guests::debian(&artifact::probe()?)?;
    let wrapped = [("FERMATA_TEST_VMM_OLD", "outer"), ("FERMATA_TEST_VMM_NEW", "outer-newer")];
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (variable, folder) in wrapped {
        cargo.env(variable, wrapper(&image.file(folder))?);
    }
    cargo.env("FERMATA_TEST_OVMF", image.file("outer/share")).env("FERMATA_TEST_DEBIAN", disk);
    cargo.args(["test", "--locked", "-p", "fermata-vmm", "--features", "real-vmm", "--test", "real"]);
    let status = cargo.args(["--", "--nocapture", "--test-threads=1"]).status().context("start cargo")?;
    ensure!(status.success(), "see above");
    Ok(())
}

/// A program that starts a QEMU of the image by its own loader.
fn wrapper(folder: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let place = folder.display();
    let script = format!(
        "#!/bin/sh\nexport QEMU_MODULE_DIR='{place}/modules'\nexec '{place}/lib/ld-linux-x86-64.so.2' --library-path '{place}/lib' \\\n    \
         '{place}/qemu-system-x86_64' -L '{place}/share/qemu' -L '{place}/share/seabios' \"$@\"\n"
    );
    let path = folder.join("run");
    std::fs::write(&path, script)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// Everything on virtual hosts, or what is named: real kernels, real QEMU, real guests.
pub(crate) fn test_hosts(names: &[String]) -> Result<()> {
    image(false)?;
    if !names.is_empty() {
        return names.iter().try_for_each(|name| test_host(name));
    }
    let mut all = Vec::new();
    for entry in std::fs::read_dir(paths::workspace().join("crates/lab/tests"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            all.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    all.sort();
    all.iter().try_for_each(|name| test_host(name))
}

/// One file of tests. It is run again, once, when the emulator around the hosts broke and said so: that tells nothing of Fermata.
fn test_host(name: &str) -> Result<()> {
    let run = || {
        let words = ["test", "--locked", "-p", "fermata-lab", "--features", "hosts", "--test", name];
        // One after the other: each takes all the CPU there is.
        cargo(words.into_iter().chain(["--", "--nocapture", "--test-threads=1"]))
    };
    fault::forget()?;
    let Err(error) = run() else { return Ok(()) };
    let Some(fault) = fault::seen() else { return Err(error) };
    eprintln!("test {name}: once more, as the emulator broke: {fault}");
    run()
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
