//! Putting a guest's clock right: carries messages between [`ClockTask`] and the guest's agent.

use std::time::Duration;

use fermata_maintenance::clock::{ClockAct, ClockAnswer, ClockOutcome, ClockTask, TOLERANCE, UnixNanos, no_agent};
use fermata_model::VmName;
use fermata_vmm::command::Paths;
use fermata_vmm::qga::{GuestTime, Qga, QgaError};
use fermata_vmm::qmp::RtcResetReinjection;
use rustix::time::{ClockId, clock_gettime};

use crate::urgency::{self, Turn};
use crate::vms::{VmError, Vms};

/// How long the guest's agent may take for one message.
const LIMIT: Duration = Duration::from_secs(2);
/// The same on a host so busy that it did not answer in time: twice as long each time, up to this.
const LONGEST: Duration = Duration::from_secs(16);
/// Between two attempts to reach it.
const AGAIN: Duration = Duration::from_millis(250);
/// How often a clock is read where one reading would do: the quickest answer tells it best.
const READINGS: usize = 3;
/// By an answer that takes longer than the tolerance a clock is known to half of it at best: a guest of a busy host is given a moment.
const SLOW: Duration = TOLERANCE;

fn now() -> UnixNanos {
    let now = clock_gettime(ClockId::Realtime);
    UnixNanos(now.tv_sec * 1_000_000_000 + now.tv_nsec)
}

/// Puts the clock of one guest right after one pause, within `patience`.
pub(super) async fn correct(vms: &Vms, name: &VmName, patience: Duration) -> Result<ClockOutcome, VmError> {
    let (definition, live) = vms.live(name).await?;
    if !definition.guest_agent {
        return Ok(no_agent());
    }
    let path = Paths::in_folder(&live.runtime().dir).guest_agent();
    let pid = live.process().identity().pid;
    urgency::nobody_stands().await;
    let mut task = ClockTask::new(now(), patience);
    let mut channel: Option<Qga> = None;
    let mut limit = LIMIT;
    loop {
        let act = task.next(now());
        if let ClockAct::Finish(outcome) = act {
            return Ok(outcome);
        }
        if channel.is_none() {
            match Turn::of(pid).await.spent_on(Qga::connect(&path, limit)).await {
                Ok(connected) => channel = Some(connected),
                Err(error) => {
                    limit = (limit * 2).min(LONGEST);
                    task.heard(&ClockAnswer::Failed { reason: error.to_string() });
                    wait_a_little().await;
                    continue;
                }
            }
        }
        let Some(agent) = &mut channel else { continue };
        let turn = Turn::of(pid).await;
        // Asked again: all that took time, and a target counts from the moment it is sent.
        let answer = match task.next(now()) {
            ClockAct::GetTime => {
                let sent = now();
                let told = turn.spent_on(agent.time(limit)).await;
                told.map(|guest| ClockAnswer::Time { sent, received: now(), guest: UnixNanos(guest.0) })
            }
            ClockAct::SetTime { target } => {
                turn.spent_on(agent.set_time(GuestTime(target.0), limit)).await.map(|()| ClockAnswer::Done)
            }
            ClockAct::ResetRtc => match live.qmp().execute(&RtcResetReinjection {}).await {
                Ok(_) => Ok(ClockAnswer::Done),
                Err(error) => {
                    task.heard(&ClockAnswer::Failed { reason: error.to_string() });
                    continue;
                }
            },
            ClockAct::Finish(outcome) => return Ok(outcome),
        };
        let slow = matches!(&answer, Ok(ClockAnswer::Time { sent, received, .. })
            if Duration::from_nanos(received.0.abs_diff(sent.0)) > SLOW);
        if answer.is_err() {
            limit = (limit * 2).min(LONGEST);
        }
        task.heard(&answer.unwrap_or_else(|error| failed(&error)));
        if slow {
            wait_a_little().await;
        }
    }
}

async fn wait_a_little() {
    tokio::time::sleep(AGAIN).await;
}

/// The error of the guest's clock while the VM runs, in microseconds; nothing where its agent does not tell.
pub(super) async fn error_us(vms: &Vms, name: &VmName) -> Option<i64> {
    let (definition, live) = vms.live(name).await.ok()?;
    if !definition.guest_agent {
        return None;
    }
    let mut agent = Qga::connect(&Paths::in_folder(&live.runtime().dir).guest_agent(), LIMIT).await.ok()?;
    let mut best: Option<(i64, i64)> = None;
    for _ in 0..READINGS {
        let sent = now();
        let guest = agent.time(LIMIT).await.ok()?;
        let half_trip = (now().0 - sent.0).max(0) / 2;
        let reading = (half_trip, (guest.0 - sent.0 - half_trip) / 1_000);
        best = best.map_or(Some(reading), |best| Some(best.min(reading)));
    }
    best.map(|(_, error)| error)
}

fn failed(error: &QgaError) -> ClockAnswer {
    ClockAnswer::Failed { reason: error.to_string() }
}
