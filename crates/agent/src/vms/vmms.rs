//! What the configured VMMs are: asked once per binary and boot, remembered across restarts of the agent.
//!
//! ```text
//!  file's stamp as remembered? ── yes ─► remembered answer
//!             │ no
//!             └─► start the binary, ask it, remember (memory, and a file in the run folder, which a boot empties)
//! ```
//! Asking starts a process of seconds of CPU time, so an agent that was restarted under running VMs must not do it again; a
//! boot may bring another kernel, which changes the CPU models a VMM can offer, so nothing is remembered across boots.
//! Invariant: an answer is never older than its binary; what could not be asked is asked again next time.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fermata_model::VmmVersion;
use fermata_vmm::command::Accelerator;
use fermata_vmm::inspect::{self, VmmInfo};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::config::Config;

/// How long a VMM may take to say what it is; a cold binary of 30 MB on a slow disk is the worst case.
const INSPECT_LIMIT: Duration = Duration::from_secs(30);

/// What the agent found of a configured VMM: what it is, or why it cannot be used.
pub type FoundVmm = Result<VmmInfo, String>;

/// All configured VMMs, and what was found of each.
pub type FoundVmms = BTreeMap<VmmVersion, FoundVmm>;

/// What identifies the content of a file without reading it: device, inode, size in bytes, change time in ns.
type Stamp = (u64, u64, u64, i128);

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Known {
    stamp: Stamp,
    info: VmmInfo,
}

/// The VMMs of this host.
#[derive(Debug)]
pub(super) struct Vmms {
    memory: PathBuf,
    known: Mutex<BTreeMap<PathBuf, Known>>,
}

impl Vmms {
    /// Takes up what an earlier agent of this boot learned. A file that cannot be read is as good as none.
    #[must_use]
    pub(super) fn open(run_dir: &Path) -> Self {
        let memory = run_dir.join("vmms.json");
        let known = fs::read(&memory).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Self { memory, known: Mutex::new(known) }
    }

    /// What the configured VMMs are now.
    pub(super) async fn look(&self, config: &Config) -> Arc<FoundVmms> {
        // Whoever comes while the binaries are being asked waits for the answer instead of asking too.
        let mut known = self.known.lock().await;
        let remembered = &*known;
        let look = config.vmm.iter().map(async |(version, vmm)| {
            let stamp = stamp(&vmm.binary);
            let same = |known: &&Known| stamp == Some(known.stamp);
            let asked = match remembered.get(&vmm.binary).filter(same) {
                Some(known) => Ok((known.clone(), false)),
                None => inspect::inspect(&vmm.binary, Accelerator::Kvm, INSPECT_LIMIT)
                    .await
                    .map(|info| (Known { stamp: stamp.unwrap_or_default(), info }, true))
                    .map_err(|error| crate::chain(&error)),
            };
            (*version, vmm.binary.clone(), asked)
        });
        let looked = futures_util::future::join_all(look).await;
        let (mut found, mut learned) = (FoundVmms::new(), false);
        for (version, binary, asked) in looked {
            let answer = asked.and_then(|(answer, new)| {
                learned |= new;
                known.insert(binary.clone(), answer.clone());
                match answer.info.version == version {
                    true => Ok(answer.info),
                    false => Err(format!(
                        "{} is QEMU {}, not {version}; correct [vmm.\"{version}\"] in the agent's configuration",
                        binary.display(),
                        answer.info.version
                    )),
                }
            });
            if let Err(reason) = &answer {
                tracing::warn!(vmm = %version, reason, "cannot be used");
            }
            found.insert(version, answer);
        }
        if learned {
            self.remember(&known);
        }
        Arc::new(found)
    }

    fn remember(&self, known: &BTreeMap<PathBuf, Known>) {
        let part = self.memory.with_extension("part");
        let written = serde_json::to_vec(known)
            .map_err(std::io::Error::from)
            .and_then(|text| fs::write(&part, text))
            .and_then(|()| fs::rename(&part, &self.memory));
        if let Err(error) = written {
            // It costs the next agent a second or two, nothing more.
            tracing::warn!(path = %self.memory.display(), %error, "what the VMMs are is not remembered");
        }
    }
}

fn stamp(binary: &Path) -> Option<Stamp> {
    let meta = fs::metadata(binary).ok()?;
    let changed = i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec());
    Some((meta.dev(), meta.ino(), meta.size(), changed))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A program that notes each start and is no VMM.
    fn program(dir: &Path, says: &str) -> PathBuf {
        let path = dir.join("qemu");
        fs::write(&path, format!("#!/bin/sh\necho x >>{}/starts\n{says}\n", dir.display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn config(binary: &Path) -> Config {
        Config::parse(&format!("[vmm.\"10.0\"]\nbinary = \"{}\"\n", binary.display()), binary).unwrap()
    }

    #[tokio::test]
    async fn a_binary_that_cannot_be_used_is_asked_again_next_time() {
        let dir = tempfile::tempdir().unwrap();
        let binary = program(dir.path(), "exit 1");
        let vmms = Vmms::open(dir.path());
        for starts in 1..=2 {
            let found = vmms.look(&config(&binary)).await;
            assert!(found.values().all(Result::is_err));
            assert_eq!(fs::read_to_string(dir.path().join("starts")).unwrap().lines().count(), starts);
        }
    }

    #[tokio::test]
    async fn a_known_binary_is_not_started_again_until_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let binary = program(dir.path(), "exit 1");
        let info = VmmInfo {
            binary: binary.clone(),
            version: VmmVersion { major: 10, minor: 0 },
            full_version: "10.0.2".to_owned(),
            machines: [].into(),
            devices: [].into(),
            cpus: [].into(),
            cpr_transfer: true,
            cpr_reboot: true,
        };
        let known = [(binary.clone(), Known { stamp: stamp(&binary).unwrap(), info: info.clone() })];
        Vmms::open(dir.path()).remember(&known.into());
        let vmms = Vmms::open(dir.path());
        assert_eq!(vmms.look(&config(&binary)).await.values().next().unwrap().as_ref().unwrap(), &info);
        assert!(!dir.path().join("starts").exists());
        program(dir.path(), "exit 2");
        assert!(vmms.look(&config(&binary)).await.values().all(Result::is_err));
        assert!(dir.path().join("starts").exists());
    }
}
