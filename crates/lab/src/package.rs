//! The Debian package: the binary, its units and configuration (`packaging/tree`), manual pages and completions that the binary itself writes.
//!
//! ```text
//!  packaging/tree ──────────────────────► tree ─┐
//!  fermata, first ─► strip ─────────────► tree ─┤
//!          ─► `completions`, `manual-pages` ────┼─► dpkg-buildpackage (debhelper) ─► target/package/fermata_VERSION-1_ARCH.deb
//!  packaging/debian, CHANGELOG, README, docs ───┘
//! ```
//! Nothing is compiled in there and nothing is fetched; why debhelper, says `docs/adr/0080`.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use fermata_first::PROGRAM;

use crate::{artifact, command, paths, prerequisites, progress::Step};

/// Time for one package: mostly compression of the binary.
const BUILD: Duration = Duration::from_secs(300);

/// Where a shell looks for completions that packages bring.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/fermata"),
    ("zsh", "usr/share/zsh/vendor-completions/_fermata"),
    ("fish", "usr/share/fish/vendor_completions.d/fermata.fish"),
];

/// Version of the workspace.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How often this version was packaged: what Debian puts behind the product's version.
const REVISION: u32 = 1;

/// Makes the package of `binary` in `target/package`, whatever was there under its name before.
///
/// # Errors
/// The version is none that Debian knows, the binary does not run here, a file cannot be written, or the builder fails; the error ends with
/// its last words.
pub fn make(binary: &Path, version: &str) -> Result<PathBuf> {
    make_in(&paths::workspace().join("target/package"), binary, version)
}

/// The package of `binary` for hosts of labs: that of before when nothing in it has changed since.
///
/// # Errors
/// As [`make`].
pub fn of(binary: &Path) -> Result<PathBuf> {
    let folder = paths::lab().join("packages");
    fs::create_dir_all(&folder)?;
    let lock = File::create(folder.join("lock"))?;
    lock.lock()?;
    let read = |program: &Path| fs::read(program).with_context(|| format!("read {}", program.display()));
    let mut parts = vec![read(binary)?, read(&artifact::first()?)?];
    for part in INPUTS {
        contents(&paths::workspace().join(part), &mut parts)?;
    }
    let identity = command::digest(parts);
    let place = folder.join(&identity[..16]);
    if let Some(found) = packages_in(&place)?.pop() {
        File::open(&place)?.set_modified(SystemTime::now())?;
        return Ok(found);
    }
    let made = make_in(&place, binary, VERSION)?;
    forget_old(&folder)?;
    Ok(made)
}

/// What a package is made of besides its binary.
const INPUTS: [&str; 5] = ["packaging", "examples", "README.md", "CHANGELOG.md", "Cargo.lock"];
/// Packages that are kept for labs: those of two binaries, in the state of this tree and of one before.
const KEPT: usize = 4;

/// Names and contents of files, in an order that is always the same.
fn contents(path: &Path, parts: &mut Vec<Vec<u8>>) -> Result<()> {
    parts.push(path.as_os_str().as_encoded_bytes().to_vec());
    if path.is_symlink() {
        parts.push(fs::read_link(path)?.into_os_string().into_encoded_bytes());
    } else if path.is_dir() {
        let mut inside: Vec<PathBuf> =
            fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
        inside.sort();
        inside.iter().try_for_each(|path| contents(path, parts))?;
    } else {
        parts.push(fs::read(path).with_context(|| format!("read {}", path.display()))?);
    }
    Ok(())
}

fn packages_in(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let inside = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    Ok(inside.into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "deb")).collect())
}

/// All but those used last.
fn forget_old(folder: &Path) -> Result<()> {
    let entries = fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>()?;
    let used = |entry: &fs::DirEntry| entry.metadata().and_then(|meta| meta.modified()).ok();
    let mut places: Vec<_> = entries.into_iter().filter(|entry| entry.path().is_dir()).collect();
    places.sort_by_key(|entry| std::cmp::Reverse(used(entry)));
    places.iter().skip(KEPT).try_for_each(|entry| Ok(fs::remove_dir_all(entry.path())?))
}

