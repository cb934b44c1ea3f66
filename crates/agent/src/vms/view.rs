//! What the API shows of VMs and of the host.

use std::time::Duration;

use fermata_vmm::command::Paths;

use super::{Slot, VmError, Vms, check};
use crate::api::types::{BridgeView, HostView, MemoryView, ProcessView, VmState, VmView, VmmView};
use crate::host;
use crate::inventory::{InUse, Inventory, Runtime, VmRecord};
use crate::links;

/// A VMM that takes longer to say what it does is shown as unresponsive.
const STATUS_LIMIT: Duration = Duration::from_secs(2);

impl Vms {
    pub(super) async fn view(&self, record: &VmRecord) -> Result<VmView, VmError> {
        let slot = self.slot(&record.definition.name);
        let state = state(&slot, record).await;
        let process = record.runtime.as_ref().and_then(process_view);
        Ok(VmView {
            name: record.definition.name.clone(),
            state,
            wanted: record.wanted,
            last_failure: record.last_failure.clone(),
            process,
            definition: record.definition.clone(),
        })
    }

    /// What this host is and what it can do.
    ///
    /// # Errors
    /// [`VmError::Inventory`], [`VmError::Io`].
    pub async fn host(&self) -> Result<HostView, VmError> {
        let records = self.db(Inventory::list).await?;
        let (total, available) = check::meminfo()?;
        let runs_on = |version| {
            let runs = |r: &&VmRecord| r.runtime.as_ref().is_some_and(|run| run.vmm == version);
            records.iter().filter(runs).map(|r| r.definition.name.clone()).collect()
        };
        let all_found = self.vmms().await;
        let binaries = self.vmms.binaries().into_iter();
        let vmms = binaries.map(|(version, binary)| VmmView {
            version,
            binary,
            default: version == self.config.default_vmm(),
            found: match all_found.get(&version) {
                Some(Ok(info)) => Ok(info.full_version.clone()),
                Some(Err(reason)) => Err(reason.clone()),
                None => Err("not looked at".to_owned()),
            },
            vms: runs_on(version),
        });
        let bridges = self.config.bridges.iter().map(|bridge| BridgeView {
            name: bridge.name.to_string(),
            address: bridge.address.map(String::from),
            usable: links::check_bridge(&bridge.name).map_err(|e| e.to_string()),
        });
        Ok(HostView {
            name: host::name(),
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: host::kernel(),
            boot_id: self.boot.to_string(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kvm: self.kvm.clone(),
            tsc_khz: self.tsc_khz,
            vault: self.vaults.describe(),
            vmms: vmms.collect(),
            bridges: bridges.collect(),
            vms: records.len(),
            memory: MemoryView { total, available, promised: InUse::of(records).running_memory },
        })
    }
}

/// What a VM is doing now: asked of its VMM, not remembered.
pub(super) async fn state(slot: &Slot, record: &VmRecord) -> VmState {
    match (&record.runtime, slot.live()) {
        (None, _) if record.last_failure.is_some() => VmState::Failed,
        (None, _) => VmState::Stopped,
        (Some(_), None) => VmState::Starting,
        (Some(_), Some(live)) => match live.run_state(STATUS_LIMIT).await {
            Ok(true) => VmState::Running,
            Ok(false) => VmState::Paused,
            Err(_) => VmState::Unresponsive,
        },
    }
}

fn process_view(runtime: &Runtime) -> Option<ProcessView> {
    let process = runtime.process?;
    Some(ProcessView {
        vmm: runtime.vmm,
        pid: process.pid,
        unit: runtime.unit.clone(),
        generation: runtime.generation,
        taps: runtime.taps.iter().map(ToString::to_string).collect(),
        console: Paths::in_folder(&runtime.dir).console(),
    })
}
