//! What happened in a rollout, host by host, from its log alone.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use fermata_maintenance::time::human;
use fermata_model::HostName;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::order::{Outcome, Standing};
use crate::rollout::{Action, Entry, Input};
use crate::wire::{VisitProgress, VmProgress};

/// One visit as the log tells it; times are by the controller's clock.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VisitReport {
    /// Locks taken, order given.
    pub ordered: Option<Timestamp>,
    /// Guests told.
    pub announced: Option<Timestamp>,
    /// First heard to be at work.
    pub begun: Option<Timestamp>,
    /// Heard to have ended.
    pub ended: Option<Timestamp>,
    /// All VMs healthy.
    pub healthy: Option<Timestamp>,
    /// How it ended.
    pub outcome: Option<Outcome>,
}

/// All visits by host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutReport {
    /// Visits of a host, in order.
    pub hosts: BTreeMap<HostName, Vec<VisitReport>>,
    /// What hosts measured in their visits, in order.
    #[serde(default)]
    pub measured: BTreeMap<HostName, Vec<VisitProgress>>,
    /// What operators ordered: when, who, what, why.
    pub orders: Vec<(Timestamp, String, String, String)>,
}

/// The report of a log.
#[must_use]
pub fn of(log: &[Entry]) -> RolloutReport {
    let mut report = RolloutReport::default();
    for entry in log {
        if let crate::rollout::Author::Operator(name) = &entry.author {
            let order = serde_json::to_string(&entry.input).unwrap_or_default();
            report.orders.push((entry.at, name.clone(), order, entry.reason.clone()));
        }
        let Some(host) = entry.input.host() else { continue };
        let visits = report.hosts.entry(host.clone()).or_default();
        let orders = |action: &Action| matches!(action, Action::Slot { slot, .. } if slot.open.is_some());
        if matches!(entry.input, Input::Preflight { .. }) && entry.actions.iter().any(orders) {
            visits.push(VisitReport { ordered: Some(entry.at), ..VisitReport::default() });
        }
        let Some(visit) = visits.last_mut() else { continue };
        match &entry.input {
            Input::Report(said) => match &said.standing {
                Standing::Announced { .. } => visit.announced = visit.announced.or(Some(entry.at)),
                Standing::InWork => visit.begun = visit.begun.or(Some(entry.at)),
                Standing::Finished(outcome) => {
                    (visit.ended, visit.outcome) = (visit.ended.or(Some(entry.at)), Some(outcome.clone()));
                }
                Standing::Idle | Standing::StoodDown => {}
            },
            Input::Health { unhealthy, .. } if unhealthy.is_empty() => {
                visit.healthy = visit.healthy.or(Some(entry.at));
            }
            _ => {}
        }
    }
    report.hosts.retain(|_, visits| !visits.is_empty());
    report
}

impl RolloutReport {
    /// The report with what hosts measured.
    #[must_use]
    pub fn with_measured(self, measured: BTreeMap<HostName, Vec<VisitProgress>>) -> Self {
        Self { measured, ..self }
    }
}

fn length(us: u64) -> String {
    human(Duration::from_micros(us))
}

fn vm_line(vm: &VmProgress) -> String {
    let longest = match (vm.host_blackouts_us.iter().max(), vm.may_have_stood_us) {
        (Some(us), _) => length(*us),
        (None, Some(most)) => format!("not known, at most {}", length(most)),
        (None, None) => "not paused".to_owned(),
    };
    let guest = vm.guest_blackout_us.map_or_else(String::new, |us| format!(", {} in the guest", length(us)));
    let clock = vm.clock.as_ref().map_or_else(String::new, |clock| format!(", clock {clock}"));
    let forecast = length(vm.forecast_us);
    format!("    {:<22} {:<6} blackout {longest}{guest} (forecast {forecast}){clock}, {}", vm.vm, vm.mechanism, vm.end)
}

impl fmt::Display for RolloutReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |from: Option<Timestamp>, to: Option<Timestamp>| match (from, to) {
            (Some(from), Some(to)) => format!("{:.1} s", to.duration_since(from).as_secs_f64()),
            _ => "-".to_owned(),
        };
        for (host, visits) in &self.hosts {
            for visit in visits {
                let outcome = match &visit.outcome {
                    None => "not begun".to_owned(),
                    Some(Outcome::Updated) => "updated".to_owned(),
                    Some(Outcome::Refused(reason)) => format!("refused: {reason}"),
                    Some(Outcome::Undone(reason)) => format!("undone: {reason}"),
                    Some(Outcome::Lost(reason)) => format!("LOST: {reason}"),
                };
                writeln!(
                    f,
                    "{host:<24} notice {:<10} work {:<10} healthy after {:<10} {outcome}",
                    seconds(visit.ordered, visit.begun.or(visit.ended)),
                    seconds(visit.begun, visit.ended),
                    seconds(visit.ended, visit.healthy)
                )?;
            }
            for maintenance in self.measured.get(host).into_iter().flatten().flat_map(|visit| &visit.maintenances) {
                let outcome = maintenance.outcome.as_deref().unwrap_or("under way");
                writeln!(f, "  {} ({}): {outcome}", maintenance.update, maintenance.id)?;
                if let Some(trouble) = &maintenance.trouble {
                    writeln!(f, "    {trouble}")?;
                }
                maintenance.vms.iter().try_for_each(|vm| writeln!(f, "{}", vm_line(vm)))?;
            }
        }
        for (at, who, what, why) in &self.orders {
            writeln!(f, "{at} {who}: {what}{}{why}", if why.is_empty() { "" } else { ": " })?;
        }
        Ok(())
    }
}
