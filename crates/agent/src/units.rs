//! Systemd units of VMs, over systemd's own interface.
//!
//! Each VMM runs in a transient service of its own, so it lives on when the agent is restarted, killed or upgraded, and
//! everything it might fork dies with it.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::timeout;
use zbus::Connection;
use zbus::{OwnedObjectPath, Variant as Value};

/// How long systemd may take for a job.
const JOB_LIMIT: Duration = Duration::from_secs(20);

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

/// The connection to systemd.
#[derive(Debug, Clone)]
pub struct Units {
    manager: ManagerProxy<'static>,
    bus: Connection,
}

type ExecStart<'a> = (&'a str, &'a [String], bool);

impl Units {
    /// Connects to the system bus.
    ///
    /// # Errors
    /// [`UnitError::Bus`].
    pub async fn connect() -> Result<Self, UnitError> {
        let failed =
            |source| UnitError::Bus { act: "connect to", unit: "the bus".to_owned(), source: Box::new(source) };
        let bus = Connection::system().await.map_err(failed)?;
        let manager = ManagerProxy::new(&bus).await.map_err(failed)?;
        manager.subscribe().await.map_err(failed)?;
        Ok(Self { manager, bus })
    }

    /// Starts a VM's unit and waits until its program runs.
    ///
    /// # Errors
    /// [`UnitError`].
    pub async fn start(&self, unit: &VmUnit) -> Result<(), UnitError> {
        let program = unit.command.first().map_or("", String::as_str);
        let exec: &[ExecStart<'_>] = &[(program, &unit.command, false)];
        let log = unit.log.display().to_string();
        let vault = unit.vault.as_ref().map(|device| device.display().to_string());
        let mut devices = vec![("/dev/kvm", "rw"), ("block-*", "rw")];
        devices.extend(vault.as_deref().map(|device| (device, "rw")));
        let properties: Vec<(&str, Value<'_>)> = vec![
            ("Description", unit.description.as_str().into()),
            ("Type", "exec".into()),
            ("ExecStart", Value::from(exec.to_vec())),
            ("User", unit.user.as_str().into()),
            ("SupplementaryGroups", Value::from(vec!["kvm"])),
            ("Slice", unit.slice.as_str().into()),
            ("StandardErrorFileToAppend", log.as_str().into()),
            ("StandardOutput", "null".into()),
            ("NoNewPrivileges", true.into()),
            ("RestrictNamespaces", Value::from(0u64)),
            ("ProtectKernelModules", true.into()),
            ("ProtectKernelTunables", true.into()),
            ("ProtectControlGroups", true.into()),
            ("RestrictSUIDSGID", true.into()),
            ("LockPersonality", true.into()),
            ("DevicePolicy", "closed".into()),
            ("DeviceAllow", Value::from(devices)),
            ("LimitNOFILE", Value::from(65_536u64)),
            ("LimitCORE", Value::from(0u64)),
            ("KillMode", "control-group".into()),
            ("TimeoutStopUSec", Value::from(10_000_000u64)),
            ("CollectMode", "inactive-or-failed".into()),
            // The guests' own service stops before a VM's unit at shutdown, so guests are asked before VMMs are ended.
            ("Before", Value::from(vec!["fermata-guests.service"])),
        ];
        self.run_job("start", &unit.name, self.manager.start_transient_unit(&unit.name, "fail", &properties, &[])).await
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
        let job = self.manager.start_transient_unit(&unit.name, "fail", &properties, &[]);
        let ended = self.run_job_within("run", &unit.name, job, unit.limit + JOB_LIMIT).await;
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
        self.run_job("start", &unit.name, self.manager.start_transient_unit(&unit.name, "fail", &properties, &[])).await
    }

    /// Stops a unit and waits until nothing of it is left. A unit that is gone already is no error.
    ///
    /// # Errors
    /// [`UnitError`].
    pub async fn stop(&self, unit: &str) -> Result<(), UnitError> {
        match self.run_job("stop", unit, self.manager.stop_unit(unit, "replace")).await {
            Err(UnitError::Bus { source, .. }) if is_no_such_unit(&source) => Ok(()),
            other => other,
        }?;
        // A failed unit keeps its record until asked to forget; nothing depends on the answer.
        self.manager.reset_failed_unit(unit).await.ok();
        Ok(())
    }

    /// Kills every process of a unit at once.
    ///
    /// # Errors
    /// [`UnitError`].
    pub async fn kill(&self, unit: &str) -> Result<(), UnitError> {
        match self.manager.kill_unit(unit, "all", 9).await {
            Ok(()) => Ok(()),
            Err(source) if is_no_such_unit(&source) => Ok(()),
            Err(source) => Err(UnitError::Bus { act: "kill", unit: unit.to_owned(), source: Box::new(source) }),
        }
    }

    /// Asks systemd to restart the host, stopping everything in its order.
    ///
    /// # Errors
    /// [`UnitError::Bus`].
    pub async fn reboot(&self) -> Result<(), UnitError> {
        // `Manager.Reboot` would stop nothing; the target does.
        let started = self.manager.start_unit("reboot.target", "replace-irreversibly").await;
        let failed =
            |source| UnitError::Bus { act: "start", unit: "reboot.target".to_owned(), source: Box::new(source) };
        started.map(drop).map_err(failed)
    }

    /// The main process of a unit; `None` when the unit is gone or its process is.
    ///
    /// # Errors
    /// [`UnitError`].
    pub async fn main_pid(&self, unit: &str) -> Result<Option<u32>, UnitError> {
        let failed = |source| UnitError::Bus { act: "ask for", unit: unit.to_owned(), source: Box::new(source) };
        let path = match self.manager.get_unit(unit).await {
            Ok(path) => path,
            Err(source) if is_no_such_unit(&source) => return Ok(None),
            Err(source) => return Err(failed(source)),
        };
        let service = zbus::Proxy::new(&self.bus, "org.freedesktop.systemd1", path, "org.freedesktop.systemd1.Service")
            .await
            .map_err(failed)?;
        let pid: u32 = service.get_property("MainPID").await.map_err(failed)?;
        Ok((pid != 0).then_some(pid))
    }

    async fn run_job(
        &self,
        act: &'static str,
        unit: &str,
        job: impl Future<Output = zbus::Result<OwnedObjectPath>>,
    ) -> Result<(), UnitError> {
        self.run_job_within(act, unit, job, JOB_LIMIT).await
    }

    async fn run_job_within(
        &self,
        act: &'static str,
        unit: &str,
        job: impl Future<Output = zbus::Result<OwnedObjectPath>>,
        limit: Duration,
    ) -> Result<(), UnitError> {
        let failed = |source| UnitError::Bus { act, unit: unit.to_owned(), source: Box::new(source) };
        // Listening before asking: the job may end before its path is known.
        let mut removed = self.manager.receive_job_removed().await.map_err(failed)?;
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
    matches!(error, zbus::Error::MethodError(name, ..) if name.as_str() == "org.freedesktop.systemd1.NoSuchUnit")
}
