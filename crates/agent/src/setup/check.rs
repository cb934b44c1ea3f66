//! What a host has, and lacks, for changing its kernel under VMs.

use std::fs;

use fermata_vault::memory::Kind;
use serde::Serialize;

use crate::config::Config;
use crate::maintain::modules::names;
use crate::vaults::MODULES;

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub what: &'static str,
    /// Whether it is as it must be.
    pub good: bool,
    /// What was found.
    pub found: String,
    /// The way out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

fn finding(what: &'static str, good: bool, found: impl Into<String>, fix: &str) -> Finding {
    Finding { what, good, found: found.into(), fix: (!good).then(|| fix.to_owned()) }
}

/// Looks at this host.
#[must_use]
pub fn look(config: &Config) -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cmdline = read("/proc/cmdline");
    let mut findings = of_cmdline(&cmdline);
    let device = config.vault.device.display().to_string();
    findings.push(finding(
        "vault in the configuration",
        config.vault.kind == Kind::Devdax,
        format!("{:?}", config.vault.kind).to_lowercase(),
        "set kind = \"devdax\" under [vault] in the agent's configuration, or run `fermata host prepare`",
    ));
    let there = config.vault.device.exists();
    findings.push(finding(
        "vault's device",
        there,
        if there { device } else { format!("{device} is not there") },
        "restart the host after `fermata host prepare`; the agent makes the device when the memory is set aside",
    ));
    let release = crate::host::kernel();
    let listed = read(&format!("/lib/modules/{release}/modules.dep"))
        + &read(&format!("/lib/modules/{release}/modules.builtin"));
    let missing = missing_modules(&listed);
    findings.push(finding(
        "modules of the vault",
        missing.is_empty(),
        if missing.is_empty() {
            format!("all there for {release}")
        } else {
            format!("{release} lacks {}", missing.join(", "))
        },
        "use a kernel with CONFIG_X86_PMEM_LEGACY, CONFIG_NVDIMM_DAX and CONFIG_DEV_DAX_PMEM (Debian's are)",
    ));
    let kvm = fermata_vault::kvm::usable();
    let text = kvm.as_ref().map_or_else(ToString::to_string, |()| "usable".to_owned());
    findings.push(finding("kvm", kvm.is_ok(), text, "see the reason"));
    let disabled = read("/proc/sys/kernel/kexec_load_disabled");
    findings.push(finding(
        "kexec",
        disabled.trim() == "0",
        if disabled.trim() == "0" { "allowed" } else { "switched off or not there" },
        "set kernel.kexec_load_disabled=0 at boot and use a kernel with CONFIG_KEXEC_FILE",
    ));
    let lockdown = read("/sys/kernel/security/lockdown");
    findings.push(finding(
        "lockdown",
        !lockdown.contains("[confidentiality]"),
        if lockdown.is_empty() { "off".to_owned() } else { lockdown.trim().to_owned() },
        "kexec needs a signed kernel image under lockdown, and is refused under `confidentiality`",
    ));
    let source = read("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    findings.push(finding(
        "clock source",
        source.trim() == "tsc" || source.trim() == "kvm-clock",
        source.trim(),
        "the clock is put right from the time-stamp counter; with another clock source set it by NTP after the jump",
    ));
    findings
}

fn of_cmdline(cmdline: &str) -> Vec<Finding> {
    let word = |test: fn(&str) -> bool| cmdline.split_whitespace().find(|word| test(word));
    let vault = word(|word| word.starts_with("memmap=") && word.contains('!'));
    let panic = word(|word| word.starts_with("panic=") && !word.ends_with("=0"));
    vec![
        finding(
            "memory set aside",
            vault.is_some(),
            vault.unwrap_or("no memmap=SIZE!START on the command line"),
            "`fermata host prepare --memory SIZE`, then restart the host",
        ),
        finding(
            "restart after a panic",
            panic.is_some(),
            panic.unwrap_or("no panic=SECONDS on the command line"),
            "add panic=10, so that a kernel that panics after a jump does not stay there",
        ),
    ]
}

fn missing_modules(listed: &str) -> Vec<&'static str> {
    let there = names(listed);
    MODULES.into_iter().filter(|module| !there.contains(*module)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_on_the_command_line_is_named_with_the_way_out() {
        let bare = of_cmdline("root=/dev/vda quiet panic=0 memmap=64K$0x1000");
        assert!(bare.iter().all(|finding| !finding.good && finding.fix.is_some()));
        assert!(of_cmdline("memmap=4G!8G panic=10").iter().all(|finding| finding.good));
    }

    #[test]
    fn modules_are_found_whatever_their_file_is_called() {
        let listed = "kernel/drivers/nvdimm/nd_e820.ko.xz: kernel/drivers/nvdimm/libnvdimm.ko.xz\n\
                      kernel/drivers/nvdimm/nd_pmem.ko:\nkernel/drivers/dax/device_dax.ko.zst\n";
        assert_eq!(missing_modules(listed), ["dax_pmem"]);
    }
}
