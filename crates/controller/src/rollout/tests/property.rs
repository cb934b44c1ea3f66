use std::collections::BTreeSet;

use proptest::prelude::*;

use super::world::{World, at, definition, host, update};
use crate::order::{Generation, Outcome, Report, Scope, Standing};
use crate::rollout::*;

fn any_host() -> impl Strategy<Value = fermata_model::HostName> {
    prop::sample::select(vec!["h1", "h2", "h3", "h4"]).prop_map(host)
}

fn standing() -> impl Strategy<Value = Standing> {
    prop_oneof![
        Just(Standing::Announced { not_before: at(0) }),
        Just(Standing::InWork),
        Just(Standing::Finished(Outcome::Updated)),
        Just(Standing::Finished(Outcome::Undone("no".into()))),
        Just(Standing::Finished(Outcome::Refused("no".into()))),
        Just(Standing::StoodDown),
    ]
}

fn input() -> impl Strategy<Value = Input> {
    let trouble = || VmTrouble { vm: "a".parse().unwrap(), seen: "down".into() };
    prop_oneof![
        1 => prop::sample::select(vec![Input::Start, Input::Pause, Input::Resume, Input::Abort, Input::ApproveStage]),
        4 => Just(Input::Tick),
        1 => any_host().prop_map(Input::Skip),
        1 => any_host().prop_map(Input::Retry),
        1 => any_host().prop_map(Input::Hold),
        2 => any_host().prop_map(Input::Unhold),
        1 => any_host().prop_map(Input::GiveUp),
        8 => any_host().prop_map(Input::AskPreflight),
        3 => any_host().prop_map(Input::Recall),
        1 => any_host().prop_map(|host| Input::ApproveVisit {
            host, scopes: [Scope::Set("web".parse().unwrap())].into(), by: std::collections::BTreeMap::new()
        }),
        1 => any_host().prop_map(|host| Input::Merge { updates: vec![update("x")], hosts: [host].into() }),
        6 => (any_host(), any::<bool>()).prop_map(move |(host, bad)| Input::Health {
            host, unhealthy: if bad { vec![trouble()] } else { Vec::new() }
        }),
        12 => (any_host(), 1..6u64, standing()).prop_map(|(host, generation, standing)| {
            Input::Report(Report { host, generation: Generation(generation), standing, last: None })
        }),
    ]
}

fn check(world: &World) -> Result<(), TestCaseError> {
    let state = world.rollout.state();
    let in_flight: BTreeSet<_> = state
        .hosts
        .iter()
        .filter(|(_, host)| !host.phase.at_end() && host.phase != HostPhase::Waiting)
        .map(|(name, _)| name.clone())
        .collect();
    prop_assert_eq!(&in_flight, &state.in_flight);
    for (stage, open) in state.open.iter().enumerate() {
        let tasks = &world.rollout.definition().hosts;
        let count =
            tasks.iter().filter(|(name, task)| task.stage == stage && !state.hosts[*name].phase.at_end()).count();
        prop_assert_eq!(count as u32, *open);
    }
    for (name, task) in &world.rollout.definition().hosts {
        let held = state.hosts[name].phase.generation();
        for set in task.sets.keys() {
            let lock = world.locks.get(set).cloned().unwrap_or_default();
            let holder = lock.open.as_ref().and_then(|open| open.holders.get(name)).map(|holder| holder.generation);
            prop_assert_eq!(holder, held, "{} {}", name, set);
            prop_assert!(
                lock.open.is_none_or(|open| !open.holders.contains_key(name) || open.part == task.sets[set].part)
            );
        }
        let open = world.slots.get(name).is_some_and(|slot| slot.open.is_some());
        prop_assert_eq!(open, held.is_some());
    }
    Ok(())
}

proptest! {
    #[test]
    fn locks_follow_phases_and_a_refused_input_leaves_no_trace(
        inputs in prop::collection::vec((input(), 0..120i64, any::<bool>()), 1..120)
    ) {
        let mut definition = definition(&["h1:web=0,db=0", "h2:web=1", "h3:web=0,db=1", "h4:db=0"]);
        definition.rules.max_failed_hosts = 2;
        definition.stages.push(StageRule { name: "rest".into(), soak: std::time::Duration::from_secs(60), approval: true });
        definition.hosts.get_mut(&host("h4")).unwrap().stage = 1;
        let mut world = World::started(definition);
        for (input, passed, answer) in inputs {
            world.now += passed;
            let before = world.rollout.clone();
            if world.give(input.clone()).is_err() {
                prop_assert_eq!(&before, &world.rollout, "{:?}", input);
            } else if let (Input::AskPreflight(host), true) = (input, answer) {
                let asked = at(world.now);
                world.give(Input::Preflight { host, asked, refusal: None }).unwrap();
            }
            check(&world)?;
        }
        let derived = replay(std::sync::Arc::clone(world.rollout.definition()), &world.log);
        prop_assert_eq!(derived.as_ref(), Ok(&world.rollout));
    }
}
