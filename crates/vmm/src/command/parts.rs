//! Everything that is not a PCI device.

use std::path::Path;

use fermata_model::VmDefinition;
use fermata_model::spec::{Firmware, GuestOs};
use serde_json::json;

use super::{Accelerator, CommandError, MEMORY, Role, Runtime};

/// Hyper-V enlightenments for Windows: reference TSC and synthetic timers, so that no clock of the guest is emulated, and
/// the hints that keep it from spinning. `kvm=off` hides KVM's own interface, which Windows does not know and a Linux guest
/// would prefer.
const WINDOWS_CPU: &str = "kvm=off,hv-relaxed=on,hv-vapic=on,hv-spinlocks=0x1fff,hv-vpindex=on,hv-runtime=on,\
     hv-time=on,hv-synic=on,hv-stimer=on,hv-frequencies=on,hv-tlbflush=on,hv-ipi=on,hv-reset=on";

pub(super) fn push(args: &mut Vec<String>, option: &str, value: impl Into<String>) {
    args.push(option.to_owned());
    args.push(value.into());
}

/// A path as a value of QEMU's `key=value,...` syntax, in which a comma is doubled.
pub(super) fn quoted(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// A path in JSON. Paths enter as text (TOML and the agent's configuration), so they are UTF-8.
pub(super) fn text(path: &Path) -> String {
    path.display().to_string()
}

/// What the process is and may.
pub(super) fn process(vm: &VmDefinition, args: &mut Vec<String>) {
    push(args, "-name", format!("guest={},debug-threads=on", vm.name));
    args.extend(["-nodefaults", "-no-user-config"].map(str::to_owned));
    push(args, "-display", "none");
    push(args, "-msg", "timestamp=on");
    push(args, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
}

/// Board, processors, memory, clock, identity.
pub(super) fn machine(vm: &VmDefinition, runtime: &Runtime, args: &mut Vec<String>) {
    let mut machine = format!(
        "{},aux-ram-share=on,memory-backend=ram0,dump-guest-core=off,mem-merge=off,hpet=off,vmport=off,usb=off",
        vm.machine
    );
    if matches!(vm.firmware, Firmware::Uefi) {
        machine.push_str(",pflash0=uefi-code,pflash1=uefi-vars");
    }
    push(args, "-machine", machine);
    push(
        args,
        "-accel",
        match runtime.accelerator {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        },
    );
    push(args, "-cpu", cpu(vm, runtime.accelerator));
    push(args, "-smp", format!("{n},sockets=1,cores={n},threads=1", n = vm.vcpus));
    push(args, "-m", format!("size={}M", vm.memory.mib()));
    let mut memory = json!({
        "qom-type": "memory-backend-file",
        "id": "ram0",
        "share": true,
        "mem-path": fermata_vault::memory::Region::vmm_path(MEMORY),
        "size": vm.memory.bytes(),
    });
    if let Some(align) = runtime.memory.align {
        memory["offset"] = runtime.memory.offset.into();
        memory["align"] = align.into();
    }
    push(args, "-object", memory.to_string());
    let base = match vm.os {
        GuestOs::Linux => "utc",
        GuestOs::Windows => "localtime",
    };
    push(args, "-rtc", format!("base={base},clock=host,driftfix=slew"));
    push(args, "-uuid", vm.uuid.to_string());
    push(args, "-smbios", format!("type=1,manufacturer=Fermata,product=VM,serial={uuid},uuid={uuid}", uuid = vm.uuid));
    // A guest that goes to sleep by itself could not be told from one that is held.
    push(args, "-global", "ICH9-LPC.disable_s3=1");
    push(args, "-global", "ICH9-LPC.disable_s4=1");
    // What a guest does after a panic is the guest's choice; we want to hear of it.
    push(args, "-action", "panic=none,reboot=reset,shutdown=poweroff");
    push(args, "-boot", "menu=off,strict=on");
}

fn cpu(vm: &VmDefinition, accelerator: Accelerator) -> String {
    let mut cpu = vm.cpu.clone();
    // The emulator has a TSC of its own and no Hyper-V.
    if accelerator == Accelerator::Kvm {
        if let Some(khz) = vm.tsc_khz {
            cpu.push_str(&format!(",tsc-frequency={}", u64::from(khz) * 1000));
        }
        if vm.os == GuestOs::Windows {
            cpu.push(',');
            cpu.push_str(WINDOWS_CPU);
        }
    }
    cpu
}

/// Firmware and kernel.
pub(super) fn firmware(vm: &VmDefinition, runtime: &Runtime, args: &mut Vec<String>) -> Result<(), CommandError> {
    match &vm.firmware {
        Firmware::Bios => {}
        Firmware::Uefi => {
            let files = runtime.uefi.as_ref().ok_or_else(|| CommandError::NoUefi { vm: vm.name.clone() })?;
            let code = json!({
                "driver": "file", "node-name": "uefi-code", "filename": text(&files.code), "read-only": true,
            });
            let vars = if runtime.twin {
                json!({"driver": "null-co", "node-name": "uefi-vars", "size": files.vars_bytes, "read-zeroes": true})
            } else {
                json!({"driver": "file", "node-name": "uefi-vars", "filename": text(&files.vars), "locking": "on"})
            };
            push(args, "-blockdev", code.to_string());
            push(args, "-blockdev", vars.to_string());
        }
        Firmware::Kernel(kernel) => {
            push(args, "-kernel", text(&kernel.image));
            if let Some(initrd) = &kernel.initrd {
                push(args, "-initrd", text(initrd));
            }
            if !kernel.cmdline.is_empty() {
                push(args, "-append", kernel.cmdline.clone());
            }
        }
    }
    Ok(())
}

/// Monitors and the serial console.
pub(super) fn channels(vm: &VmDefinition, runtime: &Runtime, args: &mut Vec<String>) {
    let paths = &runtime.paths;
    for (id, path) in [("qmp", paths.qmp()), ("rescue", paths.rescue())] {
        push(args, "-chardev", format!("socket,id={id},path={},server=on,wait=off", quoted(&path)));
        push(args, "-mon", format!("chardev={id},mode=control"));
    }
    let mut console = format!("socket,id=console,path={},server=on,wait=off", quoted(&paths.console()));
    if !runtime.twin {
        console.push_str(&format!(",logfile={},logappend=on", quoted(&runtime.console_log)));
    }
    push(args, "-chardev", console);
    push(args, "-serial", "chardev:console");
    if vm.guest_agent {
        push(args, "-chardev", format!("socket,id=qga,path={},server=on,wait=off", quoted(&paths.guest_agent())));
    }
}

/// How this start begins.
pub(super) fn role(runtime: &Runtime, args: &mut Vec<String>) {
    let unix = |kind: &str, path: &Path| {
        json!({"channel-type": kind, "addr": {"transport": "socket", "type": "unix", "path": text(path)}}).to_string()
    };
    match runtime.role {
        Role::Run => {}
        Role::IncomingCpr => {
            push(args, "-incoming", unix("main", &runtime.paths.incoming()));
            push(args, "-incoming", unix("cpr", &runtime.paths.incoming_cpr()));
        }
        Role::IncomingDefer => push(args, "-incoming", "defer"),
    }
    // Who may run the vCPUs is the journal's word: only a cold boot begins by itself.
    if runtime.twin || runtime.role != Role::Run {
        args.push("-S".to_owned());
    }
}
