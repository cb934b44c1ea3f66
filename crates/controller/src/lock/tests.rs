use proptest::prelude::*;

use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn host(number: u8) -> HostName {
    format!("h{number}").parse().unwrap()
}

#[test]
fn another_part_waits_for_the_last_host_and_the_recovery() {
    let (first, second) = (RolloutId::from("r"), Part::from("1"));
    let (h1, h2, h3) = (host(1), host(2), host(3));
    let zero = Part::from("0");
    let claim = |host, part| Claim { rollout: &first, host, part, generation: Generation(1), vms: 1 };
    let mut lock = SetLock::default();
    lock.enter(&claim(&h1, &zero), at(0)).unwrap();
    lock.enter(&claim(&h2, &zero), at(1)).unwrap();
    let blocked = lock.enter(&claim(&h3, &second), at(2)).unwrap_err();
    assert_eq!(blocked.to_string(), "part 0 is in work for rollout r on h1, h2");
    assert!(lock.leave(&h1, Generation(1), Some(at(20))));
    assert!(matches!(lock.check(&claim(&h3, &second), at(30)), Err(Blocked::InWork { .. })));
    assert!(lock.leave(&h2, Generation(1), Some(at(10))));
    assert!(matches!(lock.check(&claim(&h3, &second), at(19)), Err(Blocked::Recovering { .. })));
    assert_eq!(lock.check(&claim(&h1, &zero), at(11)), Ok(()), "the same part need not wait");
    assert_eq!(lock.check(&claim(&h3, &second), at(20)), Ok(()));
}

#[test]
fn another_rollout_waits_even_for_the_same_part() {
    let (r, s, part) = (RolloutId::from("r"), RolloutId::from("s"), Part::from("0"));
    let (h1, h2) = (host(1), host(2));
    let mut lock = SetLock::default();
    let claim = |rollout, host| Claim { rollout, host, part: &part, generation: Generation(1), vms: 1 };
    lock.enter(&claim(&r, &h1), at(0)).unwrap();
    assert!(matches!(lock.enter(&claim(&s, &h2), at(0)), Err(Blocked::InWork { owner, .. }) if owner == r));
}

#[test]
fn an_old_generation_cannot_give_the_lock_back() {
    let (r, part, h1) = (RolloutId::from("r"), Part::from("0"), host(1));
    let mut lock = SetLock::default();
    let claim = Claim { rollout: &r, host: &h1, part: &part, generation: Generation(3), vms: 1 };
    lock.enter(&claim, at(0)).unwrap();
    assert!(!lock.leave(&h1, Generation(2), None));
    lock.renew(&h1, Generation(3), Generation(4));
    assert!(!lock.leave(&h1, Generation(3), None));
    assert!(lock.leave(&h1, Generation(4), None));
    assert_eq!(lock, SetLock::default(), "nothing was touched, nothing recovers");
}

proptest! {
    #[test]
    fn all_holders_are_of_one_part_and_one_rollout(
        moves in prop::collection::vec((0..4u8, 0..2u8, 0..2u8, any::<bool>(), 0..50i64), 1..80)
    ) {
        let mut lock = SetLock::default();
        let mut inside: BTreeMap<HostName, (u8, u8)> = BTreeMap::new();
        let mut now = 0;
        for (number, part_number, rollout_number, enter, passed) in moves {
            now += passed;
            let (h, part) = (host(number), Part(part_number.to_string()));
            let rollout = RolloutId(rollout_number.to_string());
            if enter {
                let claim = Claim { rollout: &rollout, host: &h, part: &part, generation: Generation(1), vms: 1 };
                if lock.enter(&claim, at(now)).is_ok() {
                    inside.insert(h, (part_number, rollout_number));
                }
            } else if lock.leave(&h, Generation(1), Some(at(now + 10))) {
                prop_assert!(inside.remove(&h).is_some());
            }
            prop_assert!(inside.values().all(|who| Some(who) == inside.values().next()));
            prop_assert_eq!(lock.vms_in_work() as usize, inside.len());
            prop_assert_eq!(lock.open.is_none(), inside.is_empty());
        }
    }
}
