//! A VMM that runs: its process, its monitor, and the agent's copies of what was lent to it.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fermata_model::VmDefinition;
use fermata_vault::memory::{Holder, Region};
use fermata_vault::process::Process;
use fermata_vault::tap::Queue;
use fermata_vmm::command::{self, Paths};
use fermata_vmm::qga::{Qga, ShutdownMode};
use fermata_vmm::qmp::{self, EventKind, Qmp, QmpError};

use crate::inventory::Runtime;
use crate::vaults::Vaults;

/// How long a monitor may take to answer a VMM that is known to run.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long a guest agent may take to take an order before the power button is pressed instead.
const GUEST_AGENT_LIMIT: Duration = Duration::from_secs(3);

/// What a running VM was lent; the agent keeps a copy of each.
#[derive(Debug)]
pub(crate) struct Lent {
    /// The VM's memory.
    pub(crate) memory: Region,
    /// Tap queues, in the order of the VM's NICs.
    pub(crate) queues: Vec<Queue>,
}

/// A VMM that runs.
#[derive(Debug)]
pub(crate) struct Live {
    process: Process,
    qmp: Qmp,
    runtime: Runtime,
    lent: Lent,
    /// Whether the guest ended by its own wish, as the monitor said.
    guest_ended: Arc<AtomicBool>,
    /// Whether the guest restarted itself since it was last let go on: by its wish, or because its CPU gave up.
    guest_reset: Arc<AtomicBool>,
}

impl Live {
    /// A VMM whose process and monitor are known.
    pub(super) fn new(process: Process, qmp: Qmp, runtime: Runtime, lent: Lent) -> Self {
        let guest_ended = Arc::new(AtomicBool::new(false));
        let guest_reset = Arc::new(AtomicBool::new(false));
        let (mut events, noted, reset) = (qmp.events(), Arc::clone(&guest_ended), Arc::clone(&guest_reset));
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                match event.kind {
                    EventKind::Shutdown { guest: true, .. } => noted.store(true, Ordering::Release),
                    EventKind::Reset { guest: true } => reset.store(true, Ordering::Release),
                    // A restart before this pause was none of its doing.
                    EventKind::Resume => reset.store(false, Ordering::Release),
                    EventKind::BlockIoError { device, reason, stopped, .. } => {
                        tracing::error!(device, reason, stopped, "disk error");
                    }
                    EventKind::GuestPanicked => tracing::warn!("the guest's kernel panicked"),
                    _ => {}
                }
            }
        });
        Self { process, qmp, runtime, lent, guest_ended, guest_reset }
    }

    /// Its VM does not stand any more: it gets what others get of the processors.
    pub(super) fn is_not_urgent(&self) {
        crate::urgency::ends(self.process.identity().pid);
    }

    /// Finds the VMM of a record again: its process, its monitor, and copies of its descriptors out of it.
    pub(super) async fn find(definition: &VmDefinition, runtime: &Runtime, vaults: &Vaults) -> Result<Self, String> {
        let identity = runtime.process.ok_or("the agent ended while it was starting")?;
        let process = Process::find(identity)
            .map_err(|e| e.to_string())?
            .ok_or_else(|| format!("its VMM, {identity}, ended while no agent looked"))?;
        let holder = Holder { process: &process, fd: command::MEMORY };
        let memory = vaults.reclaim(runtime.vault, definition, Some(holder)).map_err(|e| e.to_string())?;
        let mut queues = Vec::new();
        for (nic, name) in runtime.taps.iter().enumerate() {
            let fd = process.take_fd(command::tap(nic)).map_err(|e| e.to_string())?;
            queues.push(Queue::adopt(name, fd).map_err(|e| e.to_string())?);
        }
        let paths = Paths::in_folder(&runtime.dir);
        let qmp = Qmp::connect(&paths.qmp(), CONNECT_LIMIT).await.map_err(|e| e.to_string())?;
        Ok(Self::new(process, qmp, runtime.clone(), Lent { memory, queues }))
    }

    /// What it was lent.
    pub(super) const fn lent(&self) -> &Lent {
        &self.lent
    }

    /// Its monitor.
    pub(crate) const fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// Its process.
    pub(crate) const fn process(&self) -> &Process {
        &self.process
    }

    /// What was set up for it.
    pub(crate) const fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The unit it runs in.
    pub(super) fn unit(&self) -> &str {
        &self.runtime.unit
    }

    /// Waits for its process to end.
    pub(super) async fn ended(&self) {
        if let Err(error) = self.process.exited().await {
            // Without a watch the end is not noticed here; the next operation on the VM finds it.
            tracing::error!(error = crate::chain(&error), "a VMM cannot be watched");
            std::future::pending::<()>().await;
        }
    }

    /// Whether the guest restarted itself since it was last let go on.
    pub(super) fn was_reset(&self) -> bool {
        self.guest_reset.load(Ordering::Acquire)
    }

    /// Whether its vCPUs execute.
    pub(super) async fn run_state(&self, limit: Duration) -> Result<bool, QmpError> {
        Ok(self.qmp.execute_within(&qmp::QueryStatus {}, limit).await?.running)
    }

    /// Stops its vCPUs.
    pub(super) async fn pause(&self) -> Result<(), QmpError> {
        self.qmp.execute(&qmp::Stop {}).await.map(|_| ())
    }

    /// Lets its vCPUs run.
    pub(super) async fn cont(&self) -> Result<(), QmpError> {
        self.qmp.execute(&qmp::Cont {}).await.map(|_| ())
    }

    /// Tells it to end at once. That the monitor closes instead of answering is what is wanted.
    pub(super) async fn quit(&self) -> Result<(), QmpError> {
        match self.qmp.execute(&qmp::Quit {}).await {
            Err(QmpError::Closed { .. }) => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Asks the guest to shut down: through its agent when one answers, else by the power button.
    pub(super) async fn ask_to_shut_down(&self) -> Result<(), QmpError> {
        let path = Paths::in_folder(&self.runtime.dir).guest_agent();
        let by_agent = async {
            let mut agent = Qga::connect(&path, GUEST_AGENT_LIMIT).await?;
            agent.shutdown(ShutdownMode::Powerdown).await
        };
        if let Err(error) = by_agent.await {
            tracing::debug!(error = crate::chain(&error), "no guest agent; pressing the power button");
            self.qmp.execute(&qmp::SystemPowerdown {}).await?;
        }
        Ok(())
    }

    /// Why it ended, if not by the guest's wish: the last thing it said.
    pub(super) fn failure(&self, dir: &Path) -> Option<String> {
        if self.guest_ended.load(Ordering::Acquire) {
            return None;
        }
        Some(last_words(dir).unwrap_or_else(|| "its VMM ended without a word (killed?)".to_owned()))
    }
}

/// The name of the file that a VMM's complaints go to.
pub(super) const LOG: &str = "vmm.log";

/// The last line a VMM wrote that is no warning, for an error message.
pub(super) fn last_words(dir: &Path) -> Option<String> {
    let log = fs::read_to_string(dir.join(LOG)).ok()?;
    let said = |line: &&str| !line.trim().is_empty() && !line.contains("warning:");
    Some(format!("its VMM said: {}", log.lines().rev().find(said)?.trim()))
}
