//! A virtual host: virtual VMs, a virtual clock, faults on demand. It asserts the promises at every single effect, so
//! that each test only has to choose what goes wrong.

use std::collections::BTreeMap;
use std::time::Duration;

use fermata_maintenance::clock::ClockOutcome;
use fermata_maintenance::id::{BootId, MaintenanceId};
use fermata_maintenance::machine::{
    Act, ActResult, Durability, Entry, Evidence, Failure, FailureKind, Input, Log, LogFailure, Op, Owner, Stage,
    Stamped, State, VmPhase,
};
use fermata_maintenance::mechanism::{HostFacts, VmFacts, VmmFacts, choose};
use fermata_maintenance::order::{Gate, Keeper, Order};
use fermata_maintenance::time::{Mono, Now, Wall};
use fermata_maintenance::update::{Section, Update};
use fermata_model::{Mechanism, PauseBudget, VmName};

/// The journal of the virtual host.
#[derive(Debug, Default, Clone)]
pub(crate) struct Disk {
    pub(crate) entries: Vec<Stamped>,
    /// How many of them a power cut leaves.
    pub(crate) synced: usize,
    pub(crate) full: bool,
    pub(crate) appends: usize,
}

impl Log for Disk {
    fn append(
        &mut self,
        _: &MaintenanceId,
        first: u64,
        new: &[Stamped],
        durability: Durability,
    ) -> Result<(), LogFailure> {
        if self.full {
            return Err(LogFailure { text: "the disk is full".to_owned(), superseded: false });
        }
        assert_eq!(usize::try_from(first).unwrap(), self.entries.len(), "entries are numbered without gaps");
        self.entries.extend(new.iter().cloned());
        self.appends += 1;
        if durability == Durability::Power {
            self.synced = self.entries.len();
        }
        Ok(())
    }
}

/// What goes wrong with one act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing.
    Works,
    /// It says so, without an effect.
    Fails,
    /// It has its effect, and says it failed.
    FailsAfterwards,
    /// It takes two seconds longer.
    Slow,
    /// It never answers, and has no effect.
    Hangs,
    /// It has its effect and never answers.
    HangsAfterwards,
}