fn make_in(packages: &Path, binary: &Path, version: &str) -> Result<PathBuf> {
    ensure!(is_version(version), "version {version:?}: use digits, letters, '.', '+' and '~', beginning with a digit");
    prerequisites::ensure_packaging()?;
    let step = Step::begin(&format!("package fermata {version}"));
    // The builder leaves its results beside the folder it works in.
    let room = packages.join(format!("build-{}", std::process::id()));
    let work = room.join(format!("fermata-{version}"));
    if room.exists() {
        fs::remove_dir_all(&room)?;
    }
    fs::create_dir_all(&work).with_context(|| format!("make {}", work.display()))?;
    prepare(&work, binary, version)?;
    let mut builder = Command::new("dpkg-buildpackage");
    builder.args(["--build=binary", "--unsigned-changes", "--no-check-builddeps", "--no-pre-clean"]).current_dir(&work);
    // The binary is optimised or not by whoever built it; flags for compilers concern nobody here.
    command::succeed(&mut builder, BUILD).context("build the package")?;
    let mut architecture = Command::new("dpkg");
    let architecture = command::succeed(architecture.arg("--print-architecture"), Duration::from_secs(10))?;
    let name = format!("fermata_{version}-{REVISION}_{}.deb", architecture.trim());
    let package = packages.join(&name);
    fs::rename(room.join(&name), &package).with_context(|| format!("put {} in place", package.display()))?;
    fs::remove_dir_all(&room)?;
    step.done();
    Ok(package)
}

/// Fills the folder that the builder works in.
fn prepare(work: &Path, binary: &Path, version: &str) -> Result<()> {
    let workspace = paths::workspace();
    copy_tree(&workspace.join("packaging/debian"), &work.join("debian"))?;
    copy_tree(&workspace.join("packaging/tree"), &work.join("tree"))?;
    copy_tree(&workspace.join("examples"), &work.join("examples"))?;
    let fermata = work.join("tree/usr/bin/fermata");
    for (program, place) in
        [(binary, &fermata), (&artifact::first()?, &work.join("tree").join(PROGRAM.trim_start_matches('/')))]
    {
        fs::create_dir_all(place.parent().unwrap_or(work))?;
        fs::copy(program, place).with_context(|| format!("copy {}", program.display()))?;
        fs::set_permissions(place, fs::Permissions::from_mode(0o755))?;
    }
    for (shell, path) in COMPLETIONS {
        let text = command::succeed(Command::new(&fermata).args(["completions", shell]), Duration::from_secs(60))?;
        write(&work.join("tree").join(path), &text)?;
    }
    fs::create_dir_all(work.join("man"))?;
    command::succeed(Command::new(&fermata).arg("manual-pages").arg(work.join("man")), Duration::from_secs(60))?;
    fs::create_dir_all(work.join("shipped"))?;
    for (from, to) in [
        ("README.md", "shipped/README.md"),
        ("CHANGELOG.md", "CHANGELOG.md"),
        // Where the agent says one is found when there is no configuration.
        ("packaging/tree/etc/fermata/agent.toml", "shipped/agent.toml"),
    ] {
        fs::copy(workspace.join(from), work.join(to)).with_context(|| format!("copy {from}"))?;
    }
    write(&work.join("shipped/crates.txt"), &crates()?)?;
    write(&work.join("debian/changelog"), &changelog(version)?)
}

/// The crates that the binary is linked with, and their licences.
fn crates() -> Result<String> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(paths::workspace());
    cargo.args(["tree", "--quiet", "--locked", "--package", "fermata", "--edges", "normal", "--prefix", "none"]);
    let told = command::succeed(cargo.args(["--format", "{p}: {l}"]), Duration::from_secs(120))?;
    Ok(foreign(&told))
}

