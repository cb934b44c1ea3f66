//! `fermata rollout watch`: a line for everything that changes.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use serde_json::Value;

use super::CliError;
use crate::client::Client;

/// The phase of a rollout, or of a host, as one word.
pub(super) fn phase_word(phase: &Value) -> String {
    match phase {
        Value::String(word) => word.clone(),
        Value::Object(fields) => match (fields.get("is"), fields.iter().next()) {
            (Some(word), _) => phase_word(word).replace('_', " "),
            (None, Some((outer, inner))) => format!("{outer} ({})", phase_word(inner)),
            (None, None) => String::new(),
        },
        _ => String::new(),
    }
}

/// Prints what changes until the rollout has ended; gives its last phase. A controller that is away for a moment is waited for.
///
/// # Errors
/// [`CliError`] when the rollout is not there, or the controller stays away.
pub async fn watch(client: &Client, rollout: &str, out: &mut (impl Write + Send)) -> Result<String, CliError> {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    let mut away = 0;
    loop {
        let state = match client.get::<Value>(&format!("/v1/rollouts/{rollout}")).await {
            Ok(state) => state,
            Err(error @ crate::client::ClientError::Unreachable { .. }) if away < 60 => {
                if away == 0 {
                    // A reader that went away ends the watch below, at the next change.
                    let _ = writeln!(out, "{error}; waiting for it");
                }
                away += 1;
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        away = 0;
        let state = &state["state"];
        let mut changed = false;
        for (host, is) in state["hosts"].as_object().into_iter().flatten() {
            changed |= note(&mut seen, host, phase_word(&is["phase"]), out)?;
        }
        let phase = phase_word(&state["phase"]);
        changed |= note(&mut seen, "rollout", phase.clone(), out)?;
        if changed {
            out.flush().map_err(closed)?;
        }
        if phase.starts_with("ended") {
            return Ok(phase);
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn closed(source: std::io::Error) -> CliError {
    CliError::Io { path: "standard output".into(), source }
}

fn note(
    seen: &mut BTreeMap<String, String>,
    what: &str,
    phase: String,
    out: &mut impl Write,
) -> Result<bool, CliError> {
    if seen.get(what) == Some(&phase) {
        return Ok(false);
    }
    writeln!(out, "{} {what:<24} {phase}", jiff::Timestamp::now().strftime("%H:%M:%S")).map_err(closed)?;
    seen.insert(what.to_owned(), phase);
    Ok(true)
}
