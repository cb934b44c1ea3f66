//! `fermata rollout watch` on a terminal: hosts by part, their phases, blackouts as they are measured. `q` leaves; the rollout goes on.

mod view;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use fermata_controller::client::{Client, ClientError};
use fermata_controller::rollout::{Definition, State};
use fermata_controller::wire::{RolloutLine, VisitProgress};
use fermata_model::HostName;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use serde::Deserialize;

use view::{Shown, draw};

/// What the controller says of a rollout.
#[derive(Deserialize)]
struct Standing {
    definition: Definition,
    state: State,
}

/// How often the controller is asked.
const LOOK: Duration = Duration::from_millis(500);

/// Shows a rollout until it has ended or the reader leaves; gives its phase in one word.
pub(crate) async fn watch(client: &Client, rollout: &str) -> anyhow::Result<String> {
    let mut shown = ask(client, rollout).await?;
    let mut terminal = ratatui::init();
    let mut offset = 0u16;
    let ended = loop {
        if let Err(error) = terminal.draw(|frame| draw(frame, &shown, offset)) {
            break Err(error).context("the terminal");
        }
        if shown.state.phase_ended() || leaves(&mut offset).await {
            break Ok(shown.word.clone());
        }
        match ask(client, rollout).await {
            Ok(now) => shown = now,
            Err(error) if matches!(error.downcast_ref(), Some(ClientError::Unreachable { .. })) => {
                shown.away = Some(error.to_string());
            }
            Err(error) => break Err(error),
        }
    };
    ratatui::restore();
    ended
}

async fn ask(client: &Client, rollout: &str) -> anyhow::Result<Shown> {
    let Standing { definition, state } = client.get(&format!("/v1/rollouts/{rollout}")).await?;
    let measured: BTreeMap<HostName, Vec<VisitProgress>> =
        client.get(&format!("/v1/rollouts/{rollout}/measured")).await?;
    let lines: Vec<RolloutLine> = client.get("/v1/rollouts").await?;
    let line = lines.into_iter().find(|line| line.id.0 == rollout);
    let (word, alarms) = line.map_or_else(Default::default, |line| (line.phase, line.alarms));
    Ok(Shown { definition, state, measured, word, alarms, away: None, now: jiff::Timestamp::now() })
}

/// Waits for a key or the next look; whether the reader leaves.
async fn leaves(offset: &mut u16) -> bool {
    let key = tokio::task::spawn_blocking(|| match event::poll(LOOK) {
        Ok(true) => event::read().ok(),
        Ok(false) | Err(_) => None,
    });
    let Ok(Some(Event::Key(key))) = key.await else { return false };
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return true,
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return true,
        KeyCode::Down | KeyCode::Char('j') => *offset = offset.saturating_add(1),
        KeyCode::Up | KeyCode::Char('k') => *offset = offset.saturating_sub(1),
        KeyCode::PageDown => *offset = offset.saturating_add(20),
        KeyCode::PageUp => *offset = offset.saturating_sub(20),
        _ => {}
    }
    false
}
