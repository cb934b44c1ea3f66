//! Random faults of every act and random blows at random entries, with shrinking.

use std::time::Duration;

use fermata_maintenance::machine::{Act, Op};
use proptest::prelude::*;

use crate::shell::run;
use crate::world::{Blow, Fault, HOLD, KERNEL, PACKAGE, REBOOT, SWAP, World};

fn blow() -> impl Strategy<Value = Blow> {
    prop_oneof![
        Just(Blow::AgentDies),
        Just(Blow::PowerCut),
        Just(Blow::TailLost),
        Just(Blow::Abort),
        (1u64..90_000).prop_map(|ms| Blow::AgentStuck(Duration::from_millis(ms))),
        (1u64..20_000).prop_map(|ms| Blow::DiskFull(Duration::from_millis(ms))),
        (0usize..3).prop_map(Blow::VmDies),
        (0usize..3).prop_map(Blow::SuccessorDies),
    ]
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        Just(Fault::Fails),
        Just(Fault::Slow),
        Just(Fault::FailsAfterwards),
        Just(Fault::Hangs),
        Just(Fault::HangsAfterwards)
    ]
}

/// Acts of the way back are never made to fail here: that the pause then exceeds its budget is nobody's fault.
fn way_back(act: &Act) -> bool {
    matches!(act.id.op, Op::Resume | Op::TakeBack | Op::Restart | Op::Restore | Op::DisarmDeadMan | Op::EndEvents)
}

/// `PROPTEST_CASES` for a long search; a failure prints the smallest case found and its seed.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(cases()))]

    #[test]
    fn whatever_goes_wrong_the_promises_hold(
        update in prop_oneof![Just(SWAP), Just(HOLD), Just(PACKAGE), Just(KERNEL), Just(REBOOT)],
        vms in 0usize..4,
        seed in any::<u64>(),
        blows in proptest::collection::btree_map(1usize..60, blow(), 0..4),
        faults in proptest::collection::btree_map(0usize..60, fault(), 0..4),
    ) {
        let budget = if update == KERNEL || update == REBOOT { 30_000 } else { 5_000 };
        let world = World::new(update, vms, budget, seed);
        let blows = blows.into_iter().filter(|(_, blow)| !matches!(blow, Blow::VmDies(index) | Blow::SuccessorDies(index) if *index >= vms));
        let blows: std::collections::BTreeMap<_, _> = blows.collect();
        let mut count = 0;
        let fault = |act: &Act, _: &World| {
            count += 1;
            match faults.get(&count) {
                Some(fault) if !way_back(act) => *fault,
                _ => Fault::Works,
            }
        };
        run(world, fault, |entry, _| blows.get(&entry).copied().unwrap_or(Blow::Nothing)).check(true);
    }
}
