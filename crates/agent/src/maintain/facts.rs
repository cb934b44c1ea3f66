//! What mechanisms are chosen by: asked of each VMM and of the host, fresh every time.

use std::collections::BTreeMap;
use std::time::Duration;

use fermata_maintenance::forecast::History;
use fermata_maintenance::mechanism::{HostFacts, VmFacts, VmmFacts};
use fermata_maintenance::update::{Change, Update};
use fermata_vault::memory::Kind;
use fermata_vmm::inspect::VmmInfo;
use fermata_vmm::qmp::{QueryMigrate, QueryStatus};

use crate::vms::{VmError, Vms};

/// How long a VMM may take to answer; one that does not is no candidate for a pause.
const LIMIT: Duration = Duration::from_secs(5);

/// The host's facts, and those of each VM that runs.
///
/// # Errors
/// A VM cannot be asked.
pub(super) async fn gather(vms: &Vms, history: History, update: &Update) -> Result<(HostFacts, Vec<VmFacts>), VmError> {
    let mut found: BTreeMap<_, _> =
        vms.vmms().await.iter().map(|(version, vmm)| (*version, facts_of(vmm.as_ref()))).collect();
    if let Change::Vmm { version, binary: Some(binary), .. } = &update.change {
        found.insert(*version, facts_of(vms.examine_vmm(*version, binary).await.as_ref()));
    }
    let host = HostFacts { vmms: found, kexec_obstacles: kexec_obstacles(vms), history };
    let mut facts = Vec::new();
    for (definition, live) in vms.running().await? {
        let mut blockers = Vec::new();
        let mut paused = false;
        match live.qmp().execute_within(&QueryMigrate {}, LIMIT).await {
            Ok(info) => blockers = info.blocked_reasons,
            Err(error) => blockers.push(error.to_string()),
        }
        match live.qmp().execute_within(&QueryStatus {}, LIMIT).await {
            Ok(status) => paused = !status.running,
            Err(error) => blockers.push(error.to_string()),
        }
        facts.push(VmFacts {
            vm: definition.name.clone(),
            vmm: live.runtime().vmm,
            machine: definition.machine,
            shared_memory: true,
            memory_outlives_kernel: live.runtime().vault == Kind::Devdax,
            blockers,
            pass_through: Vec::new(),
            budget: definition.pause_budget_ms,
            paused,
        });
    }
    Ok((host, facts))
}

fn facts_of(found: Result<&VmmInfo, &String>) -> VmmFacts {
    match found {
        Ok(info) => VmmFacts {
            unusable: None,
            machines: info.machines.clone(),
            cpr_transfer: info.cpr_transfer,
            cpr_reboot: info.cpr_reboot,
        },
        Err(reason) => {
            VmmFacts { unusable: Some(reason.clone()), machines: [].into(), cpr_transfer: false, cpr_reboot: false }
        }
    }
}

/// Why the host's kernel cannot be changed under VMs.
fn kexec_obstacles(vms: &Vms) -> Vec<String> {
    let mut obstacles = Vec::new();
    if let Err(reason) = vms.vaults().devdax() {
        obstacles.push(format!("it has no vault that outlives the kernel ({reason})"));
    }
    if std::fs::read_to_string("/proc/sys/kernel/kexec_load_disabled").map_or(true, |text| text.trim() != "0") {
        obstacles.push("kexec is switched off (kernel.kexec_load_disabled)".to_owned());
    }
    obstacles
}
