//! A host's credentials, and the line to the controller that they open.
//!
//! ```text
//!   token --join--> credentials.json --open--> Line --renew, at two thirds of the certificate's life--> credentials.json
//! ```
//!
//! Key and certificate are one file: a crash between two files would leave a pair that does not match. The key never leaves the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fermata_model::HostName;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{LinkError, io, replace};
use crate::client::Client;
use crate::pki::{self, Credentials, Trust};
use crate::wire::{JoinRequest, Joined};

#[derive(Serialize, Deserialize)]
struct Kept {
    key: String,
    certificate: String,
    #[serde(default)]
    renew_at: Timestamp,
}

fn credentials(folder: &Path) -> PathBuf {
    folder.join("credentials.json")
}

/// Whether the host has credentials already.
#[must_use]
pub fn is_joined(folder: &Path) -> bool {
    credentials(folder).exists()
}

/// Joins a host to a controller: after this, [`Line::open`] works.
///
/// # Errors
/// [`LinkError`] with the controller's reason.
pub async fn join(folder: &Path, address: &str, host: &HostName, token: &str) -> Result<(), LinkError> {
    let token: crate::identity::JoinToken = token.parse()?;
    let (key, request) = pki::request()?;
    let client = Client::new(address, &Trust::Fingerprint(token.ca), None, None)?;
    let request = JoinRequest { secret: token.secret, host: host.clone(), request };
    let joined: Joined = client.post("/v1/join", &request).await?;
    keep(folder, key, joined)
}

fn keep(folder: &Path, key: String, joined: Joined) -> Result<(), LinkError> {
    fs::create_dir_all(folder).map_err(io(folder))?;
    replace(&folder.join("controller-ca.pem"), joined.ca.as_bytes())?;
    let kept = Kept { key, certificate: joined.certificate, renew_at: joined.renew_at };
    let path = credentials(folder);
    replace(&path, &serde_json::to_vec(&kept).expect("credentials are plain data"))
}

/// How long an answer may take: a poll waits for seconds at the controller. A controller that was stopped is away then.
const PATIENCE: Duration = Duration::from_secs(30);

fn read(folder: &Path, address: &str) -> Result<(Client, Timestamp), LinkError> {
    let path = credentials(folder);
    let bytes = fs::read(&path).map_err(io(&path))?;
    let kept: Kept = serde_json::from_slice(&bytes)
        .map_err(|_| LinkError::Damaged { path: path.clone(), reason: "not credentials".to_owned() })?;
    let ca = folder.join("controller-ca.pem");
    let trust = Trust::Ca(fs::read_to_string(&ca).map_err(io(&ca))?);
    let credentials = Credentials { certificate: kept.certificate, key: kept.key };
    let client = Client::new(address, &trust, Some(&credentials), None)?;
    Ok((client.with_patience(PATIENCE), kept.renew_at))
}

/// A host's line to its controller; the certificate changes under it.
pub struct Line {
    folder: PathBuf,
    address: String,
    now: Mutex<(Arc<Client>, Timestamp)>,
}

impl Line {
    /// The line with the credentials that [`join`] left.
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn open(folder: &Path, address: &str) -> Result<Self, LinkError> {
        let (client, renew_at) = read(folder, address)?;
        let now = Mutex::new((Arc::new(client), renew_at));
        Ok(Self { folder: folder.to_owned(), address: address.to_owned(), now })
    }

    /// Who to talk through.
    #[must_use]
    pub fn client(&self) -> Arc<Client> {
        Arc::clone(&self.now.lock().unwrap_or_else(PoisonError::into_inner).0)
    }

    /// When the certificate is due.
    #[must_use]
    pub fn renew_at(&self) -> Timestamp {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).1
    }

    /// How long nobody needs to look at the certificate.
    pub(super) fn patience(&self) -> Duration {
        Duration::try_from(self.renew_at().duration_since(Timestamp::now())).unwrap_or_default()
    }

    /// Gets a fresh certificate with the old one when it is time. Says whether it was.
    ///
    /// # Errors
    /// [`LinkError`]: the old one is still in use.
    pub async fn renew_if_due(&self, now: Timestamp) -> Result<bool, LinkError> {
        if now < self.renew_at() {
            return Ok(false);
        }
        let (key, request) = pki::request()?;
        let joined: Joined = self.client().post_text("/v1/agent/renew", request).await?;
        keep(&self.folder, key, joined)?;
        let (client, renew_at) = read(&self.folder, &self.address)?;
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = (Arc::new(client), renew_at);
        tracing::info!(%renew_at, "the certificate is renewed");
        Ok(true)
    }
}
