//! Talking to a controller: for the `fermata` command and for agents.

use std::sync::Arc;
use std::time::Duration;

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

use crate::lifeline;
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
    patience: Duration,
    connection: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

/// How long an answer may take, unless [`Client::with_patience`] says otherwise: planning a large fleet is the slowest.
const PATIENCE: Duration = Duration::from_secs(120);

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
        Ok(Self { address, tls, token, patience: PATIENCE, connection: Mutex::default() })
    }

    /// The same, which waits no longer than this for an answer.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ClientError> {
        let unreachable = |reason: &dyn std::fmt::Display| ClientError::Unreachable {
            address: self.address.clone(),
            reason: reason.to_string(),
        };
        let stream = TcpStream::connect(&self.address).await.map_err(|error| unreachable(&error))?;
        stream.set_nodelay(true).and_then(|()| lifeline::watch(&stream)).map_err(|error| unreachable(&error))?;
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
        let Ok(answered) = tokio::time::timeout(self.patience, self.exchange(request)).await else {
            let reason = format!("no answer within {} s", self.patience.as_secs_f64());
            return Err(ClientError::Unreachable { address: self.address.clone(), reason });
        };
        let (status, body) = answered?;
        if !status.is_success() {
            let text = || String::from_utf8_lossy(&body).into_owned();
            let error = serde_json::from_slice::<Problem>(&body).map_or_else(|_| text(), |problem| problem.error);
            return Err(ClientError::Refused { status, error });
        }
        serde_json::from_slice(&body).map_err(|error| ClientError::Unreadable(error.to_string()))
    }

    /// One request on the connection that is kept, or on a new one.
    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), ClientError> {
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
        Ok((status, body))
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Such is a controller that was stopped, or one whose host lost its power after the connection stood.
    #[tokio::test]
    async fn a_controller_that_takes_the_connection_and_says_nothing_is_away() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let client = Client::new(&address, &Trust::Fingerprint("00".repeat(32)), None, None).unwrap();
        let asked = client.with_patience(Duration::from_millis(200)).get::<serde_json::Value>("/v1/fleet").await;
        assert!(matches!(asked, Err(ClientError::Unreachable { .. })), "{asked:?}");
    }

    #[tokio::test]
    async fn the_kernel_looks_after_the_other_end_of_a_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        lifeline::watch(&stream).unwrap();
        let socket = socket2::SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        assert!(socket.tcp_user_timeout().unwrap().is_some_and(|limit| limit <= Duration::from_secs(30)));
    }
}
