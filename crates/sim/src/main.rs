//! `cargo run -p fermata-sim -- --campaigns N --seed S`: campaigns by hand, and the replay of a failing seed.

use clap::Parser;

/// Simulate rollouts in a hostile world.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many campaigns.
    #[arg(long, default_value_t = 1_000)]
    campaigns: u64,
    /// The first seed; campaign n has seed + n. A failure names the seed that replays it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> anyhow::Result<()> {
    let Arguments { campaigns, seed } = Arguments::parse();
    let summary = fermata_sim::campaigns(seed, campaigns, |done| {
        if done.is_multiple_of(500) {
            eprintln!("{done} of {campaigns}");
        }
    })?;
    println!("{campaigns} campaigns from seed {seed}, no promise broken: {summary:?}");
    Ok(())
}
