//! A VM changes its VMM: the acts of a swap, one function each, and what a maintenance needs besides.
//!
//! ```text
//!  runtime: old, beside: -      start_new    taps held, VMM in its unit, waiting for the VM
//!  runtime: old, beside: new    hand_over    frames steered just before STOP; the VM stands in the new VMM
//!                               resume(new)  the VM runs; frames released; the record changes over
//!  runtime: new, beside: old    retire       the old VMM and its taps are gone
//!  runtime: new, beside: -
//!
//!  before resume(new), at any point: take_back    the new VMM is dead for certain, the old one runs
//!  in resume(new), before the VM ran: NeverRan    the new VMM is dead for certain; take_back follows
//!  after that, whatever the journal says: Ran     no way back, and no end of the new VMM (`witness`)
//!  in resume(new), when it may have run            the new VMM died: the old one is ended too, the VM is lost
//! ```
//!
//! Each is idempotent. Which VMM may run the VM is the maintenance journal's to say; nothing here decides it.

mod back;
mod frames;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fermata_maintenance::witness;
use fermata_model::{VmName, VmmVersion};
use fermata_vault::process::Process;
use fermata_vault::relay::Relay;
use fermata_vault::tap::{self, Queue};
use fermata_vmm::command::Paths;
use fermata_vmm::handover::{self, HandedOver, Way};
use fermata_vmm::qmp::{self, Qmp, QmpError, Timestamp};
use tokio::sync::Mutex as AsyncMutex;

use super::live::{Lent, Live};
use super::start::{READY_LIMIT, make_dir};
use super::{Slot, VmError, Vms, check};
use crate::inventory::{Runtime, VmRecord};
use crate::links::Side;
use crate::urgency::{Haste, leave_alone};

/// How long a VMM may take to end that was told to.
const END_LIMIT: Duration = Duration::from_secs(10);

/// A VMM that stands beside the one that runs the VM.
#[derive(Debug)]
pub(super) struct Beside {
    process: Process,
    runtime: Runtime,
    queues: Vec<Queue>,
    /// Its monitor, once it has one: a successor by [`Way::Transfer`] makes it when the VM arrives.
    qmp: Mutex<Option<Qmp>>,
    /// Whether frames may still be steered to it. A VMM that is killed closes its channel like one that is ready, and that
    /// must not steer frames to a dead one after the VM was taken back.
    gate: AsyncMutex<Gate>,
    /// Whether the VM's vCPUs may have run in it: once they have, no other VMM's picture of the VM is true any more.
    may_have_run: AtomicBool,
    /// While the VM stands between the two.
    haste: Mutex<Option<Haste>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    Shut,
}

impl Beside {
    fn qmp(&self) -> Option<Qmp> {
        self.qmp.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_qmp(&self, qmp: Qmp) {
        *self.qmp.lock().unwrap_or_else(PoisonError::into_inner) = Some(qmp);
    }

    fn hurry(&self, haste: Option<Haste>) -> Option<Haste> {
        std::mem::replace(&mut *self.haste.lock().unwrap_or_else(PoisonError::into_inner), haste)
    }
}

impl Vms {
    /// Keeps everybody but a maintenance from acting on a VM, or ends that.
    pub(crate) fn reserve(&self, name: &VmName, maintenance: Option<&str>) {
        let slot = self.slot(name);
        *slot.maintenance.lock().unwrap_or_else(PoisonError::into_inner) = maintenance.map(str::to_owned);
    }

    /// Starts the VMM that shall take the VM over and waits until it can.
    ///
    /// # Errors
    /// [`VmError`]; nothing of it is left then.
    pub(crate) async fn start_new(&self, name: &VmName, vmm: VmmVersion, way: Way) -> Result<(), VmError> {
        self.discard_new(name).await?;
        let slot = self.slot(name);
        let _turn = slot.operation.lock().await;
        let record = self.record(name).await?;
        let live = running(&slot, name, &record).await?;
        check::vmm_info(self, vmm).await?;
        let runs = live.runtime();
        let side = Side::beside(&runs.taps);
        let mut runtime = self.next_runtime(&record.definition, vmm, runs.vault, side, runs.owners.clone()).await?;
        self.note_beside(name, Some(&runtime)).await?;
        match self.set_up_new(&record, &live, &mut runtime, way).await {
            Ok(beside) => {
                slot.set_beside(Some(Arc::new(beside)));
                Ok(())
            }
            Err(error) => {
                let error = super::start::with_last_words(error, &runtime.dir);
                self.tear_down_vmm(&runtime).await?;
                self.note_beside(name, None).await?;
                Err(error)
            }
        }
    }

