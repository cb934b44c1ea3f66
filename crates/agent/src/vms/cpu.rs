//! The CPU model a VM is born with. The guest sees it for life, so it is named and versioned, never `host`.

use fermata_model::VmmVersion;
use fermata_vmm::inspect::{self, VmmInfo};

use super::{VmError, Vms};

/// Checks a CPU model that the operator named: the VMM must know it, and this host must have all of it.
pub(super) fn check(named: &str, vmm: VmmVersion, info: &VmmInfo) -> Result<String, VmError> {
    let model = named.split(',').next().unwrap_or(named);
    let refuse = |reason: String| Err(VmError::Cpu { reason });
    if ["host", "max"].contains(&model) {
        return refuse(format!(
            "`{model}` changes with kernel and VMM under the guest; name a model, or leave it out for this host's best"
        ));
    }
    if info.cpus.contains(model) {
        return Ok(named.to_owned());
    }
    let known = info.cpus.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    refuse(format!("`{model}` is not known to VMM {vmm}, or this host lacks a part of it; it has in full: {known}"))
}

/// The newest model that every usable VMM supports in full on this host.
pub(super) async fn best_of(vms: &Vms) -> Result<String, VmError> {
    let usable: Vec<VmmInfo> = vms.vmms().await.values().filter_map(|found| found.as_ref().ok()).cloned().collect();
    inspect::best_cpu(&usable, inspect::host_is_intel()).map(str::to_owned).ok_or_else(|| VmError::Cpu {
        reason: "no CPU model is supported in full by every VMM of this host; name one with `cpu`".to_owned(),
    })
}
