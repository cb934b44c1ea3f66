//! Maintenance on this host: the shell around the state machine of `fermata-maintenance`.
//!
//! ```text
//!  update file -> facts -> choice (check) -> order -> driver task: state machine <-> acts on VMs, units, clocks
//!                                                          |
//!                                                       journal
//! ```
//!
//! One maintenance at a time has the host. When the agent starts, unfinished ones go on or go back from what the journal
//! says, before anybody may act on their VMs.

mod acts;
mod announce;
mod clock;
mod dead_man;
mod facts;
mod foresee;
mod halt;
mod hear;
mod initrd;
mod kernel;
pub(crate) mod modules;
mod steps;
mod target;
mod time;
mod way_back;

pub(crate) use way_back::look as look_for_the_way_back;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fermata_maintenance::dead_man::Client;
use fermata_maintenance::id::{BootId, IdError, MaintenanceId};
use fermata_maintenance::journal::{Journal, JournalError, Listed};
use fermata_maintenance::machine::{Act, ActId, ActResult, Input, Maintenance, Op, Stage, StartError, State};
use fermata_maintenance::mechanism::{self, Choice};
use fermata_maintenance::order::{Order, OrderError};
use fermata_maintenance::report::Report;
use fermata_maintenance::update::{Change, Update, UpdateError};
use fermata_model::{Mechanism, VmmVersion};
use tokio::sync::{Mutex as AsyncMutex, Notify, mpsc};
use tokio::task::{AbortHandle, JoinSet};

use crate::first;
use crate::urgency;
use crate::vms::{VmError, Vms};

/// Why a maintenance was not begun, or cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum MaintainError {
    /// The update file.
    #[error("update file: {0}")]
    Update(#[from] UpdateError),
    /// Some VM cannot take part, or it would be harsher than allowed.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// The journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The journal, at the first entry or at replay.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Another one is at work.
    #[error(
        "maintenance {0} is under way on this host; wait for its end, or abort it (`fermata maintenance abort {0}`)"
    )]
    Busy(MaintenanceId),
    /// None of that name.
    #[error("maintenance `{0}` does not exist; `fermata maintenance list` shows those that do")]
    NoSuch(String),
    /// It is over.
    #[error("maintenance {0} is over; nothing is left to abort")]
    Over(MaintenanceId),
    /// An identity that cannot be one.
    #[error(transparent)]
    Id(#[from] IdError),
    /// VMs or their facts.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The VMM that an update brings.
    #[error("update file: `binary` {}: {reason}", binary.display())]
    Binary {
        /// The file.
        binary: PathBuf,
        /// What is wrong with it, and the way out.
        reason: String,
    },
    /// The kernel that an update changes to.
    #[error("update file: `image` {}: {reason}; nothing was begun", image.display())]
    Kernel {
        /// The file.
        image: PathBuf,
        /// Why it could not be entered.
        reason: String,
    },
    /// It cannot be written down that this host has a VMM now.
    #[error("VMM {version} cannot be written down in the agent's state folder; nothing was begun")]
    Bring {
        /// The VMM.
        version: VmmVersion,
        /// Why not.
        source: std::io::Error,
    },
}

impl MaintainError {
    /// The kind of error, for programs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Update(_) | Self::Binary { .. } | Self::Kernel { .. } => "bad-update",
            Self::Bring { .. } => "not-begun",
            Self::Order(_) => "refused",
            Self::Journal(_) => "journal-failed",
            Self::Start(_) => "not-begun",
            Self::Busy(_) => "busy",
            Self::NoSuch(_) => "no-such-maintenance",
            Self::Over(_) => "over",
            Self::Id(_) => "bad-id",
            Self::Vm(error) => error.code(),
        }
    }
}

/// What somebody else decided about a maintenance.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// Its name; so that one that was begun is found again.
    pub id: Option<MaintenanceId>,
    /// Guests have been told, and their notice is over.
    pub noticed: bool,
    /// Never harsher than this, whatever the file allows.
    pub harshest: Option<Mechanism>,
}

