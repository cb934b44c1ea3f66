//! `fermata event`: what guests are told, and what they answered. `fermata imds`: the service that tells them.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};
use fermata_imds::control::{Call, ControlClient, Simulated};
use fermata_imds::daemon::{self, Options};
use fermata_imds::fermata_events::{Action, Approver, EventId, EventKind, Input, UnixMs};
use fermata_model::VmName;
use fermata_vault::{confine::Confinement, seclude::seclude};
use serde_json::Value;

use crate::output;

/// As many connections as `fermata-imds.service` may have.
const FILES: u64 = 65_536;

/// How it runs where there is no service manager yet.
#[derive(Debug, Args)]
pub(crate) struct First {
    /// The folder of its control group.
    #[arg(long)]
    group: PathBuf,
    /// Ids of user and group to run as, with a colon between.
    #[arg(long, value_parser = crate::user_and_group)]
    user: (u32, u32),
    /// Folders that it may write.
    #[arg(long)]
    own: Vec<PathBuf>,
    /// Its configuration; defaults when absent.
    #[arg(long)]
    config: Option<PathBuf>,
}

/// Where the metadata service takes orders.
#[derive(Debug, Args)]
pub(crate) struct Service {
    /// The metadata service's control socket.
    #[arg(long, env = "FERMATA_IMDS_SOCKET", default_value = "/run/fermata-imds/control.sock")]
    imds_socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Open events.
    List,
    /// One event with approvals and what its gate waits for.
    Show {
        /// Its id.
        event: String,
    },
    /// Approve as operator, whatever the scope's policy.
    Approve {
        /// Its id.
        event: String,
        /// The name that is kept with the approval.
        #[arg(long, env = "USER", default_value = "operator")]
        name: String,
    },
    /// Withdraw the maintenance of an event; only before it has started.
    Cancel {
        /// Its id.
        event: String,
    },
    /// Play a whole life cycle for these VMs without touching them.
    Simulate {
        /// The VMs.
        #[arg(required = true)]
        vms: Vec<VmName>,
        /// Freeze, Reboot, Redeploy, Preempt or Terminate.
        #[arg(long, default_value = "Freeze", value_parser = kind)]
        kind: EventKind,
        /// The notice in seconds.
        #[arg(long, default_value_t = 60)]
        notice: u32,
        /// How long the pause seems to last, in milliseconds.
        #[arg(long, default_value_t = 5_000)]
        pause_ms: u64,
    },
    /// What is over: advertised and actual pause, clock step, outcome.
    History,
    /// Counters for Prometheus.
    Metrics,
}

fn kind(text: &str) -> Result<EventKind, String> {
    serde_json::from_value(Value::String(text.to_owned()))
        .map_err(|_| format!("`{text}` is no kind of event; use Freeze, Reboot, Redeploy, Preempt or Terminate"))
}

fn id(text: &str) -> anyhow::Result<EventId> {
    EventId::parse(text).with_context(|| format!("`{text}` is no event id; `fermata event list` shows them"))
}

