//! Setting a host up: the words on the kernel's command line, the modules, the agent's configuration. Takes effect with the
//! next restart of the host; doing it twice changes nothing.

use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use fermata_model::Size;
use serde::Serialize;

use super::place::{self, NoPlace, Place};
use crate::vaults::MODULES;

/// Why a host was not prepared.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// The firmware's map of memory.
    #[error("the firmware's map of memory ({path}): {source}; give the place with --start")]
    Map {
        /// Where it is read.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// No place.
    #[error(transparent)]
    Place(#[from] NoPlace),
    /// A file.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The boot loader's own program.
    #[error("{program} failed: {reason}; nothing takes effect before it has run")]
    Loader {
        /// The program.
        program: &'static str,
        /// What it said.
        reason: String,
    },
}

/// What was, or would be, done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Prepared {
    /// The words for the kernel's command line.
    pub words: Vec<String>,
    /// Memory of the vault.
    pub vault: Size,
    /// Memory left for the host.
    pub host: Size,
    /// How the command line is set: `grub`, `systemd-boot` or `by hand`.
    pub loader: &'static str,
    /// Files with what they hold.
    pub files: Vec<(PathBuf, String)>,
    /// What is left to do for a person.
    pub next: Vec<String>,
}

/// The folders of a host.
#[derive(Debug, Clone)]
pub struct Roots {
    /// `/etc`.
    pub etc: PathBuf,
    /// `/sys/firmware/memmap`.
    pub memmap: PathBuf,
    /// The agent's configuration.
    pub config: PathBuf,
}

impl Roots {
    /// This host's.
    #[must_use]
    pub fn of_this_host(config: &Path) -> Self {
        Self { etc: "/etc".into(), memmap: "/sys/firmware/memmap".into(), config: config.to_owned() }
    }
}

/// Ordinary memory, by the firmware's map (`Documentation/ABI/testing/sysfs-firmware-memmap`).
///
/// # Errors
/// [`PrepareError::Map`].
pub fn ordinary_memory(folder: &Path) -> Result<Vec<Range<u64>>, PrepareError> {
    let failed = |source| PrepareError::Map { path: folder.to_owned(), source };
    let number = |path: PathBuf| -> io::Result<u64> {
        let text = fs::read_to_string(path)?;
        u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).map_err(io::Error::other)
    };
    let mut ram = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?.path();
        if fs::read_to_string(entry.join("type")).map_err(failed)?.trim() != "System RAM" {
            continue;
        }
        let (start, end) = (number(entry.join("start")).map_err(failed)?, number(entry.join("end")).map_err(failed)?);
        ram.push(start..end + 1);
    }
    ram.sort_by_key(|piece| piece.start);
    Ok(ram)
}

/// Decides what to do; nothing is done.
///
/// # Errors
/// [`PrepareError`].
pub fn plan(roots: &Roots, wanted: Size, start: Option<u64>) -> Result<Prepared, PrepareError> {
    let ram = ordinary_memory(&roots.memmap)?;
    let mut place = place::choose(&ram, wanted.bytes())?;
    if let Some(start) = start {
        place = Place { start, ..place };
    }
    // A kernel that panics after a jump must not stay there.
    let words = vec![place.word(), "panic=10".to_owned()];
    let mut files = vec![(
        roots.etc.join("modules-load.d/fermata-vault.conf"),
        format!("# Memory set aside by memmap= becomes the vault's device.\n{}\n", MODULES.join("\n")),
    )];
    let mut next = Vec::new();
    let loader = if roots.etc.join("default/grub").is_file() {
        let line = format!("GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX {}\"\n", words.join(" "));
        let text = format!("# Memory set aside for VMs by `fermata host prepare`.\n{line}");
        files.push((roots.etc.join("default/grub.d/fermata.cfg"), text));
        "grub"
    } else if roots.etc.join("kernel/cmdline").is_file() {
        let path = roots.etc.join("kernel/cmdline");
        let was = fs::read_to_string(&path).map_err(|source| PrepareError::File { path: path.clone(), source })?;
        files.push((path, with_words(&was, &words)));
        "systemd-boot"
    } else {
        next.push(format!("add to the kernel's command line: {}", words.join(" ")));
        "by hand"
    };
    let config = fs::read_to_string(&roots.config).unwrap_or_default();
    if config.lines().any(|line| line.trim() == "[vault]") {
        next.push(format!("see that [vault] in {} says kind = \"devdax\"", roots.config.display()));
    } else {
        files.push((roots.config.clone(), format!("{config}\n[vault]\nkind = \"devdax\"\n")));
    }
    next.push(
        "restart the host, then `fermata host check`; VMs come into the vault when they are started again".to_owned(),
    );
    Ok(Prepared { words, vault: Size::from_bytes(place.size), host: Size::from_bytes(place.left), loader, files, next })
}

