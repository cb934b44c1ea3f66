//! Putting a guest's clock right: carries messages between [`ClockTask`] and the guest's agent.

use std::time::Duration;

use fermata_maintenance::clock::{ClockAct, ClockAnswer, ClockOutcome, ClockTask, UnixNanos, no_agent};
use fermata_model::VmName;
use fermata_vmm::command::Paths;
use fermata_vmm::qga::{GuestTime, Qga, QgaError};
use fermata_vmm::qmp::RtcResetReinjection;
use rustix::time::{ClockId, clock_gettime};

use crate::vms::{VmError, Vms};

/// How long the guest's agent may take for one message.
const LIMIT: Duration = Duration::from_secs(2);

fn now() -> UnixNanos {
    let now = clock_gettime(ClockId::Realtime);
    UnixNanos(now.tv_sec * 1_000_000_000 + now.tv_nsec)
}

/// Puts the clock of one guest right after one pause.
pub(super) async fn correct(vms: &Vms, name: &VmName) -> Result<ClockOutcome, VmError> {
    let (definition, live) = vms.live(name).await?;
    if !definition.guest_agent {
        return Ok(no_agent());
    }
    let path = Paths::in_folder(&live.runtime().dir).guest_agent();
    let mut task = ClockTask::new();
    let mut channel: Option<Qga> = None;
    loop {
        let act = task.next(now());
        if let ClockAct::Finish(outcome) = act {
            return Ok(outcome);
        }
        if channel.is_none() {
            match Qga::connect(&path, LIMIT).await {
                Ok(connected) => channel = Some(connected),
                Err(error) => {
                    task.heard(&ClockAnswer::Failed { reason: error.to_string() });
                    continue;
                }
            }
        }
        let Some(agent) = &mut channel else { continue };
        // Asked again: connecting took time, and a target counts from the moment it is sent.
        let answer = match task.next(now()) {
            ClockAct::GetTime => {
                let sent = now();
                agent.time(LIMIT).await.map(|guest| ClockAnswer::Time {
                    sent,
                    received: now(),
                    guest: UnixNanos(guest.0),
                })
            }
            ClockAct::SetTime { target } => {
                agent.set_time(GuestTime(target.0), LIMIT).await.map(|()| ClockAnswer::Done)
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
        task.heard(&answer.unwrap_or_else(|error| failed(&error)));
    }
}

fn failed(error: &QgaError) -> ClockAnswer {
    ClockAnswer::Failed { reason: error.to_string() }
}
