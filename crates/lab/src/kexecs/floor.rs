//! The floor: the same host jumps into the same kernel, whose `/init` does nothing but say that it is there.

use std::{fs, time::Duration};

use anyhow::{Context, Result, bail};
use fermata_first::archive::Archive;
use fermata_probe::floor::{FIRST, LEFT};

use super::change::{UP, image};
use crate::{artifact, command::await_some, host::Host, spec::Kernel};

/// Where the host gets the initial RAM disk.
const INITRD: &str = "/root/floor.initrd";

/// How a kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// By `kexec_file_load`, as everybody does: this is the floor.
    AsIs,
    /// Unpacked before, as Fermata does.
    Unpacked,
}

/// Measures it once, in milliseconds; the host has no VMs, and is up again afterwards with the kernel it boots.
///
/// # Errors
/// The host does not jump, or does not come back.
pub fn measure(host: &Host, kernel: Kernel, entry: Entry) -> Result<f64> {
    let mut archive = Archive::default();
    archive.file("init", 0o755, &fs::read(artifact::probe()?)?);
    let file = host.folder.join("floor.initrd");
    fs::write(&file, archive.done())?;
    host.copy_to(&file, INITRD)?;
    fs::remove_file(&file)?;
    let (boot, image) = (host.boot_id()?, image(host, kernel)?);
    let seen = fs::metadata(host.console_log())?.len();
    let jump = if entry == Entry::Unpacked { "jump-unpacked" } else { "jump" };
    // The connection ends with the kernel, so nothing waits on it.
    host.run(&format!(
        "sync; systemd-run --quiet --collect fermata-probe {jump} {image} {INITRD} \"$(cat /proc/cmdline)\""
    ))?;
    let ticks = await_some(UP, Duration::from_millis(200), || {
        if !host.is_running() {
            bail!("the QEMU of {} ended by itself\n{}", host.name, host.console_tail(15));
        }
        let log = fs::read(host.console_log())?;
        let new = log.get(usize::try_from(seen)?..).unwrap_or_default();
        Ok(between(&String::from_utf8_lossy(new)))
    })?;
    let ms = ticks.with_context(|| format!("{} did not jump\n{}", host.name, host.console_tail(15)))?;
    host.wait_boot_after(&boot, UP)?;
    host.wait_agent_ready(Duration::from_secs(120))?;
    Ok(ms)
}

/// The time between both lines of a console, in milliseconds.
fn between(console: &str) -> Option<f64> {
    let after = |lead: &str| console.lines().filter_map(|line| line.trim().strip_prefix(lead)).next_back();
    let left = after(LEFT)?;
    let (ticks, khz) = left.split_once(' ')?;
    let (left, khz): (u64, u64) = (ticks.parse().ok()?, khz.trim().parse().ok()?);
    let first: u64 = after(FIRST)?.trim().parse().ok()?;
    Some(first.checked_sub(left)? as f64 / khz as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_between_two_lines_of_the_console() {
        let console = "[   99.1] kexec_core: Starting new kernel\r\nfermata-probe: left 1000000 2000\r\n[    0.0] Linux\r\n\
                       fermata-probe: first 31000000\r\n";
        assert_eq!(between(console), Some(15_000.0));
        assert_eq!(between("fermata-probe: left 1000000 2000\n"), None);
        assert_eq!(between("fermata-probe: first 5\nfermata-probe: left 9 1\n"), None, "the counter began anew");
    }
}
