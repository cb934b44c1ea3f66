//! Anonymous shared memory with a fixed size and without the right to execute.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use fermata_model::Size;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use uuid::Uuid;

use super::{Capacity, Holder, Kind, MemoryError, Provider, Region};

/// Memory by `memfd_create`, sealed so that no holder can change its size: a VMM that shrank it would kill every other
/// process mapping it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memfd {
    /// Take all pages at once, so that a VM that was started can never run out of memory; costs the time to clear
    /// them (about a quarter of a second per GiB).
    pub populate: bool,
}

/// What a processor maps by one entry where memory lies so (x86-64). VMMs map it at multiples of this, because pages of that size are given to
/// such places only (Linux, `Documentation/admin-guide/mm/transhuge.rst`): a new VMM's empty tables are filled again in a fraction of the faults.
const HUGE: Size = Size::from_mib(2);

const SIZE_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

fn name(vm: Uuid) -> String {
    format!("fermata-{vm}")
}

fn create(vm: Uuid) -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create(name(vm), flags | MemfdFlags::NOEXEC_SEAL) {
        // Linux before 6.3 knows no NOEXEC_SEAL.
        Err(Errno::INVAL) => rustix::fs::memfd_create(name(vm), flags),
        other => other,
    }
}

impl Memfd {
    fn check(vm: Uuid, size: Size, fd: OwnedFd) -> Result<Region, MemoryError> {
        let system = |what| move |errno: Errno| MemoryError::System { vm, what, source: errno.into() };
        let refuse = |found: String| MemoryError::NotTheRegion { vm, found };
        let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
            .map_err(|source| MemoryError::System { vm, what: "read its name", source })?;
        if link.to_str() != Some(&format!("/memfd:{} (deleted)", name(vm))) {
            return Err(refuse(link.display().to_string()));
        }
        let seals = rustix::fs::fcntl_get_seals(&fd).map_err(system("read its seals"))?;
        if !seals.contains(SIZE_SEALS) {
            return Err(refuse(format!("a memfd whose size is not sealed ({seals:?})")));
        }
        let found = rustix::fs::fstat(&fd).map_err(system("read its size"))?.st_size;
        if u64::try_from(found).ok() != Some(size.bytes()) {
            return Err(refuse(format!("a memfd of {found} bytes instead of {}", size.bytes())));
        }
        Ok(Region { fd, size, offset: 0, align: Some(HUGE) })
    }
}

impl Provider for Memfd {
    fn kind(&self) -> Kind {
        Kind::Memfd
    }

    fn capacity(&self) -> std::io::Result<Capacity> {
        let text = std::fs::read_to_string("/proc/meminfo")?;
        let field = |key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
                .map(|kib| Size::from_bytes(kib << 10))
                .ok_or_else(|| std::io::Error::other(format!("/proc/meminfo has no line `{key}`")))
        };
        Ok(Capacity { total: field("MemTotal:")?, free: field("MemAvailable:")? })
    }

    fn allocate(&self, vm: Uuid, size: Size) -> Result<Region, MemoryError> {
        let system = |what| move |errno: Errno| MemoryError::System { vm, what, source: errno.into() };
        let free = self
            .capacity()
            .map_err(|source| MemoryError::System { vm, what: "read the host's free memory", source })?
            .free;
        if size > free {
            return Err(MemoryError::Exhausted { vm, wanted: size, free });
        }
        let fd = create(vm).map_err(system("create it"))?;
        rustix::fs::ftruncate(&fd, size.bytes()).map_err(system("give it its size"))?;
        if self.populate {
            rustix::fs::fallocate(&fd, rustix::fs::FallocateFlags::empty(), 0, size.bytes())
                .map_err(system("take its pages"))?;
        }
        rustix::fs::fcntl_add_seals(&fd, SIZE_SEALS | SealFlags::SEAL).map_err(system("seal its size"))?;
        Ok(Region { fd, size, offset: 0, align: Some(HUGE) })
    }

    fn reclaim(&self, vm: Uuid, size: Size, holder: Option<Holder<'_>>) -> Result<Region, MemoryError> {
        let holder = holder.ok_or(MemoryError::Lost { vm })?;
        let fd = holder
            .process
            .take_fd(holder.fd)
            .map_err(|error| MemoryError::NotTheRegion { vm, found: error.to_string() })?;
        Self::check(vm, size, fd)
    }

    fn adopt(&self, vm: Uuid, size: Size, fd: OwnedFd) -> Result<Region, MemoryError> {
        Self::check(vm, size, fd)
    }

    fn release(&self, _vm: Uuid, region: Region) -> Result<(), MemoryError> {
        // The pages go when the last holder closes; a VMM that still runs keeps its memory, as it must.
        drop(region);
        Ok(())
    }
}

