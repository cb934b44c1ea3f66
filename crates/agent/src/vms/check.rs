//! What a host refuses: everything about a specification that only the host can know.

use std::path::Path;

use fermata_model::definition::resolve;
use fermata_model::spec::Firmware;
use fermata_model::{HostDefaults, MachineType, VmDefinition, VmSpec, VmmVersion};
use fermata_vmm::images;
use fermata_vmm::inspect::{self, VmmInfo};
use uuid::Uuid;

use super::{VmError, Vms, cpu};
use crate::host;
use crate::inventory::{InUse, VmRecord};
use crate::links;

/// Answers a specification's open questions and checks it against the host and its other VMs.
pub(super) async fn new_vm(
    vms: &Vms,
    spec: VmSpec,
    records: Vec<VmRecord>,
    uuid: Uuid,
) -> Result<VmDefinition, VmError> {
    let used = InUse::of(records);
    if used.holder(|d| d.name == spec.name).is_some() {
        return Err(VmError::NameTaken(spec.name));
    }
    let vmm = spec.vmm.unwrap_or_else(|| vms.config.default_vmm());
    let info = vmm_info(vms, vmm).await?;
    let named_cpu = spec.cpu.clone();
    let model = match &named_cpu {
        Some(named) => cpu::check(named, vmm, &info)?,
        None => cpu::best_of(vms).await?,
    };
    let machine = best_machine(vms).await;
    let defaults = HostDefaults { uuid, cpu: model, machine, vmm, tsc_khz: vms.tsc_khz };
    let definition = resolve(spec, &defaults);
    check_machine(&definition, &info)?;
    check_memory(&definition)?;
    check_identities(&definition, &used)?;
    check_files(&definition, vms)?;
    Ok(definition)
}

/// The usable VMM of a version.
pub(super) async fn vmm_info(vms: &Vms, version: VmmVersion) -> Result<VmmInfo, VmError> {
    let found = vms.vmms().await;
    match found.get(&version) {
        Some(Ok(info)) => Ok(info.clone()),
        Some(Err(reason)) => Err(VmError::BrokenVmm { version, reason: reason.clone() }),
        None => {
            let known = found.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            Err(VmError::UnknownVmm { wanted: version, known })
        }
    }
}

/// The binary of a VMM that this host has.
pub(super) fn vmm_binary(vms: &Vms, version: VmmVersion) -> Result<std::path::PathBuf, VmError> {
    let mut binaries = vms.vmms.binaries();
    binaries.remove(&version).ok_or_else(|| {
        let known = binaries.keys().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        VmError::UnknownVmm { wanted: version, known }
    })
}

/// The newest machine type that every usable VMM knows: a VM born with it can run on each of them.
async fn best_machine(vms: &Vms) -> MachineType {
    let usable: Vec<VmmInfo> = vms.vmms().await.values().filter_map(|found| found.as_ref().ok()).cloned().collect();
    inspect::best_machine(&usable).unwrap_or_else(|| MachineType(vms.config.default_vmm()))
}

fn check_machine(definition: &VmDefinition, info: &VmmInfo) -> Result<(), VmError> {
    let (machine, vmm) = (definition.machine, definition.vmm);
    if machine.0 > vmm {
        return Err(VmError::VmmTooOld { machine, vmm });
    }
    if !info.machines.contains(&machine) {
        let known = info.machines.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Err(VmError::UnknownMachine { machine, vmm, known });
    }
    Ok(())
}

fn check_memory(definition: &VmDefinition) -> Result<(), VmError> {
    let (total, _) = meminfo()?;
    if definition.memory > total {
        return Err(VmError::MemoryAbsurd { wanted: definition.memory, total });
    }
    Ok(())
}

/// Memory in all and available.
pub(super) fn meminfo() -> Result<(fermata_model::Size, fermata_model::Size), VmError> {
    host::memory().map_err(|source| VmError::Io { what: "read", path: "/proc/meminfo".into(), source })
}

fn check_identities(definition: &VmDefinition, used: &InUse) -> Result<(), VmError> {
    if let Some(holder) = used.uuid_holder(definition.uuid) {
        return Err(VmError::UuidTaken { uuid: definition.uuid, holder: holder.clone() });
    }
    for (nic, mac) in definition.nics.iter().map(|n| n.mac).enumerate() {
        if let Some(holder) = used.holder(|d| d.nics.iter().any(|n| n.mac == mac)) {
            return Err(VmError::MacTaken { nic, mac, holder: holder.clone() });
        }
    }
    for (disk, ours) in definition.disks.iter().enumerate() {
        let clash = |d: &VmDefinition| {
            d.disks.iter().any(|theirs| same_file(&theirs.path, &ours.path) && !(theirs.readonly && ours.readonly))
        };
        if let Some(holder) = used.holder(clash) {
            return Err(VmError::DiskTaken { disk, path: ours.path.clone(), holder: holder.clone() });
        }
    }
    Ok(())
}

/// Whether two paths lead to one file, by links or otherwise.
fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => a == b,
    }
}

/// Checks that every file and bridge the VM names is there and fits. Also run before each start: files change.
pub(super) fn check_files(definition: &VmDefinition, vms: &Vms) -> Result<(), VmError> {
    for (disk, image) in definition.disks.iter().enumerate() {
        images::inspect(image).map_err(|source| VmError::Image { disk, source })?;
    }
    for (nic, link) in definition.nics.iter().enumerate() {
        links::check_bridge(&link.bridge).map_err(|source| VmError::Nic { nic, source })?;
    }
    match &definition.firmware {
        Firmware::Bios => Ok(()),
        Firmware::Uefi => {
            let firmware = &vms.config.firmware;
            readable("firmware.ovmf_code", &firmware.ovmf_code)?;
            readable("firmware.ovmf_vars", &firmware.ovmf_vars)
        }
        Firmware::Kernel(kernel) => {
            readable("firmware.kernel.image", &kernel.image)?;
            kernel.initrd.as_deref().map_or(Ok(()), |initrd| readable("firmware.kernel.initrd", initrd))
        }
    }
}

/// Files to boot from stay the operator's; the VMM's user must be able to read them as they are.
fn readable(field: &str, path: &Path) -> Result<(), VmError> {
    use std::os::unix::fs::PermissionsExt;
    let refuse = |reason: String| VmError::File { field: field.to_owned(), path: path.to_owned(), reason };
    let meta = path.metadata().map_err(|e| refuse(format!("{e}; give a file that is there")))?;
    if !meta.is_file() {
        return Err(refuse("not a file; give a file".to_owned()));
    }
    if meta.permissions().mode() & 0o004 == 0 {
        return Err(refuse("the VMM's user cannot read it; `chmod o+r` it, or give a copy".to_owned()));
    }
    Ok(())
}
