//! `imds-bench [--seconds N] [--out FILE]`: requests per second and latency of the metadata service, beside a plain file
//! behind nginx, on one machine with the load generator.
//!
//! The service runs as a process of its own (`imds-bench serve`), so that its memory is its own. VMs are told apart by
//! their loopback address. `cargo xtask bench imds` builds this in release and runs it.

mod load;
mod report;
mod server;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

fn value<'a>(arguments: &'a [String], name: &str) -> Option<&'a str> {
    arguments.iter().position(|a| a == name).and_then(|at| arguments.get(at + 1)).map(String::as_str)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = if arguments.first().is_some_and(|a| a == "serve") {
        let vms = value(&arguments, "--vms").and_then(|v| v.parse().ok()).unwrap_or(1);
        server::run(vms, arguments.iter().any(|a| a == "--default-limits"))
    } else {
        let seconds = value(&arguments, "--seconds").and_then(|v| v.parse().ok()).unwrap_or(5);
        let out = value(&arguments, "--out").map_or_else(|| PathBuf::from("target/bench/imds.json"), PathBuf::from);
        report::run(Duration::from_secs(seconds), &out)
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("imds-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
