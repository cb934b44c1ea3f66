//! The host's kernel is changed: what the state machine wants done about it, on the host.
//!
//! What the next kernel has to know crosses in the vault's hand-over record, beside the VMs' memory: which kernel was to be
//! entered, and what the wall clock and the time-stamp counter said at the same moment. The counter runs on through a
//! kexec, so the new kernel's clock, which comes from the RTC's whole seconds, is put right from it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fermata_first::note::{Note, Part};
use fermata_maintenance::clock::{ClockOutcome, TOLERANCE};
use fermata_maintenance::machine::{ActResult, Evidence, Failure, State};
use fermata_maintenance::time::Mono;
use fermata_maintenance::update::{Change, KernelChange};
use fermata_model::spec::Firmware;
use fermata_model::{VmDefinition, VmName};
use fermata_vault::kexec;
use fermata_vault::tsc::rdtsc;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Maintain, modules, time, way_back};
use crate::first::{Steps, ahead, ram};
use crate::jumped;
use crate::vms::Vms;

/// What crosses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// The maintenance.
    maintenance: String,
    /// The boot that was left.
    boot: Uuid,
    /// The kernel that was left.
    from: String,
    /// The kernel to be entered.
    to: String,
    /// Nanoseconds since 1970.
    wall_ns: i64,
    /// The time-stamp counter at that moment.
    tsc: u64,
    /// Its frequency in kHz.
    tsc_khz: u32,
}

impl Record {
    /// The true time at a later reading of the counter; `None` when the counter was set back.
    fn wall_at(&self, tsc: u64) -> Option<i64> {
        let ticks = tsc.checked_sub(self.tsc)?;
        let elapsed = u128::from(ticks) * 1_000_000 / u128::from(self.tsc_khz.max(1));
        self.wall_ns.checked_add(i64::try_from(elapsed).ok()?)
    }
}

