//! `fermata`: the agent of a host, the operator's commands, and the launcher of VMMs, in one binary.
//!
//! A library, so that whoever checks command lines (the docs', for one) asks the definition that parses them.

mod console;
mod event;
mod fleet;
mod host;
mod maintenance;
mod manual;
mod output;
mod vm;
mod watch;

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use fermata_agent::client::Client;
use fermata_controller::cli;
use fermata_vault::confine::Confinement;

/// VM-preserving host maintenance for KVM.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
struct Cli {
    /// Answer in JSON, for programs.
    #[arg(long, global = true)]
    json: bool,
    /// The agent's socket.
    #[arg(long, global = true, env = "FERMATA_SOCKET", default_value = SOCKET)]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent of this host.
    Agent(fleet::Agent),
    /// Run agent and controller in one process: a single host, or a first look. Nothing has to be configured.
    Standalone(fleet::Standalone),
    /// VMs of this host.
    #[command(subcommand)]
    Vm(vm::Command),
    /// This host.
    #[command(subcommand)]
    Host(host::Command),
    /// Updates of this host.
    #[command(subcommand)]
    Update(maintenance::UpdateCommand),
    /// What was, or is being, done to this host.
    #[command(subcommand)]
    Maintenance(maintenance::Command),
    /// Let VMs go on if nobody ends their pause in time (started by the agent, not by people).
    #[command(hide = true)]
    DeadMan(maintenance::DeadMan),
    /// What guests are told about maintenance, and what they answered.
    Event(event::Service),
    /// Run the metadata service of this host.
    Imds {
        /// Its configuration; defaults when absent.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Run the metadata service before the host has a service manager (started by the agent, not by people).
    #[command(hide = true)]
    ImdsFirst(event::First),
    /// The controller of a fleet.
    #[command(subcommand)]
    Controller(cli::ControllerCommand),
    /// Availability sets of a fleet.
    Set {
        #[command(flatten)]
        connection: cli::Connection,
        #[command(subcommand)]
        command: cli::SetCommand,
    },
    /// Hosts of a fleet.
    Fleet {
        #[command(flatten)]
        connection: cli::Connection,
        #[command(subcommand)]
        command: cli::FleetCommand,
    },
    /// Updates on many hosts, one update domain at a time.
    Rollout {
        #[command(flatten)]
        connection: cli::Connection,
        #[command(subcommand)]
        command: cli::RolloutCommand,
    },
    /// Print the completions of commands and options for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages of all commands (used when a package is made).
    #[command(hide = true)]
    ManualPages {
        /// The folder, which is there.
        folder: PathBuf,
    },
    /// Become a VMM with the descriptors that the agent hands over (started by systemd, not by people).
    #[command(hide = true)]
    VmmExec(Launcher),
}

/// The commands that machines start, some of them while VMs stand. A parser of these alone is made sooner than one of everything that
/// `fermata` can do, by 16 to 20 ms on an emulated processor, and more where nothing is in memory yet.
#[derive(Debug, Parser)]
#[command(name = "fermata")]
struct Started {
    #[command(subcommand)]
    command: StartedCommand,
}

#[derive(Debug, Subcommand)]
enum StartedCommand {
    Agent(fleet::Agent),
    DeadMan(maintenance::DeadMan),
    ImdsFirst(event::First),
    VmmExec(Launcher),
}

impl From<StartedCommand> for Command {
    fn from(command: StartedCommand) -> Self {
        match command {
            StartedCommand::Agent(agent) => Self::Agent(agent),
            StartedCommand::DeadMan(dead_man) => Self::DeadMan(dead_man),
            StartedCommand::ImdsFirst(first) => Self::ImdsFirst(first),
            StartedCommand::VmmExec(launcher) => Self::VmmExec(launcher),
        }
    }
}

/// What becomes a VMM.
#[derive(Debug, Args)]
struct Launcher {
    /// The socket to receive descriptors from.
    #[arg(long)]
    socket: PathBuf,
    /// The folder of its control group, where no service manager put it into one.
    #[arg(long, requires = "user")]
    group: Option<PathBuf>,
    /// Ids of user and group to run as then, with a colon between.
    #[arg(long, requires = "group", value_parser = user_and_group)]
    user: Option<(u32, u32)>,
    /// Ids of more groups of that user.
    #[arg(long, requires = "user")]
    more_groups: Vec<u32>,
}

fn user_and_group(text: &str) -> Result<(u32, u32), String> {
    let ids = text.split_once(':').and_then(|(user, group)| Some((user.parse().ok()?, group.parse().ok()?)));
    ids.ok_or_else(|| format!("`{text}` is not USER:GROUP by their ids"))
}

/// Where the agent listens unless told otherwise.
const SOCKET: &str = "/run/fermata/agent.sock";
/// How long the agent may take to answer a launcher.
const LAUNCH_LIMIT: Duration = Duration::from_secs(20);

/// The definition of the command line.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    let cli = parsed(std::env::args_os());
    let json = cli.json;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error, json);
            ExitCode::FAILURE
        }
    }
}

