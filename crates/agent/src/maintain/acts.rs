//! What the state machine wants done, done.

use fermata_maintenance::clock::{KNOWN_TO_ANSWER, UNHEARD};
use fermata_maintenance::machine::{Act, ActResult, Evidence, Failure, FailureKind, Op, Owner, State, VmState};
use fermata_maintenance::time::Wall;
use fermata_maintenance::update::Change;
use fermata_model::VmName;
use fermata_vmm::qmp::Timestamp;

use super::{Maintain, announce, clock, dead_man, kernel, steps, time};
use crate::vms::VmError;

/// Performs one act by its deadline.
pub(super) async fn perform(shell: &Maintain, state: &State, act: &Act) -> ActResult {
    if matches!(act.id.op, Op::PublishStarted | Op::StartNew) {
        dead_man::start_early(shell, state).await;
    }
    let overdue = || Failure { kind: FailureKind::Overdue, text: format!("{} was not done by its deadline", act.id) };
    tokio::time::timeout(time::left(act.by), begin(shell, state, act)).await.unwrap_or_else(|_| Err(overdue()))
}

async fn begin(shell: &Maintain, state: &State, act: &Act) -> ActResult {
    let limit = time::left(act.by);
    let order = &state.order;
    match (&act.id.vm, act.id.op) {
        (None, Op::Announce) => announce::announce(shell, state).await,
        (None, Op::PublishStarted) => announce::publish(shell, state).await,
        (None, Op::EndEvents) => announce::end(shell, state).await,
        (None, Op::Preflight) => {
            let choice = shell.choose(&order.update).await.map_err(|e| Failure::new(crate::chain(&e)))?;
            Ok(Evidence::Preflight { choice })
        }
        (None, Op::Run { section, index }) => {
            let step = order.step(section, index).ok_or_else(|| Failure::new("the update has no such step"))?;
            let log = shell.vms.config().run_dir.join(format!("step-{}.log", order.id));
            let ran = steps::run(shell.vms.units(), &order.id, step, &log, limit).await;
            ran.map(|tail| Evidence::Output { tail }).map_err(Failure::new)
        }
        (None, Op::KillStep) => {
            steps::kill(shell.vms.units(), &order.id).await.map_err(|e| Failure::new(e.to_string()))?;
            Ok(Evidence::Done)
        }
        (None, Op::LoadKernel) => kernel::load(shell, state).await,
        (None, Op::UnloadKernel) => kernel::unload(shell).await,
        (None, Op::Jump) => kernel::jump(shell, state, act.by).await,
        (None, Op::Reboot) => kernel::reboot(shell, limit).await,
        (None, Op::CheckKernel) => kernel::check(state),
        (None, Op::SetHostClock) => kernel::set_host_clock(&shell.vms, state),
        (vm, Op::ArmDeadMan) => {
            announce::before_pause(shell, state, vm.as_ref()).await;
            dead_man::arm(shell, state, vm.as_ref(), act.by).await
        }
        (Some(vm), Op::ShutDown) => {
            announce::before_pause(shell, state, Some(vm)).await;
            on_vm(shell, state, vm, Op::ShutDown, limit).await
        }
        (vm, Op::DisarmDeadMan) => dead_man::disarm(shell, state, vm.as_ref()).await,
        (Some(vm), op) => on_vm(shell, state, vm, op, limit).await,
        (None, op) => Err(Failure::new(format!("`{op}` is not something this agent can do"))),
    }
}

async fn on_vm(shell: &Maintain, state: &State, vm: &VmName, op: Op, limit: std::time::Duration) -> ActResult {
    let result = try_on_vm(shell, state, vm, op, limit).await;
    match result {
        // What the vault keeps of a VM is given up right before the VM is let go on.
        Err(failure)
            if matches!(op, Op::Resume | Op::TakeBack)
                && failure.kind == FailureKind::VmmDead
                && shell.vms.keeps(vm).await =>
        {
            Err(Failure { kind: FailureKind::NeverRan, ..failure })
        }
        result => result,
    }
}

