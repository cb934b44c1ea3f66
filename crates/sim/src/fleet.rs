//! A small fleet from a seed, and rollouts over it.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use fermata_controller::order::{RolloutId, UpdateRef};
use fermata_controller::rollout::{Definition, Rules};
use fermata_model::{HostName, Mechanism};
use fermata_planner::fleet::FleetBuilder;
use fermata_planner::plan::{Effort, Plan, PlanRequest};
use fermata_planner::policy::{Limits, Policy, Stage, StageSize};
use fermata_planner::{Fleet, HostSpec, PlacedVm, SetSpec};
use jiff::Timestamp;

use crate::random::Random;

/// A fleet with the plans of its rollouts.
pub struct Scene {
    /// The inventory.
    pub fleet: Fleet,
    /// The rollouts: plan and definition.
    pub rollouts: Vec<(Plan, Arc<Definition>)>,
}

/// The scene of a seed.
///
/// # Panics
/// When a fleet made by these rules were refused by the planner: a bug in either.
#[must_use]
pub fn scene(random: &mut Random, begin: Timestamp) -> Scene {
    let fleet = fleet(random);
    let count = 1 + random.below(2);
    let rollouts = (0..count).map(|number| rollout(random, &fleet, number, begin)).collect();
    Scene { fleet, rollouts }
}

fn fleet(random: &mut Random) -> Fleet {
    let mut builder = FleetBuilder::new(1);
    let hosts = 3 + random.below(6);
    let sets = 1 + random.below(4);
    let name = |kind: &str, number: u64| format!("{kind}{number}");
    let sound = "pieces made by rule fit together";
    for set in 0..sets {
        let mut spec = SetSpec::new(name("s", set).parse().expect(sound));
        spec.update_domains = u8::try_from(2 + random.below(3)).expect(sound);
        spec.recovery_s = u32::try_from(random.below(60)).expect(sound);
        builder.add_set(spec).expect(sound);
    }
    for host in 0..hosts {
        let mut spec = HostSpec::new(name("h", host).parse().expect(sound));
        spec.rack = Some(name("rack", host % 3));
        spec.work_s = 30;
        builder.add_host(spec).expect(sound);
    }
    let mut vm = 0;
    for host in 0..hosts {
        let domain = u32::try_from(random.below(2)).expect(sound);
        for set in 0..sets {
            if !random.percent(60) {
                continue;
            }
            // Mostly one part per host and set, aligned or not; a host with two parts is the planner's to leave out.
            let domain = if random.percent(70) { domain } else { u32::try_from(random.below(2)).expect(sound) };
            for _ in 0..=random.below(2) {
                vm += 1;
                let placed = PlacedVm {
                    name: name("v", vm).parse().expect(sound),
                    host: name("h", host).parse::<HostName>().expect(sound),
                    set: Some(name("s", set).parse().expect(sound)),
                    update_domain: Some(domain.try_into().expect(sound)),
                };
                builder.add_vm(placed).expect(sound);
            }
        }
        vm += 1;
        let placed = PlacedVm {
            name: name("v", vm).parse().expect(sound),
            host: name("h", host).parse().expect(sound),
            set: None,
            update_domain: None,
        };
        builder.add_vm(placed).expect(sound);
    }
    builder.build()
}

fn rollout(random: &mut Random, fleet: &Fleet, number: u64, begin: Timestamp) -> (Plan, Arc<Definition>) {
    let limits = Limits {
        hosts: NonZeroU32::new(u32::try_from(random.below(4)).unwrap_or(0)),
        hosts_per_rack: NonZeroU32::new(u32::try_from(random.below(3)).unwrap_or(0)),
        ..Limits::default()
    };
    let mut policy = Policy { limits, ..Policy::default() };
    if random.percent(40) {
        let soak_s = u32::try_from(random.below(60)).unwrap_or(0);
        let approval = random.percent(50);
        policy.stages = vec![Stage { name: "canary".into(), size: StageSize::Hosts(1), soak_s, approval }];
    }
    let effort = Effort { steps: 0, seed: random.next() };
    let request = PlanRequest { parent: None, policy, starts_at: begin, effort };
    let plan = fermata_planner::make(fleet, &request, &mut || false).expect("the policy is sound");
    let update = UpdateRef { name: format!("u{number}"), digest: String::new(), mechanism: Mechanism::Swap };
    let rules = Rules {
        notice: Duration::from_secs(random.below(60)),
        host_soak: Duration::from_secs(random.below(30)),
        health_limit: Duration::from_mins(2),
        preflight_limit: Duration::from_secs(20),
        preflight_retry: Duration::from_secs(10),
        max_failed_hosts: u32::try_from(random.below(6)).unwrap_or(0),
        ..Rules::default()
    };
    let id = RolloutId(format!("r{number}"));
    let definition = Definition::of_plan(id, "simulated".into(), vec![update], &plan, fleet, &rules)
        .expect("the inventory is the one the plan was made for");
    (plan, Arc::new(definition))
}
