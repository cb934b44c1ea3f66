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
    /// How the maintenance ended.
    pub outcome: String,
    /// What its report says of each VM.
    pub ends: Vec<String>,
    /// What its report says of the trouble.
    pub trouble: String,
    /// The longest pause by the report, in milliseconds.
    pub pause_ms: Option<f64>,
    /// The kernel afterwards.
    pub kernel: String,
    /// What is not as it must be; empty for a case that passed.
    pub broken: Vec<String>,
    /// How long the case took, in seconds.
    pub took_s: f64,
}

impl Case {
    pub(super) fn that_did_not_end(step: &str, fault: Fault, error: &anyhow::Error) -> Self {
        let unknown = || "-".to_owned();
        Self {
            step: step.to_owned(),
            fault,
            outcome: unknown(),
            ends: Vec::new(),
            trouble: unknown(),
            pause_ms: None,
            kernel: unknown(),
            broken: vec![format!("{error:#}")],
            took_s: 0.0,
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
}