    async fn set_up_new(
        &self,
        record: &VmRecord,
        live: &Live,
        runtime: &mut Runtime,
        way: Way,
    ) -> Result<Beside, VmError> {
        let definition = &record.definition;
        let name = &definition.name;
        let user = self.vm_user()?;
        make_dir(&runtime.dir, &user)?;
        let mut queues = Vec::new();
        for (nic, name) in runtime.taps.iter().enumerate() {
            queues.push(tap::create(name, Some(user.uid)).map_err(|source| VmError::Tap { nic, source })?);
            self.links.hold(name.as_str()).await.map_err(|source| VmError::Nic { nic, source })?;
        }
        let memory = live.lent().memory.try_clone().map_err(|source| VmError::Io {
            what: "copy the memory's descriptor for",
            path: runtime.dir.clone(),
            source,
        })?;
        let lent = Lent { memory, queues };
        let process = self.launch_vmm(definition, runtime, way.role(), false, &lent).await?;
        runtime.process = Some(process.identity());
        self.note_beside(name, Some(runtime)).await?;
        let paths = Paths::in_folder(&runtime.dir);
        let failed = |source| VmError::Handover { name: name.clone(), source };
        let monitor = way.ready(&process, &paths, READY_LIMIT).await.map_err(failed)?;
        way.prepare(live.qmp()).await.map_err(failed)?;
        Ok(Beside {
            process,
            runtime: runtime.clone(),
            queues: lent.queues,
            qmp: Mutex::new(monitor),
            gate: AsyncMutex::new(Gate::Open),
            may_have_run: AtomicBool::new(false),
            haste: Mutex::new(None),
        })
    }

    async fn note_beside(&self, name: &VmName, runtime: Option<&Runtime>) -> Result<(), VmError> {
        let (key, stored) = (name.clone(), runtime.cloned());
        self.db(move |db| db.set_beside(&key, stored.as_ref())).await
    }

    /// Hands the VM over: it stands in the new VMM afterwards, and frames for it wait. When its vCPUs stopped.
    ///
    /// # Errors
    /// [`VmError`]; then [`Self::take_back`].
    pub(crate) async fn hand_over(
        self: &Arc<Self>,
        name: &VmName,
        way: Way,
        limit: Duration,
    ) -> Result<Option<Timestamp>, VmError> {
        let slot = self.slot(name);
        let _turn = slot.operation.lock().await;
        let record = self.record(name).await?;
        let live = running(&slot, name, &record).await?;
        let beside = slot.beside().ok_or_else(|| VmError::NoneBeside(name.clone()))?;
        beside.hurry(Some(Haste::between(live.process().pid(), beside.process.pid())));
        let handed = match way {
            Way::Transfer => self.transfer(&record, &live, &beside, limit).await?,
            Way::File => self.pass_file(&record, &live, &beside, limit).await?,
        };
        beside.set_qmp(handed.new);
        Ok(handed.stopped)
    }

    /// By [`Way::Transfer`]: a relay sees the moment just before STOP, and frames are steered then.
    async fn transfer(
        self: &Arc<Self>,
        record: &VmRecord,
        live: &Live,
        beside: &Arc<Beside>,
        limit: Duration,
    ) -> Result<HandedOver, VmError> {
        let name = &record.definition.name;
        let user = self.vm_user()?;
        let relay_failed = |source| VmError::Relay { name: name.clone(), source };
        let relay = Relay::bind(&beside.runtime.dir.join("relay")).map_err(relay_failed)?;
        relay.admit(user.uid, user.gid).map_err(relay_failed)?;
        let through = relay.path().to_owned();
        let paths = Paths::in_folder(&beside.runtime.dir);
        let target = paths.incoming_cpr();
        let ways = self.ways(record, &beside.runtime);
        let from = live.runtime().taps.clone();
        let (vms, runtime) = (Arc::clone(self), tokio::runtime::Handle::current());
        let guarded = Arc::clone(beside);
        let relayed = tokio::task::spawn_blocking(move || {
            let mut steered = Ok(());
            let gate = || steered = runtime.block_on(vms.steer_through(&guarded, &from, &ways));
            relay.run(&target, limit, gate)?;
            Ok::<_, fermata_vault::relay::RelayError>(steered)
        });
        let handed = handover::hand_over_through(live.qmp(), &beside.process, &paths, &through, limit);
        let handed = handed.await.map_err(|source| VmError::Handover { name: name.clone(), source })?;
        relayed.await.map_err(|_| VmError::Inside)?.map_err(relay_failed)??;
        Ok(handed)
    }

