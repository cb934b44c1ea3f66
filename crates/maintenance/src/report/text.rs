//! The report for a terminal.

use std::fmt;
use std::time::Duration;

use super::{Report, VmEnd, VmReport, name};
use crate::clock::ClockOutcome;
use crate::machine::Outcome;
use crate::time::human;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = match self.outcome {
            Some(Outcome::Done) => "done".to_owned(),
            Some(Outcome::Failed) => "FAILED".to_owned(),
            Some(Outcome::Aborted) => "aborted".to_owned(),
            None => format!("running ({})", name(self.stage)),
        };
        writeln!(f, "maintenance {}: {how}", self.maintenance)?;
        writeln!(f, "  update     {} ({}), by {}", self.update, self.title, self.mechanism)?;
        writeln!(f, "  file       sha256 {}", self.digest)?;
        writeln!(f, "  time       {} to {}", self.ordered, self.last)?;
        if let Some(until) = self.waits_until {
            writeln!(
                f,
                "  waits      for guests, until they approve or until {until}, longer where they asked for it"
            )?;
        }
        if let Some(trouble) = &self.trouble {
            let act = trouble.act.as_ref().map(|act| format!(", {act}")).unwrap_or_default();
            let label = if trouble.aborted { "stopped" } else { "failed" };
            writeln!(f, "  {label:<10} in {}{act}: {}", name(trouble.stage), trouble.text)?;
            writeln!(f, "  undone     {}", self.undone_text())?;
        }
        for loose_end in &self.loose_ends {
            writeln!(f, "  left       {loose_end}")?;
        }
        let stages: Vec<String> =
            self.stages.iter().map(|stage| format!("{} {}", stage.what, human(stage.took))).collect();
        writeln!(f, "  stages     {}", stages.join(", "))?;
        self.vms.iter().try_for_each(|vm| write!(f, "{vm}"))
    }
}

impl Report {
    fn undone_text(&self) -> &'static str {
        match (self.undone, self.change_in_effect) {
            (true, _) => "yes, by the undo steps",
            (false, true) => "no: the change is in effect at least in part",
            (false, false) => "nothing had to be",
        }
    }
}

impl fmt::Display for VmReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = match &self.end {
            VmEnd::Untouched => "untouched".to_owned(),
            VmEnd::AsBefore => "runs as before".to_owned(),
            VmEnd::Updated => "updated".to_owned(),
            VmEnd::Paused => "PAUSED".to_owned(),
            VmEnd::Restarted { reason } => format!("RESTARTED, memory lost: {reason}"),
            VmEnd::Preserved { reason } => format!("NOT RUNNING, memory and state kept: {reason}"),
            VmEnd::Lost { reason } => format!("LOST: {reason}"),
            VmEnd::Gone { reason } => format!("ended by itself: {reason}"),
        };
        let way = self.way.map_or_else(String::new, |way| format!(", by {way}"));
        writeln!(f, "  VM {:<8} {end} ({}{way})", self.vm, self.mechanism)?;
        if let Some(note) = &self.note {
            writeln!(f, "    note     {note}")?;
        }
        if let Some(at_most) = self.may_have_stood {
            writeln!(
                f,
                "    unsure   may have stood for up to {}: what was to stop it never answered",
                human(at_most)
            )?;
        }
        if self.host_blackouts.is_empty() {
            return Ok(());
        }
        let host: Vec<String> = self.host_blackouts.iter().map(|pause| human(pause.0)).collect();
        let guest = self.guest_blackout.map_or("not measured".to_owned(), human);
        writeln!(
            f,
            "    blackout host {}, guest {guest}; {}; budget {}",
            host.join(" and "),
            self.forecast,
            self.budget
        )?;
        match &self.clock {
            None => writeln!(f, "    clock    not looked at")?,
            Some(ClockOutcome::Corrected { before_us, after_us }) => {
                writeln!(
                    f,
                    "    clock    corrected: off by {} before, {} after",
                    signed(*before_us),
                    signed(*after_us)
                )?;
            }
            Some(ClockOutcome::WithinTolerance { error_us }) => {
                writeln!(f, "    clock    right: off by {}", signed(*error_us))?;
            }
            Some(ClockOutcome::NotCorrected { reason, helps }) => {
                writeln!(f, "    clock    NOT CORRECTED: {reason}; what helps: {helps}")?;
            }
        }
        let acts: Vec<String> = self
            .acts
            .iter()
            .map(|act| {
                format!("{} {}{}", act.what, human(act.took), if act.failure.is_some() { " (failed)" } else { "" })
            })
            .collect();
        writeln!(f, "    acts     {}", acts.join(", "))
    }
}

fn signed(micros: i64) -> String {
    let sign = if micros < 0 { "-" } else { "+" };
    format!("{sign}{}", human(Duration::from_micros(micros.unsigned_abs())))
}
