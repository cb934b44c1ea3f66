//! Talking to a controller: for the `fermata` command and for agents.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

use crate::pki::{self, Credentials, PkiError, SERVER_NAME, Trust};
use crate::wire::Problem;

/// Why a request had no answer, or not the one hoped for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// No way there.
    #[error("controller at {address}: {reason}; see that it runs and that the address is right")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        reason: String,
    },
    /// It said no.
    #[error("{error}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// Place, reason, way out.
        error: String,
    },
    /// It said something that cannot be read.
    #[error("the controller's answer cannot be read: {0}; client and controller may be of different versions")]
    Unreadable(String),
}

/// A client with one connection that is kept.
pub struct Client {
    address: String,
    tls: TlsConnector,
    token: Option<String>,
    connection: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl Client {
    /// A client of the controller at `HOST:PORT`.
    ///
    /// # Errors
    /// [`PkiError`] when the credentials cannot be used.
    pub fn new(
        address: &str,
        trust: &Trust,
        credentials: Option<&Credentials>,
        token: Option<String>,
    ) -> Result<Self, PkiError> {
        let tls = TlsConnector::from(Arc::new(pki::client(trust, credentials)?));
        let address = address.strip_prefix("https://").unwrap_or(address).trim_end_matches('/').to_owned();
        Ok(Self { address, tls, token, connection: Mutex::default() })
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let unreachable = |reason: &dyn std::fmt::Display| ClientError::Unreachable {
            address: self.address.clone(),
            reason: reason.to_string(),
        };
        let stream = TcpStream::connect(&self.address).await.map_err(|error| unreachable(&error))?;
        stream.set_nodelay(true).map_err(|error| unreachable(&error))?;
        let name = ServerName::try_from(SERVER_NAME).map_err(|error| unreachable(&error))?;
        let stream = self.tls.connect(name, stream).await.map_err(|error| unreachable(&error))?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| unreachable(&error))?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "connection to the controller ended");
            }
        });
        Ok(sender)
    }

    /// Gets something.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    /// Sends something.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Unreadable(error.to_string()))?;
        self.send(Method::POST, path, body.into()).await
    }

    /// Sends a text as it is.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post_text<T: DeserializeOwned>(&self, path: &str, text: String) -> Result<T, ClientError> {
        self.send(Method::POST, path, text.into()).await
    }

    async fn send<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", SERVER_NAME)
            .header("content-type", "application/json");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body)).map_err(|error| ClientError::Unreadable(error.to_string()))?;
        let mut connection = self.connection.lock().await;
        let mut sender = match connection.take() {
            Some(sender) if sender.is_ready() => sender,
            _ => self.connect().await?,
        };
        let unreachable =
            |error: hyper::Error| ClientError::Unreachable { address: self.address.clone(), reason: error.to_string() };
        let reply = sender.send_request(request).await.map_err(unreachable)?;
        let status = reply.status();
        let body = reply.into_body().collect().await.map_err(unreachable)?.to_bytes();
        *connection = Some(sender);
        drop(connection);
        if !status.is_success() {
            let text = || String::from_utf8_lossy(&body).into_owned();
            let error = serde_json::from_slice::<Problem>(&body).map_or_else(|_| text(), |problem| problem.error);
            return Err(ClientError::Refused { status, error });
        }
        serde_json::from_slice(&body).map_err(|error| ClientError::Unreadable(error.to_string()))
    }
}
