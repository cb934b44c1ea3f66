//! The commands in use. Names, arguments and answers are those of QEMU's `qapi/*.json`; only what is used is here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{Command, MigrationStatus};

/// An answer without content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nothing;

impl<'de> Deserialize<'de> for Nothing {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        serde::de::IgnoredAny::deserialize(de).map(|_| Self)
    }
}

macro_rules! commands {
    ($($(#[$doc:meta])* $type:ident $({ $($(#[$fdoc:meta])* $field:ident : $ftype:ty),+ $(,)? })? = $name:literal -> $returns:ty $(, $limit:expr)?;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub struct $type {
            $($($(#[$fdoc])* pub $field: $ftype,)+)?
        }

        impl Command for $type {
            const NAME: &'static str = $name;
            $(const LIMIT: Duration = $limit;)?
            type Returns = $returns;
        }
    )*};
}

commands! {
    /// Ends the negotiation.
    Capabilities = "qmp_capabilities" -> Nothing;
    /// Whether vCPUs run, and why not.
    QueryStatus = "query-status" -> RunStatus;
    /// Stops the vCPUs. Returns when they stand.
    Stop = "stop" -> Nothing, Duration::from_secs(30);
    /// Lets the vCPUs run.
    Cont = "cont" -> Nothing, Duration::from_secs(30);
    /// Ends the VMM.
    Quit = "quit" -> Nothing;
    /// Presses the guest's power button.
    SystemPowerdown = "system_powerdown" -> Nothing;
    /// Resets the guest.
    SystemReset = "system_reset" -> Nothing;
    /// Lets every NIC tell the switches where it is. Times in milliseconds.
    AnnounceSelf {
        /// Before the first.
        initial: u32,
        /// Longest time between two.
        max: u32,
        /// How many.
        rounds: u32,
        /// Growth of the time between two.
        step: u32,
    } = "announce-self" -> Nothing;
    /// Forgets RTC ticks that the guest missed: after its clock was set they would push it ahead.
    RtcResetReinjection = "rtc-reset-reinjection" -> Nothing;
    /// The VMM's version.
    QueryVersion = "query-version" -> Value;
    /// Machine types.
    QueryMachines = "query-machines" -> Vec<Machine>;
    /// CPU models and whether this host supports them.
    QueryCpuDefinitions = "query-cpu-definitions" -> Vec<CpuDefinition>;
    /// Whether KVM is compiled in and on.
    QueryKvm = "query-kvm" -> KvmStatus;
    /// Types of objects.
    QomListTypes {
        /// Which they must implement.
        implements: String,
    } = "qom-list-types" -> Vec<TypeName>;
    /// Properties of a device.
    DeviceListProperties {
        /// The type.
        typename: String,
    } = "device-list-properties" -> Vec<TypeName>;
    /// A property of an object.
    QomGet {
        /// The object.
        path: String,
        /// The property.
        property: String,
    } = "qom-get" -> Value;
    /// Block nodes by name.
    QueryNamedBlockNodes {
        /// Without the nodes below.
        flat: bool,
    } = "query-named-block-nodes" -> Vec<BlockNode>;
    /// What happened to the last hand over.
    QueryMigrate = "query-migrate" -> MigrationInfo;
    /// Gives a hand over up.
    MigrateCancel = "migrate_cancel" -> Nothing;
    /// Switches capabilities of migration.
    MigrateSetCapabilities {
        /// Name and state of each.
        capabilities: Vec<Capability>,
    } = "migrate-set-capabilities" -> Nothing;
    /// Starts a hand over; it goes on by itself.
    Migrate {
        /// Where to.
        channels: Vec<Channel>,
    } = "migrate" -> Nothing, Duration::from_secs(30);
    /// Takes state from somewhere, on a VMM that was started to wait for it.
    MigrateIncoming {
        /// Where from.
        channels: Vec<Channel>,
    } = "migrate-incoming" -> Nothing, Duration::from_secs(30);
    /// The vCPUs and their threads.
    QueryCpusFast = "query-cpus-fast" -> Vec<Cpu>;
}

/// How state and memory go over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Through the stream.
    Normal,
    /// Memory stays in shared memory while the host is replaced.
    CprReboot,
    /// Memory and descriptors go to a VMM on the same host.
    CprTransfer,
    /// As transfer, by `exec` of the new binary.
    CprExec,
}

/// Sets parameters of migration.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrateSetParameters {
    /// The mode of the next hand over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
}

impl Command for MigrateSetParameters {
    const NAME: &'static str = "migrate-set-parameters";
    type Returns = Nothing;
}

/// The state of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunState {
    /// vCPUs run.
    Running,
    /// Stopped by `stop`.
    Paused,
    /// Not started yet (`-S`).
    Prelaunch,
    /// Waits for state.
    Inmigrate,
    /// Stopped for a hand over.
    FinishMigrate,
    /// Handed over: the successor may run. `cont` takes it back.
    Postmigrate,
    /// Handed over or restored, not yet running.
    RestoreVm,
    /// A disk failed: `cont` tries again.
    IoError,
    /// The guest panicked.
    GuestPanicked,
    /// The guest switched off.
    Shutdown,
    /// The VMM gave up.
    InternalError,
    /// The guest sleeps.
    Suspended,
    /// The watchdog fired.
    Watchdog,
    /// A state of a newer QEMU.
    #[serde(other)]
    Other,
}

