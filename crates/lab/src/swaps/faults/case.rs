//! What came of one case.

use serde::{Deserialize, Serialize};

use super::fault::Fault;
use crate::cases;

/// What came of one case.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Case {
    /// Where.
    pub step: String,
    /// What.
    pub fault: Fault,
    /// The fault had something to hit.
    pub applied: bool,
    /// How the maintenance ended.
    pub outcome: String,
    /// What its report says of the VM.
    pub end: String,
    /// What its report says of the trouble.
    pub trouble: String,
    /// The pause by the report, in milliseconds.
    pub pause_ms: Option<f64>,
    /// What is not as it must be; empty for a case that passed.
    pub broken: Vec<String>,
    /// How long the case took, in seconds.
    pub took_s: f64,
}

impl Case {
    pub(super) fn that_did_not_end(step: &str, fault: Fault, error: &anyhow::Error) -> Self {
        let unknown = || "-".to_owned();
        let broken = vec![format!("{error:#}")];
        let step = step.to_owned();
        Self {
            step,
            fault,
            applied: true,
            outcome: unknown(),
            end: unknown(),
            trouble: unknown(),
            pause_ms: None,
            broken,
            took_s: 0.0,
        }
    }

    /// One word.
    #[must_use]
    pub fn verdict(&self) -> &'static str {
        match (self.broken.is_empty(), self.applied) {
            (false, _) => "BROKEN",
            (true, true) => "whole",
            (true, false) => "nothing to hit",
        }
    }
}

impl cases::Case for Case {
    fn key(&self) -> (String, String) {
        (self.step.clone(), self.fault.to_string())
    }

    fn broken(&self) -> &[String] {
        &self.broken
    }

    fn applied(&self) -> bool {
        self.applied
    }
}
