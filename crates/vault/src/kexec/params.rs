//! What a kernel is given when it is entered past its own boot code: boot parameters, command line, random numbers, and the few instructions that
//! point to them.
//!
//! ```text
//!  0x0000  boot parameters (Documentation/arch/x86/zero-page.rst)
//!  0x1000  instructions: rsi = boot parameters, jump
//!  0x1040  random numbers for the kernel, the first of a list
//!  0x1080  EFI's tables, the second, where there is EFI
//!  0x1100  command line
//!          EFI's map of its memory
//! ```

use std::ops::Range;

use super::efi::{self, Efi};

/// `E820_TYPE_RAM`
const MEMORY: u32 = 1;
/// `E820_TYPE_RESERVED`
const RESERVED: u32 = 2;

const PARAMETERS: usize = 0x1000;
const INSTRUCTIONS: usize = PARAMETERS;
const RANDOM: usize = 0x1040;
const TABLES: usize = 0x1080;
const CMDLINE: usize = 0x1100;

/// Fields of boot parameters.
const SCREEN: Range<usize> = 0x000..0x040;
const ACPI_RSDP: Range<usize> = 0x070..0x078;
const EDID: Range<usize> = 0x140..0x1c0;
const SECURE_BOOT: Range<usize> = 0x1ec..0x1ed;
const E820_COUNT: usize = 0x1e8;
const LOADER: usize = 0x210;
const LOADFLAGS: usize = 0x211;
const INITRD: usize = 0x218;
const CMDLINE_AT: usize = 0x228;
const MORE_AT: usize = 0x250;
const E820: usize = 0x2d0;
/// `E820_MAX_ENTRIES_ZEROPAGE`
const E820_MOST: usize = 128;
/// `type_of_loader` of kexec.
const KEXEC: u8 = 0xd0;
/// `loadflags`, `KASLR_FLAG`: addresses were chosen at random, so choose those of its data at random as well.
const AT_RANDOM: u8 = 2;
/// `SETUP_RNG_SEED`
const SEED: u32 = 9;
/// `SETUP_EFI`
const EFI: u32 = 4;

/// A piece of the memory map, as the firmware told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) start: u64,
    pub(super) size: u64,
    pub(super) kind: u32,
}

impl Piece {
    /// From `/sys/firmware/memmap/N/{start,end,type}`.
    pub(super) fn of(start: &str, end: &str, kind: &str) -> Option<Self> {
        let number = |text: &str| u64::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok();
        let (start, end) = (number(start)?, number(end)?);
        // include/uapi/asm/e820.h; what is not known is nobody's.
        let kind = match kind.trim() {
            "System RAM" => MEMORY,
            "ACPI Tables" => 3,
            "ACPI Non-volatile Storage" => 4,
            "Unusable memory" => 5,
            "Persistent Memory" => 7,
            "Persistent Memory (legacy)" => 12,
            "Soft Reserved" => 0xefff_ffff,
            _ => RESERVED,
        };
        Some(Self { start, size: end.checked_sub(start)?.checked_add(1)?, kind })
    }
}

/// A memory map in which these ranges are reserved, where it has memory there.
pub(super) fn less(map: Vec<Piece>, reserved: &[Range<u64>]) -> Vec<Piece> {
    let memory = |piece: &Piece| piece.kind == MEMORY;
    reserved.iter().fold(map, |map, taken| {
        let split = |piece: Piece| {
            let (start, end) = (piece.start, piece.start.saturating_add(piece.size));
            let (from, to) = (taken.start.clamp(start, end), taken.end.clamp(start, end));
            let parts = if memory(&piece) && from < to {
                [(start, from, MEMORY), (from, to, RESERVED), (to, end, MEMORY)]
            } else {
                [(start, end, piece.kind), (end, end, 0), (end, end, 0)]
            };
            let filled = parts.into_iter().filter(|(start, end, _)| start < end);
            filled.map(|(start, end, kind)| Piece { start, size: end - start, kind })
        };
        map.into_iter().flat_map(split).collect()
    })
}

/// What boot parameters say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Given<'a> {
    /// Those of the kernel that runs.
    pub(super) running: &'a [u8],
    /// The image's own fields.
    pub(super) header: &'a [u8],
    pub(super) map: &'a [Piece],
    pub(super) cmdline: &'a str,
    /// Where the initial RAM disk is, and its size.
    pub(super) initrd: Option<(u64, u64)>,
    /// The kernel's first instruction.
    pub(super) entry: u64,
    /// Whether its addresses were chosen at random.
    pub(super) at_random: bool,
    pub(super) random: [u8; 32],
    pub(super) efi: Option<&'a Efi>,
}

