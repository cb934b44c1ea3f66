//! Starting a VM: everything is set up by the agent and lent to a VMM in a unit of its own.
//!
//! ```text
//! check -> record -> folder, memory, taps, image owners -> unit -> launcher connects -> descriptors -> exec -> QMP answers
//!             |                                        any failure                                                |
//!             '------------------------------- teardown of all that is on record <-------------------------------'
//! ```

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fermata_model::spec::Firmware;
use fermata_model::{VmDefinition, VmName, VmmVersion};
use fermata_vault::launch::{Door, Launch};
use fermata_vault::memory::Kind;
use fermata_vault::process::Process;
use fermata_vault::tap;
use fermata_vmm::command::{self, Accelerator, MemoryPlace, Paths, Role, UefiFiles};
use fermata_vmm::images::{self, Backend};
use fermata_vmm::qmp::{Qmp, QmpError};

use super::live::{self, Lent, Live};
use super::{VmError, Vms, check, teardown};
use crate::api::types::VmView;
use crate::inventory::{FileOwner, Runtime, VmRecord, Wanted};
use crate::links::{self, Side};
use crate::units::VmUnit;
use crate::users::{self, User};

/// How long systemd and the launcher may take until the VMM runs.
const LAUNCH_LIMIT: Duration = Duration::from_secs(20);
/// How long a VMM may take to set its machine up and answer.
pub(super) const READY_LIMIT: Duration = Duration::from_secs(30);

impl Vms {
    /// Starts a VM. Starting a running VM is no error.
    ///
    /// # Errors
    /// A refusal, or a failure after which nothing of the start is left.
    pub async fn start(self: &Arc<Self>, name: &VmName) -> Result<VmView, VmError> {
        self.slot(name).check_free(name)?;
        self.start_it(name).await?;
        self.view(&self.record(name).await?).await
    }

    /// The record of a VM to be started. What the vault keeps of it is not given up by a start.
    async fn free_for_start(&self, name: &VmName) -> Result<VmRecord, VmError> {
        let record = self.record(name).await?;
        let kept = self.slot(name).live().is_none() && self.vaults.keeps(record.definition.uuid);
        if kept { Err(VmError::Kept { name: name.clone() }) } else { Ok(record) }
    }

    /// Starts a VM that a maintenance has, from its disks: what was kept of it is given up. Whether it ran already.
    pub(crate) async fn start_for_maintenance(self: &Arc<Self>, name: &VmName) -> Result<bool, VmError> {
        let record = self.record(name).await?;
        let slot = self.slot(name);
        // A restore that was refused leaves a runtime of this boot, and no VMM.
        let kept = slot.live().is_none() && self.vaults.keeps(record.definition.uuid);
        if let Some(runtime) = record.runtime.filter(|runtime| runtime.boot != self.boot || kept) {
            let _turn = slot.operation.lock().await;
            self.tear_down(name, &runtime).await?;
        }
        self.start_it(name).await
    }

    /// Starts a VM; whether it ran already.
    async fn start_it(self: &Arc<Self>, name: &VmName) -> Result<bool, VmError> {
        let slot = self.slot(name);
        let _turn = slot.operation.lock().await;
        let record = self.free_for_start(name).await?;
        let ran_already = record.runtime.is_some();
        if !ran_already {
            let runtime = self.prepare(&record).await?;
            match self.launch(&record, runtime.clone()).await {
                Ok(live) => self.take_up(name, live),
                Err(error) => {
                    let error = with_last_words(error, &runtime.dir);
                    self.tear_down(name, &runtime).await?;
                    return Err(error);
                }
            }
            self.vms_changed();
            tracing::info!(vm = %name, "started");
        }
        let key = name.clone();
        self.db(move |db| {
            db.set_wanted(&key, Wanted::Running)?;
            db.set_failure(&key, None)
        })
        .await?;
        Ok(ran_already)
    }

