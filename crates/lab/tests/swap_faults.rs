//! The worst at the steps of a swap around its pause: the shorter set of `cargo xtask faults swap`.

use std::time::Duration;

use fermata_lab::swaps::faults::{self, Fault};
use fermata_lab::{Lab, LabSpec};

#[test]
fn a_fault_in_a_swap_leaves_one_vmm_and_a_whole_vm_and_a_true_report() {
    let lab = Lab::up(&LabSpec::for_test("faults", 1)).expect("a lab");
    let limit = Duration::from_secs(30 * 60);
    let cases = faults::cases(lab.host(1), &faults::SHORT, &Fault::SHORT, limit).expect("all cases are tried");
    println!("{}", faults::table(&cases));
    let broken: Vec<_> = cases.iter().filter(|case| !case.broken.is_empty()).collect();
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(cases.iter().filter(|case| case.applied).count() >= 7, "nothing was hit");
}