/// Maintenance on this host.
#[derive(Debug)]
pub struct Maintain {
    vms: Arc<Vms>,
    journal: PathBuf,
    boot: BootId,
    /// The one that has the host, and the way to tell it something.
    active: Mutex<Option<Active>>,
    /// Told when it no longer has.
    over: Notify,
    /// The process that frees VMs when this one does not, while there is one.
    dead_man: AsyncMutex<Option<Client>>,
}

#[derive(Debug, Clone)]
struct Active {
    id: MaintenanceId,
    inputs: mpsc::UnboundedSender<Input>,
}

impl Maintain {
    /// Maintenance with its journal in the agent's state folder.
    ///
    /// # Errors
    /// [`MaintainError::Journal`].
    pub fn open(vms: Arc<Vms>) -> Result<Arc<Self>, MaintainError> {
        let journal = vms.config().state_dir.join("journal.db");
        Journal::open(&journal)?;
        let boot = vms.boot().to_string().parse()?;
        Ok(Arc::new(Self {
            vms,
            journal,
            boot,
            active: Mutex::default(),
            over: Notify::new(),
            dead_man: AsyncMutex::default(),
        }))
    }

    /// Goes on with what an earlier agent began, or goes back. Their VMs are reserved when this returns.
    ///
    /// # Errors
    /// [`MaintainError`] when the journal cannot be read.
    pub async fn recover(self: &Arc<Self>) -> Result<(), MaintainError> {
        let journal = Journal::open(&self.journal)?;
        for id in journal.unfinished()? {
            let entries = journal.entries(&id)?;
            let log = Journal::open(&self.journal)?;
            tracing::warn!(maintenance = %id, "goes on after a restart of the agent");
            let (maintenance, acts) = Maintenance::recover(&entries, self.boot.clone(), log, time::now())?;
            self.drive(maintenance, acts);
        }
        Ok(())
    }

    /// What an update would do here; nothing is done.
    ///
    /// # Errors
    /// [`MaintainError::Update`] when the file is not sound.
    pub async fn check(&self, file: &str) -> Result<(Update, Choice), MaintainError> {
        let update = Update::from_toml(file)?;
        if let Change::Vmm { version, binary: Some(binary), .. } = &update.change
            && let Err(reason) = self.vms.examine_vmm(*version, binary).await
        {
            return Err(MaintainError::Binary { binary: binary.clone(), reason });
        }
        let choice = self.choose(&update).await?;
        Ok((update, choice))
    }

    async fn choose(&self, update: &Update) -> Result<Choice, MaintainError> {
        let history = Journal::open(&self.journal)?.history()?;
        let (host, vms) = facts::gather(&self.vms, history, update).await?;
        Ok(mechanism::choose(update, &host, &vms))
    }

    /// Begins a maintenance; it goes on by itself.
    ///
    /// # Errors
    /// A refusal that has changed nothing.
    pub async fn apply(self: &Arc<Self>, file: &str) -> Result<MaintenanceId, MaintainError> {
        self.apply_as(file, Terms::default()).await
    }

    /// The same under terms that somebody else decided.
    ///
    /// # Errors
    /// A refusal that has changed nothing.
    pub async fn apply_as(self: &Arc<Self>, file: &str, terms: Terms) -> Result<MaintenanceId, MaintainError> {
        let (mut update, choice) = self.check(file).await?;
        let journal = Journal::open(&self.journal)?;
        journal.check_identity(&update.id, update.digest)?;
        for told in self.foresee(&update, &choice).await? {
            tracing::info!(update = %update.id, "{told}");
        }
        let now = time::now();
        let id = match terms.id {
            Some(id) => id,
            None => format!("{}-{}", update.id, now.wall.0 / 1_000_000).parse()?,
        };
        if terms.noticed {
            update.notice = Duration::ZERO;
        }
        update.harshest = terms.harshest.map_or(update.harshest, |harshest| harshest.min(update.harshest));
        let gate = announce::gate(self, now.wall.after(update.notice));
        let brought = match &update.change {
            Change::Vmm { version, binary, .. } => binary.clone().map(|binary| (*version, binary)),
            _ => None,
        };
        update.parallelism = foresee::at_once(&update);
        // One more than processors: while one waits for its disk, another can work.
        let restores = foresee::processors() + 1;
        let order = Order::new(id.clone(), update, choice, gate)?.restoring_at_once(restores);
        if let Some(active) = self.active() {
            return Err(MaintainError::Busy(active.id));
        }
        if let Some((version, binary)) = brought {
            self.vms.bring_vmm(version, &binary).map_err(|source| MaintainError::Bring { version, source })?;
        }
        let (maintenance, acts) = Maintenance::begin(order, self.boot.clone(), journal, now)?;
        self.drive(maintenance, acts);
        Ok(id)
    }

