//! Update files by their digest: fetched from the controller once, kept while they may be needed.
//!
//! The digest in an order is what was approved; a file with another one is never used, whoever sent it.

use std::fs;
use std::path::{Path, PathBuf};

use fermata_controller::agent_link::Line;
use fermata_controller::client::ClientError;
use fermata_controller::order::UpdateRef;
use fermata_controller::pki::sha256;

/// Why there is no update file.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoUpdate {
    /// Other bytes than were ordered.
    #[error(
        "update `{name}`: its file has the digest {found}, ordered was {wanted}; plan the rollout again with the file that is meant"
    )]
    Differs {
        /// The update.
        name: String,
        /// The order's digest.
        wanted: String,
        /// The file's.
        found: String,
    },
    /// Not a digest at all: it would be part of a path.
    #[error("update `{0}`: the order's digest is no SHA-256; plan the rollout again")]
    NoDigest(String),
    /// The controller.
    #[error("update `{name}`: {source}")]
    Client {
        /// The update.
        name: String,
        /// Why.
        source: ClientError,
    },
    /// This host's disk.
    #[error("update `{name}`: {path}: {source}")]
    Io {
        /// The update.
        name: String,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The text of an update; from the disk when it was fetched before.
pub(super) async fn get(folder: &Path, line: &Line, update: &UpdateRef) -> Result<String, NoUpdate> {
    let name = || update.name.clone();
    if update.digest.len() != 64 || !update.digest.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(NoUpdate::NoDigest(name()));
    }
    let folder = folder.join("updates");
    let path = folder.join(format!("{}.toml", update.digest));
    if let Ok(text) = fs::read_to_string(&path)
        && check(update, &text).is_ok()
    {
        return Ok(text);
    }
    let fetched = line.client().get::<String>(&format!("/v1/agent/updates/{}", update.digest)).await;
    let text = fetched.map_err(|source| NoUpdate::Client { name: name(), source })?;
    check(update, &text)?;
    let keep = || fs::create_dir_all(&folder).and_then(|()| fs::write(&path, &text));
    keep().map_err(|source| NoUpdate::Io { name: name(), path: path.clone(), source })?;
    Ok(text)
}

fn check(update: &UpdateRef, text: &str) -> Result<(), NoUpdate> {
    let found = sha256(text.as_bytes());
    if found == update.digest {
        return Ok(());
    }
    Err(NoUpdate::Differs { name: update.name.clone(), wanted: update.digest.clone(), found })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fermata_model::Mechanism;

    #[test]
    fn a_file_with_other_bytes_than_ordered_is_refused_with_both_digests() {
        let digest = sha256(b"meant");
        let update = UpdateRef { name: "qemu".into(), digest: digest.clone(), mechanism: Mechanism::Swap };
        assert!(check(&update, "meant").is_ok());
        let refusal = check(&update, "sent").unwrap_err().to_string();
        assert!(refusal.contains(&digest) && refusal.contains("plan the rollout again"), "{refusal}");
    }
}