/// Of `cargo tree`'s lines those of other people's crates, each once. It names a crate of the workspace with its path, and marks what it
/// has shown before.
fn foreign(told: &str) -> String {
    let mut lines: Vec<&str> =
        told.lines().filter(|line| !line.contains(" (/")).map(|line| line.trim_end_matches(" (*)")).collect();
    lines.sort_unstable();
    lines.dedup();
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// What Debian's tools want to know of a version; what changed is in the changelog of the product. Dated by the last change, so that the same
/// tree gives the same package.
fn changelog(version: &str) -> Result<String> {
    let mut git = Command::new("git");
    git.current_dir(paths::workspace()).args(["log", "-1", "--format=%cD"]);
    let date = command::succeed(&mut git, Duration::from_secs(30)).or_else(|_| {
        // Not from git, such as an unpacked archive.
        command::succeed(Command::new("date").arg("-R"), Duration::from_secs(10))
    })?;
    let control = fs::read_to_string(paths::workspace().join("packaging/debian/control"))?;
    let who = control.lines().find_map(|line| line.strip_prefix("Maintainer: "));
    let who = who.context("packaging/debian/control names no maintainer")?;
    let words = "  * See /usr/share/doc/fermata/changelog.gz.";
    Ok(format!("fermata ({version}-{REVISION}) unstable; urgency=medium\n\n{words}\n\n -- {who}  {}\n", date.trim()))
}

/// Versions without what Debian puts before and behind them (its policy, 5.6.12).
fn is_version(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".+~".contains(&byte);
    text.as_bytes().first().is_some_and(u8::is_ascii_digit) && text.bytes().all(fits)
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(entry.path())?, &target)
                .with_context(|| format!("make the link {}", target.display()))?;
        } else {
            fs::copy(entry.path(), &target).with_context(|| format!("copy {}", entry.path().display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_dpkg_would_refuse_are_refused() {
        assert!(["0.1.0", "0.1.0+2", "1.0~rc1"].into_iter().all(is_version));
        assert!(!["", "v1", "0.1 0", "0.1/../x", "0.1-1"].into_iter().any(is_version));
    }

    #[test]
    fn whatever_is_in_a_package_is_in_its_identity() {
        let place = tempfile::tempdir().unwrap();
        let identity = || {
            let mut parts = Vec::new();
            contents(place.path(), &mut parts).unwrap();
            command::digest(parts)
        };
        let empty = identity();
        fs::create_dir(place.path().join("etc")).unwrap();
        fs::write(place.path().join("etc/a"), "1").unwrap();
        let first = identity();
        assert_eq!(first, identity());
        fs::write(place.path().join("etc/a"), "2").unwrap();
        let changed = identity();
        fs::rename(place.path().join("etc/a"), place.path().join("etc/b")).unwrap();
        let all = [empty, first, changed, identity()];
        assert!(all.iter().enumerate().all(|(at, one)| !all[..at].contains(one)), "{all:?}");
    }

    #[test]
    fn crates_of_others_are_listed_once_with_their_licence() {
        let told = "fermata v0.1.0 (/w/crates/fermata): Apache-2.0\nzbus v6.0.0: MIT\nanyhow v1.0.0: MIT OR Apache-2.0\nzbus v6.0.0: MIT (*)\n";
        assert_eq!(foreign(told), "anyhow v1.0.0: MIT OR Apache-2.0\nzbus v6.0.0: MIT\n");
    }

    #[test]
    fn every_unit_the_package_brings_is_started_at_installation_or_named_here() {
        let units = paths::workspace().join("packaging/tree/usr/lib/systemd/system");
        let rules = fs::read_to_string(paths::workspace().join("packaging/debian/rules")).unwrap();
        let by_others = ["fermata-first.target", "fermata-others.service", "fermata-others.timer", "fermata.slice"];
        for entry in fs::read_dir(units).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(name.ends_with(".d") || by_others.contains(&name.as_str()) || rules.contains(&name), "{name}");
        }
    }
}