    /// Asks a maintenance to take back what can be taken back.
    ///
    /// # Errors
    /// [`MaintainError::NoSuch`], [`MaintainError::Over`].
    pub fn abort(&self, id: &str, by: String, reason: String) -> Result<(), MaintainError> {
        match self.active().filter(|active| active.id.as_str() == id) {
            Some(active) => active.inputs.send(Input::Abort { by, reason }).map_err(|_| MaintainError::Over(active.id)),
            None => Err(MaintainError::Over(self.report(id)?.maintenance)),
        }
    }

    /// All maintenances of this host, newest first.
    ///
    /// # Errors
    /// [`MaintainError::Journal`].
    pub fn list(&self) -> Result<Vec<Listed>, MaintainError> {
        Ok(Journal::open_to_read(&self.journal)?.list()?)
    }

    /// What happened in a maintenance, also while it runs.
    ///
    /// # Errors
    /// [`MaintainError::NoSuch`].
    pub fn report(&self, id: &str) -> Result<Report, MaintainError> {
        let no_such = || MaintainError::NoSuch(id.to_owned());
        let parsed: MaintenanceId = id.parse().map_err(|_| no_such())?;
        let entries = Journal::open_to_read(&self.journal)?.entries(&parsed)?;
        Report::of(&entries).map_err(|_| no_such())
    }

    /// Waits until no maintenance has the host.
    pub(crate) async fn idle(&self) {
        loop {
            let over = self.over.notified();
            if self.active().is_none() {
                return;
            }
            over.await;
        }
    }

    /// Whether a maintenance has the host.
    pub(crate) fn is_at_work(&self) -> bool {
        self.active().is_some()
    }

    fn active(&self) -> Option<Active> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn drive(self: &Arc<Self>, maintenance: Maintenance<Journal>, acts: Vec<Act>) {
        let (inputs, told) = mpsc::unbounded_channel();
        let id = maintenance.state().order.id.clone();
        for vm in maintenance.state().order.vms.iter().filter(|plan| plan.forecast.upper > Duration::ZERO) {
            self.vms.reserve(&vm.vm, Some(id.as_str()));
        }
        let active = Active { id, inputs };
        announce::wait_again(self, maintenance.state(), &active);
        *self.active.lock().unwrap_or_else(PoisonError::into_inner) = Some(active);
        let driver =
            Driver { shell: Arc::clone(self), maintenance, told, running: JoinSet::new(), aborts: BTreeMap::new() };
        tokio::spawn(driver.run(acts));
    }

    /// Looks after what the metadata service was not told, whenever it is found again, until the task is dropped.
    pub async fn run_events(self: Arc<Self>) {
        let Some(events) = self.vms.events() else { return };
        let found = Arc::new(Notify::new());
        tokio::spawn(Arc::clone(&events).run(Arc::clone(&found)));
        loop {
            found.notified().await;
            if let Err(error) = announce::end_left(&self, &events).await {
                tracing::warn!(error = crate::chain(&error), "events of former maintenances were not ended");
            }
        }
    }

    /// A rehearsal that was cut short leaves its twins.
    async fn end_twins(&self, state: &State) {
        // Before there is a service manager, all there was has ended with the kernel before.
        let with_twins = matches!(state.order.update.change, Change::Vmm { .. } | Change::Kernel(_));
        if !with_twins || first::is_alone() {
            return;
        }
        for vm in &state.order.vms {
            if let Err(error) = self.vms.end_twins(&vm.vm).await {
                tracing::warn!(vm = %vm.vm, error = crate::chain(&error), "a twin may be left of its rehearsal");
            }
        }
    }

