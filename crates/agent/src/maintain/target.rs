//! The kernel that an update changes to, and what VMs need of the host that comes up with it: looked at before anything is begun, and again when it
//! is loaded.

use std::path::{Path, PathBuf};

use fermata_maintenance::update::KernelChange;
use fermata_model::VmDefinition;
use fermata_model::spec::Firmware;
use fermata_vault::kexec;
use uuid::Uuid;

use super::{initrd, modules};
use crate::config::Config;
use crate::first::Steps;
use crate::jumped;
use crate::vms::{VmError, Vms};

/// What the host has to have again after a jump, for the VMs that run now.
#[derive(Debug)]
pub(super) struct Needs {
    pub(super) config: Config,
    pub(super) boot: Uuid,
    /// The vault's device, where it outlives the kernel.
    vault: Option<PathBuf>,
    /// VMs' disks.
    disks: Vec<PathBuf>,
    /// What VMs are started from besides.
    pub(super) starts: Vec<PathBuf>,
    /// All files: the agent's and VMs'.
    pub(super) files: Vec<PathBuf>,
    /// Processes like those that will be started.
    pub(super) alike: Vec<i32>,
}

impl Needs {
    pub(super) async fn of(vms: &Vms) -> Result<Self, VmError> {
        let config = vms.config().clone();
        let running = vms.running().await?;
        let disks: Vec<PathBuf> = running.iter().flat_map(|(vm, _)| &vm.disks).map(|disk| disk.path.clone()).collect();
        let starts: Vec<PathBuf> = running.iter().flat_map(|(vm, _)| start_files(vm)).collect();
        let own = [config.state_dir.clone(), config.launcher.clone()];
        let vmms = running.iter().filter_map(|(_, live)| live.runtime().process.map(|process| process.pid));
        Ok(Self {
            boot: vms.boot(),
            vault: vms.vaults().device(vms.vaults().kind()).map(Path::to_owned),
            files: own.into_iter().chain(disks.clone()).chain(starts.clone()).collect(),
            alike: vmms.chain([rustix::process::getpid().as_raw_pid()]).collect(),
            config,
            disks,
            starts,
        })
    }

    /// The kernel to be entered, and the steps in which the host comes up there.
    pub(super) fn target(&self, kernel: &KernelChange) -> Result<(Target, Steps), String> {
        let mut target = Target::of(kernel, self.vault.as_deref(), &self.files, self.boot)?;
        let steps = Steps::of(&self.config, &self.disks);
        target.cmdline = steps.in_words(&target.cmdline);
        Ok((target, steps))
    }
}

/// What a VM is started from besides its disks.
fn start_files(vm: &VmDefinition) -> Vec<PathBuf> {
    match &vm.firmware {
        Firmware::Kernel(kernel) => [&kernel.image].into_iter().chain(&kernel.initrd).cloned().collect(),
        Firmware::Bios | Firmware::Uefi => Vec::new(),
    }
}

/// What is to be entered, checked as far as it can be from here.
#[derive(Debug)]
pub(super) struct Target {
    image: PathBuf,
    pub(super) initrd: Option<PathBuf>,
    pub(super) cmdline: String,
    pub(super) release: String,
}

impl Target {
    pub(super) fn of(
        kernel: &KernelChange,
        vault: Option<&Path>,
        files: &[PathBuf],
        boot: Uuid,
    ) -> Result<Self, String> {
        let release = kexec::release_of(&kernel.image).map_err(|e| e.to_string())?;
        let running = std::fs::read_to_string("/proc/cmdline").map_err(|e| format!("/proc/cmdline: {e}"))?;
        let cmdline = cmdline(running.trim(), kernel.cmdline.as_deref(), vault.is_some())?;
        let cmdline = jumped::with_word(&cmdline, boot);
        if let Some(own) = kernel.initrd.as_ref().filter(|own| !own.is_file()) {
            return Err(format!("`initrd` {} is no file", own.display()));
        }
        modules::check(&release, vault.is_some(), files)?;
        let beside = || initrd::usual(kernel.image.parent()?, &release);
        let initrd = kernel.initrd.clone().or_else(beside);
        Ok(Self { image: kernel.image.clone(), initrd, cmdline, release })
    }

    /// Loads it; unless it is to be entered as it is, what can be done before the jump is done here.
    pub(super) fn load(&self, as_is: bool) -> Result<(), String> {
        let (image, initrd, cmdline) = (&self.image, self.initrd.as_deref(), &self.cmdline);
        let why = if as_is {
            kexec::load(image, initrd, cmdline).map(|()| Some("the update says so".to_owned()))
        } else {
            kexec::load_unpacked(image, initrd, cmdline)
        };
        match why.map_err(|e| e.to_string())? {
            Some(why) => tracing::info!(why, "the kernel is entered as it is, and unpacks itself while VMs stand"),
            None => tracing::info!("the kernel is unpacked already"),
        }
        Ok(())
    }
}

/// The command line to enter a kernel with. The vault's memory must be set aside there as it is here.
fn cmdline(running: &str, wanted: Option<&str>, vault: bool) -> Result<String, String> {
    let mut cmdline = wanted.unwrap_or(running).to_owned();
    for word in running.split_whitespace().filter(|word| vault && word.starts_with("memmap=")) {
        if !cmdline.split_whitespace().any(|other| other == word) {
            return Err(format!("the update's command line lacks `{word}`, by which the vault is set aside; add it"));
        }
    }
    let has = |key: &str| cmdline.split_whitespace().any(|word| word.starts_with(key));
    let mut more = Vec::new();
    // A kernel that panics at its start must not stay there.
    if !has("panic=") {
        more.push("panic=10".to_owned());
    }
    // Every boot calibrates anew, and guests' clocks would run at another speed than before.
    if !has("tsc_early_khz=")
        && let Some(khz) = fermata_vault::kvm::guest_tsc_khz()
    {
        more.push(format!("tsc_early_khz={khz}"));
    }
    for word in more {
        cmdline.push(' ');
        cmdline.push_str(&word);
    }
    Ok(cmdline)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vaults_words_must_be_on_the_new_command_line() {
        let running = "root=/dev/vda memmap=1G!4G tsc_early_khz=1 panic=5";
        assert_eq!(cmdline(running, None, true).unwrap(), running);
        let error = cmdline(running, Some("root=/dev/vda"), true).unwrap_err();
        assert!(error.contains("memmap=1G!4G"), "{error}");
        assert!(cmdline(running, Some("root=/dev/vda"), false).unwrap().contains("panic=10"));
    }
}
