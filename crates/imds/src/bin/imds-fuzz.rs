//! `imds-fuzz --inputs N [--seed S]`: mutated requests, queries and bodies against the guest-facing parser.

use std::process::ExitCode;
use std::time::Instant;

use fermata_imds::fuzz;

fn number(arguments: &[String], name: &str, default: u64) -> Result<u64, String> {
    let Some(at) = arguments.iter().position(|a| a == name) else { return Ok(default) };
    let text = arguments.get(at + 1).ok_or_else(|| format!("{name} needs a number"))?;
    text.parse().map_err(|_| format!("{name} {text}: not a number"))
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (inputs, seed) = match (number(&arguments, "--inputs", 10_000_000), number(&arguments, "--seed", 1)) {
        (Ok(inputs), Ok(seed)) => (inputs, seed),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("imds-fuzz: {error}\nusage: imds-fuzz [--inputs N] [--seed S]");
            return ExitCode::from(2);
        }
    };
    println!("seed {seed}, {inputs} inputs");
    let begun = Instant::now();
    let tally = fuzz::run(seed, inputs, |done| {
        if done % 1_000_000 == 0 && done > 0 {
            println!(
                "{done} inputs, {:.0} per second",
                f64::from(u32::try_from(done).unwrap_or(u32::MAX)) / begun.elapsed().as_secs_f64()
            );
        }
    });
    println!(
        "{} inputs, {} whole requests, {} served, {} approvals, no finding, {:.1} s",
        tally.inputs,
        tally.requests,
        tally.served,
        tally.approvals,
        begun.elapsed().as_secs_f64()
    );
    ExitCode::SUCCESS
}