/// Answer to [`QueryStatus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct RunStatus {
    /// The state.
    pub status: RunState,
    /// Whether vCPUs run.
    pub running: bool,
}

/// A machine type.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Whether it will go away.
    #[serde(default)]
    pub deprecated: bool,
}

/// A CPU model.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CpuDefinition {
    /// Its name.
    pub name: String,
    /// Features it needs that this host does not give; absent when the accelerator cannot tell.
    pub unavailable_features: Option<Vec<String>>,
    /// Whether it will go away.
    #[serde(default)]
    pub deprecated: bool,
}

/// Answer to [`QueryKvm`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct KvmStatus {
    /// In use.
    pub enabled: bool,
    /// Compiled in.
    pub present: bool,
}

/// A name of a type or property.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct TypeName {
    /// The name.
    pub name: String,
}

/// A block node.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BlockNode {
    /// Its name.
    pub node_name: Option<String>,
    /// Its driver.
    pub drv: String,
    /// Its file.
    pub file: String,
    /// Whether it is read-only.
    pub ro: bool,
    /// Whether it was given up for a successor. Only newer QEMUs tell.
    pub active: Option<bool>,
}

/// A vCPU.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cpu {
    /// Its number.
    pub cpu_index: u32,
    /// Its thread.
    pub thread_id: i32,
}

/// A capability of migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Capability {
    /// Its name.
    pub capability: &'static str,
    /// On or off.
    pub state: bool,
}

/// Answer to [`QueryMigrate`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MigrationInfo {
    /// Absent when none was ever started.
    pub status: Option<MigrationStatus>,
    /// Why it failed.
    pub error_desc: Option<String>,
    /// Why it would be refused, in QEMU's words. Absent or empty: nothing is in the way.
    #[serde(default)]
    pub blocked_reasons: Vec<String>,
    /// Milliseconds for which vCPUs stood, as QEMU reckons.
    pub downtime: Option<u64>,
    /// Milliseconds of the whole.
    pub total_time: Option<u64>,
}

/// Which part of a hand over a channel carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChannelType {
    /// Device state.
    Main,
    /// Descriptors.
    Cpr,
}

/// Where a channel goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "transport", rename_all = "kebab-case")]
pub enum Address {
    /// A unix socket.
    Socket {
        /// Always `unix`.
        r#type: &'static str,
        /// Its path.
        path: PathBuf,
    },
    /// A file.
    File {
        /// Its path.
        filename: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
    },
}

/// A channel of a hand over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Channel {
    /// What it carries.
    pub channel_type: ChannelType,
    /// Where.
    pub addr: Address,
}

impl Channel {
    /// A unix socket.
    #[must_use]
    pub fn unix(channel_type: ChannelType, path: &Path) -> Self {
        Self { channel_type, addr: Address::Socket { r#type: "unix", path: path.to_owned() } }
    }

    /// Device state in a file.
    #[must_use]
    pub fn file(path: &Path) -> Self {
        Self { channel_type: ChannelType::Main, addr: Address::File { filename: path.to_owned(), offset: 0 } }
    }
}
