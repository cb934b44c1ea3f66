//! A maintenance as the metadata service knows it. Pure.

use std::time::Duration;

use fermata_imds::fermata_events::event::DeferLimits;
use fermata_imds::fermata_events::{Affected, EventKind, EventSource, Input, JobId, Outcome, PauseBound};
use fermata_imds::link::Announcement;
use fermata_maintenance::clock::ClockOutcome;
use fermata_maintenance::id::MaintenanceId;
use fermata_maintenance::machine::{State, VmPhase, VmState};
use fermata_maintenance::order::Order;
use fermata_model::{Impact, VmName};

/// The job of a maintenance.
#[must_use]
pub fn id(maintenance: &MaintenanceId) -> JobId {
    JobId(maintenance.to_string())
}

/// What guests are told of an order; `None` where no VM feels anything.
#[must_use]
pub fn announcement(order: &Order, host: &str, defer: DeferLimits) -> Option<Announcement> {
    let affected = order.vms.iter().filter_map(|plan| {
        let kind = EventKind::of_impact(plan.mechanism.impact())?;
        let pause = match plan.mechanism.impact() {
            Impact::None => PauseBound::None,
            Impact::Freeze => PauseBound::AtMostMs(millis(plan.forecast.upper)),
            // How long a guest takes to go down and come up again is its own affair.
            Impact::Reboot | Impact::Redeploy => PauseBound::Unknown,
        };
        Some(Affected { kind: Some(kind), ..Affected::new(plan.vm.clone(), pause) })
    });
    Some(Announcement {
        job: id(&order.id),
        host: host.to_owned(),
        kind: EventKind::of_impact(order.impact())?,
        source: EventSource::Platform,
        description: order.update.title.clone(),
        reason: order.update.id.to_string(),
        notice: order.update.notice,
        lead: order.gate.lead,
        defer,
        affected: affected.collect(),
    })
}

/// How a job ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// What became of its VMs. Of a VM that is down, nothing: its event stays until it runs again or is deleted.
    pub became: Vec<Input>,
    /// How the maintenance ended.
    pub outcome: Outcome,
}

/// How the job of a maintenance ends, from where the maintenance stands.
#[must_use]
pub fn ending(state: &State) -> Ending {
    let felt = state
        .vms
        .iter()
        .filter(|(name, _)| state.order.plan(name).is_some_and(|plan| plan.mechanism.impact() != Impact::None));
    let outcome = match &state.trouble {
        None => Outcome::Done,
        Some(trouble) if trouble.aborted => Outcome::Undone,
        Some(_) if state.change_in_effect() => Outcome::Failed,
        Some(_) => Outcome::Undone,
    };
    Ending { became: felt.flat_map(|(name, vm)| became(&id(&state.order.id), name, vm)).collect(), outcome }
}

/// What is known of one VM after its pause.
#[must_use]
pub fn became(job: &JobId, name: &VmName, vm: &VmState) -> Vec<Input> {
    let pause = vm.pauses.iter().max().map(|pause| millis(*pause));
    let runs_again = |paused_ms| Input::RunsAgain { job: job.clone(), vm: name.clone(), paused_ms };
    match &vm.phase {
        // Told that it would be paused, and then not paused.
        VmPhase::Untouched => vec![runs_again(None)],
        VmPhase::Resumed => {
            // Without a time stamp of its resumption the pause was not measured, and none is made up.
            let Some(paused_ms) = pause else { return vec![runs_again(None)] };
            let resumed = Input::Resumed { job: job.clone(), vm: name.clone(), paused_ms };
            let clock = step(vm.clock.as_ref()).map(|clock_step_ms| {
                let (job, vm) = (job.clone(), name.clone());
                Input::ClockVerified { job, vm, clock_step_ms }
            });
            vec![resumed, clock.unwrap_or_else(|| runs_again(pause))]
        }
        VmPhase::Restarted { .. } => vec![runs_again(None)],
        VmPhase::Pausing { .. }
        | VmPhase::Paused { .. }
        | VmPhase::Carried { .. }
        | VmPhase::Down { .. }
        | VmPhase::Preserved { .. }
        | VmPhase::Lost { .. }
        | VmPhase::Gone { .. } => Vec::new(),
    }
}

/// The step that a verified clock was given, in milliseconds.
fn step(clock: Option<&ClockOutcome>) -> Option<i64> {
    match clock? {
        ClockOutcome::Corrected { before_us, after_us } => Some((after_us - before_us) / 1_000),
        ClockOutcome::WithinTolerance { .. } => Some(0),
        ClockOutcome::NotCorrected { .. } => None,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros().div_ceil(1_000)).unwrap_or(u64::MAX)
}
