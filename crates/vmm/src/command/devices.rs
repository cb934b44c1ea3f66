//! PCI devices, each in a port of its own, at an address that depends on the definition only.
//!
//! ```text
//!  pcie.0  slot 1       pvpanic
//!          slot 2..     root ports, eight functions to a slot, in this order:
//!                       rng | channels (guest agent) | Windows: display | disks ... | NICs ...
//! ```
//!
//! The optional devices in front keep their ports when they are absent.

use fermata_model::VmDefinition;
use fermata_model::spec::GuestOs;
use serde_json::json;

use super::parts::{push, text};
use super::{CommandError, MAX_NICS, Runtime, tap, vhost};
use crate::images::Backend;

/// Ports before the first disk.
const FIXED: usize = 3;
/// Root ports: slots 2 to 24 with eight functions each leave the board's own slots alone.
const MAX_PORTS: usize = 8 * 22;

pub(super) fn all(vm: &VmDefinition, runtime: &Runtime, args: &mut Vec<String>) -> Result<(), CommandError> {
    let devices = FIXED + vm.disks.len() + vm.nics.len();
    if devices > MAX_PORTS || vm.nics.len() > MAX_NICS {
        return Err(CommandError::TooManyDevices {
            vm: vm.name.clone(),
            devices,
            max: MAX_PORTS.min(FIXED + vm.disks.len() + MAX_NICS),
        });
    }
    for port in 0..devices {
        let many = if port % 8 == 0 { ",multifunction=on" } else { "" };
        let address = format!("{:#x}.{:#x}", 2 + port / 8, port % 8);
        push(
            args,
            "-device",
            format!("pcie-root-port,id=port{port},bus=pcie.0,chassis={},addr={address}{many}", port + 1),
        );
    }
    push(args, "-device", "pvpanic-pci,bus=pcie.0,addr=0x1");
    if vm.vmclock {
        push(args, "-device", "vmclock");
    }
    push(args, "-object", json!({"qom-type": "rng-builtin", "id": "rng0"}).to_string());
    push(args, "-device", "virtio-rng-pci,rng=rng0,bus=port0");
    if vm.guest_agent {
        push(args, "-device", "virtio-serial-pci,id=channels,bus=port1,max_ports=2");
        push(args, "-device", "virtserialport,bus=channels.0,nr=1,chardev=qga,name=org.qemu.guest_agent.0");
    }
    if vm.os == GuestOs::Windows {
        push(args, "-device", "bochs-display,bus=port2");
    }
    for (index, backend) in runtime.disks.iter().enumerate() {
        disk(vm, runtime.twin, index, backend, args);
    }
    for (index, nic) in vm.nics.iter().enumerate() {
        let mut netdev = json!({"type": "tap", "id": format!("nic{index}"), "fd": tap(index).to_string()});
        netdev["vhost"] = runtime.vhost.into();
        if runtime.vhost {
            netdev["vhostfd"] = vhost(index).to_string().into();
        }
        push(args, "-netdev", netdev.to_string());
        // No option ROM: it is memory of the guest whose size changes with the ROM's package.
        let port = FIXED + vm.disks.len() + index;
        push(
            args,
            "-device",
            format!("virtio-net-pci,netdev=nic{index},id=net{index},mac={},bus=port{port},romfile=", nic.mac),
        );
    }
    Ok(())
}

fn disk(vm: &VmDefinition, twin: bool, index: usize, backend: &Backend, args: &mut Vec<String>) {
    let disk = &vm.disks[index];
    let node = format!("disk{index}");
    if twin {
        let nothing = json!({
            "driver": "null-co", "node-name": node, "size": backend.virtual_size, "read-zeroes": true,
            "read-only": disk.readonly,
        });
        push(args, "-blockdev", nothing.to_string());
    } else {
        let cache = json!({"direct": backend.direct, "no-flush": false});
        let file = json!({
            "driver": backend.kind.driver(), "node-name": format!("{node}-file"), "filename": text(&disk.path),
            "cache": cache, "aio": if backend.direct { "native" } else { "threads" },
            "discard": "unmap", "locking": "on", "read-only": disk.readonly,
        });
        let mut format = json!({
            "driver": disk.format.as_str(), "node-name": node, "file": format!("{node}-file"),
            "cache": cache, "discard": "unmap", "read-only": disk.readonly,
        });
        if disk.format == fermata_model::spec::DiskFormat::Qcow2 && !backend.backed {
            // A backing file that appears in the header later would be opened unasked.
            format["backing"] = serde_json::Value::Null;
        }
        push(args, "-blockdev", file.to_string());
        push(args, "-blockdev", format.to_string());
    }
    let port = FIXED + index;
    push(
        args,
        "-device",
        format!(
            "virtio-blk-pci,drive={node},id=blk{index},serial={node},bus=port{port},bootindex={},werror=stop,rerror=stop,\
             write-cache=on",
            index + 1
        ),
    );
}