async fn try_on_vm(shell: &Maintain, state: &State, vm: &VmName, op: Op, limit: std::time::Duration) -> ActResult {
    let vms = &shell.vms;
    let owner = state.vms.get(vm).map_or(Owner::Old, |vm| vm.owner);
    let way = state.vms.get(vm).and_then(|vm| vm.way).unwrap_or_default();
    match op {
        Op::Rehearse => match state.order.update.change {
            Change::Vmm { version, .. } => {
                let way = vms.rehearse(vm, version, limit).await;
                match way {
                    Ok(way) => Ok(Evidence::Rehearsed { way: Some(way), clock_us: clock::error_us(vms, vm).await }),
                    Err(error) => Err(error),
                }
            }
            Change::Kernel(ref kernel) => match vms.rehearse_carry(vm, kernel.vmm, limit).await {
                Ok(()) => Ok(Evidence::Rehearsed { way: None, clock_us: clock::error_us(vms, vm).await }),
                Err(error) => Err(error),
            },
            Change::Package { .. } | Change::Service { .. } => Ok(Evidence::Done),
        },
        Op::Save => vms.save(vm, limit).await.map(stopped),
        Op::Restore => match state.order.update.change {
            Change::Kernel(ref kernel) => vms.restore(vm, kernel.vmm, limit).await.map(|()| Evidence::Done),
            Change::Package { .. } | Change::Service { .. } | Change::Vmm { .. } => {
                return Err(Failure::new("this update carries no VM into another kernel"));
            }
        },
        Op::StartNew => match state.order.update.change {
            Change::Vmm { version, .. } => vms.start_new(vm, version, way).await.map(|()| Evidence::Done),
            Change::Package { .. } | Change::Service { .. } | Change::Kernel(_) => {
                return Err(Failure::new("this update brings no VMM"));
            }
        },
        Op::DiscardNew => vms.discard_new(vm).await.map(|()| Evidence::Done),
        Op::Hold => vms.hold(vm, limit).await.map(stopped),
        Op::HandOver => vms.hand_over(vm, way, limit).await.map(stopped),
        Op::Resume if owner == Owner::New && matches!(state.order.update.change, Change::Kernel(_)) => {
            return kernel::resume(vms, state, vm, limit).await;
        }
        Op::Resume if owner == Owner::New => vms.resume_new(vm, limit).await.map(resumed),
        Op::Resume => vms.resume_old(vm, limit).await.map(resumed),
        Op::TakeBack => vms.take_back(vm, limit).await.map(resumed),
        Op::ShutDown => vms.shut_down(vm, limit).await.map(|()| Evidence::Done),
        Op::Retire => vms.retire(vm).await.map(|()| Evidence::Done),
        Op::SetClock => match clock::correct(vms, vm, patience(state, vm)).await {
            Ok(outcome) => {
                let evidence = Evidence::Clock { outcome };
                announce::after_pause(shell, state, vm, &evidence);
                vms.look_after_resume(vm, limit).await.map(|()| evidence)
            }
            Err(error) => Err(error),
        },
        Op::Restart => vms.start_for_maintenance(vm).await.map(restarted),
        other => return Err(Failure::new(format!("`{other}` is not something this agent can do to a VM"))),
    }
    .map_err(|error| failure(&error))
}

/// How long a guest is asked for its clock.
fn patience(state: &State, vm: &VmName) -> std::time::Duration {
    let answered = state.vms.get(vm).is_some_and(VmState::clock_is_told);
    if answered { KNOWN_TO_ANSWER } else { UNHEARD }
}

pub(super) fn failure(error: &VmError) -> Failure {
    let kind = match error {
        VmError::NeverRan { .. } => FailureKind::NeverRan,
        VmError::Ran(_) => FailureKind::Ran,
        VmError::WrongState { .. } => FailureKind::VmmDead,
        VmError::Qmp { source: fermata_vmm::qmp::QmpError::Closed { .. }, .. } => FailureKind::VmmDead,
        VmError::NotTrusted { .. } => FailureKind::MemoryGone,
        VmError::Memory { source: fermata_vault::memory::MemoryError::Lost { .. }, .. } => FailureKind::MemoryGone,
        _ => FailureKind::Failed,
    };
    Failure { kind, text: crate::chain(error) }
}

fn stopped(at: Option<Timestamp>) -> Evidence {
    // A VM that stood already was stopped by somebody earlier; its pause counts from here.
    Evidence::Stopped { at: at.map_or_else(|| time::now().wall, wall) }
}

fn resumed(at: Option<Timestamp>) -> Evidence {
    Evidence::Resumed { at: at.map(wall) }
}

fn restarted(ran_already: bool) -> Evidence {
    if ran_already { Evidence::Resumed { at: None } } else { Evidence::Done }
}

pub(super) fn wall(at: Timestamp) -> Wall {
    Wall(at.as_micros().unsigned_abs())
}
