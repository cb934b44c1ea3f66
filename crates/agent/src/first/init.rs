//! The first program of a kernel that was jumped into: the agent runs alone until VMs run, then the host's own first program takes over.
//!
//! ```text
//!  kernel ─► initial RAM disk ─► here, as process 1 ─► agent ─► VMs run ─► agent ends ─► /sbin/init ─► fermata-first.target ─► ...
//!                                  │  modules, first.d   (or it failed twice, or a minute passed)             ▲
//!                                  └──────────────────────── whatever fails here ─────────────────────────────┘
//! ```
//!
//! A service manager needs seconds until it starts its first unit where processors are few, and VMs stand meanwhile. Invariants: this
//! program never ends but by becoming `/sbin/init`; two agents never are at work at once (one that cannot be ended keeps the next one
//! waiting for its authority); what was mounted is mounted as the service manager
//! would, so it finds its own.

use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::StatVfsMountFlags;
use rustix::mount::{MountFlags, mount, mount_remount};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, getpid, kill_process, pidfd_open, wait};

use super::ALONE;
use super::ahead::{self, Note};
use crate::urgency;

/// What the host starts with otherwise, first that is there (Linux, `init/main.c`, and where systemd is without a link to it).
const INIT: [&str; 3] = ["/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd"];
/// What VMs need of the host to be of use, such as its network: programs, started beside the agent.
const HOOKS: &str = "/etc/fermata/first.d";
/// More of the agent's environment: lines `NAME=value`.
const ENVIRONMENT: &str = "/etc/fermata/first.env";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// After this the host starts whatever VMs do.
const LIMIT: Duration = Duration::from_secs(60);
/// How often the agent is started. One that was killed while VMs stand goes on by the journal much sooner than one that a service manager starts.
const STARTS: usize = 2;
/// How long modules may take.
const FOR_MODULES: Duration = Duration::from_secs(20);
/// Tells a process that it is to load modules and nothing else.
const LOAD: &str = "load-modules-as-noted";
/// How long the agent may take to end.
const END: Duration = Duration::from_secs(5);
/// Whether grace periods are asked for by interrupts instead of waited for, tens of milliseconds each (Linux, `Documentation/admin-guide/kernel-parameters.txt`,
/// `rcupdate.rcu_expedited`, and `kernel/ksysfs.c`). Control groups, networks and modules have some on the way of each VM.
const GRACE: &str = "/sys/kernel/rcu_expedited";
/// Between two looks at what no descriptor tells of: orphans to collect, an agent that was stopped, a limit that is over.
const LOOK: Duration = Duration::from_millis(100);

/// What is mounted before systemd's first word (systemd, `mount-setup.c`): source, place, type, options of the file system.
const MOUNTS: [(&str, &str, &str, MountFlags, &str); 5] = [
    ("proc", "/proc", "proc", MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC), ""),
    ("sysfs", "/sys", "sysfs", MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC), ""),
    ("devtmpfs", "/dev", "devtmpfs", MountFlags::NOSUID.union(MountFlags::STRICTATIME), "mode=0755"),
    ("tmpfs", "/run", "tmpfs", MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::STRICTATIME), "mode=0755"),
    (
        "cgroup2",
        crate::units::CGROUPS,
        "cgroup2",
        MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC),
        "nsdelegate,memory_recursiveprot",
    ),
];

/// Whether a program was started by this name.
#[must_use]
pub fn is_called(program: &OsStr) -> bool {
    Path::new(program).file_name() == Path::new(super::INIT).file_name()
}

/// Runs as the first program. Returns only where it is not.
#[must_use]
pub fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == LOAD) && getpid() != Pid::INIT {
        return load_as_noted();
    }
    if getpid() != Pid::INIT {
        eprintln!("this is the first program of a kernel after a jump (`init={}`), and does nothing else", super::INIT);
        return ExitCode::FAILURE;
    }
    mount_all();
    let grace = in_a_hurry();
    say("VMs first");
    let note = Note::read();
    load_modules(note.as_ref());
    say("modules are there");
    let mut hooks = start_hooks();
    let limit = Instant::now() + LIMIT;
    for _ in 0..STARTS {
        let ended_well = match urgency::started(|| agent().spawn()) {
            Ok(child) => wait_for(&child, limit),
            Err(error) => {
                say(&format!("the agent cannot be started: {error}"));
                true
            }
        };
        if ended_well || Instant::now() >= limit {
            break;
        }
    }
    // The host may do the same once more, not at the same time.
    await_all(&mut hooks, END);
    if let Some(grace) = grace {
        // A file of this kernel that was written a moment ago.
        fs::write(GRACE, grace).unwrap_or_default();
    }
    say("the rest of the host starts");
    become_init()
}

