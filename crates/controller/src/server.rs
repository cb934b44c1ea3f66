//! A controller as a process: `init` once, then `run`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fermata_store::{SqliteStore, Store};
use tokio::net::TcpListener;

use crate::api::{self, ServeError};
use crate::identity::Role;
use crate::pki::{Authority, PkiError};
use crate::service::{Controller, ServiceError};
use crate::wire::NewToken;

/// Why a controller could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The store.
    #[error(transparent)]
    Store(#[from] fermata_store::StoreError),
    /// The first token.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The address.
    #[error("listening on {address}: {source}; choose another address, or stop who has it")]
    Listen {
        /// Where.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The API.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Name of the file in the controller's folder that holds the first administrator's token; only root reads it.
pub const ADMIN_TOKEN: &str = "admin.token";

/// What `init` made.
#[derive(Debug, Clone)]
pub struct Initialised {
    /// The first administrator's token; shown once.
    pub admin_token: String,
    /// The CA's certificate, for clients.
    pub ca: PathBuf,
}

async fn open(folder: &Path) -> Result<Arc<dyn Store>, ServerError> {
    Ok(Arc::new(SqliteStore::open(folder.join("controller.sqlite")).await?))
}

/// Makes the CA, the store and the first administrator.
///
/// # Errors
/// [`PkiError::Exists`] when it has been done before.
pub async fn init(folder: &Path) -> Result<Initialised, ServerError> {
    let authority = Authority::init(folder)?;
    let controller = Controller::new(open(folder).await?, authority, "init".to_owned());
    let new = NewToken { name: "admin".to_owned(), role: Role::Admin };
    let admin_token = controller.new_token(&new).await?.token;
    Ok(Initialised { admin_token, ca: folder.join("ca.pem") })
}

/// Runs a controller until its listener fails or the future is dropped.
///
/// # Errors
/// [`ServerError`].
pub async fn run(folder: &Path, address: &str) -> Result<(), ServerError> {
    let listen = |source| ServerError::Listen { address: address.to_owned(), source };
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    run_on(folder, listener).await
}

/// The same on a socket that is open already.
///
/// # Errors
/// [`ServerError`].
pub async fn run_on(folder: &Path, listener: TcpListener) -> Result<(), ServerError> {
    run_with(folder, listener, crate::pki::CLIENT_LIFE).await
}

/// The same with certificates for clients that last for another time than usual.
///
/// # Errors
/// [`ServerError`].
pub async fn run_with(folder: &Path, listener: TcpListener, certificates: Duration) -> Result<(), ServerError> {
    let authority = Authority::load(folder)?.with_client_life(certificates);
    let controller = Controller::new(open(folder).await?, authority, "controller".to_owned());
    // What was going on when the last process ended is known before the first agent asks.
    controller.round().await?;
    let api = api::serve(listener, Arc::clone(&controller), api::router(Arc::clone(&controller)));
    tokio::select! {
        ended = api => Ok(ended?),
        () = Arc::clone(&controller).run() => Ok(()),
        () = controller.guard() => Ok(()),
    }
}
