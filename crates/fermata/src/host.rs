//! `fermata host`: this host.

use std::time::Duration;

use clap::Subcommand;
use fermata_agent::api::types::{HostView, VmView};
use fermata_agent::client::Client;

use crate::output;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// What this host is and what it can do.
    Show,
    /// Shut down every VM, before the host itself goes down.
    #[command(hide = true)]
    StopGuests {
        /// Seconds that each guest may take.
        #[arg(long, default_value_t = 60)]
        timeout: u64,
    },
}

pub(crate) async fn run(command: Command, client: &Client, json: bool) -> anyhow::Result<()> {
    match command {
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