/// Sees to it that nobody waits for grace periods; what it was before, where that is known.
fn in_a_hurry() -> Option<String> {
    let before = fs::read_to_string(GRACE).ok()?;
    fs::write(GRACE, "1").ok()?;
    Some(before)
}

/// For people, in the kernel's log, at the level of information (`Documentation/ABI/testing/dev-kmsg`).
fn say(what: &str) {
    if let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") {
        // Nobody could be told that this failed.
        log.write_all(format!("<6>fermata-first: {what}\n").as_bytes()).ok();
    }
}

fn become_init() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    for program in INIT {
        let error = Command::new(program).args(&words).exec();
        say(&format!("{program}: {error}"));
    }
    // The end of the first program is a panic of the kernel, which restarts the host (`panic=`).
    ExitCode::FAILURE
}

fn mount_all() {
    let device = |path: &Path| path.metadata().map(|meta| meta.dev()).ok();
    for (source, place, kind, flags, options) in MOUNTS {
        let place = Path::new(place);
        if device(place) != place.parent().and_then(device) {
            continue;
        }
        let options = std::ffi::CString::new(options).unwrap_or_default();
        if let Err(errno) = mount(source, place, kind, flags, options.as_c_str()) {
            say(&format!("{} is not mounted: {errno}", place.display()));
        }
    }
    if let Err(errno) = make_writable() {
        say(&format!("/ stays read-only: {errno}"));
    }
}

/// Most hosts mount their root file system read-only at first, and look at it; a journal's replay is over by then.
fn make_writable() -> rustix::io::Result<()> {
    let now = rustix::fs::statvfs("/")?.f_flag;
    if !now.contains(StatVfsMountFlags::RDONLY) {
        return Ok(());
    }
    let kept = [
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
        (StatVfsMountFlags::SYNCHRONOUS, MountFlags::SYNCHRONOUS),
    ];
    let flags = kept.into_iter().filter(|(seen, _)| now.contains(*seen)).map(|(_, flag)| flag);
    mount_remount("/", flags.fold(MountFlags::empty(), MountFlags::union), "")
}

/// As was found out before the jump, or by `modprobe`. By processes of their own: a module that hangs must not hang this one.
fn load_modules(note: Option<&Note>) {
    if let Some(note) = note {
        note.fetch_modules();
        let mut noted = quiet(Command::new(super::INIT));
        let loading = noted.arg(LOAD).spawn();
        // The disk brings them while modules are loaded.
        note.fetch_programs();
        match loading {
            Ok(child) => {
                let mut loading = [child];
                await_all(&mut loading, FOR_MODULES);
                let [child] = &mut loading;
                if child.try_wait().is_ok_and(|ended| ended.is_some_and(|status| status.success())) {
                    return;
                }
            }
            Err(error) => say(&format!("modules are not loaded as noted: {error}")),
        }
    }
    say("modprobe looks for modules");
    let mut modprobe = Command::new("modprobe");
    modprobe.env("PATH", PATH).args(["--quiet", "--all"]).args(ahead::names()).stdin(Stdio::null());
    // What is missing shows where it is needed, with a reason of its own.
    match modprobe.spawn() {
        Ok(child) => await_all(&mut [child], FOR_MODULES),
        Err(error) => say(&format!("modprobe: {error}")),
    }
}

/// What [`load_modules`] asks of a process of its own.
fn load_as_noted() -> ExitCode {
    match Note::read().map(|note| note.load()) {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(reason)) => {
            say(&reason);
            ExitCode::FAILURE
        }
        None => ExitCode::FAILURE,
    }
}

/// Waits for processes, not longer than `limit`: the host must come up also when one hangs.
fn await_all(children: &mut [Child], limit: Duration) {
    let until = Instant::now() + limit;
    while Instant::now() < until {
        // All of them are asked: what has ended and was not collected would not be waited for.
        let running =
            children.iter_mut().filter_map(|child| matches!(child.try_wait(), Ok(None)).then(|| pid_of(child)));
        let running: Vec<Pid> = running.flatten().collect();
        if running.is_empty() {
            return;
        }
        rest(&running);
    }
}

