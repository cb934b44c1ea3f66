//! Where in the host's memory the vault goes. Pure.
//!
//! The firmware's own map says where ordinary memory is. The vault takes the upper end of the largest piece above 4 GiB:
//! what lies below is needed by old devices and by the kernel itself, and the kernel puts nothing of its own into memory
//! that `memmap=` names.

use std::ops::Range;

use fermata_model::Size;

/// Ordinary memory below this is left alone.
const LOW: u64 = 4 << 30;
const GIB: u64 = 1 << 30;
const UNIT: u64 = 2 << 20;
/// The least that is left for the host itself.
pub const HOST_LEAST: u64 = 3 << 29;

/// A place for the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// First byte, physical address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// What is left for the host, in bytes.
    pub left: u64,
}

impl Place {
    /// The word for the kernel's command line.
    #[must_use]
    pub fn word(&self) -> String {
        format!("memmap={}!{}", short(self.size), short(self.start))
    }
}

/// In the largest unit that the kernel reads and that needs no fraction.
fn short(bytes: u64) -> String {
    [(GIB, "G"), (1 << 20, "M"), (1 << 10, "K")]
        .iter()
        .find(|(unit, _)| bytes != 0 && bytes.is_multiple_of(*unit))
        .map_or_else(|| bytes.to_string(), |(unit, name)| format!("{}{name}", bytes / unit))
}

/// Why there is no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPlace {
    /// Less than a few mappings.
    #[error("{0} is too little for a vault; give at least 64MiB")]
    TooSmall(Size),
    /// The host would have too little.
    #[error(
        "{wanted} of {total} would leave the host {left}, and it needs {least}; give at most {most}",
        least = Size::from_bytes(HOST_LEAST)
    )]
    HostStarves {
        /// What was asked for.
        wanted: Size,
        /// All memory.
        total: Size,
        /// What would be left.
        left: Size,
        /// What could be given.
        most: Size,
    },
    /// No piece is large enough.
    #[error("no piece of memory above 4 GiB holds {wanted}; the largest has {largest}")]
    NoPiece {
        /// What was asked for.
        wanted: Size,
        /// The largest piece.
        largest: Size,
    },
}

/// Chooses a place for `wanted` bytes in ordinary memory (`ram`, from the firmware's map).
///
/// # Errors
/// [`NoPlace`] with what could be had.
pub fn choose(ram: &[Range<u64>], wanted: u64) -> Result<Place, NoPlace> {
    let size = wanted.next_multiple_of(if wanted >= GIB { GIB } else { UNIT });
    let asked = Size::from_bytes(size);
    if size < 64 << 20 {
        return Err(NoPlace::TooSmall(asked));
    }
    let total: u64 = ram.iter().map(|piece| piece.end - piece.start).sum();
    let left = total.saturating_sub(size);
    if left < HOST_LEAST {
        return Err(NoPlace::HostStarves {
            wanted: asked,
            total: Size::from_bytes(total),
            left: Size::from_bytes(left),
            most: Size::from_bytes(total.saturating_sub(HOST_LEAST) / UNIT * UNIT),
        });
    }
    let align = if size >= GIB { GIB } else { 128 << 20 };
    let high = ram.iter().map(|piece| piece.start.max(LOW)..piece.end.max(LOW));
    let placed = high.clone().filter_map(|piece| {
        let start = piece.end.checked_sub(size)? / align * align;
        (start >= piece.start).then_some((piece.end - piece.start, start))
    });
    let largest = || Size::from_bytes(high.clone().map(|piece| piece.end - piece.start).max().unwrap_or(0));
    let best = placed.max().ok_or_else(|| NoPlace::NoPiece { wanted: asked, largest: largest() })?;
    Ok(Place { start: best.1, size, left })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RAM: [Range<u64>; 3] = [0..0x9_f000, 0x10_0000..0x8000_0000, LOW..LOW + 6 * GIB];

    #[test]
    fn the_vault_goes_to_the_upper_end_of_the_largest_piece() {
        let place = choose(&RAM, 4 * GIB).unwrap();
        assert_eq!((place.start, place.word().as_str()), (6 * GIB, "memmap=4G!6G"));
        assert_eq!(choose(&RAM, 512 << 20).unwrap().word(), "memmap=512M!9728M");
    }

    #[test]
    fn refusals_say_what_could_be_had() {
        let text = |bytes| choose(&RAM, bytes).unwrap_err().to_string();
        assert!(text(7 * GIB).contains("at most"), "{}", text(7 * GIB));
        let split = [0..2 * GIB, LOW..5 * GIB, 6 * GIB..7 * GIB];
        let error = choose(&split, 2 * GIB).unwrap_err();
        assert_eq!(error, NoPlace::NoPiece { wanted: Size::from_bytes(2 * GIB), largest: Size::from_bytes(GIB) });
        assert!(text(1 << 20).contains("64MiB"));
    }

    proptest! {
        #[test]
        fn a_place_lies_in_ordinary_memory_above_4_gib(
            pieces in proptest::collection::vec((1u64..40, 0u64..5), 1..6), wanted in (64u64 << 20)..(20 * GIB)
        ) {
            let mut at = 3 * GIB;
            let ram: Vec<Range<u64>> = pieces.iter().map(|(size, gap)| {
                let start = at + gap * (GIB / 2);
                at = start + size * (GIB / 2);
                start..at
            }).collect();
            if let Ok(place) = choose(&ram, wanted) {
                prop_assert!(place.start >= LOW && place.start.is_multiple_of(UNIT) && place.size >= wanted);
                prop_assert!(ram.iter().any(|piece| piece.start <= place.start && place.start + place.size <= piece.end));
            }
        }
    }
}
