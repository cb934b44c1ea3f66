//! Who has which part of a devdax region: the table of contents and its form in memory. Pure.
//!
//! ```text
//!  0        256 KiB     512 KiB          1 MiB                2 MiB
//!  | table, even | table, odd | (free) | hand-over record |  extents, each a multiple of 2 MiB ...
//! ```
//!
//! A table is written to the copy that its generation names, so the one before it stays whole until the new one is. What
//! counts is the newest copy whose checksum is right. On the wire: magic, version (u32), length of the body (u32),
//! generation (u64), size of the region (u64), CRC-32 of all that and of the body (u32), then the body, JSON.
//!
//! Invariants (property-tested): extents are aligned, inside the region and disjoint; an extent never moves or grows while
//! its VM has it; nothing is given away that another VM has; memory that was not wiped yet is not given out.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Alignment and smallest unit of an extent, the size of the mappings that devdax makes.
pub const UNIT: u64 = 2 << 20;
/// Extents of this size or more start at a multiple of it where there is such a place.
const LARGE: u64 = 1 << 30;
/// Room in front of the extents.
pub const HEAD: u64 = 2 << 20;
/// Room for one copy of the table.
pub const COPY: usize = 256 << 10;
/// Where the hand-over record is.
pub const RECORD: Range<usize> = (1 << 20)..(2 << 20);

const MAGIC: [u8; 8] = *b"FERMVLT\x01";
const VERSION: u32 = 1;
const FRONT: usize = 36;

/// A part of the region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Bytes from the start of the region.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

impl Extent {
    const fn end(self) -> u64 {
        self.offset + self.size
    }
}

/// The state of a VM's devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Where it is.
    pub extent: Extent,
    /// Its length in bytes.
    pub bytes: u64,
    /// CRC-32 of it.
    pub crc: u32,
    /// The boot in which it was saved.
    pub boot: Uuid,
    /// When the VM stopped, in microseconds since 1970 by the clock of that boot.
    pub stopped_us: u64,
}

/// What is to be kept of a state, beside itself.
#[derive(Debug, Clone, Copy)]
pub struct State {
    /// Its length.
    pub bytes: u64,
    /// CRC-32 of it.
    pub crc: u32,
    /// The boot in which it was saved.
    pub boot: Uuid,
    /// When the VM stopped, in microseconds since 1970.
    pub stopped_us: u64,
}

/// What a VM has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// Its memory.
    pub memory: Extent,
    /// Its memory was wiped and may be used.
    pub ready: bool,
    /// Its devices' state, between a save and the resume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<Saved>,
}

/// The table of contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    size: u64,
    generation: u64,
    holdings: BTreeMap<Uuid, Holding>,
}

/// Why an extent was not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoExtent {
    /// No gap is large enough; the largest one, in bytes.
    Full(u64),
    /// The VM has one of this kind already.
    Taken,
    /// The VM has no memory here.
    NoMemory,
}

/// What is wrong with a copy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It is no table: never written, or lost with the power.
    #[error("no table")]
    Blank,
    /// It is of another version.
    #[error("a table of version {0}, this program knows {VERSION}")]
    Version(u32),
    /// Its bytes changed.
    #[error("a table whose checksum is wrong")]
    Checksum,
    /// It contradicts itself or the region.
    #[error("a table that is not one of this region: {0}")]
    Nonsense(String),
}

impl Table {
    /// A table of a region of `size` bytes in which nobody has anything.
    #[must_use]
    pub const fn empty(size: u64) -> Self {
        Self { size, generation: 0, holdings: BTreeMap::new() }
    }

    /// What a VM has.
    #[must_use]
    pub fn get(&self, vm: Uuid) -> Option<&Holding> {
        self.holdings.get(&vm)
    }

    /// Every VM with what it has.
    pub fn all(&self) -> impl Iterator<Item = (Uuid, &Holding)> {
        self.holdings.iter().map(|(vm, holding)| (*vm, holding))
    }

    /// Bytes that extents may have in all.
    #[must_use]
    pub const fn usable(&self) -> u64 {
        (self.size - self.size % UNIT).saturating_sub(HEAD)
    }

