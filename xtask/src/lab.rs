//! `cargo xtask lab`: the lab's hosts by hand.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use fermata_lab::{Host, Kernel, Lab, LabSpec};
use serde_json::json;

#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    /// Make virtual hosts and wait until they are up.
    Up(Up),
    /// Show the labs that are up.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Run a command on a host, or open a shell.
    Exec {
        #[command(flatten)]
        at: At,
        /// The command; without it, a shell.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Copy files: one side is HOST:PATH.
    Cp {
        /// Name of the lab.
        #[arg(long, default_value = "lab")]
        name: String,
        /// Source.
        from: String,
        /// Target.
        to: String,
    },
    /// Show a host's serial console as it grows.
    Console {
        #[command(flatten)]
        at: At,
    },
    /// Cut a host's power and start it again.
    Reset {
        #[command(flatten)]
        at: At,
    },
    /// Take a lab down.
    Down {
        /// Name of the lab.
        #[arg(long, default_value = "lab")]
        name: String,
        /// All labs of this workspace.
        #[arg(long)]
        all: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct At {
    /// Name of the lab.
    #[arg(long, default_value = "lab")]
    name: String,
    /// Name of the host, such as host1.
    host: String,
}

#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Name of the lab.
    #[arg(long, default_value = "lab")]
    name: String,
    /// How many hosts.
    #[arg(long, default_value_t = 1)]
    hosts: usize,
    /// Memory of each host, in MiB.
    #[arg(long, default_value_t = 3072)]
    memory: u64,
    /// Processors of each host; 2 unless told otherwise.
    #[arg(long)]
    cpus: Option<u32>,
    /// Kernel of each host: 6.12 or 7.2.
    #[arg(long, default_value = "6.12")]
    kernel: Kernel,
    /// More words for the kernel's command line, such as 'memmap=1G!5G'.
    #[arg(long, default_value = "")]
    cmdline: String,
    /// With the disk of the Debian guest, built if it is not there yet.
    #[arg(long)]
    debian: bool,
}

pub(crate) fn run(command: LabCommand) -> Result<()> {
    match command {
        LabCommand::Up(up) => self::up(&up),
        LabCommand::List { json } => list(json),
        LabCommand::Exec { at, command } => exec(&find(&at)?, &command),
        LabCommand::Cp { name, from, to } => copy(&name, &from, &to),
        LabCommand::Console { at } => console(&find(&at)?),
        LabCommand::Reset { at } => find(&at)?.reset(),
        LabCommand::Down { name, all } => down(&name, all),
    }
}

fn up(up: &Up) -> Result<()> {
    let mut spec = LabSpec::new(&up.name, up.hosts);
    spec.debian_guest = up.debian;
    for host in &mut spec.hosts {
        host.memory_mib = up.memory;
        host.cpus = up.cpus.unwrap_or(host.cpus);
        host.kernel = up.kernel;
        host.cmdline.clone_from(&up.cmdline);
    }
    let mut lab = Lab::up(&spec)?;
    lab.keep()?;
    for host in lab.hosts() {
        println!("{} is up; try: cargo xtask lab exec --name {} {} -- uname -a", host.name, up.name, host.name);
    }
    Ok(())
}

fn list(as_json: bool) -> Result<()> {
    let mut labs = Vec::new();
    for name in Lab::names()? {
        let lab = Lab::open(&name)?;
        let hosts = lab
            .hosts()
            .iter()
            .map(|host| json!({"name": host.name, "running": host.is_running(), "console": host.console_log()}));
        labs.push(json!({"name": name, "hosts": hosts.collect::<Vec<_>>()}));
        if !as_json {
            for host in lab.hosts() {
                println!("{name}\t{}\t{}", host.name, if host.is_running() { "running" } else { "ended" });
            }
        }
    }
    if as_json {
        println!("{}", serde_json::to_string_pretty(&labs)?);
    }
    Ok(())
}

fn exec(host: &Host, command: &[String]) -> Result<()> {
    let mut ssh = host.ssh()?;
    ssh.stdin(Stdio::inherit());
    if !command.is_empty() {
        ssh.arg("--").arg(command.join(" "));
    }
    let status = ssh.status().context("start ssh")?;
    std::process::exit(status.code().unwrap_or(255));
}

fn copy(name: &str, from: &str, to: &str) -> Result<()> {
    let lab = Lab::open(name)?;
    let host_of = |name: &str| lab.hosts().iter().find(|host| host.name == name);
    let remote =
        |text: &str| text.split_once(':').and_then(|(name, path)| Some((host_of(name)?.clone(), path.to_owned())));
    match (remote(from), remote(to)) {
        (None, Some((host, path))) => host.copy_to(&PathBuf::from(from), &path),
        (Some((host, path)), None) => host.copy_from(&path, &PathBuf::from(to)),
        _ => bail!("one side must be HOST:PATH of a host of lab {name}, the other a path here"),
    }
}

fn console(host: &Host) -> Result<()> {
    Command::new("tail").args(["-n", "100", "-F"]).arg(host.console_log()).status().context("start tail")?;
    Ok(())
}

fn down(name: &str, all: bool) -> Result<()> {
    let names = if all { Lab::names()? } else { vec![name.to_owned()] };
    for name in names {
        Lab::open(&name)?.down()?;
        println!("{name} is down");
    }
    Ok(())
}

fn find(at: &At) -> Result<Host> {
    let lab = Lab::open(&at.name)?;
    let host = lab.hosts().iter().find(|host| host.name == at.host);
    host.cloned().with_context(|| {
        format!("lab {} has no host {:?}; it has host1 to host{}", at.name, at.host, lab.hosts().len())
    })
}
