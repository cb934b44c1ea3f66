//! Every kind of blow at every single entry of the journal.

use std::time::Duration;

use crate::shell::run;
use crate::world::{Blow, Fault, HOLD, KERNEL, PACKAGE, REBOOT, SWAP, World};

fn at_every_entry(update: &str, blow: Blow) {
    for parallel in [1, 3] {
        let world = || World::new(update, parallel, 10_000, 11);
        let world =
            || if update == KERNEL || update == REBOOT { World::new(update, parallel, 30_000, 11) } else { world() };
        let smooth = run(world(), |_, _| Fault::Works, |_, _| Blow::Nothing);
        assert!(smooth.disk.appends > 3);
        for seed in 1..4 {
            for entry in 1..=smooth.disk.appends {
                let mut world = world();
                world.trace.push(format!("{blow:?} at entry {entry} (seed {seed})"));
                for _ in 0..seed {
                    world.stir();
                }
                let hit = |count, _: &World| if count == entry { blow } else { Blow::Nothing };
                run(world, |_, _| Fault::Works, hit).check(true);
            }
        }
    }
}

macro_rules! blows {
    ($($name:ident: $update:expr, $blow:expr;)*) => {
        $(#[test] fn $name() { at_every_entry($update, $blow); })*
    };
}

blows! {
    swap_survives_the_agents_death: SWAP, Blow::AgentDies;
    swap_survives_a_stuck_agent: SWAP, Blow::AgentStuck(Duration::from_secs(60));
    swap_survives_a_power_cut: SWAP, Blow::PowerCut;
    swap_survives_a_short_full_disk: SWAP, Blow::DiskFull(Duration::from_millis(3));
    swap_survives_a_long_full_disk: SWAP, Blow::DiskFull(Duration::from_secs(90));
    swap_survives_an_abort: SWAP, Blow::Abort;
    swap_survives_the_death_of_a_vm: SWAP, Blow::VmDies(0);
    swap_survives_the_death_of_a_new_vmm: SWAP, Blow::SuccessorDies(0);
    swap_survives_the_loss_of_what_was_not_synced: SWAP, Blow::TailLost;
    hold_survives_the_loss_of_what_was_not_synced: HOLD, Blow::TailLost;
    hold_survives_the_agents_death: HOLD, Blow::AgentDies;
    hold_survives_a_stuck_agent: HOLD, Blow::AgentStuck(Duration::from_secs(60));
    hold_survives_a_power_cut: HOLD, Blow::PowerCut;
    hold_survives_a_short_full_disk: HOLD, Blow::DiskFull(Duration::from_millis(3));
    hold_survives_a_long_full_disk: HOLD, Blow::DiskFull(Duration::from_secs(90));
    hold_survives_an_abort: HOLD, Blow::Abort;
    hold_survives_the_death_of_a_vm: HOLD, Blow::VmDies(0);
    package_survives_the_agents_death: PACKAGE, Blow::AgentDies;
    package_survives_a_power_cut: PACKAGE, Blow::PowerCut;
    package_survives_a_full_disk: PACKAGE, Blow::DiskFull(Duration::from_secs(60));
    package_survives_an_abort: PACKAGE, Blow::Abort;
    kexec_survives_the_agents_death: KERNEL, Blow::AgentDies;
    kexec_survives_a_stuck_agent: KERNEL, Blow::AgentStuck(Duration::from_secs(60));
    kexec_survives_a_power_cut: KERNEL, Blow::PowerCut;
    kexec_survives_a_full_disk: KERNEL, Blow::DiskFull(Duration::from_secs(60));
    kexec_survives_an_abort: KERNEL, Blow::Abort;
    reboot_survives_the_agents_death: REBOOT, Blow::AgentDies;
    reboot_survives_a_power_cut: REBOOT, Blow::PowerCut;
    reboot_survives_an_abort: REBOOT, Blow::Abort;
}
