//! The kernel proper, unpacked: laid out as it will lie in memory, and moved to another address.
//!
//! What is unpacked is an ELF file and, behind it, a list of the places that hold addresses. Before the jump the kernel's own boot code would do
//! what is done here (`arch/x86/boot/compressed/misc.c`: `parse_elf`, `handle_relocations`).
//!
//! ```text
//!  ELF | 0, places of 64 bits ... | [ 0, places of 32 bits that count backwards ... | ] 0, places of 32 bits ...
//! ```
//!
//! Invariant: every place lies in the kernel, and what it held may be an address of one; anything else is a format that is not known here.

/// Where the kernel's addresses begin (`__START_KERNEL_map`).
const MAP: u64 = 0xffff_ffff_8000_0000;
/// How far they reach (`KERNEL_IMAGE_SIZE`, with addresses at random).
const REACH: u64 = 1 << 30;

/// The kernel in memory, from the address it is linked for on.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    pub(super) image: Vec<u8>,
    /// Where it begins to run, from its beginning.
    pub(super) entry: u64,
    /// The physical address it is linked for.
    linked_for: u64,
    /// Places that hold addresses, of 64 bits, of 32 bits that count backwards, of 32 bits.
    places: [Vec<u32>; 3],
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn part(&self, at: u64, length: u64) -> Result<&'a [u8], String> {
        let range = usize::try_from(at).ok().zip(at.checked_add(length).and_then(|end| usize::try_from(end).ok()));
        range
            .and_then(|(from, to)| self.0.get(from..to))
            .ok_or_else(|| format!("the unpacked kernel ends before {at:#x}"))
    }

    fn number(&self, at: u64, length: u64) -> Result<u64, String> {
        let mut bytes = [0; 8];
        let part = self.part(at, length)?;
        bytes[..part.len()].copy_from_slice(part);
        Ok(u64::from_le_bytes(bytes))
    }
}

impl Kernel {
    /// Reads what was unpacked (elf(5), 64 bits).
    pub(super) fn of(unpacked: &[u8], linked_for: u64) -> Result<Self, String> {
        let bytes = Bytes(unpacked);
        if bytes.part(0, 6)? != b"\x7fELF\x02\x01" {
            return Err("the unpacked kernel is no ELF file".to_owned());
        }
        let (entry, headers, sections) = (bytes.number(0x18, 8)?, bytes.number(0x20, 8)?, bytes.number(0x28, 8)?);
        let (header, count) = (bytes.number(0x36, 2)?, bytes.number(0x38, 2)?);
        let end = sections.saturating_add(bytes.number(0x3a, 2)? * bytes.number(0x3c, 2)?);
        let mut image = Vec::new();
        for index in 0..count {
            let at = headers.saturating_add(index * header);
            // PT_LOAD
            if bytes.number(at, 4)? != 1 {
                continue;
            }
            let (offset, physical) =
                (bytes.number(at.saturating_add(0x08), 8)?, bytes.number(at.saturating_add(0x18), 8)?);
            let (in_file, in_memory) =
                (bytes.number(at.saturating_add(0x20), 8)?, bytes.number(at.saturating_add(0x28), 8)?);
            let from = physical
                .checked_sub(linked_for)
                .filter(|from| from.saturating_add(in_memory) <= REACH && in_file <= in_memory);
            let from = from.ok_or_else(|| format!("a part of it would lie at {physical:#x}"))?;
            let (from, to) = (index_of(from)?, index_of(from + in_memory)?);
            image.resize(image.len().max(to), 0);
            let part = bytes.part(offset, in_file)?;
            image[from..from + part.len()].copy_from_slice(part);
        }
        let entry =
            entry.checked_sub(linked_for).filter(|entry| index_of(*entry).is_ok_and(|entry| entry < image.len()));
        let entry = entry.ok_or("its entry is not in it")?;
        let rest = Bytes(unpacked).part(end, (unpacked.len() as u64).saturating_sub(end))?;
        Ok(Self { image, entry, linked_for, places: places(rest)? })
    }

    /// Its size in memory.
    pub(super) fn size(&self) -> u64 {
        self.image.len() as u64
    }

    /// Moves its addresses up by so many bytes.
    pub(super) fn slide(&mut self, by: u64) -> Result<(), String> {
        let [wide, backwards, narrow] = std::mem::take(&mut self.places);
        for place in wide {
            let held: &mut [u8; 8] = self.at(place)?;
            let address = u64::from_le_bytes(*held);
            if !is_address(address) {
                return Err(format!("{place:#x} holds {address:#x}, which is no address of a kernel"));
            }
            *held = address.wrapping_add(by).to_le_bytes();
        }
        let by = u32::try_from(by).map_err(|e| e.to_string())?;
        for place in backwards {
            let held: &mut [u8; 4] = self.at(place)?;
            *held = u32::from_le_bytes(*held).wrapping_sub(by).to_le_bytes();
        }
        for place in narrow {
            let held: &mut [u8; 4] = self.at(place)?;
            let address = u32::from_le_bytes(*held);
            if !is_address(extended(address)) {
                return Err(format!("{place:#x} holds {address:#x}, which is no address of a kernel"));
            }
            *held = address.wrapping_add(by).to_le_bytes();
        }
        Ok(())
    }

    /// How far its addresses may be moved, for a kernel that needs so much memory.
    pub(super) fn reach(&self, needs: u64) -> u64 {
        if self.places.iter().all(Vec::is_empty) { 0 } else { REACH.saturating_sub(self.linked_for + needs) }
    }

