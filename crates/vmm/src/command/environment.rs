//! The environment of a VMM: how its C library gets memory from the kernel.
//!
//! A VMM has some 20 MiB of its own before its guest runs, and glibc asks for them in pieces of 132 KiB, gives what is free at the end
//! back at once and asks for it again. Each page of that is a fault: 4,900 of 7,600 of a start were on this heap, a quarter of a second
//! on an emulated processor, in the pause of every VM that comes back after a jump. In large pieces the kernel gives huge pages.

use std::collections::BTreeMap;

/// What glibc calls its settings in an environment (glibc, `manual/tunables.texi`); another C library does not look at it.
const TUNABLES: &str = "GLIBC_TUNABLES";

/// Settings of glibc's `malloc`:
/// - `hugetlb=1`: where huge pages are for those who ask, ask for them;
/// - `top_pad`: how much more is asked for than is needed, in bytes; it is not in memory until it is used. Two huge pages, since only whole
///   ones are given where they are for everybody;
/// - `trim_threshold`: how much may be free at the end before it is given back, in bytes;
/// - `mmap_threshold`: from this size on an allocation is a mapping of its own. Without a number here, the settings above would leave it at
///   128 KiB for good, and blocks of I/O would be mapped and unmapped each time;
/// - `arena_max`: heaps in all, one for the first thread and one for the others. Each begins with a huge page, and with one per thread a VMM
///   took 11 MiB more than before; so it takes 4.
const MALLOC: [(&str, u64); 5] =
    [("hugetlb", 1), ("top_pad", 4 << 20), ("trim_threshold", 32 << 20), ("mmap_threshold", 4 << 20), ("arena_max", 2)];

/// The whole environment of a VMM.
#[must_use]
pub fn environment() -> BTreeMap<String, String> {
    let settings: Vec<String> = MALLOC.iter().map(|(name, value)| format!("glibc.malloc.{name}={value}")).collect();
    BTreeMap::from([(TUNABLES.to_owned(), settings.join(":"))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_c_library_takes_every_setting() {
        // It says nothing of a name or a number that it does not take (ld.so(8)).
        let loader = std::process::Command::new("/lib64/ld-linux-x86-64.so.2")
            .arg("--list-tunables")
            .env_clear()
            .envs(environment())
            .output()
            .unwrap();
        let told = String::from_utf8(loader.stdout).unwrap();
        for (name, value) in MALLOC {
            let line = told.lines().find(|line| line.starts_with(&format!("glibc.malloc.{name}: "))).unwrap();
            let taken = line.split_whitespace().nth(1).unwrap().trim_start_matches("0x");
            assert_eq!(u64::from_str_radix(taken, 16).unwrap(), value, "{line}");
        }
    }
}
