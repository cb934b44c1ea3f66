//! The controller's own certificate authority, and how two sides know each other.
//!
//! - `init` makes a CA (20 years) and nothing else; server certificates are made from it at every start.
//! - An agent joins with a token that holds a secret and the CA's fingerprint: it checks the controller before it says anything, makes a key that
//!   never leaves the host, and gets a certificate for it (90 days, renewed by itself).
//! - Who a certificate stands for is written in the store under its fingerprint, not read from the certificate: revoking is deleting that
//!   record, and works at the next request.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use sha2::{Digest as _, Sha256};

/// Every controller answers to this name, whatever its address: the CA signs nobody else with it.
pub const SERVER_NAME: &str = "controller.fermata";

const DAY: Duration = Duration::from_hours(24);

/// How long a client's certificate is good, unless told.
pub const CLIENT_LIFE: Duration = Duration::from_hours(90 * 24);

/// Why certificates do not work.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is a CA already.
    #[error("{0} exists; a second `init` would shut out every agent that joined: remove the folder to begin anew")]
    Exists(PathBuf),
    /// Making or reading a certificate.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A PEM text.
    #[error("not a PEM text: {0}")]
    Pem(String),
    /// TLS.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A verifier.
    #[error("TLS verifier: {0}")]
    Verifier(String),
}

/// SHA-256 in hexadecimal.
#[must_use]
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The fingerprint of a certificate.
#[must_use]
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    sha256(certificate)
}

/// The authority.
pub struct Authority {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    client_life: Duration,
}

/// A key with its certificate, both PEM.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

pub(crate) fn write(path: &Path, text: &str, mode: u32) -> Result<(), PkiError> {
    let io = |source| PkiError::Io { path: path.to_owned(), source };
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path).map_err(io)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io)
}

fn read(path: &Path) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|source| PkiError::Io { path: path.to_owned(), source })
}

fn lasts(params: &mut CertificateParams, life: Duration) {
    let now = std::time::SystemTime::now();
    // An hour back: the other side's clock may be behind ours.
    let begin = now - Duration::from_hours(1);
    params.not_before = begin.into();
    params.not_after = (now + life).into();
}

impl Authority {
    /// Makes a new one in `folder`.
    ///
    /// # Errors
    /// [`PkiError::Exists`] and others.
    pub fn init(folder: &Path) -> Result<Self, PkiError> {
        fs::create_dir_all(folder).map_err(|source| PkiError::Io { path: folder.to_owned(), source })?;
        if folder.join("ca.pem").exists() {
            return Err(PkiError::Exists(folder.join("ca.pem")));
        }
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "Fermata controller CA");
        lasts(&mut params, 20 * 365 * DAY);
        let certificate = params.self_signed(&key)?;
        write(&folder.join("ca.key"), &key.serialize_pem(), 0o600)?;
        write(&folder.join("ca.pem"), &certificate.pem(), 0o644)?;
        Self::load(folder)
    }

    /// Reads the one in `folder`.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn load(folder: &Path) -> Result<Self, PkiError> {
        let pem = read(&folder.join("ca.pem"))?;
        let key = KeyPair::from_pem(&read(&folder.join("ca.key"))?)?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key)?;
        let der = certificate(&pem)?;
        Ok(Self { pem, der, issuer, client_life: CLIENT_LIFE })
    }

    /// The same, signing for another time than [`CLIENT_LIFE`].
    #[must_use]
    pub fn with_client_life(self, client_life: Duration) -> Self {
        Self { client_life, ..self }
    }

    /// How long a client's certificate is good.
    #[must_use]
    pub const fn client_life(&self) -> Duration {
        self.client_life
    }

    /// The CA's certificate, PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The CA's fingerprint.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.der)
    }

    /// Signs a request for a client. The request's own names are replaced by `name`. Gives PEM and fingerprint.
    ///
    /// # Errors
    /// [`PkiError`] when the request is not one.
    pub fn sign(&self, request: &str, name: &str) -> Result<(String, String), PkiError> {
        let mut request = CertificateSigningRequestParams::from_pem(request)?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        lasts(&mut params, self.client_life);
        request.params = params;
        let signed = request.signed_by(&self.issuer)?;
        Ok((signed.pem(), fingerprint(signed.der())))
    }

    /// TLS for the controller's side: clients with a certificate of this CA are known by it, others may still show a token.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn server(&self) -> Result<ServerConfig, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, "Fermata controller");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        lasts(&mut params, 90 * DAY);
        let certificate = params.signed_by(&key, &self.issuer)?;
        let chain = vec![certificate.der().clone(), self.der.clone()];
        let verifier = WebPkiClientVerifier::builder_with_provider(roots(&self.der)?, provider())
            .allow_unauthenticated()
            .build()
            .map_err(|error| PkiError::Verifier(error.to_string()))?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| PkiError::Pem(error.to_owned()))?;
        Ok(ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certificate(pem: &str) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| PkiError::Pem(error.to_string()))
}

fn roots(ca: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, PkiError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone())?;
    Ok(Arc::new(roots))
}

/// A new key and a request to have it signed, both PEM.
///
/// # Errors
/// [`PkiError`].
pub fn request() -> Result<(String, String), PkiError> {
    let key = KeyPair::generate()?;
    let request = CertificateParams::new(Vec::<String>::new())?.serialize_request(&key)?;
    Ok((key.serialize_pem(), request.pem()?))
}

/// How a client knows the controller.
#[derive(Debug, Clone)]
pub enum Trust {
    /// By the CA's certificate, PEM.
    Ca(String),
    /// By the CA's fingerprint: for joining.
    Fingerprint(String),
}

/// TLS for a client, with credentials if it has some.
///
/// # Errors
/// [`PkiError`].
pub fn client(trust: &Trust, credentials: Option<&Credentials>) -> Result<ClientConfig, PkiError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match trust {
        Trust::Ca(pem) => builder.with_root_certificates(roots(&certificate(pem)?)?),
        Trust::Fingerprint(fingerprint) => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned { ca: fingerprint.clone(), provider: provider() })),
    };
    Ok(match credentials {
        None => builder.with_no_client_auth(),
        Some(credentials) => {
            let key = PrivateKeyDer::from_pem_slice(credentials.key.as_bytes())
                .map_err(|error| PkiError::Pem(error.to_string()))?;
            builder.with_client_auth_cert(vec![certificate(&credentials.certificate)?], key)?
        }
    })
}

/// Accepts a server whose chain is signed by the CA of a known fingerprint, and no other.
#[derive(Debug)]
struct Pinned {
    ca: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let stranger = || rustls::Error::General("the controller is not the one that made the join token".to_owned());
        let ca = chain.iter().find(|ca| fingerprint(ca) == self.ca).ok_or_else(stranger)?;
        let roots = roots(&ca.clone().into_owned()).map_err(|_| stranger())?;
        WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&self.provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end, chain, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
