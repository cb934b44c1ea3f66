//! What the operator decides about the host's place in a fleet: `[fleet]` in the agent's configuration.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use fermata_model::FaultDomain;
use serde::Deserialize;

/// `[fleet]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FleetConfig {
    /// The controller, as `HOST:PORT`; without one the host stands alone.
    pub controller: Option<String>,
    /// The join token; needed once.
    pub token: Option<String>,
    /// A file with the join token instead.
    pub token_file: Option<PathBuf>,
    /// The host's name in the fleet; what the kernel calls it when absent.
    pub name: Option<String>,
    /// The rack it stands in.
    pub rack: Option<String>,
    /// The zone it stands in.
    pub zone: Option<String>,
    /// What it fails with.
    pub fault_domain: Option<FaultDomain>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
}

impl FleetConfig {
    /// The token to join with.
    pub(super) fn join_token(&self) -> Result<String, (PathBuf, std::io::Error)> {
        match (&self.token, &self.token_file) {
            (Some(token), _) => Ok(token.clone()),
            (None, Some(path)) => {
                fs::read_to_string(path).map(|text| text.trim().to_owned()).map_err(|source| (path.clone(), source))
            }
            // Refused as no token, with the way out, by whoever reads it.
            (None, None) => Ok(String::new()),
        }
    }
}
