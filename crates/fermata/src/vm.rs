//! `fermata vm`: VMs of this host.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Subcommand;
use fermata_agent::api::types::{RestartRequest, StopRequest, VmView};
use fermata_agent::client::Client;
use fermata_model::VmName;

use crate::{console, output};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a VM from its specification.
    Create {
        /// The specification in TOML; `-` reads standard input.
        file: PathBuf,
        /// Start it at once.
        #[arg(long)]
        start: bool,
    },
    /// Start a VM.
    Start {
        /// Its name.
        name: VmName,
    },
    /// Shut a VM down: the guest is asked, and given time.
    Stop {
        /// Its name.
        name: VmName,
        /// Seconds that the guest may take.
        #[arg(long, default_value_t = 60)]
        timeout: u64,
        /// Do not ask: end it at once, as pulling the plug.
        #[arg(long)]
        force: bool,
    },
    /// Shut a VM down and start it again. Programs in it that asked for events are told first, and may say when.
    Restart {
        /// Its name.
        name: VmName,
        /// Seconds of notice, for VMs whose programs asked for events.
        #[arg(long, default_value_t = 900)]
        notice: u32,
        /// Seconds that the guest may take to shut down.
        #[arg(long, default_value_t = 60)]
        timeout: u64,
        /// Do not ask: end it at once, as pulling the plug.
        #[arg(long)]
        force: bool,
    },
    /// Stop a VM's vCPUs; memory and devices are kept.
    Pause {
        /// Its name.
        name: VmName,
    },
    /// Let a paused VM go on.
    Resume {
        /// Its name.
        name: VmName,
    },
    /// Take up what the vault keeps of a VM that could not be restored after a change of the host's kernel.
    Restore {
        /// Its name.
        name: VmName,
    },
    /// All VMs.
    List,
    /// One VM, whole.
    Show {
        /// Its name.
        name: VmName,
    },
    /// Attach to a VM's serial console; Ctrl-] leaves.
    Console {
        /// Its name.
        name: VmName,
    },
    /// Forget a VM that is stopped; its disk images are left alone.
    Delete {
        /// Its name.
        name: VmName,
        /// Stop it first, as pulling the plug.
        #[arg(long)]
        force: bool,
    },
}

const START_LIMIT: Duration = Duration::from_secs(120);
/// More than the longest notice that a VM can ask for, in practice.
const RESTART_LIMIT: Duration = Duration::from_secs(24 * 3_600);
const QUICK_LIMIT: Duration = Duration::from_secs(30);

pub(crate) async fn run(command: Command, client: &Client, json: bool) -> anyhow::Result<()> {
    match command {
        Command::Create { file, start } => {
            let spec = read_spec(&file)?;
            let mut view: VmView = client.post("/v1/vms", "application/toml", spec, QUICK_LIMIT).await?;
            if start {
                view = act(client, &view.name, "start", Vec::new(), START_LIMIT).await?;
            }
            output::value(&view, json, line)
        }
        Command::Start { name } => {
            let view = act(client, &name, "start", Vec::new(), START_LIMIT).await?;
            output::value(&view, json, line)
        }
        Command::Stop { name, timeout, force } => {
            let view = stop(client, &name, StopRequest { timeout_s: timeout, force }).await?;
            output::value(&view, json, line)
        }
        Command::Restart { name, notice, timeout, force } => {
            let request = RestartRequest { notice_s: notice, timeout_s: timeout, force };
            let body = serde_json::to_vec(&request).context("write the request")?;
            // Guests may defer, and other update domains go first: no shorter limit would be right.
            let limit = Duration::from_secs(u64::from(notice) + timeout) + RESTART_LIMIT;
            let view = act(client, &name, "restart", body, limit).await?;
            output::value(&view, json, line)
        }
        Command::Pause { name } => {
            output::value(&act(client, &name, "pause", Vec::new(), QUICK_LIMIT).await?, json, line)
        }
        Command::Resume { name } => {
            output::value(&act(client, &name, "resume", Vec::new(), QUICK_LIMIT).await?, json, line)
        }
        Command::Restore { name } => {
            output::value(&act(client, &name, "restore", Vec::new(), START_LIMIT).await?, json, line)
        }
        Command::List => {
            let views: Vec<VmView> = client.get("/v1/vms").await?;
            output::value(&views, json, |views| list(views))
        }
        Command::Show { name } => output::value(&show(client, &name).await?, json, whole),
        Command::Console { name } => {
            let view = show(client, &name).await?;
            let process = view.process.with_context(|| {
                format!("VM `{name}` is {}: it has no console; start it with `fermata vm start {name}`", view.state)
            })?;
            console::attach(&process.console).await
        }
        Command::Delete { name, force } => {
            if force {
                stop(client, &name, StopRequest { timeout_s: 0, force: true }).await?;
            }
            let view: VmView = client.delete(&format!("/v1/vms/{name}")).await?;
            output::value(&view, json, |view| format!("{} is deleted", view.name))
        }
    }
}