impl Given<'_> {
    /// How much memory it takes.
    pub(super) fn size(&self) -> u64 {
        (self.map_from() + self.efi.map_or(0, |efi| efi.map.len())) as u64
    }

    fn map_from(&self) -> usize {
        (CMDLINE + self.cmdline.len() + 1).next_multiple_of(8)
    }

    /// All of it, to be put at `at`, and where to begin.
    pub(super) fn at(&self, at: u64) -> Result<(Vec<u8>, u64), String> {
        let mut all = vec![0; usize::try_from(self.size()).map_err(|e| e.to_string())?];
        let mut put = |to: usize, bytes: &[u8]| all[to..to + bytes.len()].copy_from_slice(bytes);
        for field in [SCREEN, ACPI_RSDP, EDID, SECURE_BOOT] {
            let told = self.running.get(field.clone()).ok_or("the running kernel's boot parameters are cut off")?;
            put(field.start, told);
        }
        put(super::image::HEADER, self.header);
        if self.map.is_empty() || self.map.len() > E820_MOST {
            return Err(format!("a memory map of {} pieces", self.map.len()));
        }
        put(E820_COUNT, &[u8::try_from(self.map.len()).map_err(|e| e.to_string())?]);
        for (index, piece) in self.map.iter().enumerate() {
            put(E820 + index * 20, &piece.start.to_le_bytes());
            put(E820 + index * 20 + 8, &piece.size.to_le_bytes());
            put(E820 + index * 20 + 16, &piece.kind.to_le_bytes());
        }
        let narrow = |number: u64| u32::try_from(number).map(u32::to_le_bytes).map_err(|e| e.to_string());
        put(LOADER, &[KEXEC]);
        if let Some((from, size)) = self.initrd {
            put(INITRD, &narrow(from)?);
            put(INITRD + 4, &narrow(size)?);
        }
        put(CMDLINE_AT, &narrow(at + CMDLINE as u64)?);
        put(MORE_AT, &(at + RANDOM as u64).to_le_bytes());
        put(RANDOM + 8, &SEED.to_le_bytes());
        put(RANDOM + 12, &(self.random.len() as u32).to_le_bytes());
        put(RANDOM + 16, &self.random);
        if let Some(efi) = self.efi {
            let setup = efi.setup();
            put(RANDOM, &(at + TABLES as u64).to_le_bytes());
            put(TABLES + 8, &EFI.to_le_bytes());
            put(TABLES + 12, &(setup.len() as u32).to_le_bytes());
            put(TABLES + 16, &setup);
            put(efi::INFO.start, &efi.info(at + self.map_from() as u64));
            put(self.map_from(), &efi.map);
        }
        put(CMDLINE, self.cmdline.as_bytes());
        // movabs rsi, at; movabs rax, entry; jmp rax
        put(INSTRUCTIONS, &[0x48, 0xbe]);
        put(INSTRUCTIONS + 2, &at.to_le_bytes());
        put(INSTRUCTIONS + 10, &[0x48, 0xb8]);
        put(INSTRUCTIONS + 12, &self.entry.to_le_bytes());
        put(INSTRUCTIONS + 20, &[0xff, 0xe0]);
        all[LOADFLAGS] |= if self.at_random { AT_RANDOM } else { 0 };
        Ok((all, at + INSTRUCTIONS as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_is_memory_no_longer_and_nothing_else_changes() {
        let piece = |start, size, kind| Piece { start, size, kind };
        let map = vec![piece(0, 100, 1), piece(100, 50, 3), piece(150, 50, 1)];
        let expected = [piece(0, 40, 1), piece(40, 10, 2), piece(50, 50, 1), piece(100, 50, 3), piece(150, 50, 2)];
        assert_eq!(less(map, &[40..50, 120..130, 150..300]), expected);
    }

    #[test]
    fn fields_are_where_the_kernel_looks_for_them() {
        let piece = Piece::of("0x100000\n", "0x1fffff\n", "System RAM\n").unwrap();
        assert_eq!(piece, Piece { start: 0x10_0000, size: 0x10_0000, kind: 1 });
        assert_eq!(Piece::of("0x0", "0xfff", "Device Reserved").unwrap().kind, 2);
        let mut running = vec![0; 0x1000];
        running[0x70] = 9;
        running[0x1c0..0x1e0].fill(7);
        let mut header = vec![0; 0x7b];
        header[0x202 - 0x1f1..0x206 - 0x1f1].copy_from_slice(b"HdrS");
        header[0x211 - 0x1f1] = 1;
        let map = [piece.clone(), piece];
        let given = Given {
            running: &running,
            header: &header,
            map: &map,
            cmdline: "quiet",
            initrd: Some((0x7000_0000, 99)),
            entry: 0x20_0000_1234,
            at_random: true,
            random: [5; 32],
            efi: None,
        };
        let (all, first) = given.at(0x7100_0000).unwrap();
        assert_eq!(all.len() as u64, given.size());
        assert_eq!(first, 0x7100_1000);
        let long = |at: usize| u64::from_le_bytes(all[at..at + 8].try_into().unwrap());
        let word = |at: usize| u32::from_le_bytes(all[at..at + 4].try_into().unwrap());
        assert_eq!((all[0x70], all[0x1e8], all[0x211], &all[0x202..0x206]), (9, 2, 3, b"HdrS".as_slice()));
        assert_eq!(all[0x1c0..0x1e0], [0; 32], "nothing of EFI where there is none");
        assert_eq!((word(0x218), word(0x21c)), (0x7000_0000, 99));
        assert_eq!((long(0x2d0 + 20), long(0x2d0 + 28), word(0x2d0 + 36)), (0x10_0000, 0x10_0000, 1));
        assert!(all[word(0x228) as usize - 0x7100_0000..].starts_with(b"quiet\0"));
        let seed = usize::try_from(long(0x250)).unwrap() - 0x7100_0000;
        assert_eq!((long(seed), word(seed + 8), word(seed + 12), all[seed + 16]), (0, 9, 32, 5));
        assert_eq!((long(0x1002), long(0x100c)), (0x7100_0000, 0x20_0000_1234));
        let efi = Efi::like(vec![3; 80]);
        let (told, _) = Given { efi: Some(&efi), ..given }.at(0x7100_0000).unwrap();
        let long = |at: usize| u64::from_le_bytes(told[at..at + 8].try_into().unwrap());
        let tables = usize::try_from(long(seed)).unwrap() - 0x7100_0000;
        assert_eq!((long(tables), told[tables + 8], told[tables + 12]), (0, 4, 96), "the last of the list");
        assert_eq!(told[usize::try_from(long(0x1d0)).unwrap() & 0xff_ffff..], [3; 80]);
        let given = Given { efi: None, ..given };
        let many = vec![map[0].clone(); 129];
        assert!(Given { map: &many, ..given }.at(0).is_err());
    }
}