    /// By [`Way::File`]: nothing announces STOP, but it follows the order at once, because memory stays where it is.
    async fn pass_file(
        &self,
        record: &VmRecord,
        live: &Live,
        beside: &Beside,
        limit: Duration,
    ) -> Result<HandedOver, VmError> {
        self.steer_through(beside, &live.runtime().taps, &self.ways(record, &beside.runtime)).await?;
        let paths = Paths::in_folder(&beside.runtime.dir);
        let monitor = beside.qmp();
        let handed = Way::File.hand_over(live.qmp(), &beside.process, monitor.as_ref(), &paths, limit);
        handed.await.map_err(|source| VmError::Handover { name: record.definition.name.clone(), source })
    }

    /// Lets the VM run in the new VMM and makes that the VM's own. When its vCPUs ran again.
    ///
    /// # Errors
    /// [`VmError`].
    pub(crate) async fn resume_new(
        self: &Arc<Self>,
        name: &VmName,
        limit: Duration,
    ) -> Result<Option<Timestamp>, VmError> {
        let until = Instant::now() + limit;
        let slot = self.slot(name);
        let _turn = slot.operation.lock().await;
        let record = self.record(name).await?;
        let failed = |source| VmError::Qmp { name: name.clone(), act: "run in the new VMM", source };
        let Some(beside) = slot.beside() else {
            if record.beside.is_some() {
                return Err(VmError::NoneBeside(name.clone()));
            }
            if let Some(live) = slot.live()
                && live.run_state(limit).await.map_err(failed)?
            {
                return Ok(None);
            }
            // Found dead by this agent when it started.
            self.never_run_again(&slot, &record).await?;
            return Err(failed(QmpError::Closed { command: "cont" }));
        };
        if record.runtime.as_ref().is_some_and(|r| r.generation > beside.runtime.generation) {
            // An earlier attempt got this far: the record has changed over already.
            let live = running(&slot, name, &record).await?;
            return handover::resume(live.qmp(), limit).await.map_err(failed);
        }
        let (qmp, resumed) = match self.let_successor_run(&slot, &beside, limit).await {
            Ok(done) => done,
            Err(source) if !beside.may_have_run.load(Ordering::Acquire) => {
                let gone = beside.process.kill_for_certain(END_LIMIT).await;
                gone.map_err(|source| VmError::Process { name: name.clone(), source })?;
                return Err(VmError::NeverRan { name: name.clone(), source });
            }
            Err(source) => {
                let alive = Process::find(beside.process.identity());
                if alive.map_err(|source| VmError::Process { name: name.clone(), source })?.is_none() {
                    self.never_run_again(&slot, &record).await?;
                }
                return Err(failed(source));
            }
        };
        if let Some(haste) = beside.hurry(None) {
            haste.arrived();
        }
        if let Some(old) = slot.live() {
            self.hand_frames_on(&old);
        }
        for (nic, tap) in beside.runtime.taps.iter().enumerate() {
            self.links.release(tap.as_str()).await.map_err(|source| VmError::Nic { nic, source })?;
        }
        leave_alone(until.saturating_duration_since(Instant::now())).await;
        self.change_over(&slot, &record, &beside, qmp).await?;
        Ok(resumed)
    }