/// What the command line says. Whatever is wrong with it is told by the parser that knows everything, which ends this process then.
fn parsed(words: impl Iterator<Item = OsString>) -> Cli {
    let words: Vec<OsString> = words.collect();
    match Started::try_parse_from(&words) {
        Ok(started) => Cli { json: false, socket: SOCKET.into(), command: started.command.into() },
        Err(_) => Cli::parse_from(&words),
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let Cli { json, socket, command } = cli;
    if let Command::VmmExec(Launcher { socket, group, user, more_groups: groups }) = command {
        if let (Some(group), Some((uid, gid))) = (group, user) {
            // Before any other thread: users and groups are a thread's own.
            Confinement { group, uid, gid, groups, files: fermata_agent::units::VMM_FILES }.enter()?;
        }
        let error = fermata_vault::launch::receive_and_exec(&socket, LAUNCH_LIMIT);
        return Err(error).context("this process could not become a VMM");
    }
    match &command {
        Command::Completions { shell } => return manual::completions(*shell),
        Command::ManualPages { folder } => return manual::pages(folder),
        _ => {}
    }
    let command = match command {
        Command::ImdsFirst(first) => return event::serve_first(first),
        other => other,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no async runtime")?;
    runtime.block_on(async {
        let client = Client::new(&socket);
        match command {
            Command::Agent(agent) => {
                start_log();
                agent.run().await
            }
            Command::Standalone(standalone) => {
                start_log();
                standalone.run().await
            }
            Command::Vm(command) => vm::run(command, &client, json).await,
            Command::Host(command) => host::run(command, &client, json).await,
            Command::Event(service) => event::run(service, json).await,
            Command::Imds { config } => {
                start_log();
                event::serve(config.as_deref()).await
            }
            Command::Update(command) => maintenance::update(command, &client, json).await,
            Command::Maintenance(command) => maintenance::run(command, &client, json).await,
            Command::Controller(command) => {
                if matches!(command, cli::ControllerCommand::Run { .. }) {
                    start_log();
                }
                shown(&cli::controller(command).await?, json)
            }
            Command::Set { connection, command } => shown(&cli::set(command, &connection).await?, json),
            Command::Fleet { connection, command } => shown(&cli::fleet(command, &connection).await?, json),
            Command::Rollout { connection, command: cli::RolloutCommand::Watch { rollout } }
                if !json && std::io::stdout().is_terminal() =>
            {
                let phase = watch::watch(&connection.client()?, &rollout).await?;
                output::value(&phase, json, |phase| format!("rollout {rollout}: {phase}"))
            }
            Command::Rollout { connection, command: cli::RolloutCommand::Report { rollout, html: Some(file) } } => {
                let told = cli::reported(&connection.client()?, &rollout).await?;
                output::page(&file, &fermata_pages::rollout(&rollout, &told.phase(), &told.report), json)
            }
            Command::Rollout { connection, command } => {
                let watches = matches!(command, cli::RolloutCommand::Watch { .. });
                let shown = cli::rollout(command, &connection, json).await?;
                // A watch has said everything already, line by line.
                if watches && json { Ok(()) } else { self::shown(&shown, json) }
            }
            Command::DeadMan(dead_man) => {
                start_log();
                dead_man.run().await
            }
            Command::VmmExec(_) | Command::ImdsFirst(_) | Command::Completions { .. } | Command::ManualPages { .. } => {
                unreachable!("handled before the runtime starts")
            }
        }
    })
}

fn shown(shown: &cli::Shown, json: bool) -> anyhow::Result<()> {
    output::value(&shown.json, json, |_| shown.text.clone())
}

fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("FERMATA_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // The journal stamps each line itself.
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let log = tracing_subscriber::fmt().with_env_filter(filter).without_time().with_ansi(colours);
    log.with_writer(std::io::stderr).init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_launcher_is_confined_by_a_service_manager_or_by_all_of_its_words() {
        let parse = |words: &[&str]| {
            let words: Vec<&str> = ["fermata", "vmm-exec", "--socket", "/s"].iter().chain(words).copied().collect();
            let both = Cli::try_parse_from(&words).map(|cli| cli.command);
            assert_eq!(both.is_ok(), Started::try_parse_from(&words).is_ok());
            both
        };
        let Command::VmmExec(Launcher { group: None, user: None, more_groups, .. }) = parse(&[]).unwrap() else {
            panic!("confined")
        };
        assert!(more_groups.is_empty());
        let words = ["--group", "/g", "--user=7:8", "--more-groups=9"];
        let told = parse(&words).unwrap();
        let Command::VmmExec(Launcher { group: Some(_), user: Some((7, 8)), more_groups, .. }) = told else {
            panic!("not confined")
        };
        assert_eq!(more_groups, [9]);
        for part in [&words[..1], &words[..2], &words[2..3], &words[2..], &["--group", "/g", "--user=7"]] {
            assert!(parse(part).is_err(), "{part:?}");
        }
    }

    #[test]
    fn what_machines_start_is_understood_as_everything_is() {
        let all = Cli::command();
        for short in Started::command().get_subcommands() {
            let long = all.find_subcommand(short.get_name()).unwrap();
            let words = |command: &clap::Command| -> Vec<String> {
                let shown = command.get_arguments().filter(|word| !word.is_global_set());
                shown.map(|word| format!("{word:?}")).collect()
            };
            assert_eq!(words(short), words(long), "{}", short.get_name());
        }
        let words = |words: &[&str]| parsed(["fermata"].iter().chain(words).map(OsString::from));
        assert!(matches!(words(&["agent"]).command, Command::Agent(_)));
        let cli = words(&["--json", "--socket", "/s", "vm", "list"]);
        assert!(cli.json && cli.socket.as_os_str() == "/s" && matches!(cli.command, Command::Vm(_)));
    }
}
