//! `fermata rollout`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use fermata_model::{HostName, Mechanism};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{CliError, Connection, Shown};
use crate::client::Client;
use crate::health::HealthGate;
use crate::order::RolloutId;
use crate::report::{self, RolloutReport};
use crate::rollout::{Entry, Explanation, Rules};
use crate::wire::{Command, KeptUpdate, NewRollout, Planned, RolloutLine, VisitProgress};

/// `fermata rollout`.
#[derive(Debug, Subcommand)]
pub enum RolloutCommand {
    /// Plan a rollout: order, forecast, lower bound. Nothing is touched before `start`.
    Plan(Plan),
    /// Begin.
    Start(Target),
    /// Show what changes until it has ended.
    Watch {
        /// The rollout.
        rollout: String,
    },
    /// Touch no further VM, of the whole rollout or of one host.
    Pause(Target),
    /// Go on.
    Resume(Target),
    /// End it; every host is left whole.
    Abort(Target),
    /// Leave a host out.
    Skip(Target),
    /// Try a failed or skipped host again.
    Retry(Target),
    /// Approve the next stage, or with --host a host or its announced visit.
    Approve(Target),
    /// Do further updates in the same visits, on hosts that have not been begun.
    Merge(Merge),
    /// Give up a host that will never come back. Needs the role admin and a reason.
    GiveUp(Target),
    /// Why hosts stand where they stand.
    Explain {
        /// The rollout.
        rollout: String,
        /// Only this host.
        #[arg(long)]
        host: Option<HostName>,
    },
    /// What happened, host by host, with the audit log.
    Report {
        /// The rollout.
        rollout: String,
        /// Write it as a page with pictures to this file instead.
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
    },
    /// Derive the log again and have the independent checker look at what happened.
    Check {
        /// The rollout.
        rollout: String,
    },
    /// All rollouts.
    List,
}

/// What to plan.
#[derive(Debug, Args)]
pub struct Plan {
    /// Update files.
    #[arg(required = true)]
    updates: Vec<PathBuf>,
    /// The harshest way in which the updates may reach hosts: none, hold, swap, kexec or reboot; what each file says when absent.
    #[arg(long, value_parser = mechanism)]
    mechanism: Option<Mechanism>,
    /// Its name; one is made up when absent.
    #[arg(long)]
    name: Option<String>,
    /// Take the place of this plan (its digest) of the rollout named, which must not have been started.
    #[arg(long, value_name = "PLAN", requires = "name")]
    replace: Option<String>,
    /// Why it is done.
    #[arg(long)]
    reason: String,
    /// Only these hosts.
    #[arg(long = "host")]
    hosts: Vec<HostName>,
    /// Limits, stages and windows, as JSON.
    #[arg(long)]
    policy: Option<PathBuf>,
    /// What VMs must pass before and after a visit: guest-agent, tcp:PORT, http:PORT/PATH or command:/PROGRAM ARGUMENT...
    #[arg(long = "gate")]
    gates: Vec<HealthGate>,
    /// Gates, limits of time and failure budget, as JSON.
    #[arg(long)]
    rules: Option<PathBuf>,
    /// Notice for guests, in seconds; the longest that an update file says when absent.
    #[arg(long)]
    notice: Option<u64>,
    /// Rest of a set between two parts, in seconds, instead of what each set says.
    #[arg(long)]
    recovery: Option<u32>,
    /// How many hosts may fail.
    #[arg(long)]
    max_failed_hosts: Option<u32>,
    /// Only show the plan.
    #[arg(long)]
    dry_run: bool,
}

/// A rollout, or a host in it, with the reason of an order.
#[derive(Debug, Args)]
pub struct Target {
    /// The rollout.
    rollout: String,
    /// The host.
    #[arg(long)]
    host: Option<HostName>,
    /// Why; goes to the audit log.
    #[arg(long, default_value = "")]
    reason: String,
}

/// What to merge into a rollout.
#[derive(Debug, Args)]
pub struct Merge {
    /// The rollout.
    rollout: String,
    /// Update files.
    #[arg(required = true)]
    updates: Vec<PathBuf>,
    /// Only these hosts; all that have not been begun when absent.
    #[arg(long = "host")]
    hosts: Vec<HostName>,
    /// Why; goes to the audit log.
    #[arg(long, default_value = "")]
    reason: String,
}