    /// Checks that the VM can start and puts on record what will be set up for it.
    async fn prepare(&self, record: &VmRecord) -> Result<Runtime, VmError> {
        let definition = &record.definition;
        self.kvm.clone().map_err(VmError::NoKvm)?;
        check::vmm_info(self, definition.vmm).await?;
        check::check_files(definition, self)?;
        for (disk, image) in definition.disks.iter().enumerate() {
            images::check_free(image).map_err(|source| VmError::Image { disk, source })?;
        }
        let room = self.vaults.room();
        let available = room.map_err(|source| VmError::Io {
            what: "look at the vault",
            path: self.config.vault.device.clone(),
            source,
        })?;
        if definition.memory > available {
            return Err(VmError::MemoryShort { wanted: definition.memory, available });
        }
        let user = self.vm_user()?;
        let owners = owners_to_put_back(definition, &user)?;
        let runtime = self.next_runtime(definition, definition.vmm, self.vaults.kind(), Side::A, owners).await?;
        let (key, stored) = (definition.name.clone(), runtime.clone());
        self.db(move |db| db.set_runtime(&key, Some(&stored))).await?;
        Ok(runtime)
    }

    /// What is to be set up for the VM's next VMM process: names that no other of its processes has had.
    pub(super) async fn next_runtime(
        &self,
        definition: &VmDefinition,
        vmm: VmmVersion,
        vault: Kind,
        side: Side,
        owners: Vec<FileOwner>,
    ) -> Result<Runtime, VmError> {
        let name = definition.name.clone();
        let generation = self.db(move |db| db.next_generation(&name)).await?;
        let name = &definition.name;
        Ok(Runtime {
            generation,
            unit: self.units.vm_unit(&format!("fermata-vm-{name}-{generation}")),
            vmm,
            boot: self.boot,
            process: None,
            dir: self.config.run_dir.join("vm").join(name.as_str()).join(generation.to_string()),
            taps: (0..definition.nics.len()).map(|nic| links::tap_name(definition.uuid, nic, side)).collect(),
            owners,
            vault,
        })
    }

    pub(super) fn vm_user(&self) -> Result<User, VmError> {
        users::find(&self.config.vm_user).map_err(|source| VmError::Io {
            what: "find the VMMs' user in",
            path: users::PASSWD.into(),
            source,
        })
    }

    async fn launch(self: &Arc<Self>, record: &VmRecord, mut runtime: Runtime) -> Result<Live, VmError> {
        let definition = &record.definition;
        let user = self.vm_user()?;
        make_dir(&runtime.dir, &user)?;
        let lent = self.lend(definition, &runtime, &user).await?;
        let process = self.launch_vmm(definition, &runtime, Role::Run, false, &lent).await?;
        runtime.process = Some(process.identity());
        let (key, stored) = (definition.name.clone(), runtime.clone());
        self.db(move |db| db.set_runtime(&key, Some(&stored))).await?;
        let monitor = Paths::in_folder(&runtime.dir).qmp();
        let ready = self.answering(&process, &monitor).await;
        let qmp = ready.map_err(|source| VmError::Qmp { name: definition.name.clone(), act: "start", source })?;
        Ok(Live::new(process, qmp, runtime, lent))
    }

    /// The monitor of a VMM that was just started.
    pub(super) async fn answering(&self, process: &Process, monitor: &Path) -> Result<Qmp, QmpError> {
        tokio::select! {
            connected = Qmp::connect(monitor, READY_LIMIT) => connected,
            // A VMM that refuses its command line is gone long before the limit.
            () = ended(process) => Err(QmpError::Closed { command: "greeting" }),
        }
    }

    /// Starts a VMM in its unit with everything lent to it; it has not answered yet.
    pub(super) async fn launch_vmm(
        &self,
        definition: &VmDefinition,
        runtime: &Runtime,
        role: Role,
        twin: bool,
        lent: &Lent,
    ) -> Result<Process, VmError> {
        let user = self.vm_user()?;
        let vhosts = open_vhosts(definition.nics.len());
        let binary = check::vmm_binary(self, runtime.vmm)?;
        let uefi = self.uefi_files(definition, &user)?;
        let disks = self.hand_images(definition, &user)?;
        let args = command::arguments(
            definition,
            &command::Runtime {
                role,
                twin,
                accelerator: Accelerator::Kvm,
                paths: Paths::in_folder(&runtime.dir),
                console_log: runtime.dir.with_file_name("console.log"),
                disks,
                vhost: vhosts.is_some(),
                uefi,
                memory: MemoryPlace::of(&lent.memory),
            },
        )
        .map_err(|source| VmError::Command { name: definition.name.clone(), source })?;
        let env = command::environment();
        let launch = Launch { program: binary, args, env };
        self.launch_unit(definition, runtime, &user, launch, lent, vhosts.as_deref()).await
    }

