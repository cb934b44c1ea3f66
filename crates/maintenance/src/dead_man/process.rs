//! The process: `fermata dead-man`.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use fermata_model::VmName;
use fermata_vault::process::Process;
use fermata_vmm::qmp::{Cont, Qmp, QueryStatus};
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

use super::wire::{Reply, Request};
use super::{Decision, Freed, Guarded, Vmm, Watch, decide};
use crate::authority::Authority;
use crate::id::MaintenanceId;
use crate::journal::Journal;
use crate::machine::{Owner, State};
use crate::time::Mono;
use crate::witness;

/// What a dead-man is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where it listens; the file is made anew.
    pub control: PathBuf,
    /// The host's journal.
    pub journal: PathBuf,
    /// The lock of [`crate::authority`].
    pub authority: PathBuf,
    /// The maintenance whose VMs it guards.
    pub maintenance: MaintenanceId,
    /// The process id of the agent that starts it; an agent that connects later takes this one's place.
    pub agent: i32,
}

/// Why a dead-man does not guard.
#[derive(Debug, thiserror::Error)]
pub enum DeadManError {
    /// The control socket is no use.
    #[error("dead-man {path}: {source}; see whether the folder is there and writable, and whether the dead-man runs")]
    Control {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The journal cannot be read.
    #[error("dead-man: {0}")]
    Journal(#[from] crate::journal::JournalError),
    /// The connection broke.
    #[error("dead-man: the connection broke ({source}); start it again before pausing anything")]
    Lost {
        /// Why.
        source: io::Error,
    },
    /// It says no.
    #[error("dead-man: {reason}")]
    Refused {
        /// Why, and the way out.
        reason: String,
    },
}

/// Without anything to guard it ends after this long: nobody has to clean it up.
const IDLE: Duration = Duration::from_secs(1_800);
/// Until a rescue monitor must have answered when VMs are about to stop.
const CONNECT: Duration = Duration::from_secs(2);
/// Between two tries to free a VM.
const RETRY: Duration = Duration::from_millis(20);

/// The host's monotonic time, as [`crate::time::Mono`] has it.
#[must_use]
pub fn mono_now() -> Mono {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Mono(seconds * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000)
}

struct DeadMan {
    settings: Settings,
    journal: Journal,
    agent: Option<Process>,
    watch: Watch,
    rescue: BTreeMap<VmName, Qmp>,
}

type Connection = (Lines<BufReader<OwnedReadHalf>>, OwnedWriteHalf);

/// Guards until it is told to end.
///
/// # Errors
/// [`DeadManError`] when it cannot begin to: no control socket, no journal.
pub async fn serve(settings: Settings) -> Result<(), DeadManError> {
    let control = |source| DeadManError::Control { path: settings.control.clone(), source };
    match std::fs::remove_file(&settings.control) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(control(e)),
        _ => {}
    }
    let journal = Journal::open_to_read(&settings.journal)?;
    let listener = UnixListener::bind(&settings.control).map_err(control)?;
    let agent = Process::open(settings.agent).ok();
    let mut dead_man = DeadMan { settings, journal, agent, watch: Watch::default(), rescue: BTreeMap::new() };
    let mut connection: Option<Connection> = None;
    loop {
        let wake = dead_man.watch.next().map_or(IDLE, |at| at.since(mono_now()));
        tokio::select! {
            biased;
            line = next_line(&mut connection) => match line {
                Some(line) => {
                    let reply = dead_man.answer(&line).await;
                    let over = reply == Reply::Exiting;
                    if !send(&mut connection, &reply).await {
                        connection = None;
                    }
                    if over {
                        break;
                    }
                }
                None => connection = None,
            },
            accepted = listener.accept() => {
                // The newest agent counts; an older one is dead or on its way.
                if let Ok((stream, _)) = accepted {
                    dead_man.follow(&stream);
                    connection = Some(open(stream));
                }
            }
            () = tokio::time::sleep(wake) => {
                if dead_man.watch.is_idle() {
                    break;
                }
                dead_man.fire().await;
            }
        }
    }
    let _ = std::fs::remove_file(&dead_man.settings.control);
    Ok(())
}

fn open(stream: UnixStream) -> Connection {
    let (reader, writer) = stream.into_split();
    (BufReader::new(reader).lines(), writer)
}

async fn next_line(connection: &mut Option<Connection>) -> Option<String> {
    match connection {
        Some((lines, _)) => lines.next_line().await.ok().flatten(),
        None => std::future::pending().await,
    }
}

async fn send(connection: &mut Option<Connection>, reply: &Reply) -> bool {
    let Some((_, writer)) = connection else { return false };
    let Ok(mut line) = serde_json::to_string(reply) else { return false };
    line.push('\n');
    writer.write_all(line.as_bytes()).await.is_ok()
}

impl DeadMan {
    async fn answer(&mut self, line: &str) -> Reply {
        match serde_json::from_str(line) {
            Err(e) => Reply::Refused { reason: format!("not understood ({e}); agent and dead-man differ in version") },
            Ok(Request::Arm { deadline, guarded }) => self.arm(deadline, guarded).await,
            Ok(Request::Disarm { vms }) => {
                for vm in &vms {
                    self.rescue.remove(vm);
                }
                Reply::Disarmed { fired: self.watch.disarm(&vms) }
            }
            Ok(Request::Exit) if self.watch.is_idle() => Reply::Exiting,
            Ok(Request::Exit) => Reply::Refused { reason: "VMs are guarded; disarm first".to_owned() },
        }
    }