    /// Bytes that nobody has.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.usable() - self.taken().iter().map(|extent| extent.size).sum::<u64>()
    }

    /// The largest extent that could be given.
    #[must_use]
    pub fn largest_gap(&self) -> u64 {
        self.gaps().map(|gap| gap.end - gap.start).max().unwrap_or(0)
    }

    /// Gives a VM memory; not ready until [`Self::wiped`].
    ///
    /// # Errors
    /// [`NoExtent`].
    pub fn give_memory(&mut self, vm: Uuid, bytes: u64) -> Result<Extent, NoExtent> {
        if self.holdings.contains_key(&vm) {
            return Err(NoExtent::Taken);
        }
        let memory = self.place(bytes)?;
        self.holdings.insert(vm, Holding { memory, ready: false, saved: None });
        Ok(memory)
    }

    /// Notes that a VM's memory was wiped.
    pub fn wiped(&mut self, vm: Uuid) {
        if let Some(holding) = self.holdings.get_mut(&vm) {
            holding.ready = true;
        }
    }

    /// Gives a VM room for its devices' state; what it had before is given up.
    ///
    /// # Errors
    /// [`NoExtent`]; what the VM had is kept then.
    pub fn give_state(&mut self, vm: Uuid, state: State) -> Result<Extent, NoExtent> {
        let mut next = self.clone();
        next.forget_state(vm);
        let State { bytes, crc, boot, stopped_us } = state;
        let extent = next.place(bytes.max(1))?;
        let holding = next.holdings.get_mut(&vm).ok_or(NoExtent::NoMemory)?;
        holding.saved = Some(Saved { extent, bytes, crc, boot, stopped_us });
        *self = next;
        Ok(extent)
    }

    /// Gives up the state of a VM's devices.
    pub fn forget_state(&mut self, vm: Uuid) {
        if let Some(holding) = self.holdings.get_mut(&vm) {
            holding.saved = None;
        }
    }

    /// Gives up all that a VM has.
    pub fn release(&mut self, vm: Uuid) {
        self.holdings.remove(&vm);
    }

    fn taken(&self) -> Vec<Extent> {
        let of = |holding: &Holding| [Some(holding.memory), holding.saved.as_ref().map(|saved| saved.extent)];
        let mut taken: Vec<Extent> = self.holdings.values().flat_map(of).flatten().collect();
        taken.sort_by_key(|extent| extent.offset);
        taken
    }

    fn gaps(&self) -> impl Iterator<Item = Range<u64>> {
        let end = HEAD + self.usable();
        let taken = self.taken();
        let starts = std::iter::once(HEAD).chain(taken.clone().into_iter().map(Extent::end));
        let ends = taken.into_iter().map(|extent| extent.offset).chain(std::iter::once(end));
        starts.zip(ends).map(|(start, end)| start..end).filter(|gap| !gap.is_empty())
    }

    /// The first place of the best alignment.
    fn place(&self, bytes: u64) -> Result<Extent, NoExtent> {
        let full = || NoExtent::Full(self.largest_gap());
        let size = bytes.checked_next_multiple_of(UNIT).ok_or_else(full)?;
        let aligns: &[u64] = if size >= LARGE { &[LARGE, UNIT] } else { &[UNIT] };
        let fits = |align: u64| {
            self.gaps().find_map(|gap| {
                let offset = gap.start.next_multiple_of(align);
                (offset.checked_add(size)? <= gap.end).then_some(Extent { offset, size })
            })
        };
        aligns.iter().find_map(|align| fits(*align)).ok_or_else(full)
    }

    fn check(&self) -> Result<(), String> {
        let mut from = HEAD;
        for extent in self.taken() {
            if extent.offset < from || extent.size == 0 {
                return Err(format!("the extent at {:#x} overlaps another", extent.offset));
            }
            if !extent.offset.is_multiple_of(UNIT) || !extent.size.is_multiple_of(UNIT) {
                return Err(format!("the extent at {:#x} is not aligned", extent.offset));
            }
            from = extent.offset.checked_add(extent.size).ok_or("an extent without an end")?;
        }
        if from > HEAD + self.usable() {
            return Err(format!("an extent ends at {from:#x}, beyond the region"));
        }
        Ok(())
    }

    /// The next generation of this table: which copy to write, and what.
    ///
    /// # Errors
    /// The number of bytes, when they are more than a copy has room for.
    pub fn encode(&mut self) -> Result<(usize, Vec<u8>), usize> {
        let body = serde_json::to_vec(&self.holdings).unwrap_or_default();
        if FRONT + body.len() > COPY {
            return Err(FRONT + body.len());
        }
        self.generation += 1;
        let mut bytes = Vec::with_capacity(FRONT + body.len());
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend(self.generation.to_le_bytes());
        bytes.extend(self.size.to_le_bytes());
        let crc = checksum(&[&bytes, &body]);
        bytes.extend(crc.to_le_bytes());
        bytes.extend(body);
        Ok((usize::from(!self.generation.is_multiple_of(2)), bytes))
    }

    /// Reads one copy of the table of a region of `size` bytes.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn decode(copy: &[u8], size: u64) -> Result<Self, Fault> {
        let word = |at: usize| copy.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
        let long = |at: usize| copy.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
        if copy.len() < FRONT || copy[..8] != MAGIC {
            return Err(Fault::Blank);
        }
        if word(8) != VERSION {
            return Err(Fault::Version(word(8)));
        }
        let length = usize::try_from(word(12)).unwrap_or(usize::MAX);
        let body = length.checked_add(FRONT).and_then(|end| copy.get(FRONT..end)).ok_or(Fault::Checksum)?;
        if word(32) != checksum(&[&copy[..32], body]) {
            return Err(Fault::Checksum);
        }
        if long(24) != size {
            return Err(Fault::Nonsense(format!("it is of a region of {} bytes, this one has {size}", long(24))));
        }
        let holdings = serde_json::from_slice(body).map_err(|error| Fault::Nonsense(error.to_string()))?;
        let table = Self { size, generation: long(16), holdings };
        table.check().map_err(Fault::Nonsense)?;
        Ok(table)
    }

    /// The newest of two copies; `None` when neither was ever written.
    ///
    /// # Errors
    /// What is wrong with each, when there was a table once and none can be read.
    pub fn newest(even: &[u8], odd: &[u8], size: u64) -> Result<Option<Self>, [Fault; 2]> {
        match (Self::decode(even, size), Self::decode(odd, size)) {
            (Ok(a), Ok(b)) => Ok(Some(if a.generation > b.generation { a } else { b })),
            (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(Some(one)),
            (Err(Fault::Blank), Err(Fault::Blank)) => Ok(None),
            (Err(a), Err(b)) => Err([a, b]),
        }
    }
}

/// CRC-32 of several pieces.
pub(super) fn checksum(pieces: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    pieces.iter().for_each(|piece| hasher.update(piece));
    hasher.finalize()
}

#[cfg(test)]
mod tests;
