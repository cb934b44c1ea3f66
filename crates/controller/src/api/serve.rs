//! TLS around the API.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::Shown;
use crate::lifeline;
use crate::pki::{PkiError, fingerprint};
use crate::service::Controller;

/// Why the API ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The listener.
    #[error("accepting connections: {0}")]
    Accept(#[from] std::io::Error),
    /// The server's certificate.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// When the server makes itself a new certificate: long before the old one runs out, and without a restart.
const RENEWAL: Duration = Duration::from_hours(30 * 24);

/// How long a client may take for its handshake and for the head of a request.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves the API until the listener fails.
///
/// # Errors
/// [`ServeError`] of the listener; a single connection's errors end that connection only.
pub async fn serve(listener: TcpListener, controller: Arc<Controller>, router: Router) -> Result<(), ServeError> {
    let mut made = Instant::now();
    let mut acceptor = TlsAcceptor::from(Arc::new(controller.authority().server()?));
    // Ends every connection with the server: none may answer for a controller that is gone.
    let mut connections = JoinSet::new();
    loop {
        let (stream, peer) = listener.accept().await?;
        while connections.try_join_next().is_some() {}
        if made.elapsed() >= RENEWAL {
            made = Instant::now();
            acceptor = TlsAcceptor::from(Arc::new(controller.authority().server()?));
        }
        let (acceptor, router) = (acceptor.clone(), router.clone());
        connections.spawn(async move {
            if let Err(error) = connection(stream, acceptor, router).await {
                tracing::debug!(%peer, %error, "connection ended");
            }
        });
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    lifeline::watch(&stream)?;
    let stream = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await??;
    let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(fingerprint);
    let service = TowerToHyperService::new(router.layer(Extension(Shown(shown))));
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service)
        .await?;
    Ok(())
}
