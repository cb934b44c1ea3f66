//! The QEMU command line of a virtual host.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Result, bail};

use crate::{network, spec::HostSpec};

/// What a machine is made of.
#[derive(Debug)]
pub struct Machine<'a> {
    /// Folder of the QEMU that runs it, with its libraries and data (`outer` of the image).
    pub emulator: PathBuf,
    /// Name of the lab.
    pub lab: &'a str,
    /// Name of the host.
    pub name: &'a str,
    /// Number of the host, from 1.
    pub number: usize,
    /// Size and kernel.
    pub spec: &'a HostSpec,
    /// Kernel and initramfs.
    pub boot: (PathBuf, PathBuf),
    /// Own layer over the root disk (qcow2).
    pub root: PathBuf,
    /// The payload.
    pub payload: PathBuf,
    /// The images of guests.
    pub guests: PathBuf,
    /// Log of the serial console.
    pub log: PathBuf,
    /// Where QEMU writes what it has to say about itself.
    pub words: PathBuf,
    /// Where QEMU writes its process id.
    pub pid_file: PathBuf,
    /// Folder of the sockets.
    pub sockets: &'a Path,
}

static CHOSEN: OnceLock<Acceleration> = OnceLock::new();

/// How virtual hosts run on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceleration {
    /// On the CPU, with a nested KVM inside.
    Kvm,
    /// Emulated; the emulated CPU has SVM, so that KVM works inside.
    Tcg,
}

impl Acceleration {
    /// Processors of a host unless told otherwise: an update meets more than one on every real host.
    pub const PROCESSORS: u32 = 2;

    /// Processors of each of `hosts` hosts on this machine unless told otherwise.
    ///
    /// Each emulated one is a thread that is hardly ever idle while something is measured. Where they are more than two to a core, one holds what another
    /// one waits for and does not run: on two cores three hosts of two processors took twice as long for the same as three of one.
    #[must_use]
    pub fn processors(hosts: usize) -> u32 {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self::detect().processors_on(hosts, cores)
    }

    fn processors_on(self, hosts: usize, cores: usize) -> u32 {
        if self == Self::Kvm || hosts <= cores { Self::PROCESSORS } else { 1 }
    }

    /// From now on hosts of this process run this way.
    ///
    /// # Errors
    /// This machine cannot.
    pub fn insist(self) -> Result<()> {
        if self == Self::Kvm && Self::of_this_machine() == Self::Tcg {
            bail!(
                "KVM with nesting is not to be had on this machine: the CPU's flag, /dev/kvm or the module's `nested` is missing"
            );
        }
        CHOSEN.set(self).map_err(|chosen| anyhow::anyhow!("hosts run by {chosen:?} already"))
    }

    /// What somebody insisted on, or what this machine can.
    #[must_use]
    pub fn detect() -> Self {
        CHOSEN.get().copied().unwrap_or_else(Self::of_this_machine)
    }

    /// KVM only where it really works: the CPU's flag is there, the device opens, and nesting is on.
    ///
    /// A `/dev/kvm` may open and even make VMs on a machine that cannot run them, so the flag is asked first.
    fn of_this_machine() -> Self {
        let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flag = |name: &str| {
            flags.lines().any(|line| line.starts_with("flags") && line.split_whitespace().any(|word| word == name))
        };
        let nested = |module: &str| {
            let text = fs::read_to_string(format!("/sys/module/{module}/parameters/nested")).unwrap_or_default();
            matches!(text.trim(), "1" | "Y")
        };
        let hardware = (flag("vmx") && nested("kvm_intel")) || (flag("svm") && nested("kvm_amd"));
        if hardware && fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok() {
            Self::Kvm
        } else {
            Self::Tcg
        }
    }
}

/// Frequency of the time stamp counter that the kernel is told under TCG, in kHz.
///
/// Every boot calibrates anew and finds a slightly different value, and after a kexec the guest's clock would jump by the
/// difference. Under TCG the counter *is* the outer machine's, so its frequency is measured once on the outside.
#[must_use]
pub fn tsc_khz() -> u64 {
    let file = crate::paths::lab().join("tsc_khz");
    if let Some(known) = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()) {
        return known;
    }
    let measured = fermata_probe::clock::measure_tsc_khz(std::time::Duration::from_millis(500));
    // Measured again by the next lab where it cannot be kept.
    let _ = fs::write(file, measured.to_string());
    measured
}

