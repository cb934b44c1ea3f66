//! The host's kernel is changed: what the state machine wants done about it, on the host.
//!
//! What the next kernel has to know crosses in the vault's hand-over record, beside the VMs' memory: which kernel was to be
//! entered, and what the wall clock and the time-stamp counter said at the same moment. The counter runs on through a
//! kexec, so the new kernel's clock, which comes from the RTC's whole seconds, is put right from it.

use std::time::Duration;

use fermata_first::note::Part;
use fermata_maintenance::clock::{ClockOutcome, TOLERANCE};
use fermata_maintenance::machine::{ActResult, Evidence, Failure, State};
use fermata_maintenance::time::Mono;
use fermata_maintenance::update::{Change, KernelChange};
use fermata_model::VmName;
use fermata_vault::kexec;
use fermata_vault::tsc::rdtsc;
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::target::Needs;
use super::{Maintain, initrd, time, way_back};
use crate::first::ahead;
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

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(Failure::new),
        Err(_) => Err(Failure::new("the agent failed inside; its log says where")),
    }
}

/// Loads the kernel to jump into, and brings what is not on the disks yet there, so that little is left for the pause.
pub(super) async fn load(shell: &Maintain, state: &State) -> ActResult {
    let kernel = change(state)?.clone();
    let needs = Needs::of(&shell.vms).await.map_err(|error| Failure::new(crate::chain(&error)))?;
    blocking(move || {
        let (mut target, steps) = needs.target(&kernel)?;
        let mut note = ahead::note(&target.release, &needs.alike, steps.alone());
        // A VMM reads them at its start, also for a VM that goes on.
        note.parts.extend(needs.starts.into_iter().map(Part::whole));
        if steps.alone()
            && let Err(error) = note.write()
        {
            tracing::warn!(%error, "nothing is noted for the first program; it finds out for itself");
        }
        let folder = &needs.config.state_dir;
        target.initrd = initrd::chosen(&kernel, &target, folder, &note, &needs.files, steps.alone())?;
        target.load(kernel.as_is)?;
        way_back::note(&needs.config, steps, &target.release, needs.boot)?;
        rustix::fs::sync();
        tracing::info!(release = target.release, "kernel loaded");
        Ok(Evidence::Done)
    })
    .await
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
