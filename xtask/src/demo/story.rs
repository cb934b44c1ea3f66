//! What is told while it happens: one line per change, with the time since the beginning.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, anyhow};
use fermata_lab::fleet::Fleet;
use serde_json::Value;

use super::guests::{self, Member};

/// The parts of the demo, and how long they took when they were measured last, in seconds: two cores under emulation, everything built.
const PARTS: [u64; 6] = [48, 5, 38, 96, 266, 7];

/// Which part begins.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    Hosts,
    Join,
    Vms,
    Rollout(usize),
    Felt,
}

impl Part {
    const fn number(self) -> usize {
        match self {
            Self::Hosts => 0,
            Self::Join => 1,
            Self::Vms => 2,
            Self::Rollout(number) => 3 + number,
            Self::Felt => PARTS.len() - 1,
        }
    }
}

pub(super) struct Story {
    began: Instant,
    /// The same on the wall clock, in milliseconds since 1970.
    began_wall_ms: f64,
    /// When the hosts were up: what comes before is mostly building, which takes what it takes.
    up: OnceCell<Duration>,
}

impl Story {
    pub(super) fn begin() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { began: Instant::now(), began_wall_ms: wall.as_secs_f64() * 1e3, up: OnceCell::new() }
    }

    /// The second of this story in which a clock showed that time (milliseconds since 1970).
    #[expect(clippy::cast_precision_loss, reason = "53 bits hold milliseconds since 1970")]
    pub(super) fn since_begin(&self, wall_ms: u64) -> f64 {
        (wall_ms as f64 - self.began_wall_ms) / 1e3
    }

    /// Says that a part begins, and about how long it is to the end.
    pub(super) fn part(&self, part: Part, what: &str) {
        let (elapsed, number) = (self.elapsed(), part.number());
        let since_up = if number == 0 { Duration::ZERO } else { elapsed - *self.up.get_or_init(|| elapsed) };
        let left = left(number, since_up).as_secs().div_ceil(60);
        let built = if number == 0 { " once everything is built" } else { "" };
        self.say(&format!("{what} (about {left} min to the end{built})"));
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    pub(super) fn say(&self, what: &str) {
        eprintln!("[{:>4.0} s] {what}", self.began.elapsed().as_secs_f64());
    }

    /// Follows a rollout to its end: the phase of each host, and why one waits, whenever it changes; and how long its VMs
    /// stood as soon as a host is done.
    pub(super) fn follow(&self, fleet: &Fleet, name: &str, members: &[Member]) -> Result<()> {
        let mut known = BTreeMap::new();
        let mut asked = Instant::now();
        fleet
            .watch_json(&format!("rollout explain {name}"), "the rollout ends", |all| {
                if asked.elapsed() > Duration::from_secs(12) {
                    self.say("the controller answers again");
                }
                asked = Instant::now();
                let hosts = all.as_array()?;
                for host in hosts {
                    let is = line(host);
                    let host_name = host["host"].as_str().unwrap_or("-").to_owned();
                    if known.insert(host_name.clone(), is.clone()).as_ref() == Some(&is) {
                        continue;
                    }
                    let here: Vec<&Member> = members.iter().filter(|m| m.host(fleet).name == host_name).collect();
                    self.say(&format!("  {host_name} ({}): {is}", domains(&here)));
                    if host["phase"]["is"] == "done" {
                        self.say_pauses(fleet, name, &host_name, &here);
                    }
                }
                let failed = hosts.iter().find(|host| host["phase"]["is"] == "failed").map(ToString::to_string);
                let over = hosts.iter().all(|host| host["phase"]["is"] == "done");
                failed.map(Err).or(over.then_some(Ok(())))
            })?
            .map_err(|failed| anyhow!("rollout `{name}` failed: {failed}"))?;
        fleet.phase(name, "completed").map(drop)
    }

    /// What the host measured; a controller that does not answer just now says it in the report at the end.
    fn say_pauses(&self, fleet: &Fleet, name: &str, host: &str, members: &[&Member]) {
        let Ok(report) = fleet.json(&format!("rollout report {name}")) else { return };
        for member in members {
            if let Some(ms) = guests::told(&report, host, &member.guest.name) {
                self.say(&format!("    {} stood for {ms:.0} ms", member.guest.name));
            }
        }
    }
}

/// The domains of a host's VMs, each once.
fn domains(members: &[&Member]) -> String {
    let all: BTreeSet<String> = members.iter().map(|member| member.domain()).collect();
    // The set first.
    all.into_iter().rev().collect::<Vec<_>>().join("; ")
}

/// What the parts from this one on take, as quick or slow as those between were: `since_up` is how long those took.
fn left(number: usize, since_up: Duration) -> Duration {
    let usual: u64 = PARTS.iter().take(number).skip(1).sum();
    let rest: u64 = PARTS.iter().skip(number).sum();
    // Joining alone tells nothing about the rest.
    let pace = if number > 2 { since_up.as_secs_f64() / Duration::from_secs(usual).as_secs_f64() } else { 1.0 };
    Duration::from_secs(rest).mul_f64(pace.clamp(0.1, 10.0))
}

/// Where a host stands, and what it waits for.
fn line(host: &Value) -> String {
    let phase = host["phase"]["is"].as_str().unwrap_or("-").replace('_', " ");
    let wait = &host["wait"];
    let why = wait.as_str().map_or_else(|| wait["is"].as_str().unwrap_or_default().replace('_', " "), str::to_owned);
    if why.is_empty() { phase } else { format!("{phase} ({why})") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forecast_follows_the_pace_of_this_machine() {
        let seconds = |parts: &[u64]| Duration::from_secs(parts.iter().sum());
        assert_eq!(left(0, Duration::ZERO), seconds(&PARTS));
        assert_eq!(left(1, Duration::ZERO), seconds(&PARTS[1..]));
        let usual = seconds(&PARTS[1..3]);
        assert_eq!(left(3, 2 * usual), 2 * seconds(&PARTS[3..]));
        assert_eq!(left(3, usual / 2), seconds(&PARTS[3..]) / 2);
    }
}
