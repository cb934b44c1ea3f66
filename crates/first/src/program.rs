//! Process 1 until VMs run.
//!
//! Invariants: this program never ends but by becoming `/sbin/init`, or where there is no root file system ([`crate::ram`]); two agents never are at work at once (one that cannot be ended keeps the
//! next one waiting for its authority); what was mounted is mounted as the service manager would.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, wait};

use crate::children::{await_all, pid_of, quiet, rest};
use crate::hurry::Hurry;
use crate::modules::Loading;
use crate::note::{self, Note};
use crate::ram::Left;
use crate::{AGENT, ALONE, PROGRAM, modules, mounts, ram, say, urgently};

/// What the host starts with otherwise, first that is there (Linux, `init/main.c`, and where systemd is without a link to it).
const INIT: [&str; 3] = ["/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd"];
/// What VMs need of the host to be of use, such as its network: programs, started beside the agent.
const HOOKS: &str = "/etc/fermata/first.d";
/// More of the agent's environment: lines `NAME=value`.
const ENVIRONMENT: &str = "/etc/fermata/first.env";
/// After this the host starts whatever VMs do.
const LIMIT: Duration = Duration::from_secs(60);
/// How often the agent is started. One that was killed while VMs stand goes on by the journal much sooner than one that a service manager starts.
const STARTS: usize = 2;
/// How long the agent may take to end.
const END: Duration = Duration::from_secs(5);

/// Runs as the first program. Returns only where it is not, or has failed.
#[must_use]
pub fn main() -> ExitCode {
    if getpid() != Pid::INIT {
        if std::env::args_os().nth(1).is_some_and(|word| word == modules::LOAD) {
            return modules::load_as_noted();
        }
        eprintln!("this is the first program of a kernel after a jump (`init={PROGRAM}`), and does nothing else");
        return ExitCode::FAILURE;
    }
    let limit = Instant::now() + LIMIT;
    mounts::mount_kernels();
    let hurry = Hurry::begin();
    if ram::is_here() {
        match ram::leave() {
            Ok(Left { loading, alone: true }) => run_vms(Some(loading), limit),
            Ok(Left { loading, alone: false }) => bring_modules(Some(loading)),
            Err(reason) => {
                say(&reason);
                return ExitCode::FAILURE;
            }
        }
    } else {
        run_vms(None, limit);
    }
    hurry.end();
    say("the rest of the host starts");
    become_init()
}

/// VMs first: returns when the rest of the host may start.
fn run_vms(loading: Option<Loading>, limit: Instant) {
    mounts::mount_all();
    say("VMs first");
    let note = Note::read();
    let loading = loading.or_else(|| note.as_ref().map(load_modules));
    let program = note.map_or_else(|| PathBuf::from(AGENT), |note| note.agent);
    // It looks for nothing that modules bring until it is told that they are there.
    let mut first = start(&program, Stdio::piped());
    bring_modules(loading);
    let mut hooks = start_hooks();
    drop(first.as_mut().and_then(|agent| agent.stdin.take()));
    run_agents(first, &program, limit);
    // The host may do the same once more, not at the same time.
    await_all(&mut hooks, END);
}

/// Begins to load them as noted.
fn load_modules(note: &Note) -> Loading {
    let files = note.modules.iter().flatten().map(|module| note::Part::whole(module.file.clone()));
    note::fetch(Path::new("/"), &files.collect::<Vec<_>>());
    let mut loading = Loading::prepared(PROGRAM);
    loading.begin();
    // The disk brings what else is needed while modules are loaded.
    note::fetch(Path::new("/"), &note.parts);
    loading
}

/// Until modules are there: as noted, or where that fails by `modprobe`.
fn bring_modules(loading: Option<Loading>) {
    if !loading.is_some_and(Loading::ended_well) {
        modules::load_by_modprobe();
    }
    say("modules are there");
}

/// Agents one after the other, until one has ended well; `first` is started already.
fn run_agents(first: Option<Child>, program: &Path, limit: Instant) {
    let others = (1..STARTS).map_while(|_| start(program, Stdio::null()));
    for agent in first.into_iter().chain(others) {
        if wait_for(&agent, limit) || Instant::now() >= limit {
            break;
        }
    }
}

/// An agent that goes on when `until` is at its end; `None` where it cannot be started.
fn start(program: &Path, until: Stdio) -> Option<Child> {
    let started = urgently(|| agent(program).stdin(until).spawn());
    started.inspect_err(|error| say(&format!("the agent cannot be started: {}: {error}", program.display()))).ok()
}

fn become_init() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    for program in init_of(&cmdline).into_iter().chain(INIT) {
        let error = Command::new(program).args(&words).exec();
        say(&format!("{program}: {error}"));
    }
    // The end of the first program is a panic of the kernel, which restarts the host (`panic=`).
    ExitCode::FAILURE
}

/// The operator's own first program, by the kernel's command line.
fn init_of(cmdline: &str) -> Option<&str> {
    cmdline.split_whitespace().filter_map(|word| word.strip_prefix("init=")).next_back().filter(|init| *init != PROGRAM)
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

fn agent(program: &Path) -> Command {
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
    fn the_operators_first_program_is_one_and_not_this() {
        assert_eq!(init_of("quiet init=/bin/one init=/bin/two"), Some("/bin/two"), "the kernel takes the last");
        assert_eq!(init_of("quiet rdinit=/bin/sh init=/usr/lib/fermata/first"), None);
    }
}
