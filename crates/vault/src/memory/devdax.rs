//! Memory that survives the kernel: a device-DAX region, set aside on the kernel command line (`memmap=`), which the agent
//! divides itself.
//!
//! The region holds its own table of contents ([`table`]), the VMs' memory, and between a save and a resume the state of
//! their devices. After a kexec the agent of the new kernel opens the same device and finds everything where it was.
//!
//! - New memory is wiped before it is given out, whatever it was before; until then the table says that it is not ready.
//! - A damaged table is never replaced: the region is refused, and nothing in it is overwritten.
//! - Only the process that holds the host's authority may open a region: two would overwrite each other's tables.
//!
//! One device backs all VMs, so a VMM that has its part open could map another VM's. Where that matters, give each VM its
//! own host, or keep those VMs in a memfd vault.

#![expect(unsafe_code, reason = "a device of this kind can be reached by mmap only")]

pub mod namespace;
pub mod table;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use fermata_model::Size;
use rustix::mm::{MapFlags, ProtFlags};
use uuid::Uuid;

use self::table::{COPY, Extent, Fault, HEAD, NoExtent, RECORD, Saved, State, Table, UNIT, checksum};
use super::{Capacity, Holder, Kind, MemoryError, Provider, Region};

/// Why a region cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DevdaxError {
    /// The device.
    #[error("vault {path}: {what}: {source}; `fermata host check` says what is missing")]
    Device {
        /// The device.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Too small to hold anything.
    #[error("vault {path}: {size} is too small; set aside more with `fermata host prepare`")]
    Small {
        /// The device.
        path: PathBuf,
        /// Its size.
        size: Size,
    },
    /// There was a table, and neither copy can be read.
    #[error(
        "vault {path}: its table of contents is damaged ({even}; {odd}). Nothing in it was touched. When nothing in it is wanted any more, empty it by a cold restart of the host"
    )]
    Damaged {
        /// The device.
        path: PathBuf,
        /// What is wrong with the first copy.
        even: Fault,
        /// What is wrong with the second copy.
        odd: Fault,
    },
    /// More VMs than the table has room for.
    #[error("vault {path}: its table of contents has no room for one more VM")]
    TableFull {
        /// The device.
        path: PathBuf,
    },
    /// No room for the state of a VM's devices.
    #[error(
        "vault {path}: no room for {wanted} of device state of VM {vm} ({free} free); stop a VM or set aside more memory"
    )]
    NoRoom {
        /// The device.
        path: PathBuf,
        /// Whose.
        vm: Uuid,
        /// What was asked for.
        wanted: Size,
        /// The largest gap.
        free: Size,
    },
    /// Nothing was saved.
    #[error("vault {path}: no device state of VM {vm} is kept there")]
    NothingSaved {
        /// The device.
        path: PathBuf,
        /// Whose.
        vm: Uuid,
    },
    /// What was saved has changed.
    #[error("vault {path}: the device state of VM {vm} is damaged (its checksum is wrong); it was left untouched")]
    StateDamaged {
        /// The device.
        path: PathBuf,
        /// Whose.
        vm: Uuid,
    },
}

/// A region in which VMs have memory that outlives the kernel.
#[derive(Debug)]
pub struct Devdax {
    path: PathBuf,
    file: File,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    map: Map,
    table: Table,
}

/// The whole region, mapped.
#[derive(Debug)]
struct Map {
    start: *mut u8,
    length: usize,
}

// SAFETY: the mapping belongs to no thread, and `Devdax` lets one at a time at it.
unsafe impl Send for Map {}

