//! What an operator sees of a plan.

use std::fmt;

use super::Plan;

/// How many hosts the text of a plan lists before it says how many more there are.
const ROWS: usize = 40;

/// A number of seconds as people say it: `45 s`, `12 min`, `1 h 05 min`, `2 d 03 h`.
pub(crate) fn duration(seconds: u32) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) if !seconds.is_multiple_of(60) => format!("{minutes} min {:02} s", seconds % 60),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => format!("{hours} h {minutes:02} min"),
        _ => format!("{days} d {hours:02} h"),
    }
}

/// A clock from the plan's start: `+02:05:30`.
fn clock(seconds: u32) -> String {
    format!("+{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

pub(crate) fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// The first rows of the schedule, and what it rests on. All times are forecasts.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let makespan = self.makespan_s();
        let bounds = self.bounds();
        writeln!(f, "Plan {} for inventory revision {}", self.id(), self.inventory_revision())?;
        if let Some(parent) = self.parent() {
            writeln!(f, "  replaces     plan {parent}")?;
        }
        writeln!(f, "  hosts        {}, {} left out", self.hosts().len(), self.excluded().len())?;
        writeln!(f, "  starts       {}", self.starts_at().strftime("%Y-%m-%d %H:%M UTC"))?;
        let ends = self.eta().strftime("%Y-%m-%d %H:%M UTC");
        writeln!(f, "  ends         {ends}, after {} (forecast)", duration(makespan))?;
        let windows = if bounds.without_windows { "; windows not counted" } else { "" };
        write!(f, "  lower bound  {} ({}{windows})", duration(bounds.best_s()), bounds.best_kind())?;
        if makespan <= bounds.best_s() {
            writeln!(f, "; no plan is shorter")?;
        } else {
            writeln!(f, "; this plan is {:.1} % above it", self.gap() * 100.0)?;
        }
        writeln!(f, "  order from   {}", self.strategy())?;
        if self.stages().len() > 1 {
            for (index, stage) in self.stages().iter().filter(|s| s.hosts > 0).enumerate() {
                let title = if index == 0 { "stages" } else { "" };
                write!(f, "  {title:<12} {}: {}", stage.name, plural(stage.hosts as usize, "host"))?;
                if stage.soak_s > 0 {
                    write!(f, ", then watched for {}", duration(stage.soak_s))?;
                }
                writeln!(f, "{}", if stage.approval { ", then an operator says go" } else { "" })?;
            }
        }
        for (index, excluded) in self.excluded().iter().take(ROWS).enumerate() {
            let title = if index == 0 { "left out" } else { "" };
            writeln!(f, "  {title:<12} {}: {}", excluded.host, excluded.why)?;
        }
        if self.hosts().is_empty() {
            return Ok(());
        }
        let width = self.hosts().iter().take(ROWS).map(|h| h.host.as_str().len()).max().unwrap_or(0).max(4);
        writeln!(f, "\n  {:<10} {:<10} {:<width$}  stage", "start", "healthy", "host")?;
        for host in self.hosts().iter().take(ROWS) {
            let stage = self.stages().get(host.stage as usize).map_or("", |s| s.name.as_str());
            writeln!(
                f,
                "  {:<10} {:<10} {:<width$}  {stage}",
                clock(host.start_s),
                clock(host.end_s),
                host.host.as_str()
            )?;
        }
        match self.hosts().len().saturating_sub(ROWS) {
            0 => Ok(()),
            more => writeln!(f, "  ... and {}", plural(more, "more host")),
        }
    }
}