fn mechanism(text: &str) -> Result<Mechanism, String> {
    serde_json::from_value(Value::from(text))
        .map_err(|_| format!("`{text}` is no mechanism; use none, hold, swap, kexec or reboot"))
}

/// Runs `fermata rollout`. With `json`, a watch prints its changes as JSON, one a line.
///
/// # Errors
/// [`CliError`].
pub async fn run(command: RolloutCommand, connection: &Connection, json: bool) -> Result<Shown, CliError> {
    let client = connection.client()?;
    match command {
        RolloutCommand::Plan(new) => plan(&client, new).await,
        RolloutCommand::Start(target) => order(&client, "start", target).await,
        RolloutCommand::Pause(target) => order(&client, "pause", target).await,
        RolloutCommand::Resume(target) => order(&client, "resume", target).await,
        RolloutCommand::Abort(target) => order(&client, "abort", target).await,
        RolloutCommand::Skip(target) => order(&client, "skip", target).await,
        RolloutCommand::Retry(target) => order(&client, "retry", target).await,
        RolloutCommand::Approve(target) => order(&client, "approve", target).await,
        RolloutCommand::GiveUp(target) => order(&client, "give-up", target).await,
        RolloutCommand::Merge(Merge { rollout, updates, hosts, reason }) => {
            let given = give(&client, &updates, None).await?;
            let updates = given.into_iter().map(|kept| kept.update).collect();
            let command = Command { reason, host: None, updates, hosts: hosts.into_iter().collect() };
            send(&client, "merge", &rollout, &command).await
        }
        RolloutCommand::Watch { rollout } => {
            let phase = super::watch(&client, &rollout, json, &mut std::io::stdout()).await?;
            Ok(Shown::new(serde_json::json!({ "phase": phase }), String::new()))
        }
        RolloutCommand::Explain { rollout, host } => {
            let only = host.map_or_else(String::new, |host| format!("?host={host}"));
            let all: Vec<Explanation> = client.get(&format!("/v1/rollouts/{rollout}/explain{only}")).await?;
            let text = all.iter().map(explanation).collect::<String>();
            Ok(Shown::new(serde_json::json!(all), text))
        }
        // Whoever asks for a page draws it: see [`reported`].
        RolloutCommand::Report { rollout, html: _ } => {
            let Reported { state, log, report } = reported(&client, &rollout).await?;
            let text = format!("rollout {rollout}: {}\n{report}", super::watch::phase_word(&state["state"]["phase"]));
            Ok(Shown::new(
                serde_json::json!({ "rollout": state, "hosts": report.hosts, "measured": report.measured, "log": log }),
                text,
            ))
        }
        RolloutCommand::Check { rollout } => {
            let found: Value = client.get(&format!("/v1/rollouts/{rollout}/check")).await?;
            let violations = found["violations"].as_array().into_iter().flatten();
            let text: String = violations.map(|text| format!("{}\n", text.as_str().unwrap_or_default())).collect();
            let text = if text.is_empty() { "no promise was broken".to_owned() } else { text };
            Ok(Shown::new(found, text))
        }
        RolloutCommand::List => {
            let all: Vec<RolloutLine> = client.get("/v1/rollouts").await?;
            let text = all.iter().map(|line| {
                let hosts: Vec<String> = line.hosts.iter().map(|(phase, count)| format!("{count} {phase}")).collect();
                let alarms: String = line.alarms.iter().map(|alarm| format!("  ALARM: {alarm}\n")).collect();
                format!("{:<24} {:<10} {} ({})\n{alarms}", line.id, line.phase, line.reason, hosts.join(", "))
            });
            let text: String = text.collect();
            Ok(Shown::new(serde_json::json!(all), text))
        }
    }
}

/// A rollout with all that is known of it.
#[derive(Debug)]
pub struct Reported {
    state: Value,
    log: Vec<Entry>,
    /// What happened, host by host.
    pub report: RolloutReport,
}

impl Reported {
    /// The phase that the rollout is in, in a word.
    #[must_use]
    pub fn phase(&self) -> String {
        super::watch::phase_word(&self.state["state"]["phase"])
    }
}

