//! The floor of a change of kernels: from the order to jump to the first instruction of an empty `/init` of the new kernel.
//!
//! Nothing that is restored after a jump can be restored earlier. The only clock that runs on through a jump is the time stamp counter,
//! so both ends write it on the host's console, whose log is kept outside:
//!
//! ```text
//!  jump ──► "fermata-probe: left TICKS KHZ" ──► reboot(KEXEC) ──► new kernel ──► /init ──► "fermata-probe: first TICKS" ──► restart
//! ```

use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use fermata_vault::{kexec, tsc::rdtsc};
use rustix::system::{RebootCommand, reboot};

use crate::clock;

/// By this name the program is the first one of a kernel and nothing else.
pub const INIT: &str = "/init";
/// Begins the line of the host that jumps; ticks and kHz follow.
pub const LEFT: &str = "fermata-probe: left ";
/// Begins the line of the first program of the new kernel; ticks follow.
pub const FIRST: &str = "fermata-probe: first ";

/// Jumps into a kernel whose initial RAM disk holds nothing but this program. Nothing is synced, nothing stopped: for hosts of a lab.
///
/// # Errors
/// The kernel is not taken, or shall be unpacked before and cannot be.
pub fn jump(kernel: &Path, initrd: &Path, cmdline: &str, unpacked: bool) -> io::Result<()> {
    if !unpacked {
        kexec::load(kernel, Some(initrd), cmdline).map_err(io::Error::other)?;
    } else if let Some(why) = kexec::load_unpacked(kernel, Some(initrd), cmdline).map_err(io::Error::other)? {
        return Err(io::Error::other(why));
    }
    let khz = clock::measure_tsc_khz(Duration::from_millis(500));
    let mut console = OpenOptions::new().write(true).open("/dev/console")?;
    let line = format!("\n{LEFT}{} {khz}\n", rdtsc());
    console.write_all(line.as_bytes())?;
    Err(io::Error::other(kexec::jump()))
}

/// The first program: says when, and restarts the machine.
#[must_use]
pub fn arrive() -> ExitCode {
    let first = rdtsc();
    println!("\n{FIRST}{first}");
    // Until the line is out of the serial port.
    clock::rest(Duration::from_millis(300));
    // The first program must not end; when the machine cannot be restarted the kernel says so by a panic.
    match reboot(RebootCommand::Restart) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
