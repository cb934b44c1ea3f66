//! Guests told of a maintenance: the acts of the state machine that concern the metadata service, and what comes back.
//!
//! | act | for guests |
//! |---|---|
//! | announce | `Scheduled`; from now on the service alone opens the gate |
//! | publish started | `Started`, when the gate is open; the core then waits for the lead |
//! | the last act before each pause | long polls are answered |
//! | set clock | paused, resumed, verified: told after it |
//! | end events | the event vanishes, or was cancelled; of a VM that is down it stays |
//!
//! A host without metadata service tells nobody, and the clock keeps the gate.

use std::sync::Arc;
use std::time::Duration;

use fermata_maintenance::journal::Journal;
use fermata_maintenance::machine::{ActResult, Evidence, Failure, Input, State};
use fermata_maintenance::order::{Gate, Keeper};
use fermata_maintenance::time::Wall;
use fermata_model::{Impact, VmName};

use super::{Active, LEAD, Maintain};
use crate::events::{self, Events, EventsError, job};

/// How long the answering of long polls may hold up what comes before a pause.
const WAITS_LIMIT: Duration = Duration::from_millis(1_500);

/// Who opens the gate of a maintenance of this host, and when at the earliest.
pub(super) fn gate(shell: &Maintain, not_before: Wall) -> Gate {
    match shell.vms.events() {
        Some(events) => Gate { not_before, lead: events.lead(), keeper: Keeper::Events },
        None => Gate { not_before, lead: LEAD, keeper: Keeper::Clock },
    }
}

fn done(result: Result<(), EventsError>) -> ActResult {
    result.map(|()| Evidence::Done).map_err(|error| Failure::new(crate::chain(&error)))
}

pub(super) async fn announce(shell: &Maintain, state: &State) -> ActResult {
    let Some(events) = shell.vms.events() else { return Ok(Evidence::Done) };
    match job::announcement(&state.order, events.host(), events.defer_limits()) {
        Some(announcement) => {
            let announced = events.announce(announcement).await;
            if announced.is_ok()
                && let Some(active) = shell.active()
            {
                keep_gate(events, active);
            }
            done(announced)
        }
        None => Ok(Evidence::Done),
    }
}

/// After a restart of the agent: whoever waited for the gate is gone.
pub(super) fn wait_again(shell: &Maintain, state: &State, active: &Active) {
    let waits = !state.approved && state.order.gate.keeper == Keeper::Events && state.order.impact() != Impact::None;
    if let Some(events) = shell.vms.events().filter(|_| waits && super::was_announced(state)) {
        keep_gate(events, active.clone());
    }
}

fn keep_gate(events: Arc<Events>, active: Active) {
    tokio::spawn(async move {
        let job = job::id(&active.id);
        tokio::select! {
            gate = events.gate(&job) => {
                let input = match gate {
                    events::Gate::Open { by } => Input::Approved { by },
                    events::Gate::Cancelled => Input::Abort { by: "operator".to_owned(), reason: "its event was cancelled".to_owned() },
                };
                // The maintenance may have ended meanwhile.
                active.inputs.send(input).ok();
            }
            () = active.inputs.closed() => {}
        }
    });
}

pub(super) async fn publish(shell: &Maintain, state: &State) -> ActResult {
    let Some(events) = shell.vms.events() else { return Ok(Evidence::Done) };
    done(events.start(&job::id(&state.order.id)).await)
}

/// Before a pause of one VM, or of all that are paused together.
pub(super) async fn before_pause(shell: &Maintain, state: &State, vm: Option<&VmName>) {
    let Some(events) = shell.vms.events() else { return };
    let together = state.order.vms.iter().filter(|plan| plan.mechanism.impact() == Impact::Freeze);
    let vms = vm.map_or_else(|| together.map(|plan| plan.vm.clone()).collect(), |vm| vec![vm.clone()]);
    let open = |name: &VmName| state.vms.get(name).is_some_and(fermata_maintenance::machine::VmState::runs);
    let vms: Vec<VmName> = vms.into_iter().filter(open).collect();
    if !vms.is_empty() {
        events.pausing(&job::id(&state.order.id), vms, WAITS_LIMIT).await;
    }
}

/// After the clock of a VM was looked at. Does not hold anything up; what is missed is said again at the end.
pub(super) fn after_pause(shell: &Maintain, state: &State, vm: &VmName, evidence: &Evidence) {
    let (Some(events), Some(mut known)) = (shell.vms.events(), state.vms.get(vm).cloned()) else { return };
    if let Evidence::Clock { outcome } = evidence {
        known.clock = Some(outcome.clone());
    }
    let became = job::became(&job::id(&state.order.id), vm, &known);
    tokio::spawn(async move {
        if let Err(error) = events.became(became).await {
            tracing::debug!(error = crate::chain(&error), "told at the end of the maintenance");
        }
    });
}

pub(super) async fn end(shell: &Maintain, state: &State) -> ActResult {
    let Some(events) = shell.vms.events() else { return Ok(Evidence::Done) };
    done(events.end(&job::id(&state.order.id), job::ending(state)).await)
}

/// Ends what maintenances left behind that could not tell the service in time. Called whenever the service is found.
pub(super) async fn end_left(shell: &Maintain, events: &Events) -> Result<(), EventsError> {
    for view in events.open_jobs().await?.into_iter().filter(|view| view.job.finish.is_none()) {
        let Ok(id) = view.job.id.0.parse() else { continue };
        let state = Journal::open_to_read(&shell.journal)
            .ok()
            .and_then(|journal| journal.entries(&id).ok())
            .and_then(|entries| State::replay(&entries).ok());
        if let Some(state) = state.filter(|state| state.outcome.is_some()) {
            events.end(&view.job.id, job::ending(&state)).await?;
        }
    }
    events.end_left_restarts().await
}
