//! Steps: commands with a deadline.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A command and how long it may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// For people and reports.
    pub name: String,
    /// What runs.
    pub command: Command,
    /// After this the command and everything it started is killed.
    #[serde(with = "crate::time::micros")]
    pub timeout: Duration,
}

/// What a step runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// A program and its arguments; no shell reads them.
    Argv(Vec<String>),
    /// A script for `/bin/sh -eu`, because the file asked for a shell in so many words.
    Shell(String),
}

impl Command {
    /// Program and arguments as they are executed.
    #[must_use]
    pub fn argv(&self) -> Vec<String> {
        match self {
            Self::Argv(argv) => argv.clone(),
            Self::Shell(script) => vec!["/bin/sh".to_owned(), "-euc".to_owned(), script.clone()],
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Argv(argv) => f.write_str(&argv.join(" ")),
            Self::Shell(script) => write!(f, "sh: {}", script.trim()),
        }
    }
}

/// The part of an update that a step belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Section {
    /// Before, while VMs run.
    Prepare,
    /// The change itself.
    Change,
    /// Does it work?
    Verify,
    /// Take it back.
    Undo,
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepare => "prepare",
            Self::Change => "change",
            Self::Verify => "verify",
            Self::Undo => "undo",
        })
    }
}
