//! Every order of events of a small fleet: rollout, set locks, two controllers, crashing agents, and a network that loses, doubles,
//! delays and reorders whatever it likes, on the product's own core.
//!
//! What is taken from the product: [`Rollout`], [`OrderGate`], the locks and slots they write. What is the model: a store that takes a
//! commit only while nothing it read has changed; one controller that decides at once and one that may sleep between reading and
//! committing (any interleaving of two controllers equals one of these); a network in which everything ever sent may arrive at any
//! time, any number of times, or never.
//!
//! Clocks: controllers see one moment. An agent's clock is either still before its `NotBefore` or past it, whenever that suits the
//! adversary, which covers every skew.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "model/system.rs"]
mod system;

use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model};
use system::{Broken, Fleet, System};

const HOSTS: [&str; 4] = ["h1:a=0,b=0", "h2:a=0,c=0", "h3:a=1,b=1,c=1", "h4:a=2,b=2,c=2"];

const P4: &str = "P4: one part of a set at a time";
const P5: &str = "P5: no VM before NotBefore unless approved";
const LOCKED: &str = "agents at work hold their locks";

/// Explores every state; names the promises that were broken, and how. Ends early when one of `wanted` was.
fn check(name: &str, system: System, wanted: &[&'static str]) -> Vec<&'static str> {
    let begun = Instant::now();
    let until = if wanted.is_empty() {
        HasDiscoveries::AnyFailures
    } else {
        HasDiscoveries::AnyOf(wanted.iter().copied().collect())
    };
    let limit = Duration::from_mins(20);
    let checker = system.checker().threads(2).finish_when(until).timeout(limit).spawn_bfs().join();
    println!(
        "model: {name}: {} states, {} transitions, {} deep, {:.1} s",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        begun.elapsed().as_secs_f64()
    );
    let mut found: Vec<_> = checker.discoveries().into_iter().collect();
    found.sort_by_key(|(name, _)| *name);
    for (property, path) in &found {
        println!("model: {name}: `{property}` broken by:\n{}", system::story(path));
    }
    assert!(begun.elapsed() < limit, "not exhausted in time");
    assert!(!wanted.is_empty() || checker.unique_state_count() > 10_000, "the model has lost its events");
    found.into_iter().map(|(name, _)| name).collect()
}

#[test]
fn one_rollout_with_a_sleeping_controller_and_a_crash_keeps_every_promise() {
    let system = System { crashes: 1, sleeper: true, ..System::new(Fleet::new(&HOSTS, 1)) };
    assert_eq!(check("sleeping controller, a crash", system, &[]), [""; 0]);
}

#[test]
fn an_operator_interfering_and_a_crash_keep_every_promise() {
    let system = System { crashes: 1, operations: 1, ..System::new(Fleet::new(&HOSTS, 1)) };
    assert_eq!(check("an operation, a crash", system, &[]), [""; 0]);
}

#[test]
fn two_rollouts_over_the_same_sets_never_overlap() {
    // Without h2: three hosts, three sets, three parts each; four hosts take minutes.
    let hosts = [HOSTS[0], HOSTS[2], HOSTS[3]];
    assert_eq!(check("two rollouts", System::new(Fleet::new(&hosts, 2)), &[]), [""; 0]);
}

fn broken(name: &str, broken: Broken, wanted: &'static str, system: System) {
    let found = check(name, System { broken: Some(broken), ..system }, &[wanted]);
    assert!(found.contains(&wanted), "{found:?}");
}

/// The checks can fail: each safeguard, taken away, is missed.
#[test]
fn without_compare_and_swap_a_sleeping_controller_opens_a_second_part() {
    let system = System { sleeper: true, ..System::new(Fleet::new(&HOSTS, 1)) };
    broken("no compare-and-swap", Broken::CompareAndSwap, P4, system);
}

#[test]
fn without_the_generation_a_recalled_order_starts_work() {
    let system = System { operations: 1, ..System::new(Fleet::new(&HOSTS, 1)) };
    broken("no generation", Broken::Generation, LOCKED, system);
}

#[test]
fn without_the_journal_a_restarted_agent_works_on_an_old_order() {
    let system = System { crashes: 1, ..System::new(Fleet::new(&HOSTS, 1)) };
    broken("no journal", Broken::Journal, LOCKED, system);
}

#[test]
fn without_waiting_for_the_stand_down_a_lock_is_given_away_too_early() {
    let system = System { operations: 1, ..System::new(Fleet::new(&HOSTS, 1)) };
    broken("no confirmed stand-down", Broken::StandDown, LOCKED, system);
}

#[test]
fn without_notice_vms_are_touched_early() {
    broken("no notice", Broken::Notice, P5, System::new(Fleet::new(&HOSTS, 1)));
}
