//! Where in memory a kernel and what it is given may be put: free of everything that is not this kernel's own.
//!
//! Invariant: what is chosen is ordinary memory by the running kernel's account (`/proc/iomem`), with nothing of the firmware's in it, and not set
//! aside by the next kernel's command line either. A vault is set aside by both.

use std::ops::Range;

/// Below this the firmware and the boot code keep things of their own.
const LOWEST: u64 = 0x100_0000;
/// Addresses that every field for a boot loader can hold.
const HIGHEST: u64 = 1 << 32;
const PAGE: u64 = 4096;

/// A line of `/proc/iomem`: the range, its name, and whether it is within another.
type Line<'a> = (Range<u64>, &'a str, bool);

fn line(line: &str) -> Result<Option<Line<'_>>, String> {
    let Some((range, name)) = line.split_once(" : ") else { return Ok(None) };
    let parsed = range.trim().split_once('-').and_then(|(from, to)| {
        Some(u64::from_str_radix(from, 16).ok()?..u64::from_str_radix(to, 16).ok()?.checked_add(1)?)
    });
    let range = parsed.ok_or_else(|| format!("/proc/iomem: `{line}`"))?;
    Ok(Some((range, name, line.starts_with(' '))))
}

/// What the running kernel does not use as memory, whatever the firmware's map says: tables of EFI, for example.
pub(super) fn reserved(iomem: &str) -> Result<Vec<Range<u64>>, String> {
    let mut all = Vec::new();
    for text in iomem.lines() {
        if let Some((range, "Reserved", false)) = line(text)? {
            all.push(range);
        }
    }
    Ok(all)
}

/// Memory that may be overwritten once this kernel is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Free(Vec<Range<u64>>);

impl Free {
    /// By `/proc/iomem`, and what the next kernel's command line sets aside.
    pub(super) fn of(iomem: &str, cmdline: &str) -> Result<Self, String> {
        let mut free = Self(Vec::new());
        for text in iomem.lines() {
            match line(text)? {
                Some((range, "System RAM", false)) => free.0.push(range.start.max(LOWEST)..range.end.min(HIGHEST)),
                Some((_, own, true)) if own.starts_with("Kernel ") => {}
                Some((range, ..)) => free.take(&range),
                None => {}
            }
        }
        for word in cmdline.split_whitespace() {
            match word.split_once('=') {
                Some(("mem", _)) => return Err("`mem=` bounds the memory of the next kernel".to_owned()),
                Some(("memmap", what)) => what.split(',').try_for_each(|what| {
                    let range = set_aside(what).ok_or_else(|| format!("`{word}`"))?;
                    free.take(&range);
                    Ok::<_, String>(())
                })?,
                _ => {}
            }
        }
        free.0.retain(|range| range.start < range.end);
        // An unprivileged reader sees zeros only.
        if free.0.is_empty() { Err("/proc/iomem shows no memory".to_owned()) } else { Ok(free) }
    }

    /// Makes a range one that is not free.
    pub(super) fn take(&mut self, taken: &Range<u64>) {
        let cut = |range: Range<u64>| [range.start..range.end.min(taken.start), range.start.max(taken.end)..range.end];
        self.0 =
            std::mem::take(&mut self.0).into_iter().flat_map(cut).filter(|range| range.start < range.end).collect();
    }

    /// A place for so many bytes, aligned, by a random number; it is not free any more.
    pub(super) fn anywhere(&mut self, size: u64, alignment: u64, random: u64) -> Option<u64> {
        let slots = |range: &Range<u64>| {
            let first = range.start.next_multiple_of(alignment);
            let last = range.end.checked_sub(size)?.checked_sub(first)?;
            Some((first, last / alignment + 1))
        };
        let choices: Vec<(u64, u64)> = self.0.iter().filter_map(slots).collect();
        let mut left = random.checked_rem(choices.iter().map(|(_, count)| count).sum())?;
        let (first, _) = choices.into_iter().find(|(_, count)| {
            let here = left < *count;
            left -= if here { 0 } else { *count };
            here
        })?;
        let at = first + left * alignment;
        self.take(&(at..at + size));
        Some(at)
    }