async fn act(client: &Client, name: &VmName, verb: &str, body: Vec<u8>, limit: Duration) -> anyhow::Result<VmView> {
    Ok(client.post(&format!("/v1/vms/{name}/{verb}"), "application/json", body, limit).await?)
}

async fn stop(client: &Client, name: &VmName, request: StopRequest) -> anyhow::Result<VmView> {
    let limit = Duration::from_secs(request.timeout_s) + QUICK_LIMIT;
    act(client, name, "stop", serde_json::to_vec(&request)?, limit).await
}

async fn show(client: &Client, name: &VmName) -> anyhow::Result<VmView> {
    Ok(client.get(&format!("/v1/vms/{name}")).await?)
}

fn read_spec(file: &Path) -> anyhow::Result<Vec<u8>> {
    if file == Path::new("-") {
        let mut spec = Vec::new();
        std::io::stdin().read_to_end(&mut spec).context("standard input")?;
        return Ok(spec);
    }
    std::fs::read(file).with_context(|| format!("specification {}", file.display()))
}

fn line(view: &VmView) -> String {
    match &view.process {
        Some(process) => format!("{} is {} on VMM {}, pid {}", view.name, view.state, process.vmm, process.pid),
        None => format!("{} is {}", view.name, view.state),
    }
}

fn list(views: &[VmView]) -> String {
    let row = |view: &VmView| {
        let definition = &view.definition;
        let set = definition.availability_set.as_ref();
        let domain = set.and_then(|s| s.update_domain).map_or(String::new(), |d| format!("/{d}"));
        vec![
            view.name.to_string(),
            view.state.to_string(),
            view.process.as_ref().map_or("-".to_owned(), |p| p.vmm.to_string()),
            definition.vcpus.to_string(),
            definition.memory.to_string(),
            set.map_or("-".to_owned(), |s| format!("{}{domain}", s.name)),
        ]
    };
    let rows: Vec<_> = views.iter().map(row).collect();
    output::table(&["NAME", "STATE", "VMM", "VCPUS", "MEMORY", "SET/UD"], &rows)
}

fn whole(view: &VmView) -> String {
    let definition = &view.definition;
    let mut rows = vec![
        ("name", view.name.to_string()),
        ("state", view.state.to_string()),
        ("uuid", definition.uuid.to_string()),
        ("vcpus", definition.vcpus.to_string()),
        ("memory", definition.memory.to_string()),
        ("cpu", definition.cpu.clone()),
        ("machine", definition.machine.to_string()),
        ("pause budget", definition.pause_budget_ms.to_string()),
    ];
    if let Some(khz) = definition.tsc_khz {
        rows.push(("tsc", format!("{khz} kHz")));
    }
    if let Some(failure) = &view.last_failure {
        rows.push(("last failure", failure.clone()));
    }
    if let Some(process) = &view.process {
        rows.push(("vmm", process.vmm.to_string()));
        rows.push(("pid", process.pid.to_string()));
        rows.push(("unit", process.unit.clone()));
        rows.push(("console", process.console.display().to_string()));
    }
    for disk in &definition.disks {
        rows.push(("disk", format!("{} ({})", disk.path.display(), disk.format.as_str())));
    }
    for (index, nic) in definition.nics.iter().enumerate() {
        let tap = view.process.as_ref().and_then(|p| p.taps.get(index));
        let via = tap.map_or(String::new(), |tap| format!(" through {tap}"));
        rows.push(("nic", format!("{} on {}{via}", nic.mac, nic.bridge)));
    }
    output::fields(&rows)
}
