//! A host for tests: two VMM binaries, and VMs that tick.
//!
//! The guest is a boot sector: it prints the next letter of the alphabet to the serial port at every tick of the PC's timer
//! (18.2 per second). Letters in order, none missing, is a guest that goes on where it was.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fermata_model::definition::{HostDefaults, resolve};
use fermata_model::spec::{DiskFormat, Firmware};
use fermata_model::{MachineType, VmDefinition, VmSpec};
use fermata_vault::launch::{Door, Launch};
use fermata_vault::memory::{Memfd, Provider, Region};
use fermata_vault::process::Process;
use fermata_vmm::command::{self, Accelerator, Paths, Role, Runtime, UefiFiles};
use fermata_vmm::images;
use fermata_vmm::qmp::Qmp;
use uuid::Uuid;

/// Generous: the emulator on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
const ROLE: &str = "FERMATA_TEST_LAUNCHER";

/// The VMM that a variable names.
pub(crate) fn vmm(variable: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(
        || panic!("{variable} must be set (see docs/src/vmm.md); these tests run real VMMs"),
        PathBuf::from,
    )
}

pub(crate) fn old_vmm() -> PathBuf {
    vmm("FERMATA_TEST_VMM_OLD")
}

pub(crate) fn new_vmm() -> PathBuf {
    vmm("FERMATA_TEST_VMM_NEW")
}

/// KVM where it works.
pub(crate) fn accelerator() -> Accelerator {
    if fermata_vault::kvm::usable().is_ok() { Accelerator::Kvm } else { Accelerator::Tcg }
}

/// The launcher's side, in a process of its own.
pub(crate) fn be_launcher() {
    if let Some(path) = std::env::var_os(ROLE) {
        let error = fermata_vault::launch::receive_and_exec(Path::new(&path), LIMIT);
        eprintln!("{error}");
        std::process::exit(127);
    }
}

/// `xor ax,ax; mov ds,ax; mov ss,ax; mov sp,7c00; sti; mov bl,'a'; tick: hlt; mov dx,3f8; mov al,bl; out dx,al; inc bl;
/// cmp bl,'z'+1; jne tick; mov bl,'a'; jmp tick`
const TICKER: [u8; 30] = [
    0x31,
    0xc0,
    0x8e,
    0xd8,
    0x8e,
    0xd0,
    0xbc,
    0x00,
    0x7c,
    0xfb,
    0xb3,
    b'a',
    0xf4,
    0xba,
    0xf8,
    0x03,
    0x88,
    0xd8,
    0xee,
    0xfe,
    0xc3,
    0x80,
    0xfb,
    b'z' + 1,
    0x75,
    0xf2,
    0xb3,
    b'a',
    0xeb,
    0xee,
];

/// A VM and everything that outlives its VMMs.
pub(crate) struct Vm {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) definition: VmDefinition,
    region: Region,
    generation: u32,
    uefi: Option<UefiFiles>,
}

/// A running VMM.
pub(crate) struct Vmm {
    pub(crate) process: Process,
    pub(crate) paths: Paths,
    child: Child,
}

impl Drop for Vmm {
    fn drop(&mut self) {
        // A test that failed leaves nothing behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Vmm {
    pub(crate) async fn qmp(&self) -> Qmp {
        Qmp::connect(&self.paths.qmp(), LIMIT).await.unwrap()
    }
}

impl Vm {
    /// A VM with everything that the tests' VMMs have in common; `extra` is TOML.
    pub(crate) fn new(machine: MachineType, extra: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut boot = vec![0; 1 << 20];
        boot[..TICKER.len()].copy_from_slice(&TICKER);
        boot[510..512].copy_from_slice(&[0x55, 0xaa]);
        let disk = folder.path().join("boot.img");
        std::fs::write(&disk, boot).unwrap();
        let toml = format!(
            "name = \"ticker\"\nvcpus = 2\nmemory = \"256MiB\"\n{extra}\n[[disk]]\npath = \"{}\"\nformat = \"raw\"\n",
            disk.display()
        );
        let host = HostDefaults {
            uuid: Uuid::new_v4(),
            cpu: "qemu64-v1".to_owned(),
            machine,
            vmm: machine.0,
            tsc_khz: fermata_vault::kvm::guest_tsc_khz(),
        };
        let definition = resolve(VmSpec::from_toml(&toml).unwrap(), &host);
        let region = Memfd::default().allocate(definition.uuid, definition.memory).unwrap();
        Self { folder, definition, region, generation: 0, uefi: None }
    }

