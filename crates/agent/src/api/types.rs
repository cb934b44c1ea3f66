//! What the agent's API says, as typed data: served by the agent, read by the `fermata` command and by programs.

use std::path::PathBuf;

use fermata_maintenance::journal::Listed;
use fermata_maintenance::machine::Outcome;
use fermata_maintenance::mechanism::Choice;
use fermata_maintenance::update::{Section, Update};
use fermata_model::{Size, VmDefinition, VmName, VmmVersion};
use serde::{Deserialize, Serialize};

use crate::inventory::Wanted;

/// What a VM is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmState {
    /// No VMM runs it.
    Stopped,
    /// Its VMM is being set up.
    Starting,
    /// Its vCPUs execute.
    Running,
    /// Its vCPUs are stopped; memory and devices are kept.
    Paused,
    /// A VMM runs it but does not answer.
    Unresponsive,
    /// Its VMM ended without being asked to.
    Failed,
}

impl std::fmt::Display for VmState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Stopped => "stopped",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Unresponsive => "unresponsive",
            Self::Failed => "failed",
        })
    }
}

/// A VM as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmView {
    /// The VM's name.
    pub name: VmName,
    /// What it is doing.
    pub state: VmState,
    /// What is wanted of it.
    pub wanted: Wanted,
    /// Why it last ended without being asked to.
    pub last_failure: Option<String>,
    /// The process that runs it.
    pub process: Option<ProcessView>,
    /// What it is.
    pub definition: VmDefinition,
}

/// The process that runs a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessView {
    /// The VMM's version.
    pub vmm: VmmVersion,
    /// Its pid.
    pub pid: i32,
    /// Its systemd unit.
    pub unit: String,
    /// Counts the VMM processes of this VM's life.
    pub generation: u64,
    /// Taps, in the order of the VM's NICs.
    pub taps: Vec<String>,
    /// The serial console's socket.
    pub console: PathBuf,
}

/// A host as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostView {
    /// Host name.
    pub name: String,
    /// Version of the agent.
    pub agent: String,
    /// Kernel release.
    pub kernel: String,
    /// The kernel's random boot id.
    pub boot_id: String,
    /// Number of CPUs.
    pub cpus: usize,
    /// Memory.
    pub memory: MemoryView,
    /// Whether VMs can run, and if not, why.
    pub kvm: Result<(), String>,
    /// The frequency that KVM gives guests' TSCs, in kHz.
    pub tsc_khz: Option<u32>,
    /// Where VMs' memory is kept.
    pub vault: String,
    /// The VMMs side by side.
    pub vmms: Vec<VmmView>,
    /// Bridges for VMs.
    pub bridges: Vec<BridgeView>,
    /// Number of VMs defined.
    pub vms: usize,
}

/// A host's memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryView {
    /// All of it.
    pub total: Size,
    /// What a new VM could take now.
    pub available: Size,
    /// What running VMs were promised.
    pub promised: Size,
}

/// One VMM of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmView {
    /// The version it is known by.
    pub version: VmmVersion,
    /// The binary.
    pub binary: PathBuf,
    /// Whether new VMs start on it.
    pub default: bool,
    /// The version it says itself; or why it cannot be used.
    pub found: Result<String, String>,
    /// The VMs that run on it.
    pub vms: Vec<VmName>,
}

/// One bridge of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeView {
    /// Its name.
    pub name: String,
    /// The host's address on it, if the agent gives it one.
    pub address: Option<String>,
    /// Whether it can be used, and if not, why.
    pub usable: Result<(), String>,
}

/// How a VM is to be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// Ask the guest and wait this many seconds for it to end.
    #[serde(default = "default_stop_s")]
    pub timeout_s: u64,
    /// End the VMM at once, as pulling the plug.
    #[serde(default)]
    pub force: bool,
}

impl Default for StopRequest {
    fn default() -> Self {
        Self { timeout_s: default_stop_s(), force: false }
    }
}

/// How a VM is to be restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestartRequest {
    /// The notice that programs in it are given, if they asked for events, in seconds.
    #[serde(default = "default_notice_s")]
    pub notice_s: u32,
    /// Ask the guest and wait this many seconds for it to end.
    #[serde(default = "default_stop_s")]
    pub timeout_s: u64,
    /// End the VMM at once, as pulling the plug.
    #[serde(default)]
    pub force: bool,
}

const fn default_notice_s() -> u32 {
    900
}

const fn default_stop_s() -> u64 {
    60
}

/// What an update would do on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckView {
    /// The update.
    pub update: String,
    /// Its title.
    pub title: String,
    /// SHA-256 of its file.
    pub digest: String,
    /// Mechanism and forecast per VM, and who is refused and why.
    pub choice: Choice,
    /// What would take the change back.
    pub undo: Vec<String>,
    /// How the change would be made here, in words: of a kernel, which initial RAM disk, and what is still missing.
    #[serde(default)]
    pub told: Vec<String>,
}

impl CheckView {
    /// From an update and what was chosen for it.
    #[must_use]
    pub fn new(update: &Update, choice: Choice, told: Vec<String>) -> Self {
        let undo = update.steps(Section::Undo).iter().map(|step| step.command.to_string()).collect();
        Self {
            update: update.id.to_string(),
            title: update.title.clone(),
            digest: update.digest.to_string(),
            choice,
            undo,
            told,
        }
    }
}

/// A maintenance in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaintenanceView {
    /// Its id.
    pub id: String,
    /// The update.
    pub update: String,
    /// When it was ordered: microseconds since 1970.
    pub created_us: u64,
    /// How it ended; `None` while it is under way.
    pub outcome: Option<Outcome>,
}

impl From<Listed> for MaintenanceView {
    fn from(listed: Listed) -> Self {
        Self {
            id: listed.id.to_string(),
            update: listed.update.to_string(),
            created_us: listed.created.0,
            outcome: listed.outcome,
        }
    }
}

/// The wish to end a maintenance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AbortRequest {
    /// Who wants it.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// A refusal or a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorView {
    /// Place, reason and way out, for people.
    pub error: String,
    /// The kind of refusal, for programs.
    pub code: String,
}
