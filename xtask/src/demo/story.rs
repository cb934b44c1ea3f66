//! What is told while it happens: one line per change, with the time since the beginning.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use fermata_lab::fleet::Fleet;
use serde_json::Value;

/// The whole demo has an idea of how long it takes: so many seconds on two cores under emulation.
const FORECAST: Duration = Duration::from_secs(720);

pub(super) struct Story {
    began: Instant,
}

impl Story {
    pub(super) fn begin() -> Self {
        let story = Self { began: Instant::now() };
        eprintln!("[   0 s] about {} minutes from here without hardware virtualisation", FORECAST.as_secs() / 60);
        story
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    pub(super) fn say(&self, what: &str) {
        eprintln!("[{:>4.0} s] {what}", self.began.elapsed().as_secs_f64());
    }

    /// Follows a rollout to its end: the phase of each host, and why one waits, whenever it changes.
    pub(super) fn follow(&self, fleet: &Fleet, name: &str) -> Result<()> {
        let mut known = BTreeMap::new();
        let mut asked = Instant::now();
        fleet.watch_json(&format!("rollout explain {name}"), "the rollout ends", |all| {
            if asked.elapsed() > Duration::from_secs(12) {
                self.say("the controller answers again");
            }
            asked = Instant::now();
            let hosts = all.as_array()?;
            for host in hosts {
                let is = line(host);
                let host = host["host"].as_str().unwrap_or("-").to_owned();
                if known.insert(host.clone(), is.clone()).as_ref() != Some(&is) {
                    self.say(&format!("  {host}: {is}"));
                }
            }
            hosts.iter().all(|host| host["phase"]["is"] == "done").then_some(())
        })?;
        fleet.phase(name, "completed").map(drop)
    }
}

/// Where a host stands, and what it waits for.
fn line(host: &Value) -> String {
    let phase = host["phase"]["is"].as_str().unwrap_or("-").replace('_', " ");
    let wait = &host["wait"];
    let why = wait.as_str().map_or_else(|| wait["is"].as_str().unwrap_or_default().replace('_', " "), str::to_owned);
    if why.is_empty() { phase } else { format!("{phase} ({why})") }
}
