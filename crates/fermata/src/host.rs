//! `fermata host`: this host.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use fermata_agent::api::types::{HostView, VmView};
use fermata_agent::client::Client;
use fermata_agent::setup::prepare::Roots;
use fermata_agent::{config, setup};
use fermata_model::Size;

use crate::output;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// What this host is and what it can do.
    Show,
    /// Set this host up so that its kernel can be changed under VMs: memory set aside, modules, configuration.
    Prepare(Prepare),
    /// What this host has, and lacks, for changing its kernel under VMs.
    Check {
        /// The agent's configuration.
        #[arg(long, default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Shut down every VM: what the host does before it goes down itself.
    StopGuests {
        /// Seconds that each guest may take.
        #[arg(long, default_value_t = 60)]
        timeout: u64,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Prepare {
    /// Memory for VMs, such as 48GiB; the rest is left for the host.
    #[arg(long)]
    memory: Size,
    /// Where it starts (physical address in bytes), instead of the upper end of the largest piece.
    #[arg(long)]
    start: Option<u64>,
    /// Show what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// The agent's configuration.
    #[arg(long, default_value = config::DEFAULT_PATH)]
    config: PathBuf,
}

fn prepare(wish: &Prepare, json: bool) -> anyhow::Result<()> {
    let prepared = setup::prepare::plan(&Roots::of_this_host(&wish.config), wish.memory, wish.start)?;
    if !wish.dry_run {
        setup::prepare::carry_out(&prepared)?;
    }
    output::value(&prepared, json, |prepared| {
        let mut text = format!("vault {}, left for the host {} ({})\n", prepared.vault, prepared.host, prepared.loader);
        for (path, body) in &prepared.files {
            text += &format!("{} {}:\n", if wish.dry_run { "would write" } else { "wrote" }, path.display());
            text.extend(body.lines().map(|line| format!("    {line}\n")));
        }
        text.extend(prepared.next.iter().map(|next| format!("next: {next}\n")));
        text.trim_end().to_owned()
    })
}

fn check(path: &Path, json: bool) -> anyhow::Result<()> {
    let config = config::Config::read(path)?;
    let findings = setup::check::look(&config);
    let missing = findings.iter().filter(|finding| !finding.good).count();
    output::value(&findings, json, |findings| {
        let line = |finding: &setup::check::Finding| {
            let fix = finding.fix.as_ref().map_or(String::new(), |fix| format!("\n      {fix}"));
            format!("{} {}: {}{fix}", if finding.good { "ok   " } else { "LACKS" }, finding.what, finding.found)
        };
        findings.iter().map(line).collect::<Vec<_>>().join("\n")
    })?;
    anyhow::ensure!(missing == 0, "{missing} things are missing for changing the kernel under VMs");
    Ok(())
}

pub(crate) async fn run(command: Command, client: &Client, json: bool) -> anyhow::Result<()> {
    match command {
        Command::Prepare(wish) => prepare(&wish, json),
        Command::Check { config } => check(&config, json),
        Command::Show => {
            let view: HostView = client.get("/v1/host").await?;
            output::value(&view, json, whole)
        }
        Command::StopGuests { timeout } => {
            let limit = Duration::from_secs(timeout + 30);
            let path = format!("/v1/host/stop-guests?timeout_s={timeout}");
            let stopped: Vec<VmView> = client.post(&path, "application/json", Vec::new(), limit).await?;
            output::value(&stopped, json, |views| format!("{} VMs are stopped", views.len()))
        }
    }
}

fn whole(view: &HostView) -> String {
    let memory = &view.memory;
    let mut rows = vec![
        ("host", view.name.clone()),
        ("agent", view.agent.clone()),
        ("kernel", view.kernel.clone()),
        ("boot id", view.boot_id.clone()),
        ("cpus", view.cpus.to_string()),
        (
            "memory",
            format!(
                "{} MiB, {} MiB available, {} MiB promised to running VMs",
                memory.total.mib(),
                memory.available.mib(),
                memory.promised.mib()
            ),
        ),
        ("kvm", answer(&view.kvm, "usable")),
        ("tsc", view.tsc_khz.map_or("not known".to_owned(), |khz| format!("{khz} kHz"))),
        ("vault", view.vault.clone()),
        ("vms", view.vms.to_string()),
    ];
    for vmm in &view.vmms {
        let default = if vmm.default { ", default" } else { "" };
        let found = match &vmm.found {
            Ok(version) => format!("QEMU {version}"),
            Err(reason) => format!("cannot be used: {reason}"),
        };
        let vms: Vec<&str> = vmm.vms.iter().map(AsRef::as_ref).collect();
        let runs = if vms.is_empty() { String::new() } else { format!(", runs {}", vms.join(" ")) };
        rows.push(("vmm", format!("{} {found}{default}{runs}", vmm.version)));
    }
    for bridge in &view.bridges {
        let address = bridge.address.as_deref().map_or(String::new(), |a| format!(" {a}"));
        rows.push(("bridge", format!("{}{address} {}", bridge.name, answer(&bridge.usable, "usable"))));
    }
    output::fields(&rows)
}

fn answer(found: &Result<(), String>, good: &str) -> String {
    match found {
        Ok(()) => good.to_owned(),
        Err(reason) => reason.clone(),
    }
}
