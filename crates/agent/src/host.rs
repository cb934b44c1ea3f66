//! Facts about the host, read from the kernel.

use std::fs;
use std::io;

use fermata_model::Size;

/// The kernel release, as `uname -r`.
#[must_use]
pub fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// The host's name, as `uname -n`.
#[must_use]
pub fn name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The host's memory: all of it, and what could be had now without swapping.
///
/// # Errors
/// When `/proc/meminfo` cannot be read or lacks a line.
pub fn memory() -> io::Result<(Size, Size)> {
    parse_meminfo(&fs::read_to_string("/proc/meminfo")?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/meminfo: no MemTotal or MemAvailable"))
}

fn parse_meminfo(text: &str) -> Option<(Size, Size)> {
    let kib = |key: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some((Size::from_bytes(kib("MemTotal")? << 10), Size::from_bytes(kib("MemAvailable")? << 10)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_kernel() {
        let parsed = parse_meminfo("MemTotal:  2048 kB\nMemFree: 1 kB\nMemAvailable:  1024 kB\n").unwrap();
        assert_eq!(parsed, (Size::from_mib(2), Size::from_mib(1)));
        let (total, available) = memory().unwrap();
        assert!(total >= available);
    }
}