    fn finished(&self, state: &State, journal: &mut Journal) {
        let id = &state.order.id;
        for vm in &state.order.vms {
            self.vms.reserve(&vm.vm, None);
        }
        *self.active.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.over.notify_waiters();
        let measured = journal.entries(id).ok().and_then(|entries| Report::of(&entries).ok()).map(|r| r.measured());
        if let Err(error) = journal.record(&measured.unwrap_or_default()) {
            tracing::warn!(maintenance = %id, error = crate::chain(&error), "measurements not kept for forecasts");
        }
        tracing::info!(maintenance = %id, outcome = ?state.outcome, "over");
    }
}

/// Whether guests were told, and may not have answered yet.
fn was_announced(state: &State) -> bool {
    state.stage == Stage::Announced
}

/// How long `Started` is visible before the first pause where no metadata service is configured (the service's rule 32).
const LEAD: Duration = Duration::from_secs(2);

/// The task that drives one maintenance.
struct Driver {
    shell: Arc<Maintain>,
    maintenance: Maintenance<Journal>,
    told: mpsc::UnboundedReceiver<Input>,
    running: JoinSet<(ActId, ActResult)>,
    /// What is under way per VM; taking a VM back cancels it.
    aborts: BTreeMap<ActId, AbortHandle>,
}

impl Driver {
    async fn run(mut self, first: Vec<Act>) {
        let mut ends = self.shell.vms.hear_of_ends();
        urgency::vms_stand(self.maintenance.state().in_pause());
        self.begin(first);
        while self.maintenance.state().outcome.is_none() {
            let wake = self.maintenance.wake_at(time::now());
            for input in hear::next(&mut self.running, &mut self.told, &mut ends, wake).await {
                self.take(input);
            }
        }
        urgency::vms_stand(false);
        while self.running.join_next().await.is_some() {}
        let state = self.maintenance.state().clone();
        dead_man::end(&self.shell, &state.order.id).await;
        self.shell.end_twins(&state).await;
        self.shell.finished(&state, &mut self.maintenance.into_log());
    }

    fn take(&mut self, input: Input) {
        if let Input::Ended { act, .. } = &input {
            self.aborts.remove(act);
        }
        let resumed = match &input {
            Input::Ended { act: ActId { vm: Some(vm), op: Op::Resume, .. }, .. } => Some(vm.clone()),
            _ => None,
        };
        let handle = || self.maintenance.handle(input, time::now());
        let acts = tokio::task::block_in_place(handle);
        if let Some(vm) = resumed {
            // When the journal has it, and not before: an agent that ends in between would leave the pause to be guessed.
            first::arrives(&vm);
        }
        // Before what follows from it begins.
        urgency::vms_stand(self.maintenance.state().in_pause());
        self.begin(acts);
        let state = self.maintenance.state();
        match (state.in_pause(), state.a_clock_is_behind()) {
            (true, _) => {}
            (false, true) => first::let_others_start_soon(),
            (false, false) => first::let_others_start("no VM stands"),
        }
    }

    fn begin(&mut self, acts: Vec<Act>) {
        for act in acts {
            if act.id.op == Op::TakeBack {
                let same_vm = |(id, _): &(&ActId, &AbortHandle)| id.vm == act.id.vm;
                self.aborts.iter().filter(same_vm).for_each(|(_, handle)| handle.abort());
            }
            let (shell, state, id) = (Arc::clone(&self.shell), self.maintenance.state().clone(), act.id.clone());
            let work = async move {
                let id = act.id.clone();
                let run_dir = shell.vms.config().run_dir.as_path();
                halt::here(run_dir, halt::Side::Before, id.op);
                let result = acts::perform(&shell, &state, &act).await;
                halt::here(run_dir, halt::Side::After, id.op);
                if let Err(failure) = &result {
                    tracing::warn!(act = %id, reason = failure.text, "failed");
                }
                (id, result)
            };
            self.aborts.insert(id, self.running.spawn(work));
        }
    }
}
