use std::fs;

use proptest::prelude::*;

use super::*;

fn region(units: u64) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("region");
    File::create(&path).unwrap().set_len(HEAD + units * UNIT).unwrap();
    (dir, path)
}

const fn vm(number: u8) -> Uuid {
    Uuid::from_u128(number as u128)
}

fn fill(path: &Path, region: &Region, byte: u8) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let bytes = vec![byte; index(region.size().bytes())];
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, region.offset()).unwrap();
}

fn is_all(path: &Path, region: &Region, byte: u8) -> bool {
    let mut bytes = vec![0; index(region.size().bytes())];
    std::os::unix::fs::FileExt::read_exact_at(&File::open(path).unwrap(), &mut bytes, region.offset()).unwrap();
    bytes.iter().all(|found| *found == byte)
}

#[test]
fn memory_state_and_record_are_there_for_the_next_kernel() {
    let (_dir, path) = region(8);
    {
        let vault = Devdax::open(&path).unwrap();
        let memory = vault.allocate(vm(1), Size::from_mib(4)).unwrap();
        fill(&path, &memory, 0xa5);
        vault.save(vm(1), b"state of devices", vm(9), 5).unwrap();
        vault.write_record(b"record").unwrap();
    }
    let vault = Devdax::open(&path).unwrap();
    let memory = vault.reclaim(vm(1), Size::from_mib(4), None).unwrap();
    assert!(is_all(&path, &memory, 0xa5));
    assert_eq!(vault.load(vm(1)).unwrap(), b"state of devices");
    assert_eq!(vault.saved(vm(1)).unwrap().boot, vm(9));
    assert_eq!(vault.record().unwrap(), b"record");
    vault.forget_state(vm(1)).unwrap();
    assert!(matches!(vault.load(vm(1)), Err(DevdaxError::NothingSaved { .. })));
    assert!(matches!(vault.reclaim(vm(2), Size::from_mib(4), None), Err(MemoryError::Lost { .. })));
    assert!(matches!(vault.reclaim(vm(1), Size::from_mib(8), None), Err(MemoryError::NotTheRegion { .. })));
}

#[test]
fn freed_memory_is_wiped_before_another_vm_has_it() {
    let (_dir, path) = region(4);
    let vault = Devdax::open(&path).unwrap();
    let memory = vault.allocate(vm(1), Size::from_mib(8)).unwrap();
    fill(&path, &memory, 0xff);
    assert!(matches!(vault.allocate(vm(2), Size::from_mib(2)), Err(MemoryError::Exhausted { .. })));
    vault.free(vm(1)).unwrap();
    let memory = vault.allocate(vm(2), Size::from_mib(8)).unwrap();
    assert!(is_all(&path, &memory, 0));
}

#[test]
fn a_flipped_byte_in_the_state_is_noticed_and_nothing_is_overwritten() {
    let (_dir, path) = region(4);
    let vault = Devdax::open(&path).unwrap();
    vault.allocate(vm(1), Size::from_mib(2)).unwrap();
    vault.save(vm(1), &[7; 5000], vm(9), 5).unwrap();
    let at = vault.saved(vm(1)).unwrap().extent.offset + 4000;
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[6], at).unwrap();
    assert!(matches!(vault.load(vm(1)), Err(DevdaxError::StateDamaged { .. })));
    assert!(vault.saved(vm(1)).is_some());
}

#[test]
fn a_region_with_damaged_tables_is_refused_and_left_as_it_is() {
    let (_dir, path) = region(4);
    {
        let vault = Devdax::open(&path).unwrap();
        vault.allocate(vm(1), Size::from_mib(2)).unwrap();
    }
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    for copy in [20, COPY as u64 + 20] {
        std::os::unix::fs::FileExt::write_all_at(&file, &[0xee], copy).unwrap();
    }
    let before = fs::read(&path).unwrap();
    let error = Devdax::open(&path).unwrap_err().to_string();
    assert!(error.contains("damaged") && error.contains("Nothing in it was touched"), "{error}");
    assert!(fs::read(&path).unwrap() == before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Each VM writes its own byte over its whole memory; whatever happens to others, it reads it back.
    #[test]
    fn no_vm_ever_sees_or_loses_memory_to_another(
        acts in proptest::collection::vec((0u8..4, 0u8..4, 1u32..4), 1..25)
    ) {
        let (_dir, path) = region(10);
        let mut vault = Devdax::open(&path).unwrap();
        let mut held: std::collections::BTreeMap<u8, Region> = std::collections::BTreeMap::new();
        for (who, act, units) in acts {
            match act {
                0 | 1 if !held.contains_key(&who) => {
                    if let Ok(memory) = vault.allocate(vm(who), Size::from_mib(units * 2)) {
                        prop_assert!(is_all(&path, &memory, 0), "memory given out was not wiped");
                        fill(&path, &memory, who + 1);
                        held.insert(who, memory);
                    }
                }
                2 => {
                    if let Some(memory) = held.remove(&who) {
                        vault.release(vm(who), memory).unwrap();
                    }
                }
                _ => {
                    let _ = vault.save(vm(who), &vec![0xdd; 100_000 * units as usize], vm(9), 5);
                    drop(vault);
                    vault = Devdax::open(&path).unwrap();
                }
            }
            for (who, memory) in &held {
                let again = vault.reclaim(vm(*who), memory.size(), None).unwrap();
                prop_assert_eq!(again.offset(), memory.offset());
                prop_assert!(is_all(&path, &again, who + 1));
            }
        }
    }
}
