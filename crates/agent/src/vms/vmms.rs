//! The VMMs of this host, from its configuration and from updates that brought one, and what they are: asked once per binary and
//! boot, remembered across restarts of the agent.
//!
//! ```text
//!  file's stamp as remembered? ── yes ─► remembered answer
//!             │ no
//!             └─► start the binary, ask it, remember (memory, and a file in the run folder, which a boot empties)
//! ```
//! Asking starts a process of seconds of CPU time, so an agent that was restarted under running VMs must not do it again; a
//! boot may bring another kernel, which changes the CPU models a VMM can offer, so nothing is remembered across boots.
//! Invariants: an answer is never older than its binary; what could not be asked is asked again next time. What an update brought is
//! on disk before a VM depends on it, and never takes the place of what the configuration names.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as BriefMutex, PoisonError};
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
    configured: BTreeMap<VmmVersion, PathBuf>,
    /// Where `brought` is kept, beyond boots.
    store: PathBuf,
    /// Those of updates.
    brought: BriefMutex<BTreeMap<VmmVersion, PathBuf>>,
}

impl Vmms {
    /// Takes up what an earlier agent of this boot learned, and what updates brought. A file that cannot be read is as good as none.
    #[must_use]
    pub(super) fn open(config: &Config) -> Self {
        let (memory, store) = (config.run_dir.join("vmms.json"), config.state_dir.join("vmms.json"));
        let known = fs::read(&memory).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let brought = match fs::read(&store) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::error!(path = %store.display(), %error, "VMMs that updates brought are not known");
                BTreeMap::new()
            }),
            Err(_) => BTreeMap::new(),
        };
        let configured = config.vmm.iter().map(|(version, vmm)| (*version, vmm.binary.clone())).collect();
        Self { memory, known: Mutex::new(known), configured, store, brought: BriefMutex::new(brought) }
    }

    /// Every VMM of this host by its version.
    pub(super) fn binaries(&self) -> BTreeMap<VmmVersion, PathBuf> {
        let mut all = self.brought.lock().unwrap_or_else(PoisonError::into_inner).clone();
        all.extend(self.configured.clone());
        all
    }

    /// What the VMMs are now.
    pub(super) async fn look(&self) -> Arc<FoundVmms> {
        self.ask(&self.binaries()).await
    }

    /// What a binary is that an update names, and whether this host may have it.
    pub(super) async fn examine(&self, version: VmmVersion, binary: &Path) -> FoundVmm {
        if let Some(other) = self.binaries().get(&version).filter(|other| *other != binary) {
            return Err(format!(
                "this host has VMM {version} already, as {}; leave `binary` out of the update, or name that file",
                other.display()
            ));
        }
        let asked = self.ask(&[(version, binary.to_owned())].into()).await;
        asked.get(&version).cloned().unwrap_or_else(|| Err("not looked at".to_owned()))
    }

    /// Has a binary from now on, also after restarts and boots. Doing it twice does no harm.
    pub(super) fn bring(&self, version: VmmVersion, binary: &Path) -> io::Result<()> {
        if self.binaries().contains_key(&version) {
            return Ok(());
        }
        let mut brought = self.brought.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = brought.clone();
        next.insert(version, binary.to_owned());
        let part = self.store.with_extension("part");
        let mut file = fs::File::create(&part)?;
        file.write_all(&serde_json::to_vec_pretty(&next)?)?;
        file.sync_all()?;
        fs::rename(&part, &self.store)?;
        self.store.parent().map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())?;
        *brought = next;
        Ok(())
    }

    async fn ask(&self, binaries: &BTreeMap<VmmVersion, PathBuf>) -> Arc<FoundVmms> {
        // Whoever comes while the binaries are being asked waits for the answer instead of asking too.
        let mut known = self.known.lock().await;
        let remembered = &*known;
        let look = binaries.iter().map(async |(version, binary)| {
            let stamp = stamp(binary);
            let same = |known: &&Known| stamp == Some(known.stamp);
            let asked = match remembered.get(binary).filter(same) {
                Some(known) => Ok((known.clone(), false)),
                None => inspect::inspect(binary, Accelerator::Kvm, INSPECT_LIMIT)
                    .await
                    .map(|info| (Known { stamp: stamp.unwrap_or_default(), info }, true))
                    .map_err(|error| crate::chain(&error)),
            };
            (*version, binary.clone(), asked)
        });
        let looked = futures_util::future::join_all(look).await;
        let (mut found, mut learned) = (FoundVmms::new(), false);
        for (version, binary, asked) in looked {
            let answer = asked.and_then(|(answer, new)| {
                learned |= new;
                known.insert(binary.clone(), answer.clone());
                match answer.info.version == version {
                    true => Ok(answer.info),
                    false => Err(self.misnamed(version, &binary, answer.info.version)),
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

    fn misnamed(&self, version: VmmVersion, binary: &Path, is: VmmVersion) -> String {
        let place = if self.configured.contains_key(&version) {
            format!("[vmm.\"{version}\"] in the agent's configuration")
        } else {
            "`vmm` or `binary` in the update".to_owned()
        };
        format!("{} is QEMU {is}, not {version}; correct {place}", binary.display())
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
        let dir = binary.parent().unwrap().display();
        let text = format!(
            "run_dir = \"{dir}\"\nstate_dir = \"{dir}/state\"\n[vmm.\"10.0\"]\nbinary = \"{}\"\n",
            binary.display()
        );
        Config::parse(&text, binary).unwrap()
    }

    #[tokio::test]
    async fn a_binary_that_cannot_be_used_is_asked_again_next_time() {
        let dir = tempfile::tempdir().unwrap();
        let binary = program(dir.path(), "exit 1");
        let vmms = Vmms::open(&config(&binary));
        for starts in 1..=2 {
            let found = vmms.look().await;
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
        Vmms::open(&config(&binary)).remember(&known.into());
        let vmms = Vmms::open(&config(&binary));
        assert_eq!(vmms.look().await.values().next().unwrap().as_ref().unwrap(), &info);
        assert!(!dir.path().join("starts").exists());
        program(dir.path(), "exit 2");
        assert!(vmms.look().await.values().all(Result::is_err));
        assert!(dir.path().join("starts").exists());
    }

    #[tokio::test]
    async fn what_an_update_brought_stays_and_never_takes_a_configured_ones_place() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        let binary = program(dir.path(), "exit 1");
        let (known, new) = (VmmVersion { major: 10, minor: 0 }, VmmVersion { major: 11, minor: 1 });
        let vmms = Vmms::open(&config(&binary));

        let refused = vmms.examine(known, Path::new("/elsewhere/qemu")).await.unwrap_err();
        assert!(refused.contains("leave `binary` out"), "{refused}");
        assert!(vmms.examine(new, &dir.path().join("nothing")).await.is_err());
        assert_eq!(vmms.binaries().len(), 1, "looking changes nothing");

        vmms.bring(new, Path::new("/opt/qemu")).unwrap();
        vmms.bring(new, Path::new("/other/qemu")).unwrap();
        vmms.bring(known, Path::new("/other/qemu")).unwrap();
        let after = Vmms::open(&config(&binary)).binaries();
        assert_eq!(after, [(known, binary), (new, PathBuf::from("/opt/qemu"))].into());
    }
}
