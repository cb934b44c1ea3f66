//! `fermata update` and `fermata maintenance`: changes to this host under its running VMs.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use fermata_agent::api::types::{AbortRequest, CheckView, MaintenanceView};
use fermata_agent::client::Client;
use fermata_maintenance::dead_man::{Settings, serve};
use fermata_maintenance::id::MaintenanceId;
use fermata_maintenance::machine::{Outcome, Stage};
use fermata_maintenance::report::Report;

use crate::output;

#[derive(Debug, Subcommand)]
pub(crate) enum UpdateCommand {
    /// Say what an update would do to each VM; do nothing.
    Check {
        /// The update file.
        file: PathBuf,
    },
    /// Do it, and show the report at the end.
    Apply {
        /// The update file.
        file: PathBuf,
        /// Do not wait for the end.
        #[arg(long)]
        detach: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// All maintenances of this host, newest first.
    List,
    /// One maintenance, as its report; also while it is under way.
    #[command(visible_alias = "report")]
    Show {
        /// Its id.
        id: String,
        /// Write it as a page with pictures to this file instead.
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
    },
    /// Take back what can be taken back.
    Abort {
        /// Its id.
        id: String,
        /// Why.
        #[arg(long)]
        reason: String,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DeadMan {
    #[arg(long)]
    control: PathBuf,
    #[arg(long)]
    journal: PathBuf,
    #[arg(long)]
    authority: PathBuf,
    #[arg(long)]
    maintenance: MaintenanceId,
    #[arg(long)]
    agent: i32,
}

impl DeadMan {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let Self { control, journal, authority, maintenance, agent } = self;
        Ok(serve(Settings { control, journal, authority, maintenance, agent }).await?)
    }
}

const QUICK_LIMIT: Duration = Duration::from_secs(60);
/// How often a maintenance that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(300);
/// The same while VMs may be paused: looking takes processor time from whoever works on that.
const LOOK_IN_WINDOW: Duration = Duration::from_secs(1);

pub(crate) async fn update(command: UpdateCommand, client: &Client, json: bool) -> anyhow::Result<()> {
    match command {
        UpdateCommand::Check { file } => {
            let view: CheckView = post_file(client, "/v1/updates/check", &file).await?;
            output::value(&view, json, check)?;
            if view.choice.refusals.is_empty() { Ok(()) } else { bail!("update {} is refused", view.update) }
        }
        UpdateCommand::Apply { file, detach } => {
            let begun: Report = post_file(client, "/v1/updates/apply", &file).await?;
            let report = if detach { begun } else { wait(client, begun, json).await? };
            output::value(&report, json, ToString::to_string)?;
            match report.outcome {
                Some(Outcome::Failed | Outcome::Aborted) => bail!("maintenance {} did not succeed", report.maintenance),
                Some(Outcome::Done) | None => Ok(()),
            }
        }
    }
}

async fn post_file<T: serde::de::DeserializeOwned>(
    client: &Client,
    path: &str,
    file: &std::path::Path,
) -> anyhow::Result<T> {
    let text = std::fs::read(file).with_context(|| format!("update file {}", file.display()))?;
    Ok(client.post(path, "application/toml", text, QUICK_LIMIT).await?)
}

async fn wait(client: &Client, begun: Report, json: bool) -> anyhow::Result<Report> {
    let path = format!("/v1/maintenances/{}", begun.maintenance);
    let (mut report, mut shown, began) = (begun, None, Instant::now());
    while report.outcome.is_none() {
        if !json && shown != Some((report.stage, report.waits_until)) {
            shown = Some((report.stage, report.waits_until));
            eprintln!("[{:>4} s] {}: {}", began.elapsed().as_secs(), report.maintenance, under_way(&report));
        }
        // The agent may be restarted while it works; the journal goes on telling.
        tokio::time::sleep(if report.stage == Stage::Window { LOOK_IN_WINDOW } else { LOOK }).await;
        match client.get(&path).await {
            Ok(next) => report = next,
            Err(fermata_agent::client::ClientError::Refused { view, .. }) => bail!("{}", view.error),
            Err(_) => {}
        }
    }
    Ok(report)
}

/// What a maintenance does now, or what it waits for.
fn under_way(report: &Report) -> String {
    let what = match report.stage {
        Stage::Planned => "planned; guests are told where they asked for it",
        Stage::Announced => "announced",
        Stage::Preflight => "looks once more whether each VM can come along",
        Stage::Prepare => "prepare steps, VMs run",
        Stage::Rehearse => "rehearsal, VMs run",
        Stage::Lead => "guests are told that it starts, VMs run",
        Stage::Window => "VMs stand, or are about to",
        Stage::Verify => "verify steps, VMs run",
        Stage::Undo => "undo steps, VMs run",
        Stage::UndoHeld => "undo steps, VMs stand",
        Stage::Closing => "tidies up",
    };
    let forecast = report.vms.iter().map(|vm| vm.forecast.upper).max();
    match (report.waits_until, report.stage, forecast) {
        (Some(until), ..) => format!("{what}; waits until guests approve, or until {until} (`notice_s` in the update)"),
        (None, Stage::Window, Some(forecast)) => {
            format!("{what}; for {:.1} s at most, by the forecast", forecast.as_secs_f64())
        }
        _ => what.to_owned(),
    }
}

pub(crate) async fn run(command: Command, client: &Client, json: bool) -> anyhow::Result<()> {
    match command {
        Command::List => {
            let views: Vec<MaintenanceView> = client.get("/v1/maintenances").await?;
            output::value(&views, json, |views| list(views))
        }
        Command::Show { id, html } => {
            let report: Report = client.get(&format!("/v1/maintenances/{id}")).await?;
            match html {
                Some(file) => output::page(&file, &fermata_pages::maintenance(&report), json),
                None => output::value(&report, json, ToString::to_string),
            }
        }
        Command::Abort { id, reason } => {
            let by =
                std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_else(|_| "root".to_owned());
            let request = serde_json::to_vec(&AbortRequest { by, reason })?;
            let path = format!("/v1/maintenances/{id}/abort");
            let report: Report = client.post(&path, "application/json", request, QUICK_LIMIT).await?;
            output::value(&report, json, ToString::to_string)
        }
    }
}

fn list(views: &[MaintenanceView]) -> String {
    let outcome = |view: &MaintenanceView| match view.outcome {
        None => "under way".to_owned(),
        Some(outcome) => format!("{outcome:?}").to_lowercase(),
    };
    let rows: Vec<_> = views.iter().map(|v| vec![v.id.clone(), v.update.clone(), outcome(v)]).collect();
    output::table(&["MAINTENANCE", "UPDATE", "OUTCOME"], &rows)
}

fn check(view: &CheckView) -> String {
    let plans = view.choice.plans.iter().map(|plan| {
        let note = plan.note.as_deref().map_or_else(|| plan.forecast.to_string(), ToOwned::to_owned);
        vec![plan.vm.to_string(), plan.mechanism.to_string(), note]
    });
    let refusals =
        view.choice.refusals.iter().map(|r| vec![r.vm.to_string(), "REFUSED".to_owned(), r.reason.to_string()]);
    let rows: Vec<_> = plans.chain(refusals).collect();
    let mut text = format!("{} ({})\n{}", view.title, view.update, output::table(&["VM", "MECHANISM", ""], &rows));
    for told in &view.told {
        text.push_str(&format!("\n{told}"));
    }
    for step in &view.undo {
        text.push_str(&format!("\nundo: {step}"));
    }
    text
}