    async fn let_successor_run(
        &self,
        slot: &Slot,
        beside: &Beside,
        limit: Duration,
    ) -> Result<(Qmp, Option<Timestamp>), QmpError> {
        let by = slot.maintenance().unwrap_or_default();
        let qmp = match beside.qmp() {
            Some(qmp) => qmp,
            None => Qmp::connect(&Paths::in_folder(&beside.runtime.dir).qmp(), limit).await?,
        };
        let now_it_may = || {
            beside.may_have_run.store(true, Ordering::Release);
            if let Err(error) = witness::may_run(&beside.runtime.dir, &by) {
                tracing::warn!(unit = %beside.runtime.unit, %error, "not noted that the VM runs in its new VMM");
            }
        };
        let resumed = handover::resume_noting(&qmp, limit, now_it_may).await?;
        Ok((qmp, resumed))
    }

    async fn change_over(
        self: &Arc<Self>,
        slot: &Slot,
        record: &VmRecord,
        beside: &Arc<Beside>,
        qmp: Qmp,
    ) -> Result<(), VmError> {
        let name = &record.definition.name;
        let Some(old) = slot.live() else { return Err(VmError::NoneBeside(name.clone())) };
        let io = |source| VmError::Io { what: "copy descriptors of", path: beside.runtime.dir.clone(), source };
        let lent = Lent {
            memory: old.lent().memory.try_clone().map_err(io)?,
            queues: beside.queues.iter().map(Queue::try_clone).collect::<Result<_, _>>().map_err(io)?,
        };
        let process =
            Process::open(beside.process.pid()).map_err(|source| VmError::Process { name: name.clone(), source })?;
        // Switches beyond the bridge learn the way by this; the bridge knows it already.
        let announce = qmp::AnnounceSelf { initial: 50, max: 550, rounds: 5, step: 50 };
        if let Err(error) = qmp.execute(&announce).await {
            tracing::warn!(vm = %name, error = crate::chain(&error), "not announced to the switches");
        }
        let new = Live::new(process, qmp, beside.runtime.clone(), lent);
        let old_process =
            Process::open(old.process().pid()).map_err(|source| VmError::Process { name: name.clone(), source })?;
        let was = Beside {
            process: old_process,
            runtime: old.runtime().clone(),
            queues: Vec::new(),
            qmp: Mutex::new(Some(old.qmp().clone())),
            gate: AsyncMutex::new(Gate::Shut),
            may_have_run: AtomicBool::new(true),
            haste: Mutex::new(None),
        };
        let key = name.clone();
        self.db(move |db| db.change_over(&key)).await?;
        slot.set_beside(Some(Arc::new(was)));
        self.take_up(name, new);
        Ok(())
    }

    /// Lets the VM run in the VMM it is in: after a hold, or when nothing was handed over. When its vCPUs ran again.
    ///
    /// # Errors
    /// [`VmError`].
    pub(crate) async fn resume_old(&self, name: &VmName, limit: Duration) -> Result<Option<Timestamp>, VmError> {
        let slot = self.slot(name);
        let _turn = slot.operation.lock().await;
        let record = self.record(name).await?;
        let live = running(&slot, name, &record).await?;
        let failed = |source| VmError::Qmp { name: name.clone(), act: "run again", source };
        handover::resume(live.qmp(), limit).await.map_err(failed)
    }

    /// Stops the VM's vCPUs. When they stopped; `None` when they stood already.
    ///
    /// # Errors
    /// [`VmError`].
    pub(crate) async fn hold(&self, name: &VmName, limit: Duration) -> Result<Option<Timestamp>, VmError> {
        let slot = self.slot(name);
        let _turn = slot.operation.lock().await;
        let record = self.record(name).await?;
        let live = running(&slot, name, &record).await?;
        let failed = |source| VmError::Qmp { name: name.clone(), act: "be held", source };
        let mut events = live.qmp().events();
        if !live.qmp().execute_within(&qmp::QueryStatus {}, limit).await.map_err(failed)?.running {
            return Ok(None);
        }
        live.qmp().execute_within(&qmp::Stop {}, limit).await.map_err(failed)?;
        let stop = events.find(|event| (event.kind == qmp::EventKind::Stop).then_some(event.at));
        Ok(tokio::time::timeout(limit, stop).await.ok().flatten())
    }
}

pub(super) async fn running(slot: &Slot, name: &VmName, record: &VmRecord) -> Result<Arc<Live>, VmError> {
    match slot.live() {
        Some(live) => Ok(live),
        None => Err(VmError::WrongState {
            name: name.clone(),
            state: super::view::state(slot, record).await,
            needed: "running",
            act: "change its VMM",
        }),
    }
}