    /// The agent may have been started again since: the one that speaks is the one to end when it falls silent.
    fn follow(&mut self, stream: &UnixStream) {
        let speaker = stream.peer_cred().ok().and_then(|peer| peer.pid());
        if let Some(pid) = speaker.filter(|pid| u32::try_from(*pid) != Ok(std::process::id())) {
            self.agent = Process::open(pid).ok();
        }
    }

    /// The old VMM's rescue monitor is reached now, while there is time.
    async fn arm(&mut self, deadline: Mono, guarded: Vec<Guarded>) -> Reply {
        for vm in &guarded {
            if self.rescue.contains_key(&vm.vm) {
                continue;
            }
            match Qmp::connect(&vm.old.rescue, CONNECT).await {
                Ok(qmp) => {
                    self.rescue.insert(vm.vm.clone(), qmp);
                }
                Err(e) => return Reply::Refused { reason: format!("VM {}: rescue monitor: {e}", vm.vm) },
            }
        }
        self.watch.arm(deadline, guarded);
        Reply::Armed
    }

    async fn fire(&mut self) {
        let due = self.watch.due(mono_now());
        let (contested, held): (Vec<_>, Vec<_>) = due.into_iter().partition(|vm| vm.contested);
        for vm in held {
            tracing::warn!(vm = %vm.vm, "the agent did not resume it in time");
            self.act(&vm, decide(&vm, false, None)).await;
        }
        self.kill_agent().await;
        if contested.is_empty() {
            return;
        }
        let wait = Duration::from_millis(500);
        let authority = match Authority::take(&self.settings.authority, wait).await {
            Ok(authority) => Some(authority),
            Err(error) => {
                // A new agent is in charge: it recovers by the same rule. Look again later, in case it dies as well.
                tracing::warn!(%error, "contested VMs are left to whoever is in charge");
                tokio::time::sleep(RETRY).await;
                None
            }
        };
        let owners = self.owners();
        for vm in contested {
            let owner = if self.ran(&vm) { Some(Owner::New) } else { owners.get(&vm.vm).copied() };
            let decision = decide(&vm, authority.is_some(), owner);
            self.act(&vm, decision).await;
        }
    }