pub(crate) async fn run(service: Service, json: bool) -> anyhow::Result<()> {
    let mut client = ControlClient::connect(&service.imds_socket).await?;
    match service.command {
        Command::List => {
            let events: Value = client.call(Call::Events).await?;
            output::value(&events, json, |events| list(events.as_array().map_or(&[], Vec::as_slice)))
        }
        Command::Show { event } => {
            let wanted = id(&event)?.to_string();
            let events: Vec<Value> = client.call(Call::Events).await?;
            let found = events.into_iter().find(|event| event["eventId"] == wanted.as_str());
            let found = found
                .with_context(|| format!("event {wanted} is not open; `fermata event history` shows what is over"))?;
            output::value(&found, json, |event| serde_json::to_string_pretty(event).unwrap_or_default())
        }
        Command::Approve { event, name } => {
            let input = Input::Approve { events: vec![id(&event)?], by: Approver::Operator { name } };
            let actions = client.apply(input).await?;
            let open = actions.iter().any(|action| matches!(action, Action::GateOpened { .. }));
            let text = match (actions.is_empty(), open) {
                (true, _) => "nothing changed: it has started, is over, or was approved before",
                (false, true) => "approved; the maintenance may start",
                (false, false) => "approved; other conditions are open",
            };
            output::value(&actions, json, |_| text.to_owned())
        }
        Command::Cancel { event } => {
            let actions: Vec<Action> = client.call(Call::CancelEvent { event: id(&event)? }).await?;
            output::value(&actions, json, |_| "cancelled".to_owned())
        }
        Command::Simulate { vms, kind, notice, pause_ms } => {
            let call = Call::Simulate { vms, kind, notice_s: notice, pause_ms };
            let played: Simulated = client.call(call).await?;
            output::value(&played, json, |played| {
                played.events.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
            })
        }
        Command::Metrics => {
            let text: String = client.call(Call::Metrics).await?;
            output::value(&text, json, |text| text.trim_end().to_owned())
        }
        Command::History => {
            let records: Value = client.call(Call::History { since: UnixMs(0) }).await?;
            output::value(&records, json, |records| history(records.as_array().map_or(&[], Vec::as_slice)))
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// What kind of event it is, and whether it is only played.
fn kind_of(event: &Value) -> String {
    let played = event["simulated"].as_bool().unwrap_or_default();
    text(&event["eventType"]) + if played { " (simulated)" } else { "" }
}

fn list(events: &[Value]) -> String {
    if events.is_empty() {
        return "no open event".to_owned();
    }
    let rows: Vec<Vec<String>> = events
        .iter()
        .map(|event| {
            let vms = event["resources"].as_array().into_iter().flatten().map(|vm| text(&vm["vm"]));
            let waits = event["gate"]["waits"].as_array().into_iter().flatten().map(text);
            let gate = std::iter::once(text(&event["gate"]["state"])).chain(waits).collect::<Vec<_>>().join(" ");
            let not_before = event["notBeforeUnixMs"].as_i64().map(|ms| UnixMs(ms).rfc3339()).unwrap_or_default();
            vec![
                text(&event["eventId"]),
                kind_of(event),
                text(&event["status"]),
                not_before,
                vms.collect::<Vec<_>>().join(","),
                text(&event["approved"]),
                gate,
            ]
        })
        .collect();
    output::table(&["EVENT", "TYPE", "STATUS", "NOT BEFORE", "VMS", "APPROVED", "GATE"], &rows)
}

fn history(records: &[Value]) -> String {
    if records.is_empty() {
        return "nothing is over".to_owned();
    }
    let mut rows = Vec::new();
    for record in records {
        for (vm, felt) in record["vms"].as_object().into_iter().flatten() {
            rows.push(vec![
                text(&record["eventId"]),
                kind_of(record),
                text(&record["outcome"]),
                vm.clone(),
                text(&record["durationInSeconds"]),
                text(&felt["pauseMs"]),
                text(&felt["clockStepMs"]),
            ]);
        }
    }
    output::table(&["EVENT", "TYPE", "OUTCOME", "VM", "ADVERTISED S", "PAUSE MS", "CLOCK STEP MS"], &rows)
}

/// Runs the metadata service.
pub(crate) async fn serve(config: Option<&Path>) -> anyhow::Result<()> {
    let options = match config {
        None => Options::default(),
        Some(path) => Options::read(path)?,
    };
    daemon::run(options, None).await.context("the metadata service stopped")
}

/// The same before the host has a service manager, by what its agent decided.
///
/// # Errors
/// It cannot be confined, or it stopped.
pub(crate) fn serve_first(first: First) -> anyhow::Result<()> {
    // As long as it may read it: the file is root's alone.
    let options = first.config.as_deref().map_or_else(|| Ok(Options::default()), Options::read)?;
    // Both before any other thread: they are a thread's own.
    seclude(&first.own)?;
    let (uid, gid) = first.user;
    Confinement { group: first.group, uid, gid, groups: Vec::new(), files: FILES }.enter()?;
    crate::start_log();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no async runtime")?;
    runtime.block_on(daemon::run(options, None)).context("the metadata service stopped")
}