impl Map {
    fn new(file: &File, length: usize) -> rustix::io::Result<Self> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a fresh mapping at an address that the kernel chooses; `Drop` unmaps it, and no reference into it
        // leaves this type.
        let start = unsafe { rustix::mm::mmap(ptr::null_mut(), length, protection, flags, file, 0) }?;
        Ok(Self { start: start.cast(), length })
    }

    fn check(&self, at: usize, length: usize) {
        assert!(at.checked_add(length).is_some_and(|end| end <= self.length), "every extent lies inside the region");
    }

    fn read(&self, at: usize, length: usize) -> Vec<u8> {
        self.check(at, length);
        let mut bytes = vec![0; length];
        // SAFETY: checked to lie inside the mapping, and the target is ours and as long. Other processes write only into
        // memory of VMs, which is never read here.
        unsafe { ptr::copy_nonoverlapping(self.start.add(at), bytes.as_mut_ptr(), length) };
        bytes
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        self.check(at, bytes.len());
        // SAFETY: checked to lie inside the mapping, which is writable; `bytes` is no part of it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(at), bytes.len()) };
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }

    fn wipe(&mut self, extent: Extent) {
        let (at, length) = (index(extent.offset), index(extent.size));
        self.check(at, length);
        // SAFETY: checked to lie inside the mapping, which is writable.
        unsafe { ptr::write_bytes(self.start.add(at), 0, length) };
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours alone, whole, and unmapped once.
        let unmapped = unsafe { rustix::mm::munmap(self.start.cast(), self.length) };
        debug_assert!(unmapped.is_ok());
    }
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("addresses have 64 bits on every machine that KVM's x86-64 guests run on")
}

impl Devdax {
    /// Opens the region behind `path`: a device `/dev/daxX.Y`, or for tests a file. A region that has no table yet gets an
    /// empty one.
    ///
    /// # Errors
    /// [`DevdaxError`].
    pub fn open(path: &Path) -> Result<Self, DevdaxError> {
        let failed = |what| move |source: io::Error| DevdaxError::Device { path: path.to_owned(), what, source };
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(path)
            .map_err(failed("cannot be opened"))?;
        let size = size_of(&file).map_err(failed("its size cannot be read"))?;
        if size < HEAD + UNIT {
            return Err(DevdaxError::Small { path: path.to_owned(), size: Size::from_bytes(size) });
        }
        let length = usize::try_from(size).map_err(|e| failed("its size")(io::Error::other(e)))?;
        let mut map = Map::new(&file, length).map_err(|errno| failed("cannot be mapped")(errno.into()))?;
        let found = Table::newest(&map.read(0, COPY), &map.read(COPY, COPY), size)
            .map_err(|[even, odd]| DevdaxError::Damaged { path: path.to_owned(), even, odd })?;
        let table = match found {
            Some(table) => table,
            None => {
                let mut table = Table::empty(size);
                if let Ok((copy, bytes)) = table.encode() {
                    map.write(copy * COPY, &bytes);
                }
                table
            }
        };
        Ok(Self { path: path.to_owned(), file, inner: Mutex::new(Inner { map, table }) })
    }

