//! What a service manager does for a program before it starts it, where there is none yet: a control group, a user without privileges,
//! limits. In this order: each step needs the privileges that the next one gives up.

use std::io;
use std::path::PathBuf;

use rustix::process::{Gid, Resource, Rlimit, Uid, setrlimit};
use rustix::thread::{set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

/// How this process is to be confined.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confinement {
    /// The folder of its control group (Linux, `cgroup-v2.rst`).
    pub group: PathBuf,
    /// User id.
    pub uid: u32,
    /// Id of the primary group.
    pub gid: u32,
    /// Ids of more groups.
    pub groups: Vec<u32>,
    /// The most descriptors it may have.
    pub files: u64,
}

/// Why a process could not be confined; it must not go on then.
#[derive(Debug, thiserror::Error)]
#[error("this process cannot be confined: {what}: {source}")]
pub struct ConfineError {
    what: String,
    source: io::Error,
}

impl Confinement {
    /// Confines this process for good. It must have one thread only: users and groups are those of a thread.
    ///
    /// # Errors
    /// [`ConfineError`]; it may be confined in part.
    pub fn enter(&self) -> Result<(), ConfineError> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source: io::Error| ConfineError { what, source }
        };
        let errno = |what: &'static str| move |errno: rustix::io::Errno| failed(what)(errno.into());
        // "0" is the process that writes.
        std::fs::write(self.group.join("cgroup.procs"), "0").map_err(failed(&self.group.display().to_string()))?;
        let files = Rlimit { current: Some(self.files), maximum: Some(self.files) };
        setrlimit(Resource::Nofile, files).map_err(errno("limit of descriptors"))?;
        let none = Rlimit { current: Some(0), maximum: Some(0) };
        setrlimit(Resource::Core, none).map_err(errno("limit of core dumps"))?;
        let groups: Vec<Gid> = self.groups.iter().map(|group| Gid::from_raw(*group)).collect();
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        set_thread_groups(&groups).map_err(errno("groups"))?;
        set_thread_res_gid(gid, gid, gid).map_err(errno("group"))?;
        set_thread_res_uid(uid, uid, uid).map_err(errno("user"))?;
        set_no_new_privs(true).map_err(errno("no new privileges"))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const ROLE: &str = "FERMATA_TEST_CONFINED";

    /// Not a test of its own: the process that the test below starts.
    #[test]
    fn confined() {
        let Ok(group) = std::env::var(ROLE) else { return };
        // The harness runs tests on threads; credentials are those of this one, which is the one that looks.
        let wanted = Confinement { group: group.into(), uid: 12_345, gid: 12_346, groups: vec![12_347], files: 99 };
        wanted.enter().unwrap();
        println!("{}", std::fs::read_to_string("/proc/thread-self/status").unwrap());
        println!("{}", std::fs::read_to_string("/proc/self/limits").unwrap());
    }

    #[test]
    fn a_confined_process_has_no_privileges_left() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let group = tempfile::tempdir().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "confine::tests::confined", "--nocapture"]).env(ROLE, group.path());
        let said = command.output().unwrap();
        let said = String::from_utf8_lossy(&said.stdout).replace('\t', " ");
        for expected in [
            "Uid: 12345 12345 12345 12345",
            "Gid: 12346 12346 12346 12346",
            "Groups: 12347",
            "NoNewPrivs: 1",
            "CapEff: 0000000000000000",
            "CapPrm: 0000000000000000",
        ] {
            assert!(said.contains(expected), "{expected} in {said}");
        }
        let limit =
            |name| said.lines().find(|line| line.starts_with(name)).unwrap().split_whitespace().any(|w| w == "99");
        assert!(limit("Max open files"), "{said}");
        assert_eq!(std::fs::read_to_string(group.path().join("cgroup.procs")).unwrap(), "0");
    }

    #[test]
    fn a_group_that_is_not_there_is_named() {
        let wanted = Confinement { group: "/nowhere/g".into(), uid: 1, gid: 1, groups: Vec::new(), files: 1 };
        assert!(wanted.enter().unwrap_err().to_string().contains("/nowhere/g"));
    }
}
