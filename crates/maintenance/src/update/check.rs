//! From the text of an update file to a checked [`Update`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use fermata_model::{Mechanism, PauseBudget, VmName, VmmVersion};
use serde::Deserialize;

use super::{Change, Command, KernelChange, OnRefusal, Section, Step, Update};
use crate::id::{Digest, UpdateId};

/// Why an update file is refused. Every message has the place, the reason and the way out.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// Not TOML, an unknown field or a value that its type refuses.
    #[error("update file: {0}")]
    Syntax(#[from] toml::de::Error),
    /// No title, or one that does not fit one line.
    #[error("title: `{0}` is not one line of 1 to 120 characters; say in a few words what changes")]
    Title(String),
    /// A kind that does not exist.
    #[error("kind: `{0}` is unknown; use \"package\", \"service\", \"vmm\" or \"kernel\"")]
    UnknownKind(String),
    /// A field that the kind needs.
    #[error("change.{field}: missing, but kind \"{kind}\" needs it; add it")]
    Missing {
        /// The field.
        field: &'static str,
        /// The kind.
        kind: String,
    },
    /// A field that means nothing for the kind.
    #[error("change.{field}: means nothing for kind \"{kind}\"; remove it or choose the kind it belongs to")]
    Foreign {
        /// The field.
        field: &'static str,
        /// The kind.
        kind: String,
    },
    /// A service step that could not be taken back.
    #[error(
        "undo: missing; a \"service\" step can fail while guests are held, so say how to take it back in [[undo]] (or set `undo_needed = false` in [change] when a half-done step harms nobody)"
    )]
    UndoMissing,
    /// Neither command nor shell, or both.
    #[error("{place}: give exactly one of `command` (program and arguments) and `shell` (a script)")]
    CommandOrShell {
        /// Where in the file.
        place: String,
    },
    /// A command without a program.
    #[error("{place}.command: is empty; give the program's absolute path and its arguments")]
    EmptyCommand {
        /// Where in the file.
        place: String,
    },
    /// Something that cannot be passed to a program.
    #[error("{place}: contains a NUL byte; remove it")]
    Nul {
        /// Where in the file.
        place: String,
    },
    /// A path that depends on where the agent was started.
    #[error("{place}: `{path}` is not absolute; give the whole path")]
    RelativePath {
        /// Where in the file.
        place: String,
        /// The refused path.
        path: String,
    },
    /// A deadline that cannot be meant.
    #[error("{place}.timeout_ms: {given} ms is out of range; give {min} to {max} ms")]
    Timeout {
        /// Where in the file.
        place: String,
        /// The refused value.
        given: u64,
        /// Smallest allowed.
        min: u64,
        /// Largest allowed.
        max: u64,
    },
    /// The change and its undo together cannot fit into any pause.
    #[error(
        "change.timeout_ms + undo: {total} ms together, but guests are held for at most {max} ms and both may be needed in one pause; shorten them"
    )]
    HoldTooLong {
        /// Change and undo together.
        total: u64,
        /// What a pause allows at most.
        max: u64,
    },
    /// More steps than can be meant.
    #[error("{section}: {given} steps are too many; put more than 100 into a script of their own")]
    TooManySteps {
        /// The section.
        section: Section,
        /// How many.
        given: usize,
    },
    /// A mechanism milder than the kind needs.
    #[error(
        "harshest: \"{given}\" does not allow what kind \"{kind}\" needs (\"{needed}\"); raise it or remove the line"
    )]
    Harshest {
        /// What the file allows.
        given: Mechanism,
        /// The kind.
        kind: String,
        /// What the kind needs.
        needed: Mechanism,
    },
    /// A policy that the kind cannot follow.
    #[error("{place}: {reason}")]
    Policy {
        /// Where in the file.
        place: String,
        /// Why, and the way out.
        reason: &'static str,
    },
    /// Out of range.
    #[error("{field}: {given} is out of range; give {min} to {max}")]
    Range {
        /// The field.
        field: &'static str,
        /// The refused value.
        given: u64,
        /// Smallest allowed.
        min: u64,
        /// Largest allowed.
        max: u64,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUpdate {
    id: UpdateId,
    title: String,
    kind: String,
    harshest: Option<Mechanism>,
    #[serde(default = "default_notice")]
    notice_s: u64,
    #[serde(default = "default_parallelism")]
    parallelism: u64,
    #[serde(default)]
    on_refusal: OnRefusal,
    #[serde(default)]
    vm: BTreeMap<VmName, RawVm>,
    change: RawChange,
    #[serde(default)]
    prepare: Vec<RawStep>,
    #[serde(default)]
    verify: Vec<RawStep>,
    #[serde(default)]
    undo: Vec<RawStep>,
}

/// Azure's nominal notice for a freeze.
const fn default_notice() -> u64 {
    900
}

const fn default_parallelism() -> u64 {
    4
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVm {
    on_refusal: OnRefusal,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawChange {
    command: Option<Vec<String>>,
    shell: Option<String>,
    timeout_ms: Option<u64>,
    undo_needed: Option<bool>,
    vmm: Option<VmmVersion>,
    binary: Option<PathBuf>,
    again: Option<bool>,
    image: Option<PathBuf>,
    initrd: Option<PathBuf>,
    cmdline: Option<String>,
    as_is: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawStep {
    name: Option<String>,
    command: Option<Vec<String>>,
    shell: Option<String>,
    timeout_ms: Option<u64>,
}

const HOUR_MS: u64 = 3_600_000;
/// For steps that run while VMs run: long enough to download and install, not long enough to hang for ever.
const RUNNING_DEFAULT_MS: u64 = 600_000;
const UNDO_DEFAULT_MS: u64 = 5_000;
const HOLD_MAX: Duration = PauseBudget::HOST_MAX;

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn read(text: &str) -> Result<Update, UpdateError> {
    let raw: RawUpdate = toml::from_str(text)?;
    let title = raw.title.trim();
    if title.is_empty() || title.chars().count() > 120 || title.chars().any(char::is_control) {
        return Err(UpdateError::Title(raw.title));
    }
    let undo_needed = raw.change.undo_needed;
    let change = change(&raw.kind, raw.change)?;
    let needed = change.mechanism();
    let held = needed == Mechanism::Hold;
    let harshest = raw.harshest.unwrap_or(needed);
    if harshest < needed {
        return Err(UpdateError::Harshest { given: harshest, kind: raw.kind, needed });
    }
    let in_range = |field, given, min, max| {
        if (min..=max).contains(&given) { Ok(given) } else { Err(UpdateError::Range { field, given, min, max }) }
    };
    let notice = in_range("notice_s", raw.notice_s, 0, 30 * 24 * 3600)?;
    let parallelism = in_range("parallelism", raw.parallelism, 1, 256)?;
    let policies = raw.vm.iter().map(|(vm, policy)| (format!("vm.{vm}.on_refusal"), policy.on_refusal));
    for (place, policy) in policies.chain([("on_refusal".to_owned(), raw.on_refusal)]) {
        let reason = match policy {
            OnRefusal::Skip if needed != Mechanism::Swap => {
                "\"skip\" leaves a VM on its old VMM, which only kind \"vmm\" can do; use \"deny\""
            }
            OnRefusal::Shutdown if harshest < Mechanism::Reboot => {
                "\"shutdown\" needs harshest = \"reboot\"; say so, or use \"deny\""
            }
            OnRefusal::Deny | OnRefusal::Skip | OnRefusal::Shutdown => continue,
        };
        return Err(UpdateError::Policy { place, reason });
    }
    let prepare = steps(Section::Prepare, raw.prepare, RUNNING_DEFAULT_MS, 24 * HOUR_MS)?;
    let verify = steps(Section::Verify, raw.verify, RUNNING_DEFAULT_MS, 24 * HOUR_MS)?;
    let undo = if held {
        steps(Section::Undo, raw.undo, UNDO_DEFAULT_MS, millis(HOLD_MAX))?
    } else {
        steps(Section::Undo, raw.undo, RUNNING_DEFAULT_MS, 24 * HOUR_MS)?
    };
    if held && undo.is_empty() && undo_needed != Some(false) {
        return Err(UpdateError::UndoMissing);
    }
    let update = Update {
        id: raw.id,
        title: title.to_owned(),
        digest: Digest::of(text.as_bytes()),
        change,
        harshest,
        notice: Duration::from_secs(notice),
        parallelism: u16::try_from(parallelism).unwrap_or(u16::MAX),
        on_refusal: raw.on_refusal,
        vms: raw.vm.into_iter().map(|(vm, policy)| (vm, policy.on_refusal)).collect(),
        prepare,
        verify,
        undo,
    };
    let together = update.longest(Section::Change) + update.longest(Section::Undo);
    if held && together >= HOLD_MAX {
        return Err(UpdateError::HoldTooLong { total: millis(together), max: millis(HOLD_MAX) - 1 });
    }
    Ok(update)
}

fn change(kind: &str, raw: RawChange) -> Result<Change, UpdateError> {
    let missing = |field| UpdateError::Missing { field, kind: kind.to_owned() };
    let has_command = raw.command.is_some() || raw.shell.is_some();
    let given = [
        ("command", has_command, &["package", "service"][..]),
        ("timeout_ms", raw.timeout_ms.is_some(), &["package", "service"]),
        ("undo_needed", raw.undo_needed.is_some(), &["service"]),
        ("vmm", raw.vmm.is_some(), &["vmm", "kernel"]),
        ("binary", raw.binary.is_some(), &["vmm"]),
        ("again", raw.again.is_some(), &["vmm"]),
        ("image", raw.image.is_some(), &["kernel"]),
        ("initrd", raw.initrd.is_some(), &["kernel"]),
        ("cmdline", raw.cmdline.is_some(), &["kernel"]),
        ("as_is", raw.as_is.is_some(), &["kernel"]),
    ];
    if !["package", "service", "vmm", "kernel"].contains(&kind) {
        return Err(UpdateError::UnknownKind(kind.to_owned()));
    }
    if let Some((field, ..)) = given.iter().find(|(_, given, kinds)| *given && !kinds.contains(&kind)) {
        return Err(UpdateError::Foreign { field, kind: kind.to_owned() });
    }
    let absolute = |field: &str, path: &PathBuf| {
        let place = format!("change.{field}");
        if path.is_absolute() {
            Ok(())
        } else {
            Err(UpdateError::RelativePath { place, path: path.display().to_string() })
        }
    };
    match kind {
        "package" | "service" => {
            if !has_command {
                return Err(missing("command"));
            }
            let held = kind == "service";
            if held && raw.timeout_ms.is_none() {
                return Err(missing("timeout_ms"));
            }
            let max = if held { millis(HOLD_MAX) - 1 } else { 24 * HOUR_MS };
            let raw = RawStep { name: None, command: raw.command, shell: raw.shell, timeout_ms: raw.timeout_ms };
            let step = step("change", raw, RUNNING_DEFAULT_MS, max)?;
            Ok(if held { Change::Service { step } } else { Change::Package { step } })
        }
        "vmm" => {
            raw.binary.as_ref().map_or(Ok(()), |path| absolute("binary", path))?;
            let version = raw.vmm.ok_or_else(|| missing("vmm"))?;
            Ok(Change::Vmm { version, binary: raw.binary, again: raw.again.unwrap_or(false) })
        }
        _ => {
            let image = raw.image.ok_or_else(|| missing("image"))?;
            absolute("image", &image)?;
            raw.initrd.as_ref().map_or(Ok(()), |path| absolute("initrd", path))?;
            if raw.cmdline.as_ref().is_some_and(|line| line.contains('\0')) {
                return Err(UpdateError::Nul { place: "change.cmdline".to_owned() });
            }
            let as_is = raw.as_is.unwrap_or(false);
            Ok(Change::Kernel(KernelChange { image, initrd: raw.initrd, cmdline: raw.cmdline, vmm: raw.vmm, as_is }))
        }
    }
}

fn steps(section: Section, raw: Vec<RawStep>, default_ms: u64, max: u64) -> Result<Vec<Step>, UpdateError> {
    if raw.len() > 100 {
        return Err(UpdateError::TooManySteps { section, given: raw.len() });
    }
    let place = |index| format!("{section} {index}");
    raw.into_iter().enumerate().map(|(index, raw)| step(&place(index + 1), raw, default_ms, max)).collect()
}

fn step(place: &str, raw: RawStep, default_ms: u64, max: u64) -> Result<Step, UpdateError> {
    let place = place.to_owned();
    let command = match (raw.command, raw.shell) {
        (Some(argv), None) => argv_command(&place, argv)?,
        (None, Some(script)) if script.contains('\0') => return Err(UpdateError::Nul { place }),
        (None, Some(script)) if script.trim().is_empty() => return Err(UpdateError::EmptyCommand { place }),
        (None, Some(script)) => Command::Shell(script),
        (None, None) | (Some(_), Some(_)) => return Err(UpdateError::CommandOrShell { place }),
    };
    let given = raw.timeout_ms.unwrap_or(default_ms);
    if given == 0 || given > max {
        return Err(UpdateError::Timeout { place, given, min: 1, max });
    }
    let name = raw.name.unwrap_or_else(|| command.to_string());
    Ok(Step { name, command, timeout: Duration::from_millis(given) })
}

fn argv_command(place: &str, argv: Vec<String>) -> Result<Command, UpdateError> {
    let Some(program) = argv.first().filter(|program| !program.is_empty()) else {
        return Err(UpdateError::EmptyCommand { place: place.to_owned() });
    };
    if !program.starts_with('/') {
        return Err(UpdateError::RelativePath { place: format!("{place}.command"), path: program.clone() });
    }
    if argv.iter().any(|argument| argument.contains('\0')) {
        return Err(UpdateError::Nul { place: format!("{place}.command") });
    }
    Ok(Command::Argv(argv))
}