    /// The device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // The table in memory changes only together with the one in the region, see `change`.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn region(&self, extent: Extent, size: Size, vm: Uuid) -> Result<Region, MemoryError> {
        let fd = self.file.as_fd().try_clone_to_owned();
        let fd = fd.map_err(|source| MemoryError::System { vm, what: "copy the vault's descriptor", source })?;
        Ok(Region { fd, size, offset: extent.offset, align: Some(Size::from_bytes(UNIT)) })
    }

    /// Keeps the state of a VM's devices in the region, with the boot it was saved in and when the VM stopped
    /// (microseconds since 1970).
    ///
    /// # Errors
    /// [`DevdaxError::NoRoom`] and others; what was kept before is kept still.
    pub fn save(&self, vm: Uuid, state: &[u8], boot: Uuid, stopped_us: u64) -> Result<(), DevdaxError> {
        let bytes = state.len() as u64;
        let mut inner = self.inner();
        let mut next = inner.table.clone();
        let kept = State { bytes, crc: checksum(&[state]), boot, stopped_us };
        let extent = next.give_state(vm, kept).map_err(|_| DevdaxError::NoRoom {
            path: self.path.clone(),
            vm,
            wanted: Size::from_bytes(bytes),
            free: Size::from_bytes(inner.table.largest_gap()),
        })?;
        // First the state, then the table that names it.
        inner.map.write(index(extent.offset), state);
        self.put(&mut inner, next)
    }

    /// What is known of a VM's saved state.
    #[must_use]
    pub fn saved(&self, vm: Uuid) -> Option<Saved> {
        self.inner().table.get(vm)?.saved.clone()
    }

    /// Reads the saved state of a VM's devices.
    ///
    /// # Errors
    /// [`DevdaxError::NothingSaved`], [`DevdaxError::StateDamaged`].
    pub fn load(&self, vm: Uuid) -> Result<Vec<u8>, DevdaxError> {
        let inner = self.inner();
        let saved = inner.table.get(vm).and_then(|holding| holding.saved.as_ref());
        let saved = saved.ok_or_else(|| DevdaxError::NothingSaved { path: self.path.clone(), vm })?;
        let state = inner.map.read(index(saved.extent.offset), index(saved.bytes));
        if checksum(&[&state]) != saved.crc {
            return Err(DevdaxError::StateDamaged { path: self.path.clone(), vm });
        }
        Ok(state)
    }

    /// Gives up the saved state of a VM's devices: it runs.
    ///
    /// # Errors
    /// [`DevdaxError::TableFull`], never in fact: the table becomes smaller.
    pub fn forget_state(&self, vm: Uuid) -> Result<(), DevdaxError> {
        self.change(|table| table.forget_state(vm))
    }

    /// Gives up all that a VM has. Its VMM must be gone.
    ///
    /// # Errors
    /// As [`Self::forget_state`].
    pub fn free(&self, vm: Uuid) -> Result<(), DevdaxError> {
        self.change(|table| table.release(vm))
    }

    /// Writes the hand-over record, at most a mebibyte less eight bytes.
    ///
    /// # Errors
    /// [`DevdaxError::Device`] when it is too long.
    pub fn write_record(&self, record: &[u8]) -> Result<(), DevdaxError> {
        let length = u32::try_from(record.len()).ok().filter(|length| *length as usize + 8 <= RECORD.len());
        let length = length.ok_or_else(|| DevdaxError::Device {
            path: self.path.clone(),
            what: "write the hand-over record",
            source: io::Error::from(io::ErrorKind::FileTooLarge),
        })?;
        let mut bytes = checksum(&[record]).to_le_bytes().to_vec();
        bytes.extend(length.to_le_bytes());
        bytes.extend(record);
        self.inner().map.write(RECORD.start, &bytes);
        Ok(())
    }

    /// The hand-over record, if one was written and is whole.
    #[must_use]
    pub fn record(&self) -> Option<Vec<u8>> {
        let inner = self.inner();
        let front = inner.map.read(RECORD.start, 8);
        let word = |at: usize| front.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
        let (crc, length) = (word(0)?, usize::try_from(word(4)?).ok()?);
        if length == 0 || length + 8 > RECORD.len() {
            return None;
        }
        let record = inner.map.read(RECORD.start + 8, length);
        (checksum(&[&record]) == crc).then_some(record)
    }

    fn change(&self, change: impl FnOnce(&mut Table)) -> Result<(), DevdaxError> {
        let mut inner = self.inner();
        let mut next = inner.table.clone();
        change(&mut next);
        if next == inner.table {
            return Ok(());
        }
        self.put(&mut inner, next)
    }

    fn put(&self, inner: &mut Inner, mut next: Table) -> Result<(), DevdaxError> {
        let (copy, bytes) = next.encode().map_err(|_| DevdaxError::TableFull { path: self.path.clone() })?;
        inner.map.write(copy * COPY, &bytes);
        inner.table = next;
        Ok(())
    }
}

/// What of a region a test of faults damages.
#[cfg(feature = "faults")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Both copies of the table of contents.
    Table,
    /// The saved state of the devices of every VM that has one.
    States,
}

