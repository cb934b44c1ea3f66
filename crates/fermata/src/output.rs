//! Answers on the terminal: tables for people, JSON for programs.

use std::io::Write;
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

/// Prints an error with everything that caused it, once.
pub(crate) fn error(error: &anyhow::Error, json: bool) {
    let text = chain(error);
    let line = if json { serde_json::json!({ "error": text }).to_string() } else { format!("error: {text}") };
    // Nothing is left to tell the reader when standard error is closed.
    writeln!(std::io::stderr(), "{line}").ok();
}

fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // An error that already ends with its source is not repeated.
        if !text.contains(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    text
}

/// Prints a value as JSON, or as `text` makes it.
pub(crate) fn value<T: Serialize>(value: &T, json: bool, text: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
    let mut shown = if json { serde_json::to_string_pretty(value)? } else { text(value) };
    if !shown.ends_with('\n') {
        shown.push('\n');
    }
    self::text(shown.as_bytes())
}

/// Prints a text as it is.
pub(crate) fn text(text: &[u8]) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text) {
        // A reader that has seen enough (`| head`) is no failure.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Keeps a page, and says where.
pub(crate) fn page(file: &Path, page: &str, json: bool) -> anyhow::Result<()> {
    std::fs::write(file, page).with_context(|| format!("write {}", file.display()))?;
    value(&serde_json::json!({ "html": file }), json, |_| format!("wrote {}", file.display()))
}

/// A table with left-aligned columns.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter().map(|row| row[column].chars().count()).chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut text = line(&mut head.iter().copied());
    for row in rows {
        text.push('\n');
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

/// Lines of `key: value`, with the values in one column.
pub(crate) fn fields(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(key, _)| key.len()).max().unwrap_or(0) + 1;
    let lines: Vec<String> = rows.iter().map(|(key, value)| format!("{:<width$} {value}", format!("{key}:"))).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let text = table(&["NAME", "STATE"], &[vec!["a-long-name".into(), "running".into()]]);
        assert_eq!(text, "NAME         STATE\na-long-name  running");
        assert_eq!(fields(&[("name", "a".into()), ("state", "b".into())]), "name:  a\nstate: b");
    }

    #[test]
    fn a_cause_is_printed_once() {
        let error = anyhow::anyhow!("disk full").context("write: disk full").context("journal");
        assert_eq!(chain(&error), "journal: write: disk full");
    }
}
