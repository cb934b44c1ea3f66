//! Which VM can take part, and why not.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use fermata_maintenance::forecast::{Basis, History};
use fermata_maintenance::mechanism::{Choice, HostFacts, Reason, VmFacts, VmmFacts, choose};
use fermata_maintenance::order::{Gate, Keeper, Order, OrderError, reserve};
use fermata_maintenance::time::Wall;
use fermata_maintenance::update::Update;
use fermata_model::{Mechanism, PauseBudget};
use proptest::prelude::*;

const SWAP: &str = "id = \"q\"\ntitle = \"Q\"\nkind = \"vmm\"\n[change]\nvmm = \"11.1\"\n";
const DOWN: &str = "id = \"q\"\ntitle = \"Q\"\nkind = \"vmm\"\n[change]\nvmm = \"10.0\"\n";
const KERNEL: &str = "id = \"k\"\ntitle = \"K\"\nkind = \"kernel\"\n[change]\nimage = \"/boot/k\"\n";
const HOLD: &str = "id = \"s\"\ntitle = \"S\"\nkind = \"service\"\n[change]\ncommand = [\"/bin/a\"]\ntimeout_ms = 2000\n\
    [[undo]]\ncommand = [\"/bin/b\"]\ntimeout_ms = 1000\n";

fn vmm(machines: &[&str]) -> VmmFacts {
    VmmFacts {
        unusable: None,
        machines: machines.iter().map(|machine| machine.parse().unwrap()).collect(),
        cpr_transfer: true,
        cpr_reboot: true,
    }
}

fn host() -> HostFacts {
    let old = vmm(&["pc-q35-9.2", "pc-q35-10.0"]);
    let new = vmm(&["pc-q35-9.2", "pc-q35-10.0", "pc-q35-11.1"]);
    HostFacts { vmms: [("10.0".parse().unwrap(), old), ("11.1".parse().unwrap(), new)].into(), ..HostFacts::default() }
}

fn vm() -> VmFacts {
    VmFacts {
        vm: "web-1".parse().unwrap(),
        vmm: "10.0".parse().unwrap(),
        machine: "pc-q35-10.0".parse().unwrap(),
        shared_memory: true,
        memory_outlives_kernel: true,
        blockers: Vec::new(),
        pass_through: Vec::new(),
        budget: PauseBudget::default(),
        paused: false,
    }
}

fn answer(update: &str, host: &HostFacts, vm: VmFacts) -> Choice {
    choose(&Update::from_toml(update).unwrap(), host, &[vm])
}

fn reason(update: &str, host: &HostFacts, vm: VmFacts) -> Reason {
    let mut choice = answer(update, host, vm);
    assert!(choice.plans.is_empty(), "{choice:?}");
    choice.refusals.remove(0).reason
}

#[test]
fn a_vm_on_the_version_asked_for_is_left_alone_unless_its_binary_was_replaced() {
    let left = answer(DOWN, &host(), vm());
    assert_eq!(left.mechanism(), Mechanism::None);
    assert_eq!(left.plans[0].note.as_deref(), Some("runs on VMM 10.0 already"));
    let again = answer(&format!("{DOWN}again = true\n"), &host(), vm());
    assert_eq!(again.mechanism(), Mechanism::Swap);
}

#[test]
fn an_ordinary_vm_is_swapped_with_a_forecast() {
    let choice = answer(SWAP, &host(), vm());
    assert_eq!(choice.plans[0].mechanism, Mechanism::Swap);
    assert_eq!(choice.plans[0].forecast.basis, Basis::Default);
}

#[test]
fn a_vm_that_runs_on_the_target_already_is_left_alone() {
    let choice = answer(SWAP, &host(), VmFacts { vmm: "11.1".parse().unwrap(), ..vm() });
    assert_eq!(choice.plans[0].mechanism, Mechanism::None);
    assert!(choice.plans[0].note.as_ref().unwrap().contains("already"));
}

#[test]
fn a_downgrade_works_where_the_target_knows_the_machine_type_and_nowhere_else() {
    let up = VmFacts { vmm: "11.1".parse().unwrap(), ..vm() };
    assert_eq!(answer(DOWN, &host(), up.clone()).plans[0].mechanism, Mechanism::Swap);
    let refused = reason(DOWN, &host(), VmFacts { machine: "pc-q35-11.1".parse().unwrap(), ..up });
    assert!(matches!(refused, Reason::MachineUnknown { .. }), "{refused}");
}

