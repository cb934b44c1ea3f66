//! `fermata rollout watch`: a line for everything that changes.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use fermata_model::HostName;
use serde_json::Value;

use super::CliError;
use crate::client::Client;
use crate::wire::VisitProgress;

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
pub async fn watch(
    client: &Client,
    rollout: &str,
    json: bool,
    out: &mut (impl Write + Send),
) -> Result<String, CliError> {
    let mut lines = Lines { seen: BTreeMap::new(), json };
    let mut away = 0;
    loop {
        let state = match client.get::<Value>(&format!("/v1/rollouts/{rollout}")).await {
            Ok(state) => state,
            Err(error @ crate::client::ClientError::Unreachable { .. }) if away < 60 => {
                if away == 0 {
                    lines.note("controller", format!("away: {error}"), out)?;
                }
                away += 1;
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let mut changed = away > 0 && lines.note("controller", "back".to_owned(), out)?;
        away = 0;
        let state = &state["state"];
        for (host, is) in state["hosts"].as_object().into_iter().flatten() {
            changed |= lines.note(host, phase_word(&is["phase"]), out)?;
        }
        let measured: BTreeMap<HostName, Vec<VisitProgress>> =
            client.get(&format!("/v1/rollouts/{rollout}/measured")).await.unwrap_or_default();
        for maintenance in measured.values().flatten().flat_map(|visit| &visit.maintenances) {
            for vm in &maintenance.vms {
                if let Some(longest) = vm.host_blackouts_us.iter().max() {
                    let text =
                        format!("blackout {}.{:03} ms by {}", longest / 1_000, longest % 1_000, maintenance.update);
                    changed |= lines.note(vm.vm.as_str(), text, out)?;
                }
            }
        }
        let phase = phase_word(&state["phase"]);
        changed |= lines.note("rollout", phase.clone(), out)?;
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

struct Lines {
    seen: BTreeMap<String, String>,
    json: bool,
}

impl Lines {
    fn note(&mut self, what: &str, is: String, out: &mut impl Write) -> Result<bool, CliError> {
        if self.seen.get(what) == Some(&is) {
            return Ok(false);
        }
        let now = jiff::Timestamp::now();
        let line = if self.json {
            serde_json::json!({ "at": now, "what": what, "is": is }).to_string()
        } else {
            format!("{} {what:<24} {is}", now.strftime("%H:%M:%S"))
        };
        writeln!(out, "{line}").map_err(closed)?;
        self.seen.insert(what.to_owned(), is);
        Ok(true)
    }
}
