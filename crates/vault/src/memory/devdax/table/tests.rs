use proptest::prelude::*;

use super::*;

const SIZE: u64 = HEAD + 64 * UNIT + 4096;

#[derive(Debug, Clone)]
enum Act {
    Give(u8, u64),
    Wiped(u8),
    Save(u8, u64),
    Forget(u8),
    Release(u8),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let vm = 0u8..6;
    let act = prop_oneof![
        3 => (vm.clone(), 1..20 * UNIT).prop_map(|(vm, bytes)| Act::Give(vm, bytes)),
        1 => vm.clone().prop_map(Act::Wiped),
        2 => (vm.clone(), 1..3 * UNIT).prop_map(|(vm, bytes)| Act::Save(vm, bytes)),
        1 => vm.clone().prop_map(Act::Forget),
        1 => vm.prop_map(Act::Release),
    ];
    proptest::collection::vec(act, 1..60)
}

fn state(bytes: u64) -> State {
    State { bytes, crc: 7, boot: id(9), stopped_us: 1 }
}

fn id(vm: u8) -> Uuid {
    Uuid::from_u128(u128::from(vm))
}

proptest! {
    #[test]
    fn extents_never_move_overlap_or_leave_the_region(acts in acts()) {
        let mut table = Table::empty(SIZE);
        for act in acts {
            let before = table.clone();
            let touched = match act {
                Act::Give(vm, bytes) => { let _ = table.give_memory(id(vm), bytes); vm }
                Act::Wiped(vm) => { table.wiped(id(vm)); vm }
                Act::Save(vm, bytes) => { let _ = table.give_state(id(vm), state(bytes)); vm }
                Act::Forget(vm) => { table.forget_state(id(vm)); vm }
                Act::Release(vm) => { table.release(id(vm)); vm }
            };
            table.check().map_err(TestCaseError::fail)?;
            for (vm, held) in before.all() {
                if vm != id(touched) {
                    prop_assert_eq!(table.get(vm), Some(held), "an act on one VM changed another");
                } else if let Some(now) = table.get(vm) {
                    prop_assert_eq!(now.memory, held.memory, "memory moved");
                    prop_assert!(now.ready || !held.ready, "wiped memory became unwiped");
                }
            }
            let (_, bytes) = table.encode().unwrap();
            prop_assert_eq!(Table::decode(&bytes, SIZE).unwrap(), table.clone());
            let taken: u64 = table.taken().iter().map(|extent| extent.size).sum();
            prop_assert_eq!(table.free() + taken, 64 * UNIT);
        }
    }

    #[test]
    fn one_changed_byte_never_makes_another_table(at in 0usize..400, bit in 0u8..8) {
        let mut table = Table::empty(SIZE);
        table.give_memory(id(1), 3 * UNIT).unwrap();
        table.give_state(id(1), state(100)).unwrap();
        let (_, mut older) = table.encode().unwrap();
        older.resize(COPY, 0);
        let known = table.clone();
        table.give_memory(id(3), UNIT).unwrap();
        let (_, mut newer) = table.encode().unwrap();
        newer.resize(COPY, 0);
        let length = newer.iter().rposition(|byte| *byte != 0).unwrap();
        newer[at.min(length)] ^= 1 << bit;
        prop_assert_eq!(Table::newest(&older, &newer, SIZE).unwrap(), Some(known));
    }
}

#[test]
fn the_newest_whole_copy_counts_and_copies_alternate() {
    let mut table = Table::empty(SIZE);
    table.give_memory(id(1), UNIT).unwrap();
    let (first, older) = table.encode().unwrap();
    table.wiped(id(1));
    let (second, newer) = table.encode().unwrap();
    assert_ne!(first, second);
    assert_eq!(Table::newest(&older, &newer, SIZE).unwrap(), Some(table.clone()));
    assert_eq!(Table::newest(&newer, &older, SIZE).unwrap(), Some(table));
}

#[test]
fn a_region_without_a_table_is_told_from_one_whose_tables_are_damaged() {
    let blank = vec![0; COPY];
    assert_eq!(Table::newest(&blank, &blank, SIZE).unwrap(), None);
    let mut table = Table::empty(SIZE);
    let (_, mut bytes) = table.encode().unwrap();
    bytes[33] ^= 1;
    assert_eq!(Table::newest(&bytes, &blank, SIZE).unwrap_err(), [Fault::Checksum, Fault::Blank]);
    assert!(matches!(Table::decode(&table.encode().unwrap().1, SIZE + UNIT), Err(Fault::Nonsense(_))));
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    let mut table = Table::empty(SIZE);
    table.give_memory(id(1), 60 * UNIT).unwrap();
    assert_eq!(table.give_memory(id(2), 5 * UNIT), Err(NoExtent::Full(4 * UNIT)));
    assert_eq!(table.give_memory(id(1), UNIT), Err(NoExtent::Taken));
    assert_eq!(table.give_state(id(5), state(1)), Err(NoExtent::NoMemory));
    assert_eq!(table.give_memory(id(2), u64::MAX), Err(NoExtent::Full(4 * UNIT)));
}

#[test]
fn large_memory_starts_at_a_gibibyte_where_it_can() {
    let mut table = Table::empty(8 << 30);
    table.give_memory(id(1), UNIT).unwrap();
    assert_eq!(table.give_memory(id(2), 2 << 30).unwrap().offset, 1 << 30);
}
