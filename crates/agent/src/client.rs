//! The agent's API from the other side: HTTP over its unix socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::api::types::ErrorView;

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "agent at {socket}: {source}; is it running (`systemctl status fermata-agent`), and may you reach the socket?"
    )]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("agent at {socket}: {source}")]
    Http {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: Box<hyper::Error>,
    },
    /// The agent refused; its words carry place, reason and way out.
    #[error("{}", .view.error)]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// What it said.
        view: ErrorView,
    },
    /// An answer that this version cannot read.
    #[error("agent at {socket}: answer not understood: {reason}; are agent and command of one version?")]
    Answer {
        /// The socket.
        socket: PathBuf,
        /// Why.
        reason: String,
    },
    /// No answer in time.
    #[error("agent at {socket}: no answer within {} s", .limit.as_secs())]
    Slow {
        /// The socket.
        socket: PathBuf,
        /// The limit.
        limit: Duration,
    },
}

/// A caller of one agent.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A caller of the agent that listens on `socket`.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// `GET path`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::GET, path, "application/json", Vec::new(), Duration::from_secs(30)).await
    }

    /// `DELETE path`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.call(Method::DELETE, path, "application/json", Vec::new(), Duration::from_secs(60)).await
    }

    /// `POST path` with a body of a media type; `limit` bounds the whole call.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        media_type: &str,
        body: Vec<u8>,
        limit: Duration,
    ) -> Result<T, ClientError> {
        self.call(Method::POST, path, media_type, body, limit).await
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        media_type: &str,
        body: Vec<u8>,
        limit: Duration,
    ) -> Result<T, ClientError> {
        let slow = |_| ClientError::Slow { socket: self.socket.clone(), limit };
        let (status, bytes) =
            tokio::time::timeout(limit, self.exchange(method, path, media_type, body)).await.map_err(slow)??;
        let answer = |reason: String| ClientError::Answer { socket: self.socket.clone(), reason };
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|e| answer(e.to_string()));
        }
        let view = serde_json::from_slice(&bytes)
            .map_err(|_| answer(format!("{status}: {}", String::from_utf8_lossy(&bytes))))?;
        Err(ClientError::Refused { status, view })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        media_type: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let http = |source| ClientError::Http { socket: self.socket.clone(), source: Box::new(source) };
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ClientError::Connect { socket: self.socket.clone(), source })?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "fermata")
            .header(header::CONTENT_TYPE, media_type)
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| ClientError::Answer { socket: self.socket.clone(), reason: e.to_string() })?;
        let response = sender.send_request(request).await.map_err(http)?;
        let status = response.status();
        let bytes = response.into_body().collect().await.map_err(http)?.to_bytes();
        Ok((status, bytes))
    }
}
