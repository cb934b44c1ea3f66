use fermata_model::VmSpec;
use fermata_model::definition::{HostDefaults, resolve};
use proptest::prelude::*;

use super::*;
use crate::images::Kind;

const SMALL: &str = "name = \"small\"\nvcpus = 1\nmemory = \"256MiB\"\nguest_agent = false\nvmclock = false\n";
const LINUX: &str = "name = \"web\"\nvcpus = 2\nmemory = \"1GiB\"\n\
    [[disk]]\npath = \"/vm/web, root.qcow2\"\nformat = \"qcow2\"\n\
    [[disk]]\npath = \"/dev/vg/data\"\nformat = \"raw\"\nreadonly = true\n\
    [[nic]]\nbridge = \"br0\"\n[[nic]]\nbridge = \"br1\"\n";
const WINDOWS: &str = "name = \"win\"\nos = \"windows\"\nvcpus = 4\nmemory = \"4GiB\"\n\
    [[disk]]\npath = \"/vm/win.raw\"\nformat = \"raw\"\n[[nic]]\nbridge = \"br0\"\n";
const KERNEL: &str = "name = \"direct\"\nvcpus = 1\nmemory = \"512MiB\"\n\
    [firmware.kernel]\nimage = \"/boot/vmlinuz\"\ninitrd = \"/boot/initrd\"\ncmdline = \"console=ttyS0 quiet\"\n";

fn definition(toml: &str) -> VmDefinition {
    let host = HostDefaults {
        uuid: uuid::Uuid::from_u128(0x0011_2233_4455_6677_8899_aabb_ccdd_eeff),
        cpu: "EPYC-v4".to_owned(),
        machine: "pc-q35-10.0".parse().unwrap(),
        vmm: "10.0".parse().unwrap(),
        tsc_khz: Some(2_700_000),
    };
    resolve(VmSpec::from_toml(toml).unwrap(), &host)
}

fn runtime(vm: &VmDefinition, role: Role) -> Runtime {
    Runtime {
        role,
        twin: false,
        accelerator: Accelerator::Kvm,
        paths: Paths::in_folder(Path::new("/run/fermata/vm/1")),
        console_log: "/var/log/fermata/console.log".into(),
        disks: vm
            .disks
            .iter()
            .map(|disk| Backend {
                kind: if disk.path.starts_with("/dev") { Kind::BlockDevice } else { Kind::File },
                direct: true,
                virtual_size: 10 << 30,
                backed: false,
            })
            .collect(),
        vhost: true,
        uefi: Some(UefiFiles {
            code: "/usr/share/OVMF/OVMF_CODE_4M.fd".into(),
            vars: "/var/lib/fermata/vars.fd".into(),
            vars_bytes: 540_672,
        }),
        memory: MemoryPlace::default(),
    }
}

/// One option and its value to a line: what a person compares.
fn lines(args: &[String]) -> String {
    let mut text = String::new();
    for arg in args {
        if arg.starts_with('-') {
            text.push('\n');
        } else {
            text.push(' ');
        }
        text.push_str(arg);
    }
    text.trim_start().to_owned()
}

fn golden(toml: &str, change: impl FnOnce(&mut Runtime)) -> String {
    let vm = definition(toml);
    let mut runtime = runtime(&vm, Role::Run);
    change(&mut runtime);
    lines(&arguments(&vm, &runtime).unwrap())
}

#[test]
fn the_smallest_vm() {
    insta::assert_snapshot!(golden(SMALL, |_| {}));
}

#[test]
fn a_linux_vm_with_disks_and_nics() {
    insta::assert_snapshot!(golden(LINUX, |_| {}));
}

#[test]
fn a_windows_vm() {
    insta::assert_snapshot!(golden(WINDOWS, |_| {}));
}

#[test]
fn a_directly_booted_kernel_under_emulation() {
    insta::assert_snapshot!(golden(KERNEL, |runtime| runtime.accelerator = Accelerator::Tcg));
}

#[test]
fn a_twin_opens_nothing_of_the_vm() {
    let twin = golden(LINUX, |runtime| runtime.twin = true);
    assert!(!twin.contains("root.qcow2") && !twin.contains("/dev/vg") && !twin.contains("console.log"));
    let windows = golden(WINDOWS, |runtime| runtime.twin = true);
    assert!(!windows.contains("vars.fd") && windows.ends_with("-S"));
    insta::assert_snapshot!(twin);
}

