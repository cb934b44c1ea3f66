//! Ten thousand campaigns without a broken promise; and each safeguard, taken away, is missed.
//!
//! `FERMATA_SIM_CAMPAIGNS` and `FERMATA_SIM_SEED` choose others.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use fermata_sim::{Sabotage, Summary, Violation, campaign, campaigns};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn ten_thousand_campaigns_break_no_promise() {
    let (count, first) = (number("FERMATA_SIM_CAMPAIGNS", 10_000), number("FERMATA_SIM_SEED", 1));
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    let share = count.div_ceil(threads);
    let totals: Vec<Summary> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..threads)
            .map(|thread| {
                let begin = first + thread * share;
                let count = share.min((first + count).saturating_sub(begin));
                scope.spawn(move || campaigns(begin, count, |_| {}))
            })
            .collect();
        runs.into_iter().map(|run| run.join().unwrap().unwrap_or_else(|failure| panic!("{failure}"))).collect()
    });
    let mut total = Summary::default();
    totals.into_iter().for_each(|part| total += part);
    println!("sim: {count} campaigns from seed {first}: {total:?}");
    assert!(total.visits > count && total.crashes > count && total.refused_commits > 0 && total.old_orders > 0);
}

#[test]
fn a_seed_is_replayed_exactly() {
    let again = |seed| campaign(seed, None).unwrap();
    assert_eq!(again(7), again(7));
    assert_ne!(again(7), again(8));
    let failing = (1..).find_map(|seed| campaign(seed, Some(Sabotage::NoNotice)).err()).unwrap();
    let replayed = campaign(failing.seed, Some(Sabotage::NoNotice)).unwrap_err();
    assert_eq!((replayed.violation, replayed.story), (failing.violation, failing.story));
}

fn first_failure(sabotage: Sabotage, found: fn(&Violation) -> bool) {
    let failure = (1..3_000).find_map(|seed| campaign(seed, Some(sabotage)).err());
    let failure = failure.expect("nobody noticed what was taken away");
    println!("sim: {sabotage:?} found at seed {}: {}", failure.seed, failure.violation);
    assert!(found(&failure.violation), "{failure}");
}

#[test]
fn without_comparing_what_was_read_it_is_noticed() {
    first_failure(Sabotage::NoCompare, |violation| {
        matches!(
            violation,
            Violation::TwoParts { .. } | Violation::Leaked { .. } | Violation::Stuck { .. } | Violation::Checker { .. }
        )
    });
}

#[test]
fn a_gate_that_forgets_is_noticed() {
    first_failure(Sabotage::ForgetfulGate, |violation| {
        matches!(violation, Violation::Twice { .. } | Violation::TwoParts { .. })
    });
}

#[test]
fn obeying_any_generation_is_noticed() {
    first_failure(Sabotage::AnyGeneration, |violation| {
        matches!(violation, Violation::Twice { .. } | Violation::TwoParts { .. })
    });
}

#[test]
fn starting_without_notice_is_noticed() {
    first_failure(Sabotage::NoNotice, |violation| matches!(violation, Violation::TooEarly { .. }));
}