    fn at<const N: usize>(&mut self, place: u32) -> Result<&mut [u8; N], String> {
        let outside = || format!("{place:#x} is not in the kernel");
        let from = extended(place).checked_sub(MAP + self.linked_for).ok_or_else(outside)?;
        let from = index_of(from)?;
        let held = self.image.get_mut(from..from.saturating_add(N)).and_then(|held| held.try_into().ok());
        held.ok_or_else(outside)
    }
}

/// Whether a number may be an address of a kernel before it is moved: by its own account, by that of the memory, or none yet.
fn is_address(number: u64) -> bool {
    (MAP..=MAP + REACH).contains(&number) || number <= REACH
}

/// An address of 32 bits as the processor takes it.
fn extended(address: u32) -> u64 {
    i64::from(address.cast_signed()).cast_unsigned()
}

fn index_of(number: u64) -> Result<usize, String> {
    usize::try_from(number).map_err(|e| e.to_string())
}

/// The lists behind the ELF file: none, two (since 6.15) or three.
fn places(rest: &[u8]) -> Result<[Vec<u32>; 3], String> {
    let (words, odd) = rest.as_chunks::<4>();
    if !odd.is_empty() {
        return Err("the list of addresses is cut off".to_owned());
    }
    let words: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let Some((0, lists)) = words.split_first() else {
        return if words.is_empty() { Ok(<[Vec<u32>; 3]>::default()) } else { Err("no list of addresses".to_owned()) };
    };
    let lists: Vec<Vec<u32>> = lists.split(|word| *word == 0).map(<[u32]>::to_vec).collect();
    match <[_; 3]>::try_from(lists) {
        Ok(three) => Ok(three),
        Err(lists) => match <[_; 2]>::try_from(lists) {
            Ok([wide, narrow]) => Ok([wide, Vec::new(), narrow]),
            Err(lists) => Err(format!("{} lists of addresses", lists.len())),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LINKED: u64 = 0x100_0000;

    /// An ELF file of one part and a list behind it.
    fn unpacked(image: &[u8], entry: u64, list: &[u32]) -> Vec<u8> {
        let mut file = vec![0; 0x1000];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01");
        put(0x18, &(LINKED + entry).to_le_bytes());
        put(0x20, &0x40u64.to_le_bytes());
        put(0x28, &(0x1000 + image.len() as u64).to_le_bytes());
        put(0x36, &56u16.to_le_bytes());
        put(0x38, &1u16.to_le_bytes());
        put(0x40, &1u32.to_le_bytes());
        put(0x48, &0x1000u64.to_le_bytes());
        put(0x58, &LINKED.to_le_bytes());
        put(0x60, &(image.len() as u64).to_le_bytes());
        put(0x68, &(image.len() as u64 + 16).to_le_bytes());
        file.extend(image);
        file.extend(list.iter().flat_map(|word| word.to_le_bytes()));
        file
    }

    fn place(offset: u64) -> u32 {
        u32::try_from((MAP + LINKED + offset) & 0xffff_ffff).unwrap()
    }

    #[test]
    fn what_lies_behind_the_last_byte_of_the_file_is_zero() {
        let kernel = Kernel::of(&unpacked(&[7; 32], 4, &[]), LINKED).unwrap();
        assert_eq!((kernel.entry, kernel.size(), kernel.image[31], kernel.image[32]), (4, 48, 7, 0));
        assert_eq!(kernel.reach(1 << 20), 0, "one without a list stays where it is");
    }

    proptest! {
        #[test]
        fn addresses_are_moved_and_nothing_else(by in 0u64..0x3000_0000, target in 0u64..64, old: bool) {
            let mut image = vec![0xaa; 64];
            image[8..16].copy_from_slice(&(MAP + LINKED + target).to_le_bytes());
            image[20..24].copy_from_slice(&place(target).to_le_bytes());
            image[30..34].copy_from_slice(&5u32.to_le_bytes());
            let list = match old {
                true => vec![0, place(8), 0, place(30), 0, place(20)],
                false => vec![0, place(8), 0, place(20)],
            };
            let mut kernel = Kernel::of(&unpacked(&image, 0, &list), LINKED).unwrap();
            prop_assert!(kernel.reach(1 << 20) > 0);
            kernel.slide(by).unwrap();
            let mut expected = image.clone();
            expected.resize(80, 0);
            expected[8..16].copy_from_slice(&(MAP + LINKED + target + by).to_le_bytes());
            let by = u32::try_from(by).unwrap();
            expected[20..24].copy_from_slice(&place(target).wrapping_add(by).to_le_bytes());
            if old {
                expected[30..34].copy_from_slice(&5u32.wrapping_sub(by).to_le_bytes());
            }
            prop_assert_eq!(kernel.image, expected);
        }

        #[test]
        fn any_bytes_are_refused_or_read_and_nothing_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), list in proptest::collection::vec(any::<u32>(), 0..20)) {
            let mut file = unpacked(&[1; 64], 0, &list);
            for (at, byte) in bytes.drain(..).enumerate().filter(|(_, byte)| byte % 3 == 0) {
                file[0x10 + at] = byte;
            }
            if let Ok(mut kernel) = Kernel::of(&file, LINKED) {
                let _ = kernel.slide(0x20_0000);
            }
        }
    }

    #[test]
    fn a_place_that_holds_no_address_of_the_kernel_is_an_unknown_format() {
        let file = unpacked(&[0xaa; 64], 0, &[0, place(8), 0, place(20)]);
        let error = Kernel::of(&file, LINKED).unwrap().slide(0x20_0000).unwrap_err();
        assert!(error.contains("no address of a kernel"), "{error}");
    }
}