    /// A VM of the lab's Debian disk, through an overlay, with a firmware.
    pub(crate) fn debian(machine: MachineType, disk: &Path, uefi: Option<&Path>) -> Self {
        let mut vm = Self::new(machine, "");
        let overlay = vm.folder.path().join("debian.qcow2");
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"]).arg(disk).arg(&overlay);
        assert!(create.status().unwrap().success());
        vm.definition.disks[0].path = overlay;
        vm.definition.disks[0].format = DiskFormat::Qcow2;
        if let Some(ovmf) = uefi {
            let vars = vm.folder.path().join("vars.fd");
            std::fs::copy(ovmf.join("OVMF_VARS_4M.fd"), &vars).unwrap();
            let vars_bytes = std::fs::metadata(&vars).unwrap().len();
            vm.definition.firmware = Firmware::Uefi;
            vm.uefi = Some(UefiFiles { code: ovmf.join("OVMF_CODE_4M.fd"), vars, vars_bytes });
        }
        vm
    }

    /// Waits until the guest has printed a text.
    pub(crate) async fn says(&self, text: &str, limit: Duration) {
        let said = async {
            while !self.console().contains(text) {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let in_time = tokio::time::timeout(limit, said).await.is_ok();
        assert!(in_time, "no {text:?} within {limit:?}; the VMMs say: {}; the guest: {}", self.logs(), self.console());
    }

    /// The same VM with memory of its own, for twins.
    pub(crate) fn twin(&self) -> Self {
        let definition = self.definition.clone();
        let region = Memfd::default().allocate(definition.uuid, definition.memory).unwrap();
        Self { folder: tempfile::tempdir().unwrap(), definition, region, generation: 0, uefi: self.uefi.clone() }
    }

    /// Starts a VMM for it through a launcher, as the agent does.
    pub(crate) fn start(&mut self, binary: &Path, role: Role, twin: bool) -> Vmm {
        self.generation += 1;
        let folder = self.folder.path().join(self.generation.to_string());
        std::fs::create_dir(&folder).unwrap();
        let runtime = Runtime {
            role,
            twin,
            accelerator: accelerator(),
            paths: Paths::in_folder(&folder),
            console_log: self.console_log(),
            disks: self.definition.disks.iter().map(|disk| images::inspect(disk).unwrap()).collect(),
            vhost: false,
            uefi: self.uefi.clone(),
            memory: command::MemoryPlace::of(&self.region),
        };
        let launch = Launch {
            program: binary.to_owned(),
            args: command::arguments(&self.definition, &runtime).unwrap(),
            env: command::environment(),
        };
        let socket = folder.join("launch");
        let door = Door::bind(&socket).unwrap();
        let log = std::fs::File::create(folder.join("log")).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "launcher", "--nocapture"])
            .env(ROLE, &socket)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let fds = [(command::MEMORY, self.region.as_fd())];
        let process = door.accept(LIMIT).unwrap().hand_over(&launch, &fds, LIMIT).unwrap();
        Vmm { process, paths: runtime.paths, child }
    }

    fn console_log(&self) -> PathBuf {
        self.folder.path().join("console.log")
    }

    /// What the guest has printed.
    pub(crate) fn console(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.console_log()).unwrap_or_default()).into_owned()
    }

    /// Waits until the guest has printed `more` letters.
    pub(crate) async fn ticks(&self, more: usize) {
        let wanted = self.console().len() + more;
        let ticked = async {
            while self.console().len() < wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(
            tokio::time::timeout(LIMIT, ticked).await.is_ok(),
            "the guest does not tick; the VMMs say: {}",
            self.logs()
        );
    }

    /// Checks that no tick was lost, doubled or begun anew.
    pub(crate) fn assert_unbroken(&self) {
        let console = self.console();
        let expected: String = ('a'..='z').cycle().take(console.len()).collect();
        assert_eq!(console, expected);
    }

    /// What its VMMs said.
    pub(crate) fn logs(&self) -> String {
        (1..=self.generation)
            .map(|n| std::fs::read_to_string(self.folder.path().join(n.to_string()).join("log")).unwrap_or_default())
            .collect()
    }
}