impl Region {
    /// The same memory, held once more.
    ///
    /// # Errors
    /// The kernel's reason (no descriptor left).
    pub fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self { fd: self.duplicate()?, size: self.size, offset: self.offset, align: self.align })
    }

    /// A second descriptor of the same memory, close-on-exec.
    ///
    /// # Errors
    /// The kernel's reason (no descriptor left).
    pub fn duplicate(&self) -> std::io::Result<OwnedFd> {
        self.as_fd().try_clone_to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VM: Uuid = Uuid::from_u128(0x1234);
    const SIZE: Size = Size::from_mib(2);

    #[test]
    fn no_holder_can_change_the_size() {
        let region = Memfd::default().allocate(VM, SIZE).unwrap();
        assert_eq!(rustix::fs::ftruncate(&region, 4096), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(&region, SIZE.bytes() * 2), Err(Errno::PERM));
        assert!(!region.fd.as_raw_fd().to_string().is_empty());
    }

    #[test]
    fn populated_memory_has_all_its_pages() {
        let region = Memfd { populate: true }.allocate(VM, SIZE).unwrap();
        assert_eq!(rustix::fs::fstat(&region).unwrap().st_blocks * 512, SIZE.bytes().cast_signed());
    }

    #[test]
    fn vmms_map_it_where_huge_pages_fit() {
        let region = Memfd::default().allocate(VM, SIZE).unwrap();
        let again = Memfd::default().adopt(VM, SIZE, region.duplicate().unwrap()).unwrap();
        assert_eq!((region.align(), again.align()), (Some(HUGE), Some(HUGE)));
        assert_eq!((region.offset(), again.offset()), (0, 0));
    }

    #[test]
    fn what_was_written_is_there_after_adoption() {
        let region = Memfd::default().allocate(VM, SIZE).unwrap();
        rustix::io::pwrite(&region, b"fermata", 4096).unwrap();
        let kept = region.duplicate().unwrap();
        drop(region);
        let again = Memfd::default().adopt(VM, SIZE, kept).unwrap();
        let mut bytes = [0; 7];
        rustix::io::pread(&again, &mut bytes, 4096).unwrap();
        assert_eq!(&bytes, b"fermata");
    }

    #[test]
    fn another_descriptor_is_refused_with_what_it_is() {
        let other = Memfd::default().allocate(Uuid::from_u128(9), SIZE).unwrap();
        assert!(matches!(Memfd::default().adopt(VM, SIZE, other.into()), Err(MemoryError::NotTheRegion { .. })));
        let small = Memfd::default().allocate(VM, SIZE).unwrap();
        assert!(matches!(
            Memfd::default().adopt(VM, Size::from_mib(4), small.into()),
            Err(MemoryError::NotTheRegion { .. })
        ));
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = Memfd::default().adopt(VM, SIZE, file.into()).unwrap_err();
        assert!(error.to_string().contains("/dev/null"), "{error}");
    }

    #[test]
    fn more_than_the_host_has_is_refused() {
        let error = Memfd::default().allocate(VM, Size::from_bytes(1 << 60)).unwrap_err();
        assert!(matches!(error, MemoryError::Exhausted { .. }), "{error}");
    }
}