    /// Gives a VMM that was started before there was a service manager to it.
    pub(super) async fn adopt(self: Arc<Self>, name: VmName, live: Arc<Live>) {
        let (runtime, pid) = (live.runtime(), live.process().pid());
        let description = describe(&name, runtime.vmm);
        let adopted = tokio::select! {
            adopted = self.units.adopt(&runtime.unit, &description, pid, self.vaults.device(runtime.vault)) => adopted,
            () = live.ended() => return,
        };
        if let Err(error) = adopted {
            tracing::warn!(vm = %name, unit = runtime.unit, %error, "systemd does not know of its VMM; the next agent tries again");
        }
    }

    /// Opens what the VM is lent.
    async fn lend(
        self: &Arc<Self>,
        definition: &VmDefinition,
        runtime: &Runtime,
        user: &User,
    ) -> Result<Lent, VmError> {
        let (vms, whose) = (Arc::clone(self), definition.clone());
        let memory = tokio::task::spawn_blocking(move || vms.vaults.allocate(&whose))
            .await
            .map_err(|_| VmError::Inside)?
            .map_err(|source| VmError::Memory { name: definition.name.clone(), source })?;
        self.wire(&definition.name).await?;
        let mut queues = Vec::new();
        for (nic, (name, link)) in runtime.taps.iter().zip(&definition.nics).enumerate() {
            let queue = tap::create(name, Some(user.uid)).map_err(|source| VmError::Tap { nic, source })?;
            self.links.attach(name.as_str(), &link.bridge).await.map_err(|source| VmError::Nic { nic, source })?;
            queues.push(queue);
        }
        Ok(Lent { memory, queues })
    }

    /// Gives the VM its own firmware variables, once.
    fn uefi_files(&self, definition: &VmDefinition, user: &User) -> Result<Option<UefiFiles>, VmError> {
        if definition.firmware != Firmware::Uefi {
            return Ok(None);
        }
        let vars = teardown::nvram(&self.config, definition);
        let io = |what: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source| VmError::Io { what, path, source }
        };
        let dir = vars.parent().unwrap_or(&self.config.state_dir);
        fs::create_dir_all(dir).map_err(io("make", dir))?;
        if !vars.exists() {
            let template = &self.config.firmware.ovmf_vars;
            // Under its name only when whole: a crash in between must not leave half a set of variables.
            let draft = vars.with_extension("new");
            fs::copy(template, &draft).map_err(io("copy firmware variables to", &draft))?;
            fs::rename(&draft, &vars).map_err(io("name", &vars))?;
        }
        chown(&vars, Some(user.uid), Some(user.gid)).map_err(io("give to the VMMs' user", &vars))?;
        let vars_bytes = fs::metadata(&vars).map_err(io("look at", &vars))?.len();
        Ok(Some(UefiFiles { code: self.config.firmware.ovmf_code.clone(), vars, vars_bytes }))
    }

    /// Looks at the images and gives them to the VMM's user.
    fn hand_images(&self, definition: &VmDefinition, user: &User) -> Result<Vec<Backend>, VmError> {
        let mut found = Vec::new();
        for (disk, image) in definition.disks.iter().enumerate() {
            found.push(images::inspect(image).map_err(|source| VmError::Image { disk, source })?);
            chown(&image.path, Some(user.uid), Some(user.gid)).map_err(|source| VmError::Io {
                what: "give to the VMMs' user",
                path: image.path.clone(),
                source,
            })?;
        }
        Ok(found)
    }

    async fn launch_unit(
        &self,
        definition: &VmDefinition,
        runtime: &Runtime,
        user: &User,
        launch: Launch,
        lent: &Lent,
        vhosts: Option<&[OwnedFd]>,
    ) -> Result<Process, VmError> {
        let failed = |source| VmError::Launch { name: definition.name.clone(), source };
        let socket = runtime.dir.join("launch");
        let door = Door::bind(&socket).map_err(failed)?;
        door.admit(user.uid, user.gid).map_err(failed)?;
        let unit = VmUnit {
            name: runtime.unit.clone(),
            description: describe(&definition.name, runtime.vmm),
            command: vec![
                self.config.launcher.display().to_string(),
                "vmm-exec".to_owned(),
                "--socket".to_owned(),
                socket.display().to_string(),
            ],
            user: self.config.vm_user.clone(),
            slice: self.config.slice.clone(),
            log: runtime.dir.join(live::LOG),
            vault: self.vaults.device(runtime.vault).map(Path::to_owned),
        };
        self.units.start(&unit).await?;
        let fds = numbered(lent, vhosts).map_err(|source| VmError::Io {
            what: "copy descriptors for",
            path: launch.program.clone(),
            source,
        })?;
        tokio::task::spawn_blocking(move || {
            let waiting = door.accept(LAUNCH_LIMIT)?;
            let fds: Vec<(RawFd, BorrowedFd<'_>)> = fds.iter().map(|(n, fd)| (*n, fd.as_fd())).collect();
            waiting.hand_over(&launch, &fds, LAUNCH_LIMIT)
        })
        .await
        .map_err(|_| VmError::Inside)?
        .map_err(failed)
    }
}

