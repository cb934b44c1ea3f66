//! Systemd units of VMs, over systemd's own interface: on the bus, or by [`early`] while a host has none yet.
//!
//! Each VMM runs in a transient service of its own, so it lives on when the agent is restarted, killed or upgraded, and
//! everything it might fork dies with it. One that was started before there was a service manager ([`alone`]) is in a scope.

mod alone;
mod confined;
mod early;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::timeout;
use zbus::Connection;
use zbus::{OwnedObjectPath, Variant as Value};

pub use confined::VMM_FILES;

use confined::{CONFINED, GROUPED, devices};

/// How long systemd may take for a job.
const JOB_LIMIT: Duration = Duration::from_secs(20);
/// Where the bus is, once there is one (D-Bus specification, well-known message bus instances).
const BUS_SOCKET: &str = "/run/dbus/system_bus_socket";
/// How long an agent that starts waits for the bus, where there is one.
const BUS_LIMIT: Duration = Duration::from_millis(500);
/// How long what cannot be done without a bus waits for it: an emulated host of one processor takes half a minute to have one.
const BUS_PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks whether the bus has come up: nothing announces it.
const BUS_LOOK: Duration = Duration::from_millis(200);

/// Why a unit could not be started, stopped or asked.
#[derive(Debug, thiserror::Error)]
pub enum UnitError {
    /// Systemd is not to be reached, or refused.
    #[error("systemd, {act} {unit}: {source}")]
    Bus {
        /// What was tried.
        act: &'static str,
        /// On which unit.
        unit: String,
        /// The answer.
        source: Box<zbus::Error>,
    },
    /// The job ended otherwise than `done`.
    #[error("systemd, {act} {unit}: the job ended as `{result}`; see `journalctl -u {unit}`")]
    Job {
        /// What was tried.
        act: &'static str,
        /// On which unit.
        unit: String,
        /// Systemd's word for it.
        result: String,
    },
    /// The bus is not there.
    #[error("systemd, {act} {unit}: no system bus within {} s; see `systemctl status dbus`", BUS_PATIENCE.as_secs())]
    NoBus {
        /// What was tried.
        act: &'static str,
        /// On which unit.
        unit: String,
    },
    /// No answer in time.
    #[error("systemd, {act} {unit}: no answer within {} s", JOB_LIMIT.as_secs())]
    Slow {
        /// What was tried.
        act: &'static str,
        /// On which unit.
        unit: String,
    },
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Value<'_>)],
        aux: &[(&str, &[(&str, Value<'_>)])],
    ) -> zbus::Result<OwnedObjectPath>;
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn kill_unit(&self, name: &str, whom: &str, signal: i32) -> zbus::Result<()>;
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    fn get_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn subscribe(&self) -> zbus::Result<()>;
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    #[zbus(signal)]
    fn job_removed(&self, id: u32, job: OwnedObjectPath, unit: String, result: String) -> zbus::Result<()>;
}

/// What a VM's unit is made of.
#[derive(Debug, Clone)]
pub struct VmUnit {
    /// Unit name.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// The unprivileged user.
    pub user: String,
    /// The slice.
    pub slice: String,
    /// Where standard error goes.
    pub log: PathBuf,
    /// The device of the vault its memory is in, where there is one.
    pub vault: Option<PathBuf>,
}

/// What the unit of an update's step is made of.
#[derive(Debug, Clone)]
pub struct StepUnit {
    /// Unit name.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Where its output goes.
    pub log: PathBuf,
    /// After this, everything in the unit is killed.
    pub limit: Duration,
}

/// What the unit of a helper of the agent's own is made of.
#[derive(Debug, Clone)]
pub struct HelperUnit {
    /// Unit name.
    pub name: String,
    /// One line for people.
    pub description: String,
    /// The program and its arguments.
    pub command: Vec<String>,
}

/// Systemd, on the bus as soon as there is one.
#[derive(Debug, Clone)]
pub struct Units {
    bus: Arc<OnceLock<Bus>>,
    /// The slice of all VMs.
    slice: Arc<str>,
    /// Whether this agent runs before there is a service manager.
    alone: bool,
}

#[derive(Debug)]
struct Bus {
    manager: ManagerProxy<'static>,
    connection: Connection,
}

impl Bus {
    async fn connect() -> zbus::Result<Self> {
        let connection = Connection::system().await?;
        let manager = ManagerProxy::new(&connection).await?;
        manager.subscribe().await?;
        Ok(Self { manager, connection })
    }
}

type ExecStart<'a> = (&'a str, &'a [String], bool);

impl Units {
    /// Connects to the system bus; as long as there is none, what VMs need is done without it.
    pub async fn open(slice: &str) -> Self {
        let alone = crate::first::is_alone();
        let bus = Arc::new(OnceLock::new());
        let looked_for = Arc::clone(&bus);
        let found = tokio::spawn(async move {
            let mut told = false;
            while looked_for.get().is_none() {
                match Bus::connect().await {
                    Ok(connected) => drop(looked_for.set(connected)),
                    Err(error) => {
                        if !std::mem::replace(&mut told, true) {
                            tracing::info!(%error, "no bus yet");
                        }
                        tokio::time::sleep(BUS_LOOK).await;
                    }
                }
            }
        });
        // The look goes on by itself.
        if std::path::Path::new(BUS_SOCKET).exists() {
            timeout(BUS_LIMIT, found).await.ok();
        }
        Self { bus, slice: slice.into(), alone }
    }

    /// The name of a VM's unit to be started.
    #[must_use]
    pub fn vm_unit(&self, stem: &str) -> String {
        format!("{stem}.{}", if self.alone { "scope" } else { "service" })
    }

    /// Gives systemd what was started before it, in a scope, as soon as there is a bus. One that it has already, or that has a
    /// service, is no error.
    ///
    /// # Errors
    /// [`UnitError`]; the VMM runs on as before.
    pub async fn adopt(&self, unit: &str, description: &str, pid: i32, vault: Option<&Path>) -> Result<(), UnitError> {
        if self.alone || !alone::is_scope(unit) {
            return Ok(());
        }
        let bus = self.bus_at_last().await;
        let pids = vec![u32::try_from(pid).unwrap_or_default()];
        let mut properties: Vec<(&str, Value<'_>)> = vec![
            ("Description", description.into()),
            ("Slice", Value::from(&*self.slice)),
            ("PIDs", Value::from(pids)),
            ("CollectMode", "inactive-or-failed".into()),
        ];
        let vault = vault.map(|device| device.display().to_string());
        properties.push(("DeviceAllow", Value::from(devices(vault.as_deref()))));
        properties.extend(GROUPED.iter().map(|(name, setting)| setting.on_the_bus(name)));
        let job = bus.manager.start_transient_unit(unit, "fail", &properties, &[]);
        match Self::run_job(bus, "adopt", unit, job).await {
            Err(UnitError::Bus { source, .. }) if is_named(&source, "org.freedesktop.systemd1.UnitExists") => Ok(()),
            other => other,
        }
    }

    /// The bus, for what cannot be done without.
    async fn bus(&self, act: &'static str, unit: &str) -> Result<&Bus, UnitError> {
        timeout(BUS_PATIENCE, self.bus_at_last()).await.map_err(|_| UnitError::NoBus { act, unit: unit.to_owned() })
    }

    async fn bus_at_last(&self) -> &Bus {
        loop {
            if let Some(bus) = self.bus.get() {
                return bus;
            }
            tokio::time::sleep(BUS_LOOK).await;
        }
    }

    /// Starts a VM's unit and waits until its program runs.
    ///
    /// # Errors
    /// [`UnitError`].
    pub async fn start(&self, unit: &VmUnit) -> Result<(), UnitError> {
        if self.alone {
            return alone::start(unit);
        }
        let Some(bus) = self.bus.get() else { return early::start(unit, JOB_LIMIT).await };
        let program = unit.command.first().map_or("", String::as_str);
        let exec: &[ExecStart<'_>] = &[(program, &unit.command, false)];
        let log = unit.log.display().to_string();
        let vault = unit.vault.as_ref().map(|device| device.display().to_string());
        let mut properties: Vec<(&str, Value<'_>)> = vec![
            ("Description", unit.description.as_str().into()),
            ("Type", "exec".into()),
            ("ExecStart", Value::from(exec.to_vec())),
            ("User", unit.user.as_str().into()),
            ("Slice", unit.slice.as_str().into()),
            ("StandardErrorFileToAppend", log.as_str().into()),
            ("DeviceAllow", Value::from(devices(vault.as_deref()))),
            ("KillMode", "control-group".into()),
            ("CollectMode", "inactive-or-failed".into()),
        ];
        properties.extend(GROUPED.iter().chain(&CONFINED).map(|(name, setting)| setting.on_the_bus(name)));
        let job = bus.manager.start_transient_unit(&unit.name, "fail", &properties, &[]);
        Self::run_job(bus, "start", &unit.name, job).await
    }

    /// Runs a step in a unit of its own and waits for its end. At the limit everything in the unit is killed at once:
    /// what hangs, what forked, and what ignores signals.
    ///
    /// # Errors
    /// [`UnitError::Job`] with `failed` or `timeout`.
    pub async fn run_step(&self, unit: &StepUnit) -> Result<(), UnitError> {
        let program = unit.command.first().map_or("", String::as_str);
        let exec: &[ExecStart<'_>] = &[(program, &unit.command, false)];
        let log = unit.log.display().to_string();
        let micros = u64::try_from(unit.limit.as_micros()).unwrap_or(u64::MAX);
        let properties: Vec<(&str, Value<'_>)> = vec![
            ("Description", unit.description.as_str().into()),
            ("Type", "oneshot".into()),
            ("ExecStart", Value::from(exec.to_vec())),
            ("StandardOutputFileToAppend", log.as_str().into()),
            ("StandardErrorFileToAppend", log.as_str().into()),
            ("TimeoutStartUSec", Value::from(micros)),
            ("TimeoutStopUSec", Value::from(1_000_000u64)),
            ("KillSignal", Value::from(9i32)),
            ("KillMode", "control-group".into()),
            ("CollectMode", "inactive-or-failed".into()),
        ];
        let bus = self.bus("run", &unit.name).await?;
        let job = bus.manager.start_transient_unit(&unit.name, "fail", &properties, &[]);
        let ended = Self::run_job_within(bus, "run", &unit.name, job, unit.limit + JOB_LIMIT).await;
        // What a step leaves running behind itself is part of the step.
        self.kill(&unit.name).await?;
        ended
    }

    /// Starts a helper in a unit of its own and waits until its program runs.
    ///
    /// # Errors
    /// [`UnitError`].
    pub async fn start_helper(&self, unit: &HelperUnit) -> Result<(), UnitError> {
        let program = unit.command.first().map_or("", String::as_str);
        let exec: &[ExecStart<'_>] = &[(program, &unit.command, false)];
        let properties: Vec<(&str, Value<'_>)> = vec![
            ("Description", unit.description.as_str().into()),
            ("Type", "exec".into()),
            ("ExecStart", Value::from(exec.to_vec())),
            ("OOMScoreAdjust", Value::from(-900i32)),
            ("KillSignal", Value::from(9i32)),
            ("CollectMode", "inactive-or-failed".into()),
        ];
        let bus = self.bus("start", &unit.name).await?;
        let job = bus.manager.start_transient_unit(&unit.name, "fail", &properties, &[]);
        Self::run_job(bus, "start", &unit.name, job).await
    }

    /// Stops a unit and waits until nothing of it is left. A unit that is gone already is no error.
    ///
    /// # Errors
    /// [`UnitError`].
    pub async fn stop(&self, unit: &str) -> Result<(), UnitError> {
        if alone::is_scope(unit) {
            return alone::stop(&self.slice, unit, JOB_LIMIT).await;
        }
        // Without a service manager there are no services.
        if self.alone {
            return Ok(());
        }
        let Some(bus) = self.bus.get() else { return early::stop(unit, JOB_LIMIT).await };
        match Self::run_job(bus, "stop", unit, bus.manager.stop_unit(unit, "replace")).await {
            Err(UnitError::Bus { source, .. }) if is_no_such_unit(&source) => Ok(()),
            other => other,
        }?;
        // A failed unit keeps its record until asked to forget; nothing depends on the answer.
        bus.manager.reset_failed_unit(unit).await.ok();
        Ok(())
    }

    /// Kills every process of a unit at once.
    ///
    /// # Errors
    /// [`UnitError`].
    pub async fn kill(&self, unit: &str) -> Result<(), UnitError> {
        if alone::is_scope(unit) {
            return alone::kill(&self.slice, unit);
        }
        if self.alone {
            return Ok(());
        }
        let Some(bus) = self.bus.get() else { return early::kill(unit, JOB_LIMIT).await };
        match bus.manager.kill_unit(unit, "all", 9).await {
            Ok(()) => Ok(()),
            Err(source) if is_no_such_unit(&source) => Ok(()),
            Err(source) => Err(UnitError::Bus { act: "kill", unit: unit.to_owned(), source: Box::new(source) }),
        }
    }

    /// Asks systemd to restart the host, stopping everything in its order.
    ///
    /// # Errors
    /// [`UnitError`].
    pub async fn reboot(&self) -> Result<(), UnitError> {
        let bus = self.bus("start", "reboot.target").await?;
        // `Manager.Reboot` would stop nothing; the target does.
        let started = bus.manager.start_unit("reboot.target", "replace-irreversibly").await;
        let failed =
            |source| UnitError::Bus { act: "start", unit: "reboot.target".to_owned(), source: Box::new(source) };
        started.map(drop).map_err(failed)
    }

    /// The main process of a unit; `None` when the unit is gone or its process is.
    ///
    /// # Errors
    /// [`UnitError`].
    pub async fn main_pid(&self, unit: &str) -> Result<Option<u32>, UnitError> {
        if alone::is_scope(unit) || self.alone {
            return Ok(alone::main_pid(&self.slice, unit));
        }
        let Some(bus) = self.bus.get() else { return early::main_pid(unit, JOB_LIMIT).await };
        let failed = |source| UnitError::Bus { act: "ask for", unit: unit.to_owned(), source: Box::new(source) };
        let path = match bus.manager.get_unit(unit).await {
            Ok(path) => path,
            Err(source) if is_no_such_unit(&source) => return Ok(None),
            Err(source) => return Err(failed(source)),
        };
        let service =
            zbus::Proxy::new(&bus.connection, "org.freedesktop.systemd1", path, "org.freedesktop.systemd1.Service")
                .await
                .map_err(failed)?;
        let pid: u32 = service.get_property("MainPID").await.map_err(failed)?;
        Ok((pid != 0).then_some(pid))
    }

    async fn run_job(
        bus: &Bus,
        act: &'static str,
        unit: &str,
        job: impl Future<Output = zbus::Result<OwnedObjectPath>>,
    ) -> Result<(), UnitError> {
        Self::run_job_within(bus, act, unit, job, JOB_LIMIT).await
    }

    async fn run_job_within(
        bus: &Bus,
        act: &'static str,
        unit: &str,
        job: impl Future<Output = zbus::Result<OwnedObjectPath>>,
        limit: Duration,
    ) -> Result<(), UnitError> {
        let failed = |source| UnitError::Bus { act, unit: unit.to_owned(), source: Box::new(source) };
        // Listening before asking: the job may end before its path is known.
        let mut removed = bus.manager.receive_job_removed().await.map_err(failed)?;
        let wait = async {
            let path = job.await.map_err(failed)?;
            while let Some(signal) = removed.next().await {
                let ended = signal.args().map_err(failed)?;
                if ended.job == path {
                    return match ended.result.as_str() {
                        "done" => Ok(()),
                        other => Err(UnitError::Job { act, unit: unit.to_owned(), result: other.to_owned() }),
                    };
                }
            }
            Err(UnitError::Slow { act, unit: unit.to_owned() })
        };
        timeout(limit, wait).await.unwrap_or_else(|_| Err(UnitError::Slow { act, unit: unit.to_owned() }))
    }
}

fn is_no_such_unit(error: &zbus::Error) -> bool {
    is_named(error, "org.freedesktop.systemd1.NoSuchUnit")
}

fn is_named(error: &zbus::Error, wanted: &str) -> bool {
    matches!(error, zbus::Error::MethodError(name, ..) if name.as_str() == wanted)
}
