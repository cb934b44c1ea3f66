//! Real VMMs, started and replaced as the agent does it, under a guest that ticks.
//!
//! `FERMATA_TEST_DEBIAN` names the lab's Debian disk (qcow2), `FERMATA_TEST_OVMF` the folder of the UEFI firmware.
//! `FERMATA_TEST_VMM_OLD` and `FERMATA_TEST_VMM_NEW` name two QEMUs (10.0 or newer; may be the same).

#![expect(clippy::unwrap_used, reason = "these are tests; helpers outside test functions are not recognised as such")]

mod host;

use std::time::Duration;

use fermata_model::MachineType;
use fermata_vmm::command::Role;
use fermata_vmm::handover::{self, HandoverError};
use fermata_vmm::inspect;
use fermata_vmm::qmp::{QueryStatus, RunState};

use host::{LIMIT, Vm, accelerator, new_vmm, old_vmm};

/// Not a promise: the launcher's side, in a process of its own.
#[test]
fn launcher() {
    host::be_launcher();
}

/// The newest machine type that both VMMs know.
async fn machine() -> MachineType {
    let mut infos = Vec::new();
    for binary in [old_vmm(), new_vmm()] {
        infos.push(inspect::inspect(&binary, accelerator(), LIMIT).await.unwrap());
    }
    inspect::best_machine(&infos).unwrap()
}

#[tokio::test]
async fn a_vmm_says_what_it_is() {
    let info = inspect::inspect(&old_vmm(), accelerator(), LIMIT).await.unwrap();
    assert!(info.version >= inspect::OLDEST);
    assert!(info.cpr_transfer && info.cpr_reboot && info.has_vmclock(), "{info:?}");
    assert_eq!(info.newest_machine(), Some(MachineType(info.version)));
    assert!(inspect::best_cpu(std::slice::from_ref(&info), false).is_some(), "{:?}", info.cpus);
}

#[tokio::test]
async fn a_vm_goes_on_in_a_new_vmm_without_losing_a_tick() {
    let mut vm = Vm::new(machine().await, "");
    let mut old = vm.start(&old_vmm(), Role::Run, false);
    vm.ticks(5).await;
    for binary in [old_vmm(), new_vmm(), new_vmm()] {
        let monitor = old.qmp().await;
        handover::prepare(&monitor).await.unwrap();
        let new = vm.start(&binary, Role::IncomingCpr, false);
        handover::ready(&new.process, &new.paths, LIMIT).await.unwrap();
        assert!(monitor.execute(&QueryStatus {}).await.unwrap().running, "the VM runs until it is handed over");
        let handed = handover::hand_over(&monitor, &new.process, &new.paths, LIMIT).await;
        let handed = handed.unwrap_or_else(|error| panic!("{error}; {}", vm.logs()));
        assert_eq!(monitor.execute(&QueryStatus {}).await.unwrap().status, RunState::Postmigrate);
        let resumed = handover::resume(&handed.new, LIMIT).await.unwrap().unwrap();
        eprintln!("STOP to RESUME {:?}, all {:?}", resumed.since(handed.stopped.unwrap()), handed.took);
        handover::retire(Some(&monitor), &old.process, LIMIT).await.unwrap();
        vm.ticks(5).await;
        old = new;
    }
    vm.assert_unbroken();
}

#[tokio::test]
async fn a_handed_over_vm_is_taken_back_and_can_be_handed_over_later() {
    let mut vm = Vm::new(machine().await, "");
    let old = vm.start(&old_vmm(), Role::Run, false);
    vm.ticks(3).await;
    let monitor = old.qmp().await;
    handover::prepare(&monitor).await.unwrap();
    for again in [true, false] {
        let new = vm.start(&new_vmm(), Role::IncomingCpr, false);
        handover::ready(&new.process, &new.paths, LIMIT).await.unwrap();
        let handed = handover::hand_over(&monitor, &new.process, &new.paths, LIMIT).await;
        let handed = handed.unwrap_or_else(|error| panic!("{error}; {}", vm.logs()));
        if again {
            let back = handover::take_back(&monitor, Some(&new.process), LIMIT).await.unwrap();
            assert!(back.unwrap() > handed.stopped.unwrap());
            assert!(!new.process.is_alive());
            vm.ticks(3).await;
        } else {
            handover::resume(&handed.new, LIMIT).await.unwrap();
            vm.ticks(3).await;
        }
    }
    vm.assert_unbroken();
}