/// Asks the controller for the report of a rollout.
///
/// # Errors
/// [`CliError`].
pub async fn reported(client: &Client, rollout: &str) -> Result<Reported, CliError> {
    let log: Vec<Entry> = client.get(&format!("/v1/rollouts/{rollout}/log")).await?;
    let state: Value = client.get(&format!("/v1/rollouts/{rollout}")).await?;
    let measured: BTreeMap<HostName, Vec<VisitProgress>> =
        client.get(&format!("/v1/rollouts/{rollout}/measured")).await?;
    let report = report::of(&log).with_measured(measured);
    Ok(Reported { state, log, report })
}

/// Gives update files to the controller, which keeps them for its hosts.
async fn give(client: &Client, files: &[PathBuf], harshest: Option<Mechanism>) -> Result<Vec<KeptUpdate>, CliError> {
    let mut given = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(path).map_err(|source| CliError::Io { path: path.clone(), source })?;
        let mut kept: KeptUpdate = client.post_text("/v1/updates", text).await?;
        kept.update.mechanism = harshest.unwrap_or(kept.update.mechanism);
        given.push(kept);
    }
    Ok(given)
}

fn json<T: DeserializeOwned + Default>(path: Option<&Path>) -> Result<T, CliError> {
    let Some(path) = path else { return Ok(T::default()) };
    let text = std::fs::read(path).map_err(|source| CliError::Io { path: path.to_owned(), source })?;
    serde_json::from_slice(&text).map_err(|error| CliError::File { path: path.to_owned(), reason: error.to_string() })
}

async fn plan(client: &Client, new: Plan) -> Result<Shown, CliError> {
    let given = give(client, &new.updates, new.mechanism).await?;
    let mut policy: fermata_planner::Policy = json(new.policy.as_deref())?;
    if !new.hosts.is_empty() {
        policy.only = Some(new.hosts.into_iter().collect::<BTreeSet<_>>());
    }
    if new.recovery.is_some() {
        policy.recovery_s = new.recovery;
    }
    let mut rules: Rules = json(new.rules.as_deref())?;
    rules.max_failed_hosts = new.max_failed_hosts.unwrap_or(rules.max_failed_hosts);
    rules.gates.extend(new.gates);
    let promised = given.iter().map(|kept| kept.notice_s).max().filter(|_| new.rules.is_none());
    if let Some(notice) = new.notice.or(promised) {
        rules.notice = Duration::from_secs(notice);
    }
    let updates = given.into_iter().map(|kept| kept.update).collect();
    let id = new.name.map(RolloutId);
    let request =
        NewRollout { id, parent: new.replace, reason: new.reason, updates, policy, rules, dry_run: new.dry_run };
    let planned: Planned = client.post("/v1/rollouts", &request).await?;
    let mut text = String::new();
    for line in &planned.hosts {
        text.push_str(&format!("{:<24} {:<10} {} to {}\n", line.host, line.stage, line.start, line.end));
    }
    for (host, why) in &planned.excluded {
        text.push_str(&format!("{host:<24} left out: {why}\n"));
    }
    text.push_str(&format!(
        "plan {}\nforecast: {} s, until {}; no plan can beat {} s ({})\n",
        planned.plan, planned.makespan_s, planned.eta, planned.lower_bound_s, planned.lower_bound_by
    ));
    match &planned.rollout {
        Some(id) => text.push_str(&format!("next: fermata rollout start {id}\n")),
        None => text.push_str("dry run: nothing was kept\n"),
    }
    Ok(Shown::new(serde_json::json!(planned), text))
}

async fn order(client: &Client, verb: &str, target: Target) -> Result<Shown, CliError> {
    let Target { rollout, host, reason } = target;
    let command = Command { reason, host, ..Command::default() };
    send(client, verb, &rollout, &command).await
}

async fn send(client: &Client, verb: &str, rollout: &str, command: &Command) -> Result<Shown, CliError> {
    let phase: Value = client.post(&format!("/v1/rollouts/{rollout}/do/{verb}"), command).await?;
    let text = format!("rollout {rollout}: {}", super::watch::phase_word(&phase));
    Ok(Shown::new(serde_json::json!({ "phase": phase }), text))
}

fn explanation(explanation: &Explanation) -> String {
    let mut text = format!("{:<24} {}", explanation.host, explanation.phase.word());
    if let Some(wait) = &explanation.wait {
        text.push_str(&format!(": {wait}"));
    }
    if let Some(earliest) = explanation.earliest {
        text.push_str(&format!(" (not before {earliest}, a forecast)"));
    }
    if let Some(warning) = &explanation.warning {
        text.push_str(&format!("; warning: {warning}"));
    }
    text + "\n"
}
