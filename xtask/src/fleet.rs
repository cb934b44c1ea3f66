//! Planning and rollouts: the planner's benchmark, and campaigns of the simulation.

use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Time, memory and quality of plans; writes `target/bench/planner.json`.
pub(crate) fn bench() -> Result<()> {
    cargo(&["bench", "--quiet", "--locked", "-p", "fermata-planner", "--bench", "planner"])
}

/// Campaigns from a seed on.
pub(crate) fn sim(campaigns: u64, seed: u64) -> Result<()> {
    let (campaigns, seed) = (campaigns.to_string(), seed.to_string());
    let words = ["run", "--quiet", "--locked", "--release", "-p", "fermata-sim", "--"];
    cargo(&[&words[..], &["--campaigns", &campaigns, "--seed", &seed]].concat())
}

fn cargo(words: &[&str]) -> Result<()> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(program).args(words).status().context("start cargo")?;
    ensure!(status.success(), "see above");
    Ok(())
}