#[tokio::test]
async fn a_successor_that_dies_before_or_during_the_hand_over_leaves_the_vm_running() {
    let mut vm = Vm::new(machine().await, "");
    let old = vm.start(&old_vmm(), Role::Run, false);
    vm.ticks(3).await;
    let monitor = old.qmp().await;
    handover::prepare(&monitor).await.unwrap();
    // Dead before: it never stops.
    let new = vm.start(&new_vmm(), Role::IncomingCpr, false);
    handover::ready(&new.process, &new.paths, LIMIT).await.unwrap();
    new.process.kill_for_certain(LIMIT).await.unwrap();
    let error = handover::hand_over(&monitor, &new.process, &new.paths, LIMIT).await.unwrap_err();
    eprintln!("{error}");
    assert_eq!(handover::take_back(&monitor, Some(&new.process), LIMIT).await.unwrap(), None);
    vm.ticks(3).await;
    // Dead at any moment of it.
    for after in [0, 5, 20, 60, 120, 200, 400] {
        let new = vm.start(&new_vmm(), Role::IncomingCpr, false);
        handover::ready(&new.process, &new.paths, LIMIT).await.unwrap();
        let killed = async {
            tokio::time::sleep(Duration::from_millis(after)).await;
            new.process.kill_for_certain(LIMIT).await.unwrap();
        };
        let (handed, ()) = tokio::join!(handover::hand_over(&monitor, &new.process, &new.paths, LIMIT), killed);
        eprintln!(
            "killed after {after} ms: {:?}",
            handed.map(|handed| handed.stopped).map_err(|error| error.to_string())
        );
        handover::take_back(&monitor, Some(&new.process), LIMIT).await.unwrap();
        vm.ticks(3).await;
    }
    vm.assert_unbroken();
}

#[tokio::test]
async fn a_successor_with_other_hardware_is_found_out_and_the_vm_taken_back() {
    let machine = machine().await;
    let mut vm = Vm::new(machine, "");
    let old = vm.start(&old_vmm(), Role::Run, false);
    vm.ticks(3).await;
    let monitor = old.qmp().await;
    handover::prepare(&monitor).await.unwrap();
    vm.definition.guest_agent = false;
    vm.definition.vcpus = 1;
    let new = vm.start(&new_vmm(), Role::IncomingCpr, false);
    handover::ready(&new.process, &new.paths, LIMIT).await.unwrap();
    let error = handover::hand_over(&monitor, &new.process, &new.paths, LIMIT).await.unwrap_err();
    assert!(matches!(error, HandoverError::NewDied { .. } | HandoverError::Failed(_)), "{error}; {}", vm.logs());
    handover::take_back(&monitor, Some(&new.process), LIMIT).await.unwrap();
    vm.ticks(3).await;
    vm.assert_unbroken();
}

#[tokio::test]
async fn twins_rehearse_a_hand_over_beside_the_running_vm() {
    let mut vm = Vm::new(machine().await, "");
    let _running = vm.start(&old_vmm(), Role::Run, false);
    vm.ticks(3).await;
    let mut twin = vm.twin();
    let old = twin.start(&old_vmm(), Role::Run, true);
    let monitor = old.qmp().await;
    handover::prepare(&monitor).await.unwrap();
    let new = twin.start(&new_vmm(), Role::IncomingCpr, true);
    handover::ready(&new.process, &new.paths, LIMIT).await.unwrap();
    let handed = handover::hand_over(&monitor, &new.process, &new.paths, LIMIT).await;
    let handed = handed.unwrap_or_else(|error| panic!("{error}; {}", twin.logs()));
    assert_eq!(handed.stopped, None, "a twin never ran");
    assert!(!handed.new.execute(&QueryStatus {}).await.unwrap().running);
    assert_eq!(twin.console(), "");
    vm.ticks(3).await;
    vm.assert_unbroken();
}