/// A command line with other words of ours replaced by these.
fn with_words(was: &str, words: &[String]) -> String {
    let ours = |word: &&str| (word.starts_with("memmap=") && word.contains('!')) || word.starts_with("panic=");
    let kept = was.split_whitespace().filter(|word| !ours(word)).map(str::to_owned);
    kept.chain(words.iter().cloned()).collect::<Vec<_>>().join(" ") + "\n"
}

/// Writes what was decided and tells the boot loader.
///
/// # Errors
/// [`PrepareError`].
pub fn carry_out(prepared: &Prepared) -> Result<(), PrepareError> {
    for (path, text) in &prepared.files {
        let failed = |source| PrepareError::File { path: path.clone(), source };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        // Under its name only when whole: what is booted by must never be half there.
        let draft = path.with_extension("fermata-new");
        fs::write(&draft, text).map_err(failed)?;
        fs::rename(&draft, path).map_err(failed)?;
    }
    match prepared.loader {
        "grub" => run("update-grub", &[]),
        "systemd-boot" => run("kernel-install", &["add-all"]),
        _ => Ok(()),
    }
}

fn run(program: &'static str, args: &[&str]) -> Result<(), PrepareError> {
    let output = Command::new(program).args(args).output();
    let output = output.map_err(|source| PrepareError::Loader { program, reason: source.to_string() })?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(PrepareError::Loader { program, reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> (tempfile::TempDir, Roots) {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (number, (start, end, kind)) in [
            ("0x0", "0x9fbff", "System RAM"),
            ("0x9fc00", "0xfffff", "Reserved"),
            ("0x100000000", "0x3ffffffff", "System RAM"),
        ]
        .iter()
        .enumerate()
        {
            let entry = at("memmap").join(number.to_string());
            fs::create_dir_all(&entry).unwrap();
            fs::write(entry.join("start"), format!("{start}\n")).unwrap();
            fs::write(entry.join("end"), format!("{end}\n")).unwrap();
            fs::write(entry.join("type"), format!("{kind}\n")).unwrap();
        }
        fs::create_dir_all(at("etc/default")).unwrap();
        fs::write(at("agent.toml"), "[vmm.\"10.0\"]\nbinary = \"/q\"\n").unwrap();
        let roots = Roots { etc: at("etc"), memmap: at("memmap"), config: at("agent.toml") };
        (dir, roots)
    }

    #[test]
    fn grub_gets_a_file_of_its_own_and_the_agent_a_vault() {
        let (dir, roots) = host();
        fs::write(dir.path().join("etc/default/grub"), "GRUB_CMDLINE_LINUX=\"\"\n").unwrap();
        let prepared = plan(&roots, Size::from_mib(8192), None).unwrap();
        assert_eq!((prepared.loader, prepared.words[0].as_str()), ("grub", "memmap=8G!8G"));
        let grub = prepared.files.iter().find(|(path, _)| path.ends_with("grub.d/fermata.cfg")).unwrap();
        assert!(grub.1.contains("\"$GRUB_CMDLINE_LINUX memmap=8G!8G panic=10\""), "{}", grub.1);
        let config = prepared.files.iter().find(|(path, _)| path.ends_with("agent.toml")).unwrap();
        assert!(config.1.starts_with("[vmm.") && config.1.ends_with("[vault]\nkind = \"devdax\"\n"));
    }

    #[test]
    fn systemd_boot_keeps_its_other_words_and_twice_is_once() {
        let (dir, roots) = host();
        fs::create_dir_all(dir.path().join("etc/kernel")).unwrap();
        fs::write(dir.path().join("etc/kernel/cmdline"), "root=/dev/sda1 quiet panic=3 memmap=1G!4G\n").unwrap();
        let prepared = plan(&roots, Size::from_mib(4096), None).unwrap();
        carry_out(&Prepared { loader: "by hand", ..prepared.clone() }).unwrap();
        let text = fs::read_to_string(dir.path().join("etc/kernel/cmdline")).unwrap();
        assert_eq!(text, "root=/dev/sda1 quiet memmap=4G!12G panic=10\n");
        let again = plan(&roots, Size::from_mib(4096), None).unwrap();
        assert!(again.files.iter().any(|(path, body)| path.ends_with("cmdline") && *body == text));
        assert!(!again.files.iter().any(|(path, _)| path.ends_with("agent.toml")), "[vault] is there already");
    }

    #[test]
    fn without_a_known_loader_a_person_is_told_the_words() {
        let (_dir, roots) = host();
        let prepared = plan(&roots, Size::from_mib(1024), None).unwrap();
        assert_eq!(prepared.loader, "by hand");
        assert!(prepared.next[0].contains("memmap=1G!15G"), "{:?}", prepared.next);
    }
}
