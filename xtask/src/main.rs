//! Development commands, run as `cargo xtask COMMAND`. Thin: the work is done by `fermata-lab` and by cargo.

mod checks;
mod lab;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Development commands of Fermata")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Virtual hosts to work with by hand.
    #[command(subcommand)]
    Lab(lab::LabCommand),
    /// Build the host image and the guests' disk, if they are not there yet.
    Image,
    /// Run all tests; installs what they need first.
    Test {
        /// Words for `cargo test`, after `--`.
        #[arg(last = true)]
        words: Vec<String>,
    },
    /// Check licences, bans and sources of dependencies.
    Deny,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain of reasons for a person; a backtrace of this program tells nobody anything.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    match Arguments::parse().command {
        Task::Lab(command) => lab::run(command),
        Task::Image => checks::image(),
        Task::Test { words } => checks::test(&words),
        Task::Deny => checks::deny(),
    }
}