fn pid_of(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

/// Until one of these processes ends, or it is time to look.
fn rest(processes: &[Pid]) {
    let ends = processes.iter().filter_map(|pid| pidfd_open(*pid, PidfdFlags::empty()).ok());
    let ends: Vec<OwnedFd> = ends.collect();
    let mut polled: Vec<PollFd<'_>> = ends.iter().map(|end| PollFd::new(end, PollFlags::IN)).collect();
    let look = Timespec { tv_sec: 0, tv_nsec: LOOK.subsec_nanos().into() };
    // Whatever it says, whoever asked looks.
    poll(&mut polled, Some(&look)).unwrap_or_default();
}

fn start_hooks() -> Vec<Child> {
    let is_program = |path: &PathBuf| path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    let mut found: Vec<PathBuf> =
        fs::read_dir(HOOKS).into_iter().flatten().flatten().map(|entry| entry.path()).filter(is_program).collect();
    found.sort();
    let start = |path: PathBuf| match quiet(Command::new(&path)).spawn() {
        Ok(child) => Some(child),
        Err(error) => {
            say(&format!("{}: {error}", path.display()));
            None
        }
    };
    found.into_iter().filter_map(start).collect()
}

/// What a child says goes to the kernel's log, which the journal takes in later.
fn quiet(mut command: Command) -> Command {
    command.env("PATH", PATH).stdin(Stdio::null()).stdout(Stdio::null());
    if let Ok(log) = OpenOptions::new().write(true).open("/dev/kmsg") {
        command.stderr(log);
    }
    command
}

fn agent() -> Command {
    let program = fs::canonicalize(super::INIT).unwrap_or_else(|_| PathBuf::from("/usr/bin/fermata"));
    let mut agent = quiet(Command::new(program));
    let more = fs::read_to_string(ENVIRONMENT).unwrap_or_default();
    agent.envs(more.lines().filter_map(|line| line.trim().split_once('='))).arg("agent").env(ALONE, "1");
    agent
}

/// Until the agent has ended; whether nothing speaks for another one here. One that was stopped, or takes longer than the limit, is ended: the next
/// one goes on.
fn wait_for(agent: &Child, limit: Instant) -> bool {
    let Some(agent) = pid_of(agent) else { return true };
    let mut told = false;
    // One that ended meanwhile needs no signal.
    let end = |signal| kill_process(agent, signal).unwrap_or_default();
    loop {
        match wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
            // Orphans of any origin are the first program's to collect.
            Ok(Some((pid, status))) if pid == agent && status.stopped() => end(Signal::KILL),
            Ok(Some((pid, status))) if pid == agent => {
                let how = status.terminating_signal().map(|signal| format!("by signal {signal}"));
                let how = how.unwrap_or_else(|| format!("with status {}", status.exit_status().unwrap_or_default()));
                say(&format!("the agent ended {how}"));
                return status.exit_status() == Some(0);
            }
            Ok(Some(_)) => continue,
            Err(rustix::io::Errno::CHILD) => return true,
            Ok(None) | Err(_) => {}
        }
        let late = Instant::now().saturating_duration_since(limit);
        if late > 2 * END {
            // Not even that ended it. Whoever comes next waits until it gives up its authority.
            say("the agent does not end");
            return true;
        } else if late > END {
            end(Signal::KILL);
        } else if !late.is_zero() && !std::mem::replace(&mut told, true) {
            say("VMs still stand, or their clocks are behind");
            end(Signal::TERM);
        }
        rest(&[agent]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_waited_for_by_their_ends_and_not_longer_than_the_limit() {
        let sleep = |seconds: &str| Command::new("sleep").arg(seconds).spawn().unwrap();
        let began = Instant::now();
        let mut all = [sleep("0"), sleep("0.2")];
        await_all(&mut all, END);
        assert!(all.iter_mut().all(|child| matches!(child.try_wait(), Ok(Some(_)))) && began.elapsed() < END);
        let mut hangs = [sleep("0"), sleep("60")];
        await_all(&mut hangs, Duration::from_millis(300));
        assert!(matches!(hangs[1].try_wait(), Ok(None)), "given up, not ended");
        hangs[1].kill().unwrap();
        hangs[1].wait().unwrap();
    }

    #[test]
    fn only_the_link_means_it() {
        assert!(is_called(OsStr::new("/usr/lib/fermata/first")) && is_called(OsStr::new("first")));
        assert!(!is_called(OsStr::new("/usr/bin/fermata")));
    }
}