#[cfg(feature = "faults")]
impl Devdax {
    /// Flips one bit in each of them, for tests of faults: in the region behind `path`, past whoever has it open. Flipped again they are
    /// as they were. How many there were.
    ///
    /// # Errors
    /// [`DevdaxError`]. For states the table must be whole; for the table only the device counts.
    pub fn flip(path: &Path, part: Part) -> Result<usize, DevdaxError> {
        let failed = |what| move |source: io::Error| DevdaxError::Device { path: path.to_owned(), what, source };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed("cannot be opened"))?;
        let size = size_of(&file).map_err(failed("its size cannot be read"))?;
        let map = Map::new(&file, index(size)).map_err(|errno| failed("cannot be mapped")(errno.into()));
        let mut map = map?;
        // Past the magic, which says that there is a table at all.
        let places = match part {
            Part::Table => vec![64, COPY + 64],
            Part::States => {
                let found = Table::newest(&map.read(0, COPY), &map.read(COPY, COPY), size)
                    .map_err(|[even, odd]| DevdaxError::Damaged { path: path.to_owned(), even, odd })?;
                let saved = found.iter().flat_map(Table::all).filter_map(|(_, holding)| holding.saved.as_ref());
                saved.map(|saved| index(saved.extent.offset + saved.bytes / 2)).collect()
            }
        };
        for place in &places {
            let byte = map.read(*place, 1);
            map.write(*place, &[byte[0] ^ 1]);
        }
        Ok(places.len())
    }
}

fn size_of(file: &File) -> io::Result<u64> {
    let meta = file.metadata()?;
    if !meta.file_type().is_char_device() {
        return Ok(meta.len());
    }
    let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    let text = std::fs::read_to_string(format!("/sys/dev/char/{major}:{minor}/size"))?;
    text.trim().parse().map_err(io::Error::other)
}

fn system(vm: Uuid, what: &'static str) -> impl Fn(DevdaxError) -> MemoryError {
    move |error| MemoryError::System { vm, what, source: io::Error::other(error) }
}

impl Provider for Devdax {
    fn kind(&self) -> Kind {
        Kind::Devdax
    }

    fn capacity(&self) -> io::Result<Capacity> {
        let inner = self.inner();
        let (total, free) = (inner.table.usable(), inner.table.largest_gap());
        Ok(Capacity { total: Size::from_bytes(total), free: Size::from_bytes(free) })
    }

    fn allocate(&self, vm: Uuid, size: Size) -> Result<Region, MemoryError> {
        let mut inner = self.inner();
        let mut next = inner.table.clone();
        let extent = next.give_memory(vm, size.bytes()).map_err(|refusal| match refusal {
            NoExtent::Full(free) => MemoryError::Exhausted { vm, wanted: size, free: Size::from_bytes(free) },
            NoExtent::Taken | NoExtent::NoMemory => {
                MemoryError::NotTheRegion { vm, found: "the VM has memory in the vault already".to_owned() }
            }
        })?;
        self.put(&mut inner, next).map_err(system(vm, "note it in the vault"))?;
        inner.map.wipe(extent);
        let mut next = inner.table.clone();
        next.wiped(vm);
        self.put(&mut inner, next).map_err(system(vm, "note it in the vault"))?;
        drop(inner);
        self.region(extent, size, vm)
    }

    fn reclaim(&self, vm: Uuid, size: Size, _holder: Option<Holder<'_>>) -> Result<Region, MemoryError> {
        let extent = {
            let inner = self.inner();
            let held = inner.table.get(vm).filter(|held| held.ready).ok_or(MemoryError::Lost { vm })?;
            held.memory
        };
        if extent.size != size.bytes().next_multiple_of(UNIT) {
            let found = format!("the vault has {} for it", Size::from_bytes(extent.size));
            return Err(MemoryError::NotTheRegion { vm, found });
        }
        self.region(extent, size, vm)
    }

    fn adopt(&self, vm: Uuid, size: Size, _fd: OwnedFd) -> Result<Region, MemoryError> {
        self.reclaim(vm, size, None)
    }

    fn release(&self, vm: Uuid, region: Region) -> Result<(), MemoryError> {
        drop(region);
        self.free(vm).map_err(system(vm, "note in the vault that it is free"))
    }
}

#[cfg(test)]
mod tests;
