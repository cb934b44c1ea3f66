//! A fleet from a JSON file: the shape of [`FleetSpec`](super::FleetSpec), errors with the line of the entry.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::{Fleet, FleetBuilder, ImportError, PieceError};

/// The file with its entries still as text, so that each error knows where its entry stands.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Outline<'a> {
    #[serde(default)]
    revision: u64,
    #[serde(borrow, default)]
    sets: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    hosts: Vec<&'a RawValue>,
    #[serde(borrow, default)]
    vms: Vec<&'a RawValue>,
}

/// Reads a fleet from JSON.
///
/// # Errors
/// [`ImportError`] with line, entry, reason and way out; the first one found ends the import.
pub fn from_json(text: &str) -> Result<Fleet, ImportError> {
    let outline: Outline<'_> = serde_json::from_str(text).map_err(|error| ImportError {
        line: error.line() as u64,
        field: "file".to_owned(),
        reason: without_position(&error),
    })?;
    let mut builder = FleetBuilder::new(outline.revision);
    add_all(text, "sets", &outline.sets, |set| builder.add_set(set))?;
    add_all(text, "hosts", &outline.hosts, |host| builder.add_host(host))?;
    add_all(text, "vms", &outline.vms, |vm| builder.add_vm(vm))?;
    Ok(builder.build())
}

fn add_all<T: DeserializeOwned>(
    text: &str,
    list: &str,
    entries: &[&RawValue],
    mut add: impl FnMut(T) -> Result<(), PieceError>,
) -> Result<(), ImportError> {
    for (index, raw) in entries.iter().enumerate() {
        let entry: T = serde_json::from_str(raw.get()).map_err(|error| ImportError {
            line: first_line(text, raw) + error.line() as u64 - 1,
            field: match member_before(raw.get(), error.line(), error.column()) {
                Some(member) => format!("{list}[{index}].{member}"),
                None => format!("{list}[{index}]"),
            },
            reason: without_position(&error),
        })?;
        add(entry).map_err(|error| ImportError {
            line: first_line(text, raw),
            field: format!("{list}[{index}]"),
            reason: error.to_string(),
        })?;
    }
    Ok(())
}

/// The line on which a borrowed entry begins.
fn first_line(text: &str, raw: &RawValue) -> u64 {
    let offset = (raw.get().as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
    1 + text.bytes().take(offset).filter(|b| *b == b'\n').count() as u64
}

/// The member name that stands last before a position: the one whose value was refused. A missing member has none: the
/// position is then the entry's end.
fn member_before(entry: &str, line: usize, column: usize) -> Option<&str> {
    let line_start: usize = entry.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let end = (line_start + column).min(entry.len());
    if end >= entry.trim_end().len() {
        return None;
    }
    let before = entry.get(..end)?;
    let mut parts = before.rmatch_indices("\":").map(|(at, _)| &before[..at]);
    let name = parts.next()?;
    name.rfind('"').map(|quote| &name[quote + 1..])
}

fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}