#[tokio::test]
async fn what_twins_rehearse_is_what_happens_also_for_an_older_vmm() {
    let mut vm = Vm::new(machine().await, "");
    let running = vm.start(&new_vmm(), Role::Run, false);
    vm.ticks(3).await;
    let mut outcomes = Vec::new();
    let mut twin = vm.twin();
    let twin_old = twin.start(&new_vmm(), Role::Run, true);
    for (it, old, as_twin) in [(&mut twin, &twin_old, true), (&mut vm, &running, false)] {
        let monitor = old.qmp().await;
        handover::prepare(&monitor).await.unwrap();
        let new = it.start(&old_vmm(), Role::IncomingCpr, as_twin);
        handover::ready(&new.process, &new.paths, LIMIT).await.unwrap();
        let handed = handover::hand_over(&monitor, &new.process, &new.paths, LIMIT).await;
        if !as_twin {
            let back = handover::take_back(&monitor, Some(&new.process), LIMIT).await;
            back.unwrap_or_else(|error| panic!("{error}; {}", it.logs()));
        }
        outcomes.push(handed.map(drop).map_err(|error| format!("{error}; {}", it.logs())));
    }
    eprintln!("back to the older VMM: {outcomes:?}");
    assert_eq!(outcomes[0].is_ok(), outcomes[1].is_ok(), "{outcomes:?}");
    vm.ticks(3).await;
    vm.assert_unbroken();
}

#[tokio::test]
async fn an_update_is_taken_back_through_a_file_while_memory_stays_in_place() {
    let mut vm = Vm::new(machine().await, "");
    let mut old = vm.start(&old_vmm(), Role::Run, false);
    vm.ticks(3).await;
    let file = vm.folder.path().join("state");
    for (binary, back) in [(new_vmm(), true), (new_vmm(), false), (old_vmm(), true), (old_vmm(), false)] {
        let monitor = old.qmp().await;
        handover::prepare_save(&monitor).await.unwrap();
        let new = vm.start(&binary, Role::IncomingDefer, false);
        let successor = new.qmp().await;
        let handed = handover::hand_over_by_file(&monitor, &new.process, &successor, &file, LIMIT).await;
        let handed = handed.unwrap_or_else(|error| panic!("{error}; {}", vm.logs()));
        if back {
            handover::take_back(&monitor, Some(&new.process), LIMIT).await.unwrap().unwrap();
        } else {
            let resumed = handover::resume(&successor, LIMIT).await.unwrap().unwrap();
            eprintln!("by file: STOP to RESUME {:?}", resumed.since(handed.stopped.unwrap()));
            handover::retire(Some(&monitor), &old.process, LIMIT).await.unwrap();
            old = new;
        }
        vm.ticks(3).await;
    }
    vm.assert_unbroken();
}

#[tokio::test]
async fn a_saved_vm_goes_on_in_another_vmm_or_in_the_same() {
    let mut vm = Vm::new(machine().await, "");
    let old = vm.start(&old_vmm(), Role::Run, false);
    vm.ticks(3).await;
    let monitor = old.qmp().await;
    let file = vm.folder.path().join("state");
    handover::prepare_save(&monitor).await.unwrap();
    handover::save(&monitor, &file, LIMIT).await.unwrap().unwrap();
    assert!(std::fs::metadata(&file).unwrap().len() < 4 << 20, "memory is not in the file");
    handover::take_back(&monitor, None, LIMIT).await.unwrap().unwrap();
    vm.ticks(3).await;
    handover::save(&monitor, &file, LIMIT).await.unwrap().unwrap();
    handover::retire(Some(&monitor), &old.process, LIMIT).await.unwrap();
    let new = vm.start(&new_vmm(), Role::IncomingDefer, false);
    let monitor = new.qmp().await;
    let loaded = handover::load(&monitor, &file, LIMIT).await;
    loaded.unwrap_or_else(|error| panic!("{error}; {}", vm.logs()));
    handover::resume(&monitor, LIMIT).await.unwrap().unwrap();
    vm.ticks(3).await;
    vm.assert_unbroken();
}

#[tokio::test]
async fn both_firmwares_boot_debian() {
    let disk = host::vmm("FERMATA_TEST_DEBIAN");
    let ovmf = host::vmm("FERMATA_TEST_OVMF");
    for (what, uefi) in [("BIOS", None), ("UEFI", Some(ovmf.as_path()))] {
        let began = std::time::Instant::now();
        let mut vm = Vm::debian(machine().await, &disk, uefi);
        let _vmm = vm.start(&old_vmm(), Role::Run, false);
        vm.says("debian login:", Duration::from_secs(300)).await;
        eprintln!("Debian by {what}: login after {:.0} s", began.elapsed().as_secs_f64());
    }
}