fn describe(name: &VmName, vmm: VmmVersion) -> String {
    format!("Fermata VM {name} on VMM {vmm}")
}

async fn ended(process: &Process) {
    // A process that cannot be watched is noticed by the time limit instead.
    if process.exited().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Copies of all that is lent, with the numbers the VMM expects.
fn numbered(lent: &Lent, vhosts: Option<&[OwnedFd]>) -> std::io::Result<Vec<(RawFd, OwnedFd)>> {
    let mut fds = vec![(command::MEMORY, lent.memory.duplicate()?)];
    for (nic, queue) in lent.queues.iter().enumerate() {
        fds.push((command::tap(nic), queue.as_fd().try_clone_to_owned()?));
    }
    for (nic, vhost) in vhosts.unwrap_or_default().iter().enumerate() {
        fds.push((command::vhost(nic), vhost.try_clone()?));
    }
    Ok(fds)
}

/// One vhost-net per NIC, where the kernel has it; frames then pass without the VMM.
fn open_vhosts(nics: usize) -> Option<Vec<OwnedFd>> {
    (0..nics).map(|_| tap::open_vhost_net()).collect::<Result<Vec<_>, _>>().ok()
}

pub(super) fn make_dir(dir: &Path, user: &User) -> Result<(), VmError> {
    let io = |what: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| VmError::Io { what, path, source }
    };
    // What a start that was cut short may have left.
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(io("remove", dir)(error)),
        _ => {}
    }
    let parent = dir.parent().unwrap_or(dir);
    fs::create_dir_all(parent).map_err(io("make", parent))?;
    fs::DirBuilder::new().mode(0o750).create(dir).map_err(io("make", dir))?;
    chown(dir, Some(user.uid), Some(user.gid)).map_err(io("give to the VMMs' user", dir))?;
    let mut log = fs::OpenOptions::new();
    for path in [dir.with_file_name("console.log"), dir.join(live::LOG)] {
        log.create(true).append(true).mode(0o640).open(&path).map_err(io("make", &path))?;
        chown(&path, Some(user.uid), Some(user.gid)).map_err(io("give to the VMMs' user", &path))?;
    }
    Ok(())
}

/// The owners that the images have now, where they differ from the VMM's user.
fn owners_to_put_back(definition: &VmDefinition, user: &User) -> Result<Vec<FileOwner>, VmError> {
    let mut owners = Vec::new();
    for image in &definition.disks {
        let path: PathBuf = image.path.clone();
        let meta = fs::metadata(&path).map_err(|source| VmError::Io { what: "look at", path: path.clone(), source })?;
        if meta.uid() != user.uid {
            owners.push(FileOwner { path, uid: meta.uid(), gid: meta.gid() });
        }
    }
    Ok(owners)
}

pub(super) fn with_last_words(error: VmError, dir: &Path) -> VmError {
    match (error, live::last_words(dir)) {
        (VmError::Qmp { name, .. } | VmError::Handover { name, .. }, Some(words)) => {
            VmError::VmmRefused { name, words }
        }
        (error, _) => error,
    }
}