/// What goes wrong with the whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blow {
    Nothing,
    /// `kill -9` of the agent.
    AgentDies,
    /// The agent stops doing anything for this long; the dead-man is there for that.
    AgentStuck(Duration),
    /// Power cut.
    PowerCut,
    /// The journal's disk is full for this long.
    DiskFull(Duration),
    /// Somebody aborts.
    Abort,
    /// This VM (by index) ends by itself.
    VmDies(usize),
    /// The VMM that shall take this VM (by index) over ends by itself.
    SuccessorDies(usize),
    /// The journal's file system loses what was not synced, and the agent dies; VMs live on.
    TailLost,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Vmm {
    pub(crate) alive: bool,
    pub(crate) running: bool,
    pub(crate) loaded: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Vm {
    pub(crate) old: Vmm,
    pub(crate) new: Vmm,
    /// The new one executed guest code: the old one's memory is history.
    pub(crate) new_ran: bool,
    /// As far as the agent that lives now can tell: one that was started since can not.
    pub(crate) may_have_run: bool,
    pub(crate) saved: bool,
    pub(crate) started_anew: bool,
    pub(crate) died: bool,
    pub(crate) stopped_at: Option<u64>,
    pub(crate) longest_pause: u64,
    pub(crate) budget: PauseBudget,
    pub(crate) mechanism: Mechanism,
    pub(crate) clock_set: bool,
    /// How far the guest's clock is behind, in microseconds: it stands while the vCPUs do.
    pub(crate) behind_us: u64,
}

impl Vm {
    pub(crate) fn running(&self) -> bool {
        self.old.running || self.new.running
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    Before,
    Half,
    Changed,
    Undone,
}

struct Flight {
    act: Act,
    owner: Owner,
    fault: Fault,
    /// Its agent is dead: the effect may come, the answer will not.
    orphan: bool,
}

pub(crate) struct World {
    pub(crate) now: u64,
    boot: u32,
    pub(crate) vms: BTreeMap<VmName, Vm>,
    pub(crate) host: Effect,
    pub(crate) step_running: Option<Section>,
    pub(crate) started_published: bool,
    pub(crate) events_ended: bool,
    flights: Vec<(u64, Flight)>,
    dead_man: BTreeMap<Option<VmName>, u64>,
    pub(crate) dead_man_fired: bool,
    freed: BTreeMap<VmName, Mono>,
    pub(crate) order: Order,
    update: Update,
    facts: (HostFacts, Vec<VmFacts>),
    rng: u64,
    pub(crate) trace: Vec<String>,
}

const START: u64 = 1_000_000_000;
const WALL: u64 = 1_700_000_000_000_000;

pub(crate) fn vm_name(index: usize) -> VmName {
    format!("vm-{index}").parse().unwrap()
}

pub(crate) const SWAP: &str = "id = \"qemu-11.1\"\ntitle = \"QEMU 11.1\"\nkind = \"vmm\"\nnotice_s = 60\n\
    [change]\nvmm = \"11.1\"\n[[prepare]]\ncommand = [\"/bin/install\"]\n[[verify]]\ncommand = [\"/bin/verify\"]\n\
    [[undo]]\ncommand = [\"/bin/uninstall\"]\n";
pub(crate) const HOLD: &str = "id = \"ovs\"\ntitle = \"Open vSwitch\"\nkind = \"service\"\nnotice_s = 60\n\
    [change]\ncommand = [\"/bin/restart\"]\ntimeout_ms = 1500\n[[prepare]]\ncommand = [\"/bin/install\"]\n\
    [[verify]]\ncommand = [\"/bin/verify\"]\n[[undo]]\ncommand = [\"/bin/back\"]\ntimeout_ms = 500\n";
pub(crate) const PACKAGE: &str = "id = \"tzdata\"\ntitle = \"Time zones\"\nkind = \"package\"\nnotice_s = 0\n\
    [change]\ncommand = [\"/bin/install\"]\n[[verify]]\ncommand = [\"/bin/verify\"]\n[[undo]]\ncommand = [\"/bin/back\"]\n";
pub(crate) const KERNEL: &str = "id = \"linux-7.2\"\ntitle = \"Linux 7.2\"\nkind = \"kernel\"\nnotice_s = 60\n\
    [change]\nimage = \"/boot/vmlinuz-7.2\"\n[[prepare]]\ncommand = [\"/bin/install\"]\n\
    [[verify]]\ncommand = [\"/bin/verify\"]\n[[undo]]\ncommand = [\"/bin/uninstall\"]\n";

/// Every other VM cannot be kept and is shut down instead.
pub(crate) const REBOOT: &str = "id = \"linux-7.3\"\ntitle = \"Linux 7.3\"\nkind = \"kernel\"\nnotice_s = 60\n\
    harshest = \"reboot\"\non_refusal = \"shutdown\"\n[change]\nimage = \"/boot/vmlinuz-7.3\"\n\
    [[verify]]\ncommand = [\"/bin/verify\"]\n";

pub(crate) fn facts(vms: usize, budget_ms: u64) -> (HostFacts, Vec<VmFacts>) {
    let vmm = |_| VmmFacts {
        unusable: None,
        machines: ["pc-q35-10.0".parse().unwrap()].into(),
        cpr_transfer: true,
        cpr_reboot: true,
    };
    let host = HostFacts {
        vmms: ["10.0", "11.1"].into_iter().map(|v| (v.parse().unwrap(), vmm(v))).collect(),
        ..HostFacts::default()
    };
    let vm = |index| VmFacts {
        vm: vm_name(index),
        vmm: "10.0".parse().unwrap(),
        machine: "pc-q35-10.0".parse().unwrap(),
        shared_memory: true,
        memory_outlives_kernel: true,
        blockers: Vec::new(),
        pass_through: Vec::new(),
        budget: PauseBudget::try_from(budget_ms).unwrap(),
        paused: false,
    };
    (host, (0..vms).map(vm).collect())
}

impl World {
    pub(crate) fn new(update: &str, vms: usize, budget_ms: u64, seed: u64) -> Self {
        let update = Update::from_toml(update).unwrap();
        let mut facts = facts(vms, budget_ms);
        if update.harshest == Mechanism::Reboot {
            facts.1.iter_mut().step_by(2).for_each(|vm| vm.memory_outlives_kernel = false);
        }
        let choice = choose(&update, &facts.0, &facts.1);
        let gate = Gate { not_before: Wall(WALL + 60_000_000), lead: Duration::from_secs(5), keeper: Keeper::Clock };
        let order = Order::new("m-1".parse().unwrap(), update.clone(), choice, gate).unwrap();
        let running = Vmm { alive: true, running: true, loaded: true };
        let vm = |plan: &fermata_maintenance::mechanism::VmPlan| {
            let vm = Vm {
                old: running.clone(),
                new: Vmm::default(),
                new_ran: false,
                may_have_run: false,
                saved: false,
                started_anew: false,
                died: false,
                stopped_at: None,
                longest_pause: 0,
                budget: plan.budget,
                mechanism: plan.mechanism,
                clock_set: true,
                behind_us: 0,
            };
            (plan.vm.clone(), vm)
        };
        Self {
            now: START,
            boot: 1,
            vms: order.vms.iter().map(vm).collect(),
            host: Effect::Before,
            step_running: None,
            started_published: false,
            events_ended: false,
            flights: Vec::new(),
            dead_man: BTreeMap::new(),
            dead_man_fired: false,
            freed: BTreeMap::new(),
            order,
            update,
            facts,
            rng: seed | 1,
            trace: Vec::new(),
        }
    }

    pub(crate) fn time(&self) -> Now {
        Now { mono: Mono(self.now), wall: Wall(WALL + self.now - START) }
    }

    pub(crate) fn boot_id(&self) -> BootId {
        format!("boot-{}", self.boot).parse().unwrap()
    }

    fn random(&mut self, below: u64) -> u64 {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        self.rng % below
    }

    /// Another series of latencies.
    pub(crate) fn stir(&mut self) {
        self.random(2);
    }

    pub(crate) fn kernel_is_new(&self) -> bool {
        self.host == Effect::Changed
    }

    pub(crate) fn note(&mut self, text: impl Into<String>) {
        let at = (self.now - START) as f64 / 1e6;
        self.trace.push(format!("{at:>10.6} {}", text.into()));
    }

    fn stop(&mut self, name: &VmName) {
        let now = self.now;
        let vm = self.vms.get_mut(name).unwrap();
        if vm.running() && vm.stopped_at.is_none() {
            vm.stopped_at = Some(now);
        }
        vm.old.running = false;
        vm.clock_set = false;
    }

    fn runs(&mut self, name: &VmName) {
        let now = self.now;
        let vm = self.vms.get_mut(name).unwrap();
        assert!(!(vm.old.running && vm.new.running), "P1: two VMMs run VM {name}");
        if let Some(stopped) = vm.stopped_at.take() {
            vm.longest_pause = vm.longest_pause.max(now - stopped);
            vm.behind_us += now - stopped;
        }
    }

    fn let_old_run(&mut self, name: &VmName) -> Result<(), Failure> {
        let vm = self.vms.get_mut(name).unwrap();
        if !vm.old.alive {
            let kept = vm.mechanism == Mechanism::Kexec && vm.saved && !vm.new_ran;
            let kind = if kept { FailureKind::NeverRan } else { FailureKind::VmmDead };
            return Err(Failure { kind, text: "the VMM is dead".to_owned() });
        }
        assert!(!vm.new.running, "P1: the old VMM of {name} would run beside the new one");
        assert!(!vm.new_ran, "P1: the old VMM of {name} would run on memory that the new one has changed");
        vm.old.running = true;
        vm.saved = false;
        self.runs(name);
        Ok(())
    }

    fn let_new_run(&mut self, name: &VmName) -> Result<(), Failure> {
        let vm = self.vms.get_mut(name).unwrap();
        if !vm.new.alive {
            // After a change of the kernel there is no old one.
            let kept = vm.mechanism == Mechanism::Kexec && vm.saved && !vm.new_ran;
            if kept || (!vm.may_have_run && vm.mechanism == Mechanism::Swap) {
                return Err(Failure { kind: FailureKind::NeverRan, text: "the new VMM is dead".to_owned() });
            }
            // As the real one: a VMM whose picture of the VM may be history never runs it again.
            vm.old = Vmm::default();
            vm.died = true;
            vm.stopped_at = None;
            return Err(Failure { kind: FailureKind::VmmDead, text: "the VMM is dead".to_owned() });
        }
        assert!(vm.new.loaded, "the new VMM of {name} would run without the VM's state");
        assert!(!vm.old.running, "P1: the new VMM of {name} would run beside the old one");
        vm.new.running = true;
        vm.new_ran = true;
        vm.may_have_run = true;
        self.runs(name);
        Ok(())
    }

    /// Begins an act: its early effects happen now, the others when it ends.
    pub(crate) fn begin(&mut self, act: Act, state: &State, disk: &Disk, fault: Fault) {
        let in_journal = |stamped: &Stamped| matches!(&stamped.entry, Entry::Began(began) if began.id == act.id);
        let rescue = [Op::TakeBack, Op::Resume, Op::Restore, Op::DisarmDeadMan, Op::SetClock].contains(&act.id.op);
        assert!(
            disk.entries.iter().any(in_journal) || (rescue && state.adrift.is_some()),
            "P6: {} is not in the journal",
            act.id
        );
        let owner = act.id.vm.as_ref().map_or(Owner::Old, |vm| state.vms[vm].owner);
        if let Some(vm) = &act.id.vm {
            let mechanism = self.vms[vm].mechanism;
            let allowed = match act.id.op {
                Op::Hold => mechanism == Mechanism::Hold,
                Op::HandOver | Op::StartNew => mechanism == Mechanism::Swap,
                Op::Save => mechanism == Mechanism::Kexec,
                Op::ShutDown => mechanism == Mechanism::Reboot,
                _ => true,
            };
            assert!(allowed, "P7: {} was never announced ({mechanism})", act.id);
            if matches!(act.id.op, Op::Hold | Op::HandOver | Op::Save) {
                assert!(self.started_published, "{} before Started was published", act.id);
                assert!(self.now >= START + 60_000_000 || state.approved, "P5: {} before NotBefore", act.id);
            }
            if act.id.op == Op::TakeBack {
                assert_eq!(owner, Owner::Old, "P1: taking back VM {vm} that the new VMM owns");
                self.flights.retain(|(_, flight)| flight.act.id.vm.as_ref() != Some(vm));
            }
        }
        let span = match act.id.op {
            Op::Run { section: Section::Change | Section::Undo, .. } => 300_000,
            Op::Jump => 4_000_000,
            Op::Resume | Op::TakeBack | Op::Hold | Op::HandOver => 4_000,
            _ => 40_000,
        };
        let length = 200 + self.random(span) + if fault == Fault::Slow { 2_000_000 } else { 0 };
        self.note(format!("begin {} ({fault:?}, {length} us)", act.id));
        if act.id.op == Op::HandOver && fault != Fault::Hangs && fault != Fault::Fails {
            self.stop(act.id.vm.as_ref().unwrap());
        }
        if act.id.op == Op::StartNew {
            // What an earlier attempt has under way is ended by this one: it is on record.
            self.flights.retain(|(_, flight)| flight.act.id.op != Op::StartNew || flight.act.id.vm != act.id.vm);
        }
        if let Op::Run { section, .. } = act.id.op {
            // The runner ends what an earlier attempt left.
            self.flights.retain(|(_, flight)| !matches!(flight.act.id.op, Op::Run { .. }));
            if matches!(section, Section::Change | Section::Undo) && fault != Fault::Fails {
                self.assert_held(section);
                self.step_running = Some(section);
                self.host = Effect::Half;
            }
        }
        // A runner kills a step at its deadline; a runner that hangs itself is the core's business.
        self.flights.push((self.now + length, Flight { act, owner, fault, orphan: false }));
    }

    fn assert_held(&self, section: Section) {
        for (name, vm) in self.vms.iter().filter(|(_, vm)| vm.mechanism == Mechanism::Hold) {
            assert!(!vm.running(), "{section} step would race with VM {name}");
        }
    }

    /// When the next act ends or the dead-man fires.
    pub(crate) fn next_event(&self) -> Option<u64> {
        let flights = self.flights.iter().filter(|(_, flight)| flight.fault != Fault::Hangs).map(|(at, _)| *at);
        flights.chain(self.dead_man.values().copied()).min()
    }

    /// Ends the acts that are due and returns their answers.
    pub(crate) fn due(&mut self) -> Vec<Input> {
        let mut inputs = Vec::new();
        while let Some(index) =
            self.flights.iter().position(|(at, flight)| *at <= self.now && flight.fault != Fault::Hangs)
        {
            let (_, flight) = self.flights.remove(index);
            // The guest of a VM that stands answers nobody; who asked is dead.
            let standing = |vm: &VmName| flight.act.id.op == Op::SetClock && !self.vms[vm].running();
            if flight.orphan && flight.act.id.vm.as_ref().is_some_and(standing) {
                continue;
            }
            let result = match flight.fault {
                Fault::Fails => Err(Failure::new("made to fail")),
                _ => self.effect(&flight.act, flight.owner),
            };
            let result = match flight.fault {
                Fault::FailsAfterwards => Err(Failure::new("made to fail afterwards")),
                _ => result,
            };
            self.note(format!("end   {} {}", flight.act.id, if result.is_ok() { "ok" } else { "FAILED" }));
            if flight.fault == Fault::HangsAfterwards || flight.orphan {
                continue;
            }
            inputs.push(Input::Ended { act: flight.act.id, result });
        }
        inputs
    }

    fn effect(&mut self, act: &Act, owner: Owner) -> ActResult {
        let wall = self.time().wall;
        let name = act.id.vm.clone();
        let dead = || Failure { kind: FailureKind::VmmDead, text: "the VMM is dead".to_owned() };
        if let Some(name) = &name {
            let vm = self.vms.get_mut(name).unwrap();
            // Ways back tell for themselves what is left of a VM without a VMM.
            let tells = [Op::DiscardNew, Op::DisarmDeadMan, Op::Retire, Op::Restore, Op::Resume, Op::TakeBack];
            if vm.died && !tells.contains(&act.id.op) {
                return Err(dead());
            }
            match act.id.op {
                Op::Hold | Op::Save => {
                    if !vm.old.alive {
                        return Err(dead());
                    }
                    vm.saved = act.id.op == Op::Save;
                    self.stop(name);
                    return Ok(Evidence::Stopped { at: wall });
                }
                Op::StartNew => {
                    assert!(!vm.new_ran);
                    vm.new = Vmm { alive: true, running: false, loaded: false };
                    vm.may_have_run = false;
                }
                Op::HandOver => {
                    if !vm.old.alive || !vm.new.alive {
                        return Err(dead());
                    }
                    vm.new.loaded = true;
                    let stopped = vm.stopped_at.map_or(wall, |at| Wall(WALL + at - START));
                    return Ok(Evidence::Stopped { at: stopped });
                }
                // As the real one: a VMM that runs already has no event to tell.
                Op::Resume => {
                    let at = (!vm.running()).then_some(wall);
                    match owner {
                        Owner::Old => self.let_old_run(name)?,
                        Owner::New => self.let_new_run(name)?,
                    }
                    return Ok(Evidence::Resumed { at });
                }
                // As the real one: that a VM ran in its new VMM is known although the journal may have lost it.
                Op::TakeBack | Op::DiscardNew if vm.new_ran && vm.mechanism == Mechanism::Swap => {
                    return Err(Failure { kind: FailureKind::Ran, text: "it ran in its new VMM".to_owned() });
                }
                Op::TakeBack => {
                    let at = (!vm.running()).then_some(wall);
                    vm.new = Vmm::default();
                    self.let_old_run(name)?;
                    return Ok(Evidence::Resumed { at });
                }
                Op::DiscardNew => {
                    assert!(!vm.new_ran, "P1: VM {name} would lose its memory");
                    vm.new = Vmm::default();
                }
                Op::Retire => {
                    assert!((vm.new_ran || vm.died) && !vm.old.running);
                    vm.old = Vmm::default();
                }
                // As the real one: an earlier attempt, whose answer was late, brought it here.
                Op::Restore if vm.new.alive => {}
                Op::Restore => {
                    if !vm.saved {
                        return Err(Failure { kind: FailureKind::MemoryGone, text: "the vault is empty".to_owned() });
                    }
                    vm.new = Vmm { alive: true, running: false, loaded: true };
                    vm.died = false;
                }
                // Its clock runs ahead a little.
                Op::Rehearse => return Ok(Evidence::Rehearsed { way: None, clock_us: Some(3_000) }),
                Op::ShutDown => {
                    vm.old = Vmm::default();
                    vm.started_anew = true;
                }
                Op::Restart if vm.running() => return Ok(Evidence::Resumed { at: None }),
                Op::Restart => {
                    vm.new = Vmm { alive: true, running: true, loaded: true };
                    vm.new_ran = true;
                    vm.stopped_at = None;
                    vm.clock_set = true;
                }
                Op::SetClock => {
                    assert!(vm.running(), "the clock of a stopped VM {name}");
                    vm.clock_set = true;
                    let before_us = 3_000 - i64::try_from(std::mem::take(&mut vm.behind_us)).unwrap();
                    let outcome = ClockOutcome::Corrected { before_us, after_us: 3_000 };
                    return Ok(Evidence::Clock { outcome });
                }
                _ => {}
            }
        }
        match act.id.op {
            Op::PublishStarted => self.started_published = true,
            Op::EndEvents => {
                let late = self.vms.iter().find(|(_, vm)| !vm.running() && !vm.died && !vm.saved);
                assert!(late.is_none(), "events end while VM {late:?} is down");
                self.events_ended = true;
            }
            Op::Preflight => {
                let (host, vms) = &self.facts;
                let alive: Vec<VmFacts> = vms.iter().filter(|facts| !self.vms[&facts.vm].died).cloned().collect();
                return Ok(Evidence::Preflight { choice: choose(&self.update, host, &alive) });
            }
            Op::ArmDeadMan => {
                self.dead_man.insert(name, act.by.0);
            }
            Op::DisarmDeadMan => {
                self.dead_man.remove(&name);
                let freed = match &act.id.vm {
                    Some(vm) => self.freed.remove_entry(vm).into_iter().collect(),
                    None => std::mem::take(&mut self.freed),
                };
                return Ok(Evidence::DeadMan { fired: self.dead_man_fired, freed });
            }
            Op::CheckKernel if self.host != Effect::Changed => return Err(Failure::new("still the old kernel")),
            Op::KillStep => self.step_running = None,
            Op::Run { section: Section::Change, .. } => {
                self.step_running = None;
                self.host = Effect::Changed;
            }
            Op::Run { section: Section::Undo, .. } => {
                self.step_running = None;
                self.host = Effect::Undone;
            }
            Op::Jump if act.by.0 <= self.now => return Err(Failure::new("too late to jump")),
            Op::Jump | Op::Reboot => {
                for (name, vm) in &self.vms {
                    assert!(
                        vm.saved || vm.mechanism != Mechanism::Kexec || vm.died,
                        "the host would jump while VM {name} is not saved"
                    );
                }
                self.host = Effect::Changed;
                self.new_boot(act.id.op == Op::Jump);
            }
            _ => {}
        }
        Ok(Evidence::Done)
    }

    pub(crate) fn jumped(&self, boot: u32) -> bool {
        self.boot != boot
    }

    pub(crate) fn boot_number(&self) -> u32 {
        self.boot
    }

    fn new_boot(&mut self, memory_kept: bool) {
        self.boot += 1;
        self.note(format!("the host boots (memory kept: {memory_kept})"));
        self.flights.clear();
        self.dead_man.clear();
        self.step_running = None;
        let now = self.now;
        for vm in self.vms.values_mut() {
            if vm.running() {
                vm.stopped_at = Some(now);
            }
            let kept = memory_kept && vm.saved;
            if !kept {
                vm.saved = false;
                vm.started_anew |= !vm.died;
                vm.new_ran = false;
                vm.stopped_at = None;
            }
            vm.old = Vmm::default();
            vm.new = Vmm::default();
        }
    }

    pub(crate) fn power_cut(&mut self, disk: &mut Disk) {
        disk.entries.truncate(disk.synced);
        self.new_boot(false);
        let told = State::replay(&disk.entries).unwrap();
        if told.stage < Stage::Preflight || told.outcome.is_some() {
            // Not yet the maintenance's business: the agent starts VMs as after any power cut.
            for (name, vm) in self.vms.iter_mut().filter(|(_, vm)| !vm.died) {
                let vmm = if told.vms[name].owner == Owner::New { &mut vm.new } else { &mut vm.old };
                *vmm = Vmm { alive: true, running: true, loaded: true };
                vm.started_anew = matches!(told.vms[name].phase, VmPhase::Restarted { .. });
            }
        }
    }

    pub(crate) fn agent_dies(&mut self) {
        self.note("the agent dies".to_owned());
        for vm in self.vms.values_mut() {
            vm.may_have_run = true;
        }
        let mut rng = self.rng;
        self.flights.retain_mut(|(_, flight)| {
            if flight.act.id.op == Op::Jump {
                // A system call of the agent itself.
                return false;
            }
            flight.orphan = true;
            rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // Some commands had reached their receiver, some had not.
            rng >> 63 == 0
        });
        self.rng = rng | 1;
    }

    pub(crate) fn vm_dies(&mut self, name: &VmName) {
        self.note(format!("VM {name} ends by itself"));
        let vm = self.vms.get_mut(name).unwrap();
        vm.old = Vmm::default();
        vm.new = Vmm::default();
        vm.died = true;
        vm.stopped_at = None;
    }

    pub(crate) fn successor_dies(&mut self, name: &VmName) {
        self.note(format!("the new VMM of VM {name} ends by itself"));
        self.vms.get_mut(name).unwrap().new = Vmm::default();
    }

    /// The dead-man's own rule: the agent dies first, then the owner named by the journal runs.
    pub(crate) fn dead_man_due(&mut self) -> Vec<Option<VmName>> {
        let due: Vec<_> = self.dead_man.iter().filter(|(_, at)| **at <= self.now).map(|(key, _)| key.clone()).collect();
        for key in &due {
            self.dead_man.remove(key);
        }
        due
    }

    pub(crate) fn dead_man_acts(&mut self, guarded: &[Option<VmName>], disk: &Disk) {
        self.dead_man_fired = true;
        let told = State::replay(&disk.entries).unwrap();
        let owners: BTreeMap<VmName, Owner> = told.vms.iter().map(|(name, vm)| (name.clone(), vm.owner)).collect();
        let names: Vec<VmName> = self.vms.keys().cloned().collect();
        for name in names {
            // What is armed for the host guards the VMs that are paused together.
            let together = [Mechanism::Hold, Mechanism::Kexec].contains(&self.vms[&name].mechanism);
            let by_host = together && guarded.contains(&None);
            if !by_host && !guarded.contains(&Some(name.clone())) {
                continue;
            }
            // It is a process of its own: nothing that the dead agent had under way is left once it is certain.
            self.flights.retain(|(_, flight)| flight.act.id.vm.as_ref() != Some(&name));
            self.note(format!("the dead-man frees VM {name}"));
            let vm = &self.vms[&name];
            let witness = (vm.mechanism == Mechanism::Swap && vm.new_ran).then_some(Owner::New);
            let done = match witness.or(owners.get(&name).copied()) {
                // Left to the agent: it may not know better, but it can tell.
                Some(Owner::New) if !vm.new.alive => continue,
                Some(Owner::New) => self.let_new_run(&name),
                _ => {
                    self.vms.get_mut(&name).unwrap().new = Vmm::default();
                    self.let_old_run(&name)
                }
            };
            if done.is_ok() {
                self.freed.insert(name.clone(), Mono(self.now));
            } else {
                assert!(self.vms[&name].died || !self.vms[&name].old.alive, "the dead-man could not free VM {name}");
            }
        }
    }
}

/// A failing test prints the story.
impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.trace.join("\n"));
        }
    }
}