    /// The highest place for so many bytes; it is not free any more.
    pub(super) fn highest(&mut self, size: u64) -> Option<u64> {
        let size = size.next_multiple_of(PAGE);
        let fits = |range: &&Range<u64>| range.end / PAGE * PAGE >= range.start.next_multiple_of(PAGE) + size;
        let at = self.0.iter().rfind(fits)?.end / PAGE * PAGE - size;
        self.take(&(at..at + size));
        Some(at)
    }
}

/// One part of `memmap=` (kernel-parameters.txt): `size!start`, `size$start`, `size#start`, `size%start-...`. `None` where it says something else.
fn set_aside(text: &str) -> Option<Range<u64>> {
    let at = text.find(['!', '$', '#', '%'])?;
    let (size, start) = (bytes(&text[..at])?, text[at + 1..].split('-').next().and_then(bytes)?);
    Some(start..start.checked_add(size)?)
}

/// A number with `K`, `M`, `G` or `T`, decimal or `0x`.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(['K', 'M', 'G', 'T', 'k', 'm', 'g', 't']);
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        "T" | "t" => 40,
        _ => return None,
    };
    let number = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => digits.parse().ok()?,
    };
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IOMEM: &str = "\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
000a0000-000bffff : PCI Bus 0000:00
00100000-7ffdffff : System RAM
  01000000-02ffffff : Kernel code
  03000000-033fffff : Kernel data
  30000000-3fffffff : Crash kernel
  70000000-70000fff : ACPI Tables
7ffe0000-7fffffff : Reserved
100000000-13fffffff : Persistent Memory (legacy)
  100000000-13fffffff : namespace0.0
140000000-17fffffff : System RAM
";

    fn mib(mib: u64) -> u64 {
        mib << 20
    }

    #[test]
    fn ordinary_memory_below_four_gib_is_free_but_not_what_the_firmware_or_a_crash_needs() {
        let free = Free::of(IOMEM, "quiet memmap=1G!4G memmap=1M$0x50000000").unwrap();
        let expected =
            [mib(16)..0x3000_0000, 0x4000_0000..0x5000_0000, 0x5010_0000..0x7000_0000, 0x7000_1000..0x7ffe_0000];
        assert_eq!(free.0, expected);
    }

    #[test]
    fn what_the_running_kernel_reserves_is_told() {
        assert_eq!(reserved(IOMEM).unwrap(), [0..0x1000, 0x7ffe_0000..0x8000_0000]);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for cmdline in ["mem=2G", "memmap=exactmap", "memmap=1G", "memmap=1X!4G"] {
            assert!(Free::of(IOMEM, cmdline).is_err(), "{cmdline}");
        }
        assert!(Free::of("00000000-00000000 : System RAM\n", "").is_err(), "seen without privileges");
        assert!(Free::of("elephant-1 : System RAM\n", "").is_err());
    }

    proptest! {
        #[test]
        fn places_are_free_aligned_and_apart(sizes in proptest::collection::vec((1u64..mib(300), any::<u64>(), any::<bool>()), 1..12)) {
            let whole = Free::of(IOMEM, "memmap=1G!4G").unwrap();
            let mut free = whole.clone();
            let mut taken: Vec<Range<u64>> = Vec::new();
            for (size, random, anywhere) in sizes {
                let alignment = if anywhere { mib(2) } else { PAGE };
                let at = if anywhere { free.anywhere(size, alignment, random) } else { free.highest(size) };
                let Some(at) = at else { continue };
                prop_assert_eq!(at % alignment, 0);
                prop_assert!(whole.0.iter().any(|range| range.start <= at && at + size <= range.end));
                prop_assert!(taken.iter().all(|other| at + size <= other.start || other.end <= at));
                taken.push(at..at + size);
            }
            prop_assert!(!taken.is_empty());
        }
    }
}
