//! Whether KVM works here, and what it gives guests.

use kvm_ioctls::Kvm;

/// Why KVM cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The CPU has no hardware virtualisation, or it is switched off or hidden.
    #[error(
        "the CPU offers no hardware virtualisation (neither vmx nor svm in /proc/cpuinfo); switch it on in the firmware, or for a virtual host in its hypervisor"
    )]
    NoHardware,
    /// The device is missing or closed to us.
    #[error("/dev/kvm cannot be opened ({0}); load kvm_intel or kvm_amd and give the agent access")]
    Open(std::io::Error),
    /// It opens, but does not work.
    #[error("KVM does not work here: {what} failed ({source}); see the kernel log")]
    Broken {
        /// What was tried.
        what: &'static str,
        /// The kernel's reason.
        source: std::io::Error,
    },
}

/// Checks that KVM can run ordinary guests: the CPU has the feature (`/dev/kvm` may open and create VMs without it, and
/// guests then die with an internal error), and a VM with one vCPU can be made.
///
/// # Errors
/// [`KvmError`] with what is missing.
pub fn usable() -> Result<(), KvmError> {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has_feature = cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| line.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"));
    if !has_feature {
        return Err(KvmError::NoHardware);
    }
    vcpu().map(drop)
}

fn vcpu() -> Result<kvm_ioctls::VcpuFd, KvmError> {
    let broken = |what| move |errno: kvm_ioctls::Error| KvmError::Broken { what, source: errno.into() };
    let kvm = Kvm::new().map_err(|errno| KvmError::Open(errno.into()))?;
    let vm = kvm.create_vm().map_err(broken("creating a VM"))?;
    vm.create_vcpu(0).map_err(broken("creating a vCPU"))
}

/// VMs of nothing that exist as long as this value does.
#[derive(Debug)]
pub struct Held {
    _machines: [(kvm_ioctls::VmFd, Vec<kvm_ioctls::VcpuFd>); 2],
}

/// Makes VMs that never run and keeps them.
///
/// The kernel rewrites its own code (static keys) when the first user of a feature comes and when the last one goes: its
/// scheduler for the first VM (`preempt_notifier_inc` in `kvm_create_vm`), KVM's entry path for vCPUs whose APIC is switched off
/// by software, as each is until its guest boots (`apic_sw_disabled`), or by hardware (`apic_hw_disabled`), or that have none
/// (`kvm_has_noapic_vcpu`). An emulator of several CPUs may get such a rewrite wrong once in a hundred times, and the host's
/// kernel then dies of a breakpoint nobody set or of a broken stack. With one user of each always there it happens once per boot.
///
/// # Errors
/// [`KvmError`] when no VM can be made.
pub fn hold() -> Result<Held, KvmError> {
    let broken = |what| move |errno: kvm_ioctls::Error| KvmError::Broken { what, source: errno.into() };
    let kvm = Kvm::new().map_err(|errno| KvmError::Open(errno.into()))?;
    let machine = || kvm.create_vm().map_err(broken("creating a VM"));
    let (ordinary, bare) = (machine()?, machine()?);
    ordinary.create_irq_chip().map_err(broken("creating interrupt controllers"))?;
    let off_by_software = ordinary.create_vcpu(0).map_err(broken("creating a vCPU"))?;
    let off_by_hardware = ordinary.create_vcpu(1).map_err(broken("creating a vCPU"))?;
    let mut registers = off_by_hardware.get_sregs().map_err(broken("reading registers"))?;
    registers.apic_base &= !APIC_ENABLE;
    off_by_hardware.set_sregs(&registers).map_err(broken("switching an APIC off"))?;
    let without = bare.create_vcpu(0).map_err(broken("creating a vCPU"))?;
    Ok(Held { _machines: [(ordinary, vec![off_by_software, off_by_hardware]), (bare, vec![without])] })
}

/// Global enable bit of `IA32_APIC_BASE` (Intel SDM, volume 3, 10.4.4).
const APIC_ENABLE: u64 = 1 << 11;

/// The frequency that KVM gives a guest's TSC on this host, in kHz; `None` where KVM is missing or does not tell.
#[must_use]
pub fn guest_tsc_khz() -> Option<u32> {
    vcpu().ok()?.get_tsc_khz().ok().filter(|khz| *khz > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_the_cpu_feature_is_refused_whatever_the_device_says() {
        let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let has_feature = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
        match usable() {
            Err(KvmError::NoHardware) => assert!(!has_feature),
            Ok(()) | Err(_) => assert!(has_feature),
        }
    }
}