/// What the guest sees of a start: devices, board, processor, memory, identity.
fn guest_visible(args: &[String]) -> Vec<(&str, &str)> {
    args.windows(2)
        .filter(|pair| {
            ["-device", "-machine", "-cpu", "-smp", "-m", "-uuid", "-smbios", "-global", "-rtc"]
                .contains(&pair[0].as_str())
        })
        .map(|pair| (pair[0].as_str(), pair[1].as_str()))
        .collect()
}

#[test]
fn every_start_of_a_vm_has_identical_hardware() {
    for toml in [SMALL, LINUX, WINDOWS, KERNEL] {
        let vm = definition(toml);
        let cold = arguments(&vm, &runtime(&vm, Role::Run)).unwrap();
        for role in [Role::Run, Role::IncomingCpr, Role::IncomingDefer] {
            for twin in [false, true] {
                let mut other = runtime(&vm, role);
                other.twin = twin;
                other.paths = Paths::in_folder(Path::new("/run/fermata/vm/2"));
                let args = arguments(&vm, &other).unwrap();
                assert_eq!(guest_visible(&cold), guest_visible(&args), "{role:?}, twin {twin}");
            }
        }
    }
}

#[test]
fn a_successor_listens_on_two_sockets_of_its_own_folder() {
    let text = golden(SMALL, |runtime| runtime.role = Role::IncomingCpr);
    let incoming: Vec<_> = text.lines().filter(|line| line.starts_with("-incoming")).collect();
    assert_eq!(incoming.len(), 2);
    assert!(incoming[0].contains("\"main\"") && incoming[0].contains("/run/fermata/vm/1/incoming"));
    assert!(incoming[1].contains("\"cpr\"") && incoming[1].contains("/run/fermata/vm/1/cpr"));
    assert!(text.ends_with("-S"), "a successor never runs by itself");
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let vm = definition(WINDOWS);
    let mut without_firmware = runtime(&vm, Role::Run);
    without_firmware.uefi = None;
    assert!(matches!(arguments(&vm, &without_firmware), Err(CommandError::NoUefi { .. })));
    let mut without_disk = runtime(&vm, Role::Run);
    without_disk.disks.clear();
    assert!(matches!(arguments(&vm, &without_disk), Err(CommandError::Disks { .. })));
    let mut far_away = runtime(&vm, Role::Run);
    far_away.paths = Paths::in_folder(&Path::new("/").join("x".repeat(100)));
    assert!(matches!(arguments(&vm, &far_away), Err(CommandError::PathTooLong { .. })));
    let mut many = vm.clone();
    many.nics = vec![vm.nics[0].clone(); MAX_NICS + 1];
    assert!(matches!(arguments(&many, &runtime(&many, Role::Run)), Err(CommandError::TooManyDevices { .. })));
}

proptest! {
    #[test]
    fn no_two_devices_share_an_address_and_no_descriptor_has_two_users(disks in 0usize..40, nics in 0usize..MAX_NICS) {
        let mut vm = definition(LINUX);
        vm.disks = vec![vm.disks[0].clone(); disks];
        vm.nics = vec![vm.nics[0].clone(); nics];
        let args = arguments(&vm, &runtime(&vm, Role::Run)).unwrap();
        let mut buses: Vec<_> = args.iter().filter(|arg| arg.starts_with("virtio-"))
            .filter_map(|arg| arg.split(',').find(|part| part.starts_with("bus=port"))).collect();
        let mut addresses: Vec<_> = args.iter().filter_map(|arg| arg.split_once("addr=")).collect();
        let (bus_count, address_count) = (buses.len(), addresses.len());
        buses.sort_unstable();
        buses.dedup();
        addresses.sort_unstable();
        addresses.dedup();
        prop_assert_eq!(buses.len(), bus_count);
        prop_assert_eq!(addresses.len(), address_count);
        let mut numbers: Vec<_> = (0..nics).flat_map(|nic| [tap(nic), vhost(nic)]).chain([MEMORY]).collect();
        numbers.sort_unstable();
        numbers.dedup();
        prop_assert_eq!(numbers.len(), 2 * nics + 1);
        prop_assert!(numbers.iter().all(|number| (3..1024).contains(number)));
    }
}
