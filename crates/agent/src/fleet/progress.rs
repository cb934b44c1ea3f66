//! From a maintenance's report to what the controller keeps, and to what a visit has come to. Pure.

use std::time::Duration;

use fermata_controller::order::Outcome;
use fermata_controller::wire::{MaintenanceProgress, StageTime, VmProgress};
use fermata_maintenance::clock::ClockOutcome;
use fermata_maintenance::machine::{Outcome as Ended, Stage};
use fermata_maintenance::report::{Report, VmEnd, name};
use fermata_maintenance::time::human;

fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// What the controller is told of a maintenance.
pub(super) fn of(report: &Report) -> MaintenanceProgress {
    let vms = report.vms.iter().map(|vm| VmProgress {
        vm: vm.vm.clone(),
        mechanism: vm.mechanism,
        forecast_us: us(vm.forecast.upper),
        host_blackouts_us: vm.host_blackouts.iter().map(|pause| us(pause.0)).collect(),
        may_have_stood_us: vm.may_have_stood.map(us),
        guest_blackout_us: vm.guest_blackout.map(us),
        clock: vm.clock.as_ref().map(clock),
        end: end(&vm.end),
    });
    let stages = report.stages.iter().map(|stage| StageTime { stage: stage.what.clone(), took_us: us(stage.took) });
    MaintenanceProgress {
        id: report.maintenance.to_string(),
        update: report.update.to_string(),
        stage: name(report.stage).to_owned(),
        outcome: report.outcome.map(|outcome| {
            match outcome {
                Ended::Done => "done",
                Ended::Failed => "failed",
                Ended::Aborted => "aborted",
            }
            .to_owned()
        }),
        trouble: report.trouble.as_ref().map(|trouble| format!("in {}: {}", name(trouble.stage), trouble.text)),
        stages: stages.collect(),
        vms: vms.collect(),
    }
}

fn clock(outcome: &ClockOutcome) -> String {
    match outcome {
        ClockOutcome::Corrected { before_us, after_us } => {
            format!("corrected: {} before, {} after", off(*before_us), off(*after_us))
        }
        ClockOutcome::WithinTolerance { error_us } => format!("right ({})", off(*error_us)),
        ClockOutcome::NotCorrected { reason, .. } => format!("not corrected: {reason}"),
    }
}

/// `26.1 ms behind`, `1.2 ms ahead`.
fn off(error_us: i64) -> String {
    let side = if error_us < 0 { "behind" } else { "ahead" };
    format!("{} {side}", human(Duration::from_micros(error_us.unsigned_abs())))
}

fn end(end: &VmEnd) -> String {
    match end {
        VmEnd::Untouched => "untouched".to_owned(),
        VmEnd::AsBefore => "as before".to_owned(),
        VmEnd::Updated => "updated".to_owned(),
        VmEnd::Paused => "PAUSED".to_owned(),
        VmEnd::Restarted { reason } => format!("RESTARTED: {reason}"),
        VmEnd::Preserved { reason } => format!("NOT RUNNING, kept: {reason}"),
        VmEnd::Lost { reason } => format!("LOST: {reason}"),
        VmEnd::Gone { reason } => format!("ended by itself: {reason}"),
    }
}

/// What a maintenance that has ended means for its visit; nothing when the next update may follow.
pub(super) fn outcome(report: &Report) -> Option<Outcome> {
    let text = || report.trouble.as_ref().map_or_else(|| "it failed".to_owned(), |t| t.text.clone());
    let lost: Vec<String> =
        report.vms.iter().filter_map(|vm| lost(&vm.end).map(|how| format!("{} {how}", vm.vm))).collect();
    if !lost.is_empty() {
        return Some(Outcome::Lost(format!("{}; {}", lost.join(", "), text())));
    }
    match report.outcome? {
        Ended::Done => None,
        // Nothing was begun on the host: it may be tried again when the reason has passed.
        Ended::Failed | Ended::Aborted if untouched(report) => Some(Outcome::Refused(text())),
        Ended::Failed | Ended::Aborted => Some(Outcome::Undone(text())),
    }
}

fn untouched(report: &Report) -> bool {
    let early = |stage| matches!(stage, Stage::Planned | Stage::Announced | Stage::Preflight);
    report.trouble.as_ref().is_some_and(|trouble| early(trouble.stage)) && !report.change_in_effect
}

fn lost(end: &VmEnd) -> Option<String> {
    match end {
        VmEnd::Lost { reason } => Some(format!("is lost ({reason})")),
        VmEnd::Restarted { reason } => Some(format!("was started again, its memory is lost ({reason})")),
        VmEnd::Preserved { reason } => Some(format!("does not run, its memory is kept ({reason})")),
        VmEnd::Untouched | VmEnd::AsBefore | VmEnd::Updated | VmEnd::Paused | VmEnd::Gone { .. } => None,
    }
}