    /// It missed its own deadline and this one: it is stuck. Systemd starts it again.
    async fn kill_agent(&mut self) {
        let Some(agent) = &self.agent else { return };
        if agent.signal(Signal::KILL).is_ok()
            && matches!(tokio::time::timeout(Duration::from_millis(500), agent.exited()).await, Ok(Ok(())))
        {
            self.agent = None;
        }
    }

    fn owners(&self) -> BTreeMap<VmName, Owner> {
        let entries = self.journal.entries(&self.settings.maintenance);
        let state = entries.map_err(|e| e.to_string()).and_then(|e| State::replay(&e).map_err(|e| e.to_string()));
        match state {
            Ok(state) => state.vms.iter().map(|(name, vm)| (name.clone(), vm.owner)).collect(),
            Err(error) => {
                tracing::error!(%error, "the journal cannot be read; VMs go back to their old VMM");
                BTreeMap::new()
            }
        }
    }

    /// It may have run in its new VMM, whatever is left of the journal.
    fn ran(&self, vm: &Guarded) -> bool {
        let folder = vm.new.as_ref().and_then(|new| new.rescue.parent());
        folder.is_some_and(|folder| witness::may_have_run_by(folder, self.settings.maintenance.as_str()))
    }

    async fn act(&mut self, vm: &Guarded, decision: Decision) {
        let done = match (decision, &vm.new) {
            (Decision::Wait, _) => return,
            (Decision::LetNewRun, Some(new)) => {
                let by = self.settings.maintenance.as_str();
                if let Some(Err(error)) = new.rescue.parent().map(|folder| witness::may_run(folder, by)) {
                    tracing::warn!(vm = %vm.vm, %error, "not noted that it runs in its new VMM");
                }
                let_run(None, new).await.map(|()| "its new VMM runs")
            }
            (Decision::KillNewThenLetOldRun, Some(new)) => match end(new).await {
                Ok(Ended::RunsTheVm) => Ok("its new VMM ran already"),
                Ok(Ended::Dead) => {
                    let_run(self.rescue.get(&vm.vm), &vm.old).await.map(|()| "its old VMM runs, the new one is dead")
                }
                Err(error) => Err(error),
            },
            _ => let_run(self.rescue.get(&vm.vm), &vm.old).await.map(|()| "its VMM runs"),
        };
        match done {
            Ok(how) => {
                tracing::warn!(vm = %vm.vm, how, "freed");
                self.watch.freed(&vm.vm, Freed { how: how.to_owned(), at: mono_now() });
            }
            Err(error) => {
                // It stays armed and due, so it is tried again at once and for ever: there is nothing better to do.
                tracing::error!(vm = %vm.vm, error, "not freed yet");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

enum Ended {
    Dead,
    RunsTheVm,
}

/// Makes certain that a VMM is dead, unless it runs the VM.
async fn end(vmm: &Vmm) -> Result<Ended, String> {
    let Some(process) = Process::find(vmm.process).map_err(|e| e.to_string())? else { return Ok(Ended::Dead) };
    if let Ok(qmp) = Qmp::connect(&vmm.rescue, Duration::from_millis(20)).await
        && let Ok(status) = qmp.execute_within(&QueryStatus {}, Duration::from_millis(100)).await
        && status.running
    {
        return Ok(Ended::RunsTheVm);
    }
    process.kill_for_certain(Duration::from_secs(2)).await.map(|()| Ended::Dead).map_err(|e| e.to_string())
}

async fn let_run(kept: Option<&Qmp>, vmm: &Vmm) -> Result<(), String> {
    let fresh;
    let qmp = match kept {
        Some(qmp) => qmp,
        None => {
            fresh = Qmp::connect(&vmm.rescue, Duration::from_millis(500)).await.map_err(|e| e.to_string())?;
            &fresh
        }
    };
    qmp.execute_within(&Cont {}, Duration::from_secs(1)).await.map(|_| ()).map_err(|e| e.to_string())
}