#[test]
fn each_obstacle_has_its_own_reason() {
    let facts = |change: fn(&mut VmFacts)| {
        let mut vm = vm();
        change(&mut vm);
        vm
    };
    assert!(matches!(reason(SWAP, &host(), facts(|vm| vm.shared_memory = false)), Reason::MemoryNotShared));
    assert!(matches!(
        reason(SWAP, &host(), facts(|vm| vm.pass_through.push("0000:03:00.0".to_owned()))),
        Reason::PassThrough { .. }
    ));
    assert!(matches!(
        reason(SWAP, &host(), facts(|vm| vm.blockers.push("vhost-scsi".to_owned()))),
        Reason::Blocked { .. }
    ));
    let old = facts(|vm| vm.vmm = "9.2".parse().unwrap());
    assert!(matches!(reason(SWAP, &host(), old), Reason::VmmTooOld { .. }));
    let gone = HostFacts { vmms: [("10.0".parse().unwrap(), vmm(&["pc-q35-10.0"]))].into(), ..HostFacts::default() };
    assert!(matches!(reason(SWAP, &gone, vm()), Reason::VmmUnknown { .. }));
    let mut broken = host();
    broken.vmms.get_mut(&"11.1".parse().unwrap()).unwrap().unusable = Some("not executable".to_owned());
    assert!(reason(SWAP, &broken, vm()).to_string().contains("not executable"));
    let mut old_target = host();
    old_target.vmms.get_mut(&"11.1".parse().unwrap()).unwrap().cpr_transfer = false;
    assert!(matches!(reason(SWAP, &old_target, vm()), Reason::VmmTooOld { .. }));
    let outside = facts(|vm| vm.memory_outlives_kernel = false);
    assert!(matches!(reason(KERNEL, &host(), outside), Reason::MemoryEndsWithKernel));
    let stuck = HostFacts { kexec_obstacles: vec!["kexec is locked down".to_owned()], ..host() };
    assert!(matches!(reason(KERNEL, &stuck, vm()), Reason::HostCannotKexec { .. }));
}

#[test]
fn a_budget_below_the_forecast_is_refused_by_name() {
    let tight = VmFacts { budget: PauseBudget::try_from(3_000).unwrap(), ..vm() };
    let choice = answer(HOLD, &host(), tight);
    let text = choice.refusals[0].to_string();
    assert!(text.contains("web-1") && text.contains("3000 ms") && text.contains("3.1 s"), "{text}");
    let history =
        HostFacts { history: History { swap: vec![Duration::from_millis(4); 50], ..History::default() }, ..host() };
    let sporty = VmFacts { budget: PauseBudget::try_from(50).unwrap(), ..vm() };
    assert!(!answer(SWAP, &host(), sporty.clone()).refusals.is_empty(), "the cautious default does not fit");
    assert!(answer(SWAP, &history, sporty).refusals.is_empty(), "what was measured here does");
}

#[test]
fn a_stopped_vm_is_not_held() {
    let choice = answer(HOLD, &host(), VmFacts { paused: true, ..vm() });
    assert_eq!(choice.plans[0].mechanism, Mechanism::None);
}

#[test]
fn refusals_end_the_order_and_policies_soften_them() {
    let gate = Gate { not_before: Wall(0), lead: Duration::from_secs(5), keeper: Keeper::Clock };
    let order = |text: &str| {
        let update = Update::from_toml(text).unwrap();
        let choice =
            choose(&update, &host(), &[VmFacts { shared_memory: false, memory_outlives_kernel: false, ..vm() }]);
        Order::new("m-1".parse().unwrap(), update, choice, gate)
    };
    let refused = order(SWAP).unwrap_err();
    assert!(matches!(&refused, OrderError::Refused { refusals, .. } if refusals.len() == 1));
    assert!(refused.to_string().contains("nothing was done"), "{refused}");
    let skip = order(&format!("{SWAP}[vm.web-1]\non_refusal = \"skip\"\n")).unwrap();
    assert_eq!(skip.mechanism(), Mechanism::None);
    let shutdown = order(&KERNEL.replace("kind", "harshest = \"reboot\"\non_refusal = \"shutdown\"\nkind")).unwrap();
    assert_eq!(shutdown.mechanism(), Mechanism::Reboot);
}

proptest! {
    /// Promise P7 and P2 at planning: never harsher than the kind, never a pause that cannot fit.
    #[test]
    fn a_plan_is_never_harsher_than_its_kind_and_always_fits_its_budget(
        update in prop_oneof![Just(SWAP), Just(DOWN), Just(KERNEL), Just(HOLD)],
        shared in any::<bool>(), outlives in any::<bool>(), paused in any::<bool>(),
        blocked in any::<bool>(), budget in 1u64..=30_000,
        vmm in prop_oneof![Just("9.2"), Just("10.0"), Just("11.1")],
        machine in prop_oneof![Just("pc-q35-9.2"), Just("pc-q35-10.0"), Just("pc-q35-11.1")],
        history in proptest::collection::vec(1u64..20_000, 0..30),
    ) {
        let history: Vec<Duration> = history.into_iter().map(Duration::from_millis).collect();
        let host = HostFacts {
            history: History { swap: history.clone(), kexec: history.clone(), hold_overhead: history },
            ..host()
        };
        let vm = VmFacts {
            shared_memory: shared, memory_outlives_kernel: outlives, paused,
            blockers: if blocked { vec!["x".to_owned()] } else { Vec::new() },
            budget: PauseBudget::try_from(budget).unwrap(),
            vmm: vmm.parse().unwrap(), machine: machine.parse().unwrap(), ..vm()
        };
        let update = Update::from_toml(update).unwrap();
        let choice = choose(&update, &host, std::slice::from_ref(&vm));
        prop_assert_eq!(choice.plans.len() + choice.refusals.len(), 1);
        for plan in choice.plans {
            prop_assert!(plan.mechanism <= update.change.mechanism());
            if plan.mechanism != Mechanism::None {
                prop_assert!(plan.forecast.upper + reserve(plan.budget) <= plan.budget.duration());
                prop_assert!(plan.mechanism != Mechanism::Swap || (shared && !blocked));
                prop_assert!(plan.mechanism != Mechanism::Kexec || (outlives && !blocked));
            }
        }
    }
}
