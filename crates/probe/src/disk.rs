//! The disk witness: numbered records, each synced before the next, and the checker that reads them afterwards.
//!
//! Record `n` lies in slot `n % slots`, one 4 KiB block each. After any stop the disk must hold every record that was
//! acknowledged and not yet overwritten: [`check`] says which is missing.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

const BLOCK: usize = 4096;
const MAGIC: u64 = 0x6665_726d_6174_6121;

/// The writing side.
#[derive(Debug)]
pub struct Writer {
    file: File,
    slots: u64,
    next: u64,
}

impl Writer {
    /// Opens a device or file that exists and goes on after the last record found there.
    ///
    /// # Errors
    /// The device does not open, cannot be read, or is smaller than two blocks.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut file =
            OpenOptions::new().read(true).write(true).custom_flags(OFlags::DSYNC.bits().cast_signed()).open(path)?;
        let slots = slots(&mut file)?;
        let next = newest(&file, slots)? + 1;
        Ok(Self { file, slots, next })
    }

    /// Writes and syncs the next record; its number is then acknowledged.
    ///
    /// # Errors
    /// The write or the sync failed: the record counts as not written, the same number is tried again.
    pub fn append(&mut self) -> io::Result<u64> {
        let number = self.next;
        self.file.write_all_at(&record(number), (number % self.slots) * BLOCK as u64)?;
        self.next += 1;
        Ok(number)
    }
}

/// What a disk holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Number of the newest whole record; 0 if there is none.
    pub newest: u64,
    /// Acknowledged records that are not there, lowest first, at most sixteen.
    pub missing: Vec<u64>,
}

impl Check {
    /// Whether everything acknowledged is there.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.missing.is_empty()
    }
}

/// Reads a disk (raw device or file) of which records up to `acknowledged` were promised.
///
/// # Errors
/// The disk cannot be opened or read.
pub fn check(path: &Path, acknowledged: u64) -> io::Result<Check> {
    let mut file = File::open(path)?;
    let slots = slots(&mut file)?;
    let newest = newest(&file, slots)?;
    // A record newer than the acknowledged one may have overwritten one slot per number.
    let oldest = newest.max(acknowledged).saturating_sub(slots - 1).max(1);
    let mut missing = Vec::new();
    for number in oldest..=acknowledged {
        if read(&file, number % slots)? != Some(number) {
            missing.push(number);
        }
        if missing.len() == 16 {
            break;
        }
    }
    Ok(Check { newest, missing })
}

fn slots(file: &mut File) -> io::Result<u64> {
    let slots = (file.seek(SeekFrom::End(0))? / BLOCK as u64).min(1024);
    if slots < 2 {
        return Err(io::Error::other("a witness disk needs at least two blocks of 4 KiB"));
    }
    Ok(slots)
}

fn newest(file: &File, slots: u64) -> io::Result<u64> {
    let mut newest = 0;
    for slot in 0..slots {
        newest = newest.max(read(file, slot)?.unwrap_or(0));
    }
    Ok(newest)
}

fn read(file: &File, slot: u64) -> io::Result<Option<u64>> {
    let mut block = [0; BLOCK];
    let mut at = slot * BLOCK as u64;
    let mut rest = &mut block[..];
    while !rest.is_empty() {
        match file.read_at(rest, at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                at += count as u64;
                rest = &mut rest[count..];
            }
        }
    }
    let mut number = [0; 8];
    (&block[8..16]).read_exact(&mut number)?;
    let number = u64::from_le_bytes(number);
    Ok((number != 0 && block == record(number)).then_some(number))
}

fn record(number: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..8].copy_from_slice(&MAGIC.to_le_bytes());
    for (index, word) in block[8..].chunks_exact_mut(8).enumerate() {
        let value = if index == 0 {
            number
        } else {
            number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(u32::try_from(index % 64).unwrap_or(0))
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(blocks: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a scratch file");
        file.as_file().set_len(blocks * BLOCK as u64).expect("room for it");
        file
    }

    #[test]
    fn every_acknowledged_record_is_found_again() {
        let disk = disk(8);
        let mut writer = Writer::open(disk.path()).unwrap();
        let last = (0..21).map(|_| writer.append().unwrap()).last().unwrap();
        assert_eq!(last, 21);
        assert_eq!(check(disk.path(), last).unwrap(), Check { newest: 21, missing: vec![] });
    }

    #[test]
    fn a_lost_record_is_named() {
        let disk = disk(8);
        let mut writer = Writer::open(disk.path()).unwrap();
        for _ in 0..21 {
            writer.append().unwrap();
        }
        disk.as_file().write_all_at(&record(10), (18 % 8) * BLOCK as u64).unwrap();
        assert_eq!(check(disk.path(), 21).unwrap().missing, vec![18]);
        assert_eq!(check(disk.path(), 23).unwrap().missing, vec![18, 22, 23]);
    }

    #[test]
    fn a_writer_goes_on_after_the_newest_record() {
        let disk = disk(8);
        let mut writer = Writer::open(disk.path()).unwrap();
        for _ in 0..3 {
            writer.append().unwrap();
        }
        drop(writer);
        assert_eq!(Writer::open(disk.path()).unwrap().append().unwrap(), 4);
    }
}
