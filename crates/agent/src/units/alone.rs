//! VMMs before there is a service manager: started as children of the agent, in control groups made as systemd would name them, and given
//! to systemd as scopes when it is there.
//!
//! ```text
//!  start: group made ─► launcher joins it, gives up root ─► VMM      (agent alone, see `first`)
//!  systemd comes: leaves groups other than the root's alone
//!  adopt: StartTransientUnit(NAME.scope, PIDs=[VMM])                 (later agent, on the bus)
//! ```
//!
//! A scope has the limits of its group (devices above all) but no mount namespace and no system call filter of the manager's; QEMU's own
//! `-sandbox` and the user without privileges are as always. The VM's next VMM is confined in full again.
//!
//! Groups of such VMMs are ended by what the kernel offers on them, which works with and without systemd.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use fermata_first::CGROUPS;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

use super::confined::VMM_GROUPS;
use super::{UnitError, VmUnit};
use crate::users;

/// How the names of such units end.
const SUFFIX: &str = ".scope";
/// How long a VMM may take to end after it was asked to.
const TERM_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks at a group: its file tells of changes to `poll` only, and an end is waited for rarely.
const LOOK: Duration = Duration::from_millis(10);

/// Whether a unit is one of these.
pub(super) fn is_scope(unit: &str) -> bool {
    unit.ends_with(SUFFIX)
}

/// The group of a unit in a slice, by the names that systemd gives (`systemd.slice(5)`): `a-b.slice` is in `a.slice`.
fn group(root: &Path, slice: &str, unit: &str) -> PathBuf {
    let mut path = root.to_owned();
    let stem = slice.strip_suffix(".slice").unwrap_or(slice).trim_matches('-');
    for (end, _) in stem.match_indices('-').chain(std::iter::once((stem.len(), ""))).filter(|(end, _)| *end > 0) {
        path.push(format!("{}.slice", &stem[..end]));
    }
    path.push(unit);
    path
}

fn failed(act: &'static str, unit: &str) -> impl Fn(String) -> UnitError {
    move |result| UnitError::Job { act, unit: unit.to_owned(), result }
}

/// Starts a VM's VMM in a group of its own.
///
/// # Errors
/// [`UnitError`].
pub(super) fn start(unit: &VmUnit) -> Result<(), UnitError> {
    let failed = failed("start", &unit.name);
    let path = group(Path::new(CGROUPS), &unit.slice, &unit.name);
    let io = |what: String| move |error: io::Error| format!("{what}: {error}");
    fs::create_dir_all(&path).map_err(io(path.display().to_string())).map_err(&failed)?;
    let user = users::find(&unit.user).map_err(io(unit.user.clone())).map_err(&failed)?;
    let groups = users::groups_of(VMM_GROUPS).map_err(io("its groups".to_owned())).map_err(&failed)?;
    let log = fs::OpenOptions::new().append(true).open(&unit.log);
    let log = log.map_err(io(unit.log.display().to_string())).map_err(&failed)?;
    let (program, words) = unit.command.split_first().ok_or_else(|| failed("nothing to start".to_owned()))?;
    let mut command = Command::new(program);
    command.args(words).env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.arg("--group").arg(&path).arg(format!("--user={}:{}", user.uid, user.gid));
    command.args(groups.iter().map(|group| format!("--more-groups={group}")));
    let mut child = command.spawn().map_err(io(program.clone())).map_err(&failed)?;
    // Collected here as long as this agent runs, by the first program afterwards.
    tokio::spawn(async move { child.wait().await });
    Ok(())
}

/// Ends all of a unit, asked first, and waits until nothing of it is left. One that is gone already is no error.
///
/// # Errors
/// [`UnitError`].
pub(super) async fn stop(slice: &str, unit: &str, limit: Duration) -> Result<(), UnitError> {
    let path = group(Path::new(CGROUPS), slice, unit);
    for pid in processes(&path) {
        // One that ended meanwhile needs no signal.
        kill_process(pid, Signal::TERM).ok();
    }
    if !is_empty_within(&path, TERM_LIMIT).await {
        kill(slice, unit)?;
        if !is_empty_within(&path, limit).await {
            return Err(UnitError::Slow { act: "stop", unit: unit.to_owned() });
        }
    }
    // Where systemd has it, systemd removes it.
    fs::remove_dir(&path).ok();
    Ok(())
}

/// Kills every process of a unit at once (Linux, `cgroup-v2.rst`, `cgroup.kill`).
///
/// # Errors
/// [`UnitError`].
pub(super) fn kill(slice: &str, unit: &str) -> Result<(), UnitError> {
    match fs::write(group(Path::new(CGROUPS), slice, unit).join("cgroup.kill"), "1") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("kill", unit)(error.to_string())),
        _ => Ok(()),
    }
}

/// The first process of a unit.
pub(super) fn main_pid(slice: &str, unit: &str) -> Option<u32> {
    let first = processes(&group(Path::new(CGROUPS), slice, unit)).into_iter().next()?;
    u32::try_from(first.as_raw_nonzero().get()).ok()
}

fn processes(group: &Path) -> Vec<Pid> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()
}

async fn is_empty_within(group: &Path, limit: Duration) -> bool {
    let until = Instant::now() + limit;
    loop {
        let events = fs::read_to_string(group.join("cgroup.events")).unwrap_or_default();
        if !events.lines().any(|line| line == "populated 1") {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_where_systemd_has_them() {
        let at = |slice| group(Path::new("/g"), slice, "u.scope").display().to_string();
        assert_eq!(at("fermata.slice"), "/g/fermata.slice/u.scope");
        assert_eq!(at("a-b-c.slice"), "/g/a.slice/a-b.slice/a-b-c.slice/u.scope");
        assert_eq!(at("-.slice"), "/g/u.scope");
        assert!(is_scope("fermata-vm-a-1.scope") && !is_scope("fermata-vm-a-1.service"));
    }

    #[tokio::test]
    async fn what_is_gone_is_no_error() {
        let unit = "fermata-vm-never-was-1.scope";
        kill("fermata.slice", unit).unwrap();
        stop("fermata.slice", unit, Duration::from_secs(1)).await.unwrap();
        assert_eq!(main_pid("fermata.slice", unit), None);
    }
}