fn change(state: &State) -> Result<&KernelChange, Failure> {
    match &state.order.update.change {
        Change::Kernel(kernel) => Ok(kernel),
        Change::Package { .. } | Change::Service { .. } | Change::Vmm { .. } => {
            Err(Failure::new("this update brings no kernel"))
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(Failure::new),
        Err(_) => Err(Failure::new("the agent failed inside; its log says where")),
    }
}

/// Loads the kernel to jump into, and brings what is not on the disks yet there, so that little is left for the pause.
pub(super) async fn load(shell: &Maintain, state: &State) -> ActResult {
    let kernel = change(state)?.clone();
    let (config, boot) = (shell.vms.config().clone(), shell.vms.boot());
    let vault = shell.vms.vaults().device(shell.vms.vaults().kind()).map(Path::to_owned);
    let running = shell.vms.running().await.map_err(|error| Failure::new(crate::chain(&error)))?;
    let disks: Vec<PathBuf> = running.iter().flat_map(|(vm, _)| &vm.disks).map(|disk| disk.path.clone()).collect();
    let starts = running.iter().flat_map(|(vm, _)| start_files(vm));
    let starts: Vec<PathBuf> = starts.collect();
    let files = [config.state_dir.clone(), config.launcher.clone()].into_iter().chain(disks.clone());
    let files: Vec<PathBuf> = files.chain(starts.clone()).collect();
    let vmms = running.iter().filter_map(|(_, live)| live.runtime().process.map(|process| process.pid));
    let alike: Vec<i32> = vmms.chain([rustix::process::getpid().as_raw_pid()]).collect();
    blocking(move || {
        let mut target = Target::of(&kernel, vault.as_deref(), &files, boot)?;
        let steps = Steps::of(&config, &disks);
        target.cmdline = steps.in_words(&target.cmdline);
        let mut note = ahead::note(&target.release, &alike, steps.alone());
        // A VMM reads them at its start, also for a VM that goes on.
        note.parts.extend(starts.into_iter().map(Part::whole));
        if steps.alone()
            && let Err(error) = note.write()
        {
            tracing::warn!(%error, "nothing is noted for the first program; it finds out for itself");
        }
        target.initrd = initrd(&kernel, &target, &config.state_dir, &note, &files, steps);
        target.load(kernel.as_is)?;
        way_back::note(&config, steps, &target.release, boot)?;
        rustix::fs::sync();
        tracing::info!(release = target.release, "kernel loaded");
        Ok(Evidence::Done)
    })
    .await
}

/// What a VM is started from besides its disks.
fn start_files(vm: &VmDefinition) -> Vec<PathBuf> {
    match &vm.firmware {
        Firmware::Kernel(kernel) => [&kernel.image].into_iter().chain(&kernel.initrd).cloned().collect(),
        Firmware::Bios | Firmware::Uefi => Vec::new(),
    }
}

/// The initial RAM disk that the kernel is entered with: the update's own, else one of Fermata's, else the distribution's.
fn initrd(
    change: &KernelChange,
    target: &Target,
    folder: &Path,
    note: &Note,
    files: &[PathBuf],
    steps: Steps,
) -> Option<PathBuf> {
    let usual = target.initrd.clone();
    if change.initrd.is_some() || change.as_is {
        return usual;
    }
    match ram::make(folder, note, &target.cmdline, files, usual.as_deref(), steps.alone()) {
        Ok(made) => Some(made),
        Err(why) => {
            tracing::info!(why, "the distribution's initial RAM disk leads to the root file system");
            usual
        }
    }
}

/// Forgets the kernel that was loaded.
pub(super) async fn unload(shell: &Maintain) -> ActResult {
    let config = shell.vms.config().clone();
    blocking(move || {
        kexec::unload().map_err(|e| e.to_string())?;
        way_back::forget(&config).map(|()| Evidence::Done)
    })
    .await
}

/// What is to be entered, checked as far as it can be from here.
#[derive(Debug)]
struct Target {
    image: PathBuf,
    initrd: Option<PathBuf>,
    cmdline: String,
    release: String,
}

impl Target {
    fn of(kernel: &KernelChange, vault: Option<&Path>, files: &[PathBuf], boot: Uuid) -> Result<Self, String> {
        let release = kexec::release_of(&kernel.image).map_err(|e| e.to_string())?;
        let running = std::fs::read_to_string("/proc/cmdline").map_err(|e| format!("/proc/cmdline: {e}"))?;
        let cmdline = cmdline(running.trim(), kernel.cmdline.as_deref(), vault.is_some())?;
        let cmdline = jumped::with_word(&cmdline, boot);
        modules::check(&release, vault.is_some(), files)?;
        let initrd = kernel.initrd.clone().or_else(|| {
            let usual = kernel.image.with_file_name(format!("initrd.img-{release}"));
            usual.is_file().then_some(usual)
        });
        Ok(Self { image: kernel.image.clone(), initrd, cmdline, release })
    }

    /// Loads it; unless it is to be entered as it is, what can be done before the jump is done here.
    fn load(&self, as_is: bool) -> Result<(), String> {
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

/// Jumps, if there still is time. Answers only when nothing came of it.
pub(super) async fn jump(shell: &Maintain, state: &State, by: Mono) -> ActResult {
    let kernel = change(state)?;
    let to = kexec::release_of(&kernel.image).map_err(|e| Failure::new(e.to_string()))?;
    let vms = std::sync::Arc::clone(&shell.vms);
    let maintenance = state.order.id.to_string();
    blocking(move || {
        if !kexec::is_loaded() {
            return Err("no kernel is loaded any more; something else on this host used kexec".to_owned());
        }
        if let Ok(vault) = vms.vaults().devdax() {
            let (wall, tsc) = wall_and_tsc();
            let tsc_khz = fermata_vault::kvm::guest_tsc_khz().unwrap_or(0);
            let from = crate::host::kernel();
            let record = Record { maintenance, boot: vms.boot(), from, to, wall_ns: wall, tsc, tsc_khz };
            let bytes = serde_json::to_vec(&record).map_err(|e| e.to_string())?;
            vault.write_record(&bytes).map_err(|e| e.to_string())?;
        }
        rustix::fs::sync();
        let left = time::left(by);
        if left == Duration::ZERO {
            return Err("no time was left in the pause to jump; what came before took too long".to_owned());
        }
        Err(kexec::jump().to_string())
    })
    .await
}

/// Restarts the host through its firmware, in good order. Answers only when nothing came of it.
pub(super) async fn reboot(shell: &Maintain, limit: Duration) -> ActResult {
    shell.vms.units().reboot().await.map_err(|error| Failure::new(error.to_string()))?;
    tokio::time::sleep(limit).await;
    Err(Failure::new(format!("the host did not restart within {limit:?}; see `systemctl list-jobs`")))
}

/// Wall time and counter at the same moment: the closest of a few readings.
fn wall_and_tsc() -> (i64, u64) {
    let read = || {
        let before = rdtsc();
        let now = clock_gettime(ClockId::Realtime);
        let after = rdtsc();
        (after - before, now.tv_sec * 1_000_000_000 + now.tv_nsec, before + (after - before) / 2)
    };
    let best = (0..5).map(|_| read()).min_by_key(|(width, ..)| *width);
    best.map_or((0, 0), |(_, wall, tsc)| (wall, tsc))
}

fn record(vms: &Vms) -> Result<Record, Failure> {
    let vault = vms.vaults().devdax().map_err(Failure::new)?;
    let bytes = vault.record().ok_or_else(|| Failure::new("the vault holds no hand-over record"))?;
    serde_json::from_slice(&bytes).map_err(|e| Failure::new(format!("the vault's hand-over record: {e}")))
}

/// Is this the kernel that was to be entered?
pub(super) fn check(state: &State) -> ActResult {
    let kernel = change(state)?;
    let wanted = kexec::release_of(&kernel.image).map_err(|e| Failure::new(e.to_string()))?;
    let running = crate::host::kernel();
    if running == wanted {
        Ok(Evidence::Done)
    } else {
        Err(Failure::new(format!("kernel {running} runs, {wanted} was to be entered")))
    }
}

/// Puts the host's clock right by the time-stamp counter.
pub(super) fn set_host_clock(vms: &Vms, state: &State) -> ActResult {
    let record = record(vms)?;
    if record.maintenance != state.order.id.as_str() {
        return Err(Failure::new(format!("the vault's hand-over record is of maintenance {}", record.maintenance)));
    }
    let helps = "let NTP step the clock (chrony: `makestep 0.1 -1`)".to_owned();
    let gone = |reason: &str| Evidence::Clock {
        outcome: ClockOutcome::NotCorrected { reason: reason.to_owned(), helps: helps.clone() },
    };
    if record.tsc_khz == 0 {
        return Ok(gone("the frequency of the time-stamp counter is not known"));
    }
    let error = || {
        let (wall, tsc) = wall_and_tsc();
        record.wall_at(tsc).map(|truth| (wall.saturating_sub(truth), truth))
    };
    let Some((before, truth)) = error() else { return Ok(gone("the time-stamp counter was set back")) };
    if before.unsigned_abs() <= 1_000_000 {
        return Ok(Evidence::Clock { outcome: ClockOutcome::WithinTolerance { error_us: before / 1000 } });
    }
    clock_settime(ClockId::Realtime, Timespec { tv_sec: truth / 1_000_000_000, tv_nsec: truth % 1_000_000_000 })
        .map_err(|errno| Failure::new(format!("the host's clock cannot be set: {errno}")))?;
    let after = error().map_or(0, |(after, _)| after);
    tracing::info!(before_us = before / 1000, after_us = after / 1000, tolerance = ?TOLERANCE, "host clock put right");
    Ok(Evidence::Clock { outcome: ClockOutcome::Corrected { before_us: before / 1000, after_us: after / 1000 } })
}

/// Lets a restored VM run, and tells how long it stood, across both kernels.
pub(super) async fn resume(vms: &Vms, state: &State, vm: &VmName, limit: Duration) -> ActResult {
    if state.order.plan(vm).is_some_and(|plan| plan.paused) {
        // Stopped by its operator before: it stays loaded and stopped.
        return Ok(Evidence::Resumed { at: None });
    }
    let ran = vms.run_restored(vm, limit).await.map_err(|error| super::acts::failure(&error))?;
    let (Some(resumed), Some(stopped_us)) = ran else { return Ok(Evidence::Resumed { at: None }) };
    let (wall, tsc) = wall_and_tsc();
    let since = (wall / 1000).saturating_sub(resumed.as_micros());
    let blackout = record(vms).ok().and_then(|record| {
        let resumed = record.wall_at(tsc)? / 1000 - since;
        u64::try_from(resumed).ok()?.checked_sub(stopped_us)
    });
    Ok(match blackout {
        Some(micros) => Evidence::ResumedAfter { blackout: Duration::from_micros(micros) },
        None => Evidence::Resumed { at: Some(super::acts::wall(resumed)) },
    })
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

    #[test]
    fn time_goes_on_with_the_counter() {
        let record = Record {
            maintenance: "m".to_owned(),
            boot: Uuid::nil(),
            from: String::new(),
            to: String::new(),
            wall_ns: 1_000,
            tsc: 5_000_000_000_000,
            tsc_khz: 2_500_000,
        };
        assert_eq!(record.wall_at(5_000_000_000_000 + 2_500_000_000 * 20), Some(20_000_001_000));
        assert_eq!(record.wall_at(4), None, "a counter that was set back tells nothing");
    }
}
