//! The agent's side of the dead-man, the process that frees paused VMs when the agent does not: its unit, and what it is
//! told to guard.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use fermata_maintenance::dead_man::{Client, Guarded, Vmm};
use fermata_maintenance::id::MaintenanceId;
use fermata_maintenance::machine::{ActResult, Evidence, Failure, State};
use fermata_maintenance::time::Mono;
use fermata_model::{Mechanism, VmName};
use fermata_vmm::command::Paths;

use super::Maintain;
use crate::inventory::{Runtime, VmRecord};
use crate::units::HelperUnit;

/// How long the process may take to start and listen.
const START_LIMIT: Duration = Duration::from_secs(10);
/// How long one that is there may take to be reached.
const REACH_LIMIT: Duration = Duration::from_millis(50);

fn unit(maintenance: &MaintenanceId) -> String {
    format!("fermata-dead-man-{maintenance}.service")
}

fn control(shell: &Maintain, maintenance: &MaintenanceId) -> PathBuf {
    shell.vms.config().run_dir.join(format!("dead-man-{maintenance}"))
}

/// Guards a VM, or all VMs that are held, until `by`.
pub(super) async fn arm(shell: &Maintain, state: &State, vm: Option<&VmName>, by: Mono) -> ActResult {
    let failed = |error: &dyn std::error::Error| Failure::new(crate::chain(error));
    let meant = state.order.vms.iter().filter(|plan| match vm {
        Some(vm) => plan.vm == *vm,
        None => matches!(plan.mechanism, Mechanism::Hold | Mechanism::Kexec),
    });
    let mut guarded = Vec::new();
    for plan in meant {
        let record = shell.vms.record(&plan.vm).await.map_err(|e| failed(&e))?;
        guarded.extend(guard(&record));
    }
    let mut client = shell.dead_man.lock().await;
    if client.is_none() {
        *client = Some(start(shell, &state.order.id).await?);
    }
    let Some(armed) = client.as_mut() else { return Err(Failure::new("the dead-man was not reached")) };
    armed.arm(by, guarded).await.map_err(|e| failed(&e))?;
    Ok(Evidence::Done)
}

/// Starts the process while there is time, so that arming it right before a pause takes next to none. Whether it can guard
/// is told by [`arm`], so a failure here is not one of the maintenance.
pub(super) async fn start_early(shell: &Maintain, state: &State) {
    let mut client = shell.dead_man.lock().await;
    if client.is_some() {
        return;
    }
    match start(shell, &state.order.id).await {
        Ok(started) => *client = Some(started),
        Err(failure) => tracing::warn!(reason = failure.text, "the dead-man does not start yet"),
    }
}

async fn start(shell: &Maintain, id: &MaintenanceId) -> Result<Client, Failure> {
    let failed = |error: &dyn std::error::Error| Failure::new(crate::chain(error));
    let (units, config) = (shell.vms.units(), shell.vms.config());
    // One that an earlier agent started would watch that agent's life, not ours.
    units.stop(&unit(id)).await.map_err(|e| failed(&e))?;
    let control = control(shell, id);
    let mut command = vec![config.launcher.display().to_string(), "dead-man".to_owned()];
    for (option, value) in [
        ("--control", control.display().to_string()),
        ("--journal", shell.journal.display().to_string()),
        ("--authority", config.authority().display().to_string()),
        ("--maintenance", id.to_string()),
        ("--agent", std::process::id().to_string()),
    ] {
        command.extend([option.to_owned(), value]);
    }
    let helper = HelperUnit { name: unit(id), description: format!("Fermata dead-man of {id}"), command };
    units.start_helper(&helper).await.map_err(|e| failed(&e))?;
    Client::connect(&control, START_LIMIT).await.map_err(|e| failed(&e))
}

fn guard(record: &VmRecord) -> Option<Guarded> {
    let vmm =
        |runtime: &Runtime| Some(Vmm { process: runtime.process?, rescue: Paths::in_folder(&runtime.dir).rescue() });
    let runtime = record.runtime.as_ref()?;
    let new = record.beside.as_ref().filter(|beside| beside.generation > runtime.generation).and_then(vmm);
    let contested = new.is_some();
    Some(Guarded { vm: record.definition.name.clone(), old: vmm(runtime)?, new, contested })
}

/// Guards no longer, and tells whether it had to act.
pub(super) async fn disarm(shell: &Maintain, state: &State, vm: Option<&VmName>) -> ActResult {
    let id = &state.order.id;
    let vms = match vm {
        Some(vm) => vec![vm.clone()],
        None => state.order.vms.iter().map(|plan| plan.vm.clone()).collect(),
    };
    let mut client = shell.dead_man.lock().await;
    if client.is_none() {
        *client = Client::connect(&control(shell, id), REACH_LIMIT).await.ok();
    }
    // None there: nothing was armed, or it ended because nothing was left to guard.
    let Some(armed) = client.as_mut() else { return Ok(Evidence::DeadMan { fired: false, freed: BTreeMap::new() }) };
    match armed.disarm(vms).await {
        Ok(fired) => Ok(Evidence::DeadMan {
            fired: !fired.is_empty(),
            freed: fired.into_iter().map(|(vm, freed)| (vm, freed.at)).collect(),
        }),
        Err(error) => {
            *client = None;
            Err(Failure::new(crate::chain(&error)))
        }
    }
}

/// Ends the process when its maintenance is over.
pub(super) async fn end(shell: &Maintain, id: &MaintenanceId) {
    if let Some(client) = shell.dead_man.lock().await.take()
        && let Err(error) = client.exit().await
    {
        tracing::debug!(error = crate::chain(&error), "the dead-man did not end by itself");
    }
    if let Err(error) = shell.vms.units().stop(&unit(id)).await {
        tracing::warn!(error = crate::chain(&error), "the dead-man's unit is left");
    }
}