impl Machine<'_> {
    /// Its command line.
    #[must_use]
    pub fn command(&self, acceleration: Acceleration) -> Command {
        let mut qemu = emulator(&self.emulator);
        let socket = |kind: &str| self.sockets.join(format!("{}.{kind}", self.name)).display().to_string();
        let clock = match acceleration {
            Acceleration::Kvm => {
                qemu.args(["-accel", "kvm", "-cpu", "host"]);
                String::new()
            }
            Acceleration::Tcg => {
                qemu.args(["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,la57=off,erms=off,fsrm=off"]);
                format!(" tsc_early_khz={}", tsc_khz())
            }
        };
        let append = format!(
            "console=ttyS0 quiet net.ifnames=0 panic=5 mitigations=off systemd.show_status=error{clock} {}",
            self.spec.words()
        );
        qemu.args(["-name", &format!("fermata-lab-{}-{}", self.lab, self.name)])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35"])
            .args(["-m", &self.spec.memory_mib.to_string(), "-smp", &self.spec.cpus.to_string()])
            .arg("-kernel")
            .arg(&self.boot.0)
            .arg("-initrd")
            .arg(&self.boot.1)
            .args(["-append", append.trim_end()])
            .args(["-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"])
            .args([
                "-chardev",
                &format!(
                    "socket,id=console,path={},server=on,wait=off,logfile={}",
                    socket("console"),
                    self.log.display()
                ),
            ])
            .args(["-serial", "chardev:console"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", socket("qmp"))]);
        // The order makes /dev/vda, vdb and vdc.
        disk(&mut qemu, "root", &self.root, "qcow2,cache=unsafe,discard=unmap");
        disk(&mut qemu, "payload", &self.payload, "raw,readonly=on");
        disk(&mut qemu, "guests", &self.guests, "raw,readonly=on");
        let (own, switch) = (network::port_socket(self.sockets, self.name), network::switch_socket(self.sockets));
        qemu.args(["-netdev", "user,id=outside,hostfwd=tcp:127.0.0.1:0-:22"])
            .args(["-device", "virtio-net-pci,netdev=outside,romfile="])
            .args([
                "-netdev",
                &format!(
                    "dgram,id=private,local.type=unix,local.path={},remote.type=unix,remote.path={}",
                    own.display(),
                    switch.display()
                ),
            ])
            .args([
                "-device",
                &format!("virtio-net-pci,netdev=private,romfile=,mac=52:54:00:4c:41:{:02x}", self.number),
            ])
            // With a log of its own, QEMU keeps its standard error in the background: what it says when it dies.
            .arg("-daemonize")
            .arg("-D")
            .arg(&self.words)
            .arg("-pidfile")
            .arg(&self.pid_file);
        qemu
    }
}

/// QEMU of the image by its own loader and libraries: the same version on every machine, whatever that has installed.
fn emulator(folder: &Path) -> Command {
    let mut qemu = Command::new(folder.join("lib/ld-linux-x86-64.so.2"));
    qemu.arg("--library-path").arg(folder.join("lib")).arg(folder.join("qemu-system-x86_64"));
    qemu.env("QEMU_MODULE_DIR", folder.join("modules"));
    for data in ["share/qemu", "share/seabios"] {
        qemu.arg("-L").arg(folder.join(data));
    }
    qemu
}

/// What the emulator of hosts says of itself.
#[must_use]
pub fn version(folder: &Path) -> String {
    let output = emulator(folder).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}

fn disk(qemu: &mut Command, name: &str, file: &Path, format: &str) {
    qemu.args(["-drive", &format!("if=none,id={name},file={},format={format}", file.display())])
        .args(["-device", &format!("virtio-blk-pci,drive={name},serial={name}")]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulated_processors_are_at_most_two_to_a_core() {
        let on = |hosts, cores| Acceleration::Tcg.processors_on(hosts, cores);
        assert_eq!([on(1, 1), on(1, 2), on(2, 2), on(3, 2), on(3, 4)], [2, 2, 2, 1, 2]);
        assert_eq!(Acceleration::Kvm.processors_on(3, 2), 2);
    }
}
