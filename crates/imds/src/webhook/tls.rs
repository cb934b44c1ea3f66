//! Who may vouch for a target.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use super::DeliveryError;

/// Where distributions keep the certificates that everybody trusts: Debian and its kin, Red Hat and its kin, SUSE.
const SYSTEM: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem"];

/// TLS that trusts `ca`, or what this system trusts. Read for each message: certificates are renewed without a restart.
pub(super) fn connector(ca: Option<&Path>) -> Result<TlsConnector, DeliveryError> {
    let system = || SYSTEM.iter().map(Path::new).find(|path| path.is_file()).unwrap_or(Path::new(SYSTEM[0]));
    let path = ca.unwrap_or_else(system);
    let failed = |reason: String| DeliveryError::Authorities { path: PathBuf::from(path), reason };
    let found = CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    // One odd certificate in a system's bundle does not spoil the others.
    roots.add_parsable_certificates(found.filter_map(Result::ok));
    if roots.is_empty() {
        return Err(failed("it has none".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config =
        versions.map_err(|error| failed(error.to_string()))?.with_root_certificates(roots).with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
