//! Steps of an update: each in a systemd unit of its own, so that everything it starts, forks or leaves behind ends with
//! it, and at its deadline at the latest.

use std::time::Duration;

use fermata_maintenance::id::MaintenanceId;
use fermata_maintenance::update::Step;

use crate::units::{StepUnit, UnitError, Units};

/// How much of a step's output is kept.
const TAIL: usize = 2000;

/// The unit that steps of a maintenance run in, one after the other.
pub(super) fn unit(maintenance: &MaintenanceId) -> String {
    format!("fermata-step-{maintenance}.service")
}

/// Runs a step; the end of what it printed.
pub(super) async fn run(
    units: &Units,
    maintenance: &MaintenanceId,
    step: &Step,
    log: &std::path::Path,
    limit: Duration,
) -> Result<String, String> {
    // What an attempt before a restart left.
    std::fs::remove_file(log).ok();
    kill(units, maintenance).await.map_err(|e| e.to_string())?;
    let unit = StepUnit {
        name: unit(maintenance),
        description: format!("Fermata {maintenance}: {}", step.name),
        command: step.command.argv(),
        log: log.to_owned(),
        limit: limit.min(step.timeout),
    };
    let ended = units.run_step(&unit).await;
    let tail = tail(log);
    std::fs::remove_file(log).ok();
    match ended {
        Ok(()) => Ok(tail),
        Err(UnitError::Job { result, .. }) if result == "timeout" => {
            Err(format!("`{}` was not done within {:?} and was killed; it printed: {tail}", step.name, unit.limit))
        }
        Err(UnitError::Job { result, .. }) => Err(format!("`{}` {result}; it printed: {tail}", step.name)),
        Err(error) => Err(format!("`{}`: {error}", step.name)),
    }
}

/// Kills whatever is left of a step, for certain.
pub(super) async fn kill(units: &Units, maintenance: &MaintenanceId) -> Result<(), UnitError> {
    let unit = unit(maintenance);
    units.kill(&unit).await?;
    units.stop(&unit).await
}

fn tail(log: &std::path::Path) -> String {
    let text = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let from = text.char_indices().rev().nth(TAIL - 1).map_or(0, |(index, _)| index);
    text[from..].trim().to_owned()
}
