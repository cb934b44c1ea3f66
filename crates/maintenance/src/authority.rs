//! The right to act on a host's VMs: one lock, held by the agent for its life, taken over by the dead-man after the
//! agent's death.
//!
//! The kernel gives a lock free when its holder is dead and not before, so holding it *proves* that no other agent can
//! still send a command. It is not inherited by programs that the holder starts (descriptors are close-on-exec).

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

/// The right to act. Ends with the value.
#[derive(Debug)]
#[must_use = "the right ends when this is dropped"]
pub struct Authority {
    _lock: File,
}

/// Why there is no right to act.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// Another process has it.
    #[error(
        "{path}: another agent (or a dead-man that is just freeing VMs) is in charge of this host; it has not ended within {waited:?}"
    )]
    Taken {
        /// The lock file.
        path: PathBuf,
        /// How long was waited.
        waited: Duration,
    },
    /// The lock file is no use.
    #[error("{path}: {source}; it must be a file on a local file system that the agent may write")]
    File {
        /// The lock file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Authority {
    /// Takes the right, waiting for whoever has it for at most `wait`.
    ///
    /// # Errors
    /// [`AuthorityError`]; nobody may act on VMs then.
    pub async fn take(path: &Path, wait: Duration) -> Result<Self, AuthorityError> {
        let file = |source: std::io::Error| AuthorityError::File { path: path.to_owned(), source };
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(file)?;
        let until = Instant::now() + wait;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self { _lock: lock }),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => {
                    // A lock can be waited for only by blocking a thread for ever; a look every 5 ms costs nothing.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(AuthorityError::Taken { path: path.to_owned(), waited: wait });
                }
                Err(errno) => return Err(file(errno.into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_one_has_the_right_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = Authority::take(&path, Duration::ZERO).await.unwrap();
        let refused = Authority::take(&path, Duration::from_millis(20)).await;
        assert!(matches!(refused, Err(AuthorityError::Taken { .. })));
        drop(first);
        let _second = Authority::take(&path, Duration::from_secs(5)).await.unwrap();
    }
}
