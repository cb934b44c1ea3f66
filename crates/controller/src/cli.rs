//! The operator's commands that speak with a controller: `fermata controller`, `set`, `fleet`, `rollout`.
//!
//! The binary mounts the subcommands; each `run` gives a JSON value and its text for people, and prints nothing itself. [`watch`] is the exception: it
//! shows what changes for as long as it changes.

mod rollout;
mod watch;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use fermata_model::{HostName, SetName};
use fermata_planner::{Fleet, FleetSpec, HostSpec, PlacedVm, SetSpec};
use serde_json::Value;

pub use rollout::{Plan, Reported, RolloutCommand, Target, reported, run as rollout};
pub use watch::watch;

use crate::client::{Client, ClientError};
use crate::identity::{Identity, Role};
use crate::pki::{Credentials, PkiError, Trust};
use crate::wire::{HostRecord, Joined, NewCertificate, NewJoin, NewToken, Secret};

/// How to reach the controller.
#[derive(Debug, Clone, Args)]
pub struct Connection {
    /// The controller's address.
    #[arg(long, env = "FERMATA_CONTROLLER", default_value = "127.0.0.1:7440")]
    pub controller: String,
    /// The certificate of the controller's CA.
    #[arg(long, env = "FERMATA_CA", default_value = "/var/lib/fermata/controller/ca.pem")]
    pub ca: PathBuf,
    /// Your token; that in `admin.token` beside the CA's certificate when you may read it and say nothing else.
    #[arg(long, env = "FERMATA_TOKEN", hide_env_values = true, default_value = "")]
    pub token: String,
    /// Your certificate and its key, from `fermata controller operator --write-certificate`, instead of a token.
    #[arg(long, env = "FERMATA_CERTIFICATE")]
    pub certificate: Option<PathBuf>,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// A file.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file with something else in it.
    #[error("{path}: {reason}")]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The controller.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The controller's process.
    #[error(transparent)]
    Server(#[from] crate::server::ServerError),
    /// The link.
    #[error(transparent)]
    Link(#[from] crate::agent_link::LinkError),
    /// Arguments that do not fit together.
    #[error("{0}")]
    Arguments(String),
}

/// What a command gives: JSON for programs, text for people.
#[derive(Debug, Clone)]
pub struct Shown {
    /// For programs.
    pub json: Value,
    /// For people.
    pub text: String,
}

impl Shown {
    fn new(json: Value, text: impl Into<String>) -> Self {
        Self { json, text: text.into() }
    }

    fn done(text: impl Into<String>) -> Self {
        Self::new(serde_json::json!({ "ok": true }), text)
    }
}

impl Connection {
    /// A client with these settings.
    ///
    /// # Errors
    /// [`CliError`] when the CA's certificate cannot be read.
    pub fn client(&self) -> Result<Client, CliError> {
        let pem = std::fs::read_to_string(&self.ca).map_err(|source| CliError::Io { path: self.ca.clone(), source })?;
        if let Some(path) = &self.certificate {
            let text = std::fs::read_to_string(path).map_err(|source| CliError::Io { path: path.clone(), source })?;
            let credentials = Credentials { certificate: text.clone(), key: text };
            return Ok(Client::new(&self.controller, &Trust::Ca(pem), Some(&credentials), None)?);
        }
        let beside = || std::fs::read_to_string(self.ca.with_file_name(crate::server::ADMIN_TOKEN)).ok();
        let token = if self.token.is_empty() { beside() } else { Some(self.token.clone()) };
        Ok(Client::new(&self.controller, &Trust::Ca(pem), None, token.map(|token| token.trim().to_owned()))?)
    }
}

/// `fermata controller`.
#[derive(Debug, Subcommand)]
pub enum ControllerCommand {
    /// Make the CA, the store and the first administrator's token.
    Init {
        /// Where they are kept.
        #[arg(long, default_value = "/var/lib/fermata/controller")]
        state: PathBuf,
    },
    /// Run the controller.
    Run {
        /// Where `init` put everything.
        #[arg(long, default_value = "/var/lib/fermata/controller")]
        state: PathBuf,
        /// Where to listen.
        #[arg(long, env = "FERMATA_LISTEN", default_value = "0.0.0.0:7440")]
        listen: String,
    },
    /// Make a token with which hosts can join.
    Token {
        /// How to reach the controller.
        #[command(flatten)]
        connection: Connection,
        /// Only for this host.
        #[arg(long)]
        host: Option<HostName>,
        /// For so many seconds.
        #[arg(long, default_value_t = 86_400)]
        seconds: u32,
    },
    /// Make a token for an operator.
    Operator {
        /// How to reach the controller.
        #[command(flatten)]
        connection: Connection,
        /// For whom.
        name: String,
        /// What it may do: view, operate or admin.
        #[arg(long, value_parser = role, default_value = "view")]
        role: Role,
        /// Make a certificate instead of a token, and write it with its key to this file.
        #[arg(long = "write-certificate", value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Shut a host or an operator out.
    Revoke {
        /// How to reach the controller.
        #[command(flatten)]
        connection: Connection,
        /// The host.
        #[arg(long, conflicts_with = "operator", required_unless_present = "operator")]
        host: Option<HostName>,
        /// The operator.
        #[arg(long)]
        operator: Option<String>,
    },
}

fn role(text: &str) -> Result<Role, String> {
    serde_json::from_value(Value::from(text)).map_err(|_| format!("`{text}` is no role; use view, operate or admin"))
}

/// Runs `fermata controller`.
///
/// # Errors
/// [`CliError`].
pub async fn controller(command: ControllerCommand) -> Result<Shown, CliError> {
    match command {
        ControllerCommand::Init { state } => {
            let made = crate::server::init(&state).await?;
            crate::pki::write(&state.join(crate::server::ADMIN_TOKEN), &format!("{}\n", made.admin_token), 0o600)?;
            let text = format!(
                "CA: {}\nadministrator's token (kept in admin.token beside it, for root alone): {}\nnext: fermata controller run",
                made.ca.display(),
                made.admin_token
            );
            Ok(Shown::new(serde_json::json!({ "ca": made.ca, "admin_token": made.admin_token }), text))
        }
        ControllerCommand::Run { state, listen } => {
            crate::server::run(&state, &listen).await?;
            Ok(Shown::done("the controller has ended"))
        }
        ControllerCommand::Token { connection, host, seconds } => {
            let new = NewJoin { seconds: Some(seconds), host };
            secret(connection.client()?.post("/v1/joins", &new).await?)
        }
        ControllerCommand::Operator { connection, name, role, file: Some(path) } => {
            certificate(&connection.client()?, name, role, path).await
        }
        ControllerCommand::Operator { connection, name, role, file: None } => {
            secret(connection.client()?.post("/v1/tokens", &NewToken { name, role }).await?)
        }
        ControllerCommand::Revoke { connection, host, operator } => {
            let who = match (host, operator) {
                (Some(host), _) => Identity::Agent(host),
                (None, Some(name)) => Identity::Operator { name, role: Role::View },
                (None, None) => return Err(CliError::Arguments("name a host or an operator".to_owned())),
            };
            let reply: Value = connection.client()?.post("/v1/revoke", &who).await?;
            let text = format!("{} certificates and tokens are void", reply["revoked"]);
            Ok(Shown::new(reply, text))
        }
    }
}

/// Makes a key that never leaves this machine, and has it certified.
async fn certificate(client: &Client, name: String, role: Role, path: PathBuf) -> Result<Shown, CliError> {
    let (key, request) = crate::pki::request()?;
    let joined: Joined = client.post("/v1/certificates", &NewCertificate { name, role, request }).await?;
    crate::pki::write(&path, &format!("{}{key}", joined.certificate), 0o600)?;
    let text = format!("{}: use it with --certificate or FERMATA_CERTIFICATE; it lasts 90 days", path.display());
    Ok(Shown::new(serde_json::json!({ "certificate": path, "renew_at": joined.renew_at }), text))
}

fn secret(secret: Secret) -> Result<Shown, CliError> {
    let json = serde_json::json!({ "token": secret.token });
    Ok(Shown::new(json, secret.token))
}

/// `fermata set`.
#[derive(Debug, Subcommand)]
pub enum SetCommand {
    /// Make an availability set.
    Create {
        /// Its name.
        name: SetName,
        /// Number of update domains, 1 to 20; fixed for life.
        #[arg(long, default_value_t = SetSpec::DEFAULT_UPDATE_DOMAINS)]
        update_domains: u8,
        /// Number of fault domains, 1 to 3.
        #[arg(long, default_value_t = 1)]
        fault_domains: u8,
        /// Rest between two update domains, in seconds.
        #[arg(long, default_value_t = SetSpec::DEFAULT_RECOVERY_S)]
        recovery: u32,
    },
    /// All sets.
    List,
    /// One set, with its VMs.
    Show {
        /// Its name.
        name: SetName,
    },
}

/// Runs `fermata set`.
///
/// # Errors
/// [`CliError`].
pub async fn set(command: SetCommand, connection: &Connection) -> Result<Shown, CliError> {
    let client = connection.client()?;
    match command {
        SetCommand::Create { name, update_domains, fault_domains, recovery } => {
            let spec = SetSpec { update_domains, fault_domains, recovery_s: recovery, ..SetSpec::new(name.clone()) };
            let _: Value = client.post("/v1/sets", &spec).await?;
            Ok(Shown::done(format!("availability set {name} with {update_domains} update domains")))
        }
        SetCommand::List => {
            let sets: std::collections::BTreeMap<SetName, SetSpec> = client.get("/v1/sets").await?;
            let line = |set: &SetSpec| {
                format!("{:<24} {:>2} update domains, recovery {} s\n", set.name, set.update_domains, set.recovery_s)
            };
            let text: String = sets.values().map(line).collect();
            Ok(Shown::new(serde_json::json!(sets), text))
        }
        SetCommand::Show { name } => {
            let mut text = format!("availability set {name}\n");
            let hosts: std::collections::BTreeMap<HostName, HostRecord> = client.get("/v1/hosts").await?;
            let mut vms = Vec::new();
            for (host, record) in &hosts {
                for vm in record.report.vms.iter().filter(|vm| vm.set.as_ref() == Some(&name)) {
                    let domain = vm.update_domain.map_or("?".to_owned(), |domain| domain.to_string());
                    text.push_str(&format!("  {:<24} on {host:<20} update domain {domain}\n", vm.name));
                    vms.push(serde_json::json!({ "vm": vm.name, "host": host, "update_domain": vm.update_domain }));
                }
            }
            Ok(Shown::new(serde_json::json!({ "set": name, "vms": vms }), text))
        }
    }
}

/// `fermata fleet`: all hosts of a controller.
#[derive(Debug, Subcommand)]
pub enum FleetCommand {
    /// All hosts.
    List,
    /// Keep a host out of maintenance.
    Cordon {
        /// The host.
        host: HostName,
    },
    /// Let it back in.
    Uncordon {
        /// The host.
        host: HostName,
    },
    /// Take a fleet in from a JSON or CSV file.
    Import {
        /// The file.
        file: PathBuf,
    },
    /// How well the placement is aligned, and hosts that carry two update domains of a set.
    Check,
}

/// Runs `fermata fleet`.
///
/// # Errors
/// [`CliError`].
pub async fn fleet(command: FleetCommand, connection: &Connection) -> Result<Shown, CliError> {
    let client = connection.client()?;
    match command {
        FleetCommand::List => {
            let hosts: std::collections::BTreeMap<HostName, HostRecord> = client.get("/v1/hosts").await?;
            let text = hosts.iter().map(|(name, host)| {
                let seen = host.seen.map_or_else(|| "never".to_owned(), |seen| seen.to_string());
                let cordoned = if host.cordoned { " cordoned" } else { "" };
                let report = &host.report;
                format!(
                    "{name:<24} {:>3} VMs  kernel {:<16} vmm {:<12} seen {seen} skew {} ms{cordoned}\n",
                    report.vms.len(),
                    report.kernel,
                    report.vmms.join(","),
                    host.skew_ms
                )
            });
            let text: String = text.collect();
            Ok(Shown::new(serde_json::json!(hosts), text))
        }
        FleetCommand::Cordon { host } => {
            let _: Value = client.post(&format!("/v1/hosts/{host}/cordon"), &()).await?;
            Ok(Shown::done(format!("{host} is kept out of maintenance")))
        }
        FleetCommand::Uncordon { host } => {
            let _: Value = client.post(&format!("/v1/hosts/{host}/uncordon"), &()).await?;
            Ok(Shown::done(format!("{host} takes part in maintenance again")))
        }
        FleetCommand::Import { file } => import(&client, file).await,
        FleetCommand::Check => {
            let reply: Value = client.get("/v1/fleet").await?;
            let mut text = format!("alignment {}\n", reply["alignment"]);
            for conflict in reply["self_conflicts"].as_array().into_iter().flatten() {
                text.push_str(&format!("{}\n", conflict.as_str().unwrap_or_default()));
            }
            Ok(Shown::new(reply, text))
        }
    }
}

async fn import(client: &Client, path: PathBuf) -> Result<Shown, CliError> {
    let text = std::fs::read_to_string(&path).map_err(|source| CliError::Io { path: path.clone(), source })?;
    let wrong = |reason: String| CliError::File { path: path.clone(), reason };
    let csv = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    let fleet = if csv { fermata_planner::fleet::from_csv(&text, 0) } else { fermata_planner::fleet::from_json(&text) };
    let fleet = fleet.map_err(|error| wrong(error.to_string()))?;
    let spec = spec_of(&fleet);
    let reply: Value = client.post("/v1/fleet", &spec).await?;
    let mut text = format!("{} hosts, {} sets, {} VMs\n", spec.hosts.len(), spec.sets.len(), spec.vms.len());
    for conflict in reply["self_conflicts"].as_array().into_iter().flatten() {
        text.push_str(&format!("warning: {}\n", conflict.as_str().unwrap_or_default()));
    }
    Ok(Shown::new(reply, text))
}

/// A fleet as it is sent.
fn spec_of(fleet: &Fleet) -> FleetSpec {
    let text = |id: Option<fermata_planner::TextId>| id.map(|id| fleet.text(id).to_owned());
    let hosts = fleet.host_ids().map(|id| {
        let host = fleet.host(id);
        HostSpec {
            name: host.name.clone(),
            rack: text(host.rack),
            zone: text(host.zone),
            fault_domain: host.fault_domain,
            labels: fleet.labels(id).map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            work_s: host.work_s,
            cordoned: host.cordoned,
            windows: host.windows.to_vec(),
            room: host.room,
        }
    });
    let vms = fleet.vms().iter().map(|vm| PlacedVm {
        name: vm.name.clone(),
        host: fleet.host(vm.host).name.clone(),
        set: vm.member.map(|member| fleet.set(member.set).spec.name.clone()),
        update_domain: vm.member.map(|member| member.domain),
    });
    FleetSpec {
        revision: fleet.revision(),
        sets: fleet.sets().iter().map(|set| set.spec.clone()).collect(),
        hosts: hosts.collect(),
        vms: vms.collect(),
    }
}
