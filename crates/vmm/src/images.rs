//! What a disk image is, and whether somebody uses it.
//!
//! Looked at before a VMM is started, so that a refusal has a place, a reason and a way out instead of QEMU's last words.
//! Looking takes no lock and changes nothing. QEMU's own locks still decide at start: a look can be overtaken.
//!
//! Sources: QEMU `docs/interop/qcow2.rst` (header), `block/file-posix.c` (lock bytes: 100 + permission in use, 200 +
//! permission not shared).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use fermata_model::spec::{Disk, DiskFormat};
use fermata_vault::locks;

/// What an image lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A block device.
    BlockDevice,
}

impl Kind {
    /// The QEMU block driver for it.
    #[must_use]
    pub const fn driver(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::BlockDevice => "host_device",
        }
    }
}

/// How a disk is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend {
    /// What it lies on.
    pub kind: Kind,
    /// Whether the file system can bypass the page cache. Then the guest's data is on the disk or in the guest, never in
    /// a kernel that is about to be replaced.
    pub direct: bool,
    /// The size that the guest sees, in bytes.
    pub virtual_size: u64,
    /// Whether the image rests on another one (qcow2), which is only read.
    pub backed: bool,
}

/// Why an image cannot be a VM's disk.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There is nothing.
    #[error("disk image {0} does not exist; make it with `qemu-img create`, or correct the path")]
    Missing(PathBuf),
    /// A folder, a socket, ...
    #[error("disk image {path} is {what}; give a regular file or a block device")]
    NotAnImage {
        /// Where.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// It cannot be opened or read.
    #[error("disk image {path}: {what}: {source}")]
    System {
        /// Where.
        path: PathBuf,
        /// What was being done.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The content is not what the definition says.
    #[error("disk image {path} is said to be {said}, but {found}; correct `format` or the image")]
    Format {
        /// Where.
        path: PathBuf,
        /// The definition's word.
        said: &'static str,
        /// What is there.
        found: String,
    },
    /// A qcow2 that reads other files.
    #[error(
        "disk image {path} depends on {on}; make that readable, or make the image stand alone with `qemu-img convert -O qcow2`"
    )]
    Depends {
        /// Where.
        path: PathBuf,
        /// The kind of dependency.
        on: String,
    },
    /// Somebody uses it.
    #[error("disk image {path} is in use by another process ({how}); stop the VM or program that has it open")]
    InUse {
        /// Where.
        path: PathBuf,
        /// What the other does with it.
        how: &'static str,
    },
}

/// Looks at a disk's image.
///
/// # Errors
/// [`ImageError`] when it cannot be the disk; [`ImageError::InUse`] is left to [`check_free`].
pub fn inspect(disk: &Disk) -> Result<Backend, ImageError> {
    let path = &disk.path;
    let system = |what| move |source| ImageError::System { path: path.clone(), what, source };
    let kind = kind(path)?;
    let mut file = File::options().read(true).write(!disk.readonly).open(path).map_err(system("open"))?;
    let bytes = file.seek(SeekFrom::End(0)).map_err(system("find its size"))?;
    file.rewind().map_err(system("read"))?;
    let mut head = Vec::new();
    (&mut file).take(512).read_to_end(&mut head).map_err(system("read"))?;
    let (virtual_size, backing) = match disk.format {
        DiskFormat::Raw => (raw_size(path, bytes)?, None),
        DiskFormat::Qcow2 => (qcow2_size(path, &head)?, backing_name(path, &mut file, &head)?),
    };
    if let Some(name) = &backing {
        check_backing(path, name)?;
    }
    Ok(Backend { kind, direct: supports_direct(path), virtual_size, backed: backing.is_some() })
}

fn kind(path: &Path) -> Result<Kind, ImageError> {
    let file_type = match std::fs::metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ImageError::Missing(path.to_owned())),
        Err(source) => return Err(ImageError::System { path: path.to_owned(), what: "look at it", source }),
    };
    let what = match file_type {
        t if t.is_file() => return Ok(Kind::File),
        t if t.is_block_device() => return Ok(Kind::BlockDevice),
        t if t.is_dir() => "a folder",
        t if t.is_char_device() => "a character device",
        t if t.is_socket() => "a socket",
        _ => "not a file",
    };
    Err(ImageError::NotAnImage { path: path.to_owned(), what })
}

fn raw_size(path: &Path, bytes: u64) -> Result<u64, ImageError> {
    if bytes > 0 && bytes.is_multiple_of(512) {
        return Ok(bytes);
    }
    Err(ImageError::Format {
        path: path.to_owned(),
        said: "raw",
        found: format!("has {bytes} bytes, not a whole number of 512-byte sectors"),
    })
}

/// The virtual size in a qcow2 header, which must be of version 2 or 3 and hold the data itself.
fn qcow2_size(path: &Path, head: &[u8]) -> Result<u64, ImageError> {
    let wrong = |found: String| ImageError::Format { path: path.to_owned(), said: "qcow2", found };
    let u32_at = |at: usize| head.get(at..at + 4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]));
    let u64_at = |at: usize| Some((u64::from(u32_at(at)?) << 32) | u64::from(u32_at(at + 4)?));
    if u32_at(0) != Some(0x5146_49fb) {
        return Err(wrong("does not begin like a qcow2 image".to_owned()));
    }
    let version = u32_at(4).unwrap_or_default();
    if !(2..=3).contains(&version) {
        return Err(wrong(format!("is of version {version} (2 and 3 are known)")));
    }
    let truncated = || wrong("ends inside its header".to_owned());
    let depends = |on: &str| ImageError::Depends { path: path.to_owned(), on: on.to_owned() };
    if version == 3 {
        const DIRTY_CORRUPT: u64 = 1 << 1;
        const EXTERNAL_DATA: u64 = 1 << 2;
        let features = u64_at(72).ok_or_else(truncated)?;
        if features & EXTERNAL_DATA != 0 {
            return Err(depends("an external data file"));
        }
        if features & DIRTY_CORRUPT != 0 {
            return Err(wrong("is marked corrupt (`qemu-img check -r all` repairs it)".to_owned()));
        }
    }
    if u32_at(32).ok_or_else(truncated)? != 0 {
        return Err(wrong("is encrypted, which Fermata does not support".to_owned()));
    }
    match u64_at(24).ok_or_else(truncated)? {
        0 => Err(wrong("has a size of zero".to_owned())),
        size => Ok(size),
    }
}

/// The name of the image that a qcow2 image rests on, as its header has it. Guests cannot write the header, so the name
/// is the operator's word.
fn backing_name(path: &Path, file: &mut File, head: &[u8]) -> Result<Option<PathBuf>, ImageError> {
    let number = |at: usize, len: usize| {
        head.get(at..at + len).map_or(0, |bytes| bytes.iter().fold(0u64, |n, byte| (n << 8) | u64::from(*byte)))
    };
    // qcow2 specification: backing_file_offset and backing_file_size, at most 1023 bytes.
    let (offset, len) = (number(8, 8), number(16, 4));
    if offset == 0 {
        return Ok(None);
    }
    let system =
        |source| ImageError::System { path: path.to_owned(), what: "read the name of its backing file", source };
    file.seek(SeekFrom::Start(offset)).map_err(system)?;
    let mut name = Vec::new();
    file.take(len.min(1023)).read_to_end(&mut name).map_err(system)?;
    let name = String::from_utf8(name).map_err(|_| system(io::Error::other("it is not UTF-8")))?;
    if name.is_empty() || name.contains("json:") || (name.contains(':') && !name.starts_with('/')) {
        return Err(ImageError::Depends { path: path.to_owned(), on: format!("`{name}`, which is no file") });
    }
    Ok(Some(path.parent().unwrap_or(Path::new("/")).join(name)))
}

/// The image below must be a file that the VMMs' user can read; it is never written.
fn check_backing(path: &Path, below: &Path) -> Result<(), ImageError> {
    let depends = |on: String| ImageError::Depends { path: path.to_owned(), on };
    let meta = std::fs::metadata(below).map_err(|error| depends(format!("{}: {error}", below.display())))?;
    if meta.permissions().mode() & 0o004 == 0 {
        let path = below.display();
        return Err(depends(format!("{path}, which the VMM's user cannot read (`chmod o+r {path}` allows it)")));
    }
    Ok(())
}

/// Whether the file can be opened past the page cache (not on tmpfs of old kernels, nor on some network file systems).
fn supports_direct(path: &Path) -> bool {
    File::options().read(true).custom_flags(libc_o_direct()).open(path).is_ok()
}

fn libc_o_direct() -> i32 {
    rustix::fs::OFlags::DIRECT.bits().cast_signed()
}

// `block/file-posix.c`: RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE; `include/block/block-common.h`: permissions.
const USED: i64 = 100;
const UNSHARED: i64 = 200;
const READ: i64 = 0;
const WRITE: i64 = 1;
const ALL: i64 = 4;

/// Checks that nobody uses the image in a way that excludes this VM. Two VMs may share a disk that is read-only in both.
///
/// # Errors
/// [`ImageError::InUse`]; [`ImageError::System`] on file systems without locks.
pub fn check_free(disk: &Disk) -> Result<(), ImageError> {
    let path = &disk.path;
    let system = |what| move |source| ImageError::System { path: path.clone(), what, source };
    let file = File::open(path).map_err(system("open"))?;
    let locked = |start, len| locks::is_locked(&file, start, len).map_err(system("look for locks"));
    let in_use = |how| Err(ImageError::InUse { path: path.clone(), how });
    if locked(USED + WRITE, 1)? {
        return in_use("it writes to it");
    }
    if locked(UNSHARED + READ, 1)? {
        return in_use("it allows no other reader");
    }
    if !disk.readonly && (locked(USED, ALL)? || locked(UNSHARED, ALL)?) {
        return in_use("it reads it and allows no writer");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn header(version: u32, backing: u64, size: u64, features: u64) -> Vec<u8> {
        let mut head = vec![0; 512];
        head[0..4].copy_from_slice(b"QFI\xfb");
        head[4..8].copy_from_slice(&version.to_be_bytes());
        head[8..16].copy_from_slice(&backing.to_be_bytes());
        head[24..32].copy_from_slice(&size.to_be_bytes());
        head[72..80].copy_from_slice(&features.to_be_bytes());
        head
    }

    fn image(content: &[u8], format: DiskFormat) -> (tempfile::NamedTempFile, Disk) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        let disk = Disk { path: file.path().to_owned(), format, readonly: false };
        (file, disk)
    }

    #[test]
    fn sound_images_tell_the_guests_size() {
        let (_file, disk) = image(&header(3, 0, 10 << 30, 0), DiskFormat::Qcow2);
        assert_eq!(inspect(&disk).unwrap().virtual_size, 10 << 30);
        let (_file, disk) = image(&[0; 4096], DiskFormat::Raw);
        let backend = inspect(&disk).unwrap();
        assert_eq!((backend.virtual_size, backend.kind), (4096, Kind::File));
    }

    #[test]
    fn an_image_that_reads_other_files_is_refused() {
        let (_file, disk) = image(&header(3, 0, 1 << 30, 4), DiskFormat::Qcow2);
        assert!(matches!(inspect(&disk), Err(ImageError::Depends { .. })));
    }

    #[test]
    fn a_backing_file_must_be_there_and_readable() {
        let (base, _) = image(&[0; 512], DiskFormat::Raw);
        let overlay = |name: &str| {
            let mut head = header(3, 512, 1 << 30, 0);
            head[16..20].copy_from_slice(&u32::try_from(name.len()).unwrap().to_be_bytes());
            head.extend_from_slice(name.as_bytes());
            image(&head, DiskFormat::Qcow2)
        };
        let refused = |name: &str| {
            let (_file, disk) = overlay(name);
            matches!(inspect(&disk), Err(ImageError::Depends { .. }))
        };
        assert!(refused("/nowhere/base.qcow2") && refused("nbd://host/export") && refused("json:{}"));
        let path = base.path().to_str().unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(refused(path));
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let (_file, disk) = overlay(path);
        assert!(inspect(&disk).unwrap().backed);
    }

    #[test]
    fn the_content_must_be_what_the_definition_says() {
        let wrong: [&[u8]; 6] =
            [b"", b"QFI", &[0; 512], &header(4, 0, 1 << 30, 0), &header(3, 0, 0, 0), &header(3, 0, 1 << 30, 2)];
        for head in wrong {
            let (_file, disk) = image(head, DiskFormat::Qcow2);
            assert!(matches!(inspect(&disk), Err(ImageError::Format { .. })), "{:?}", &head[..head.len().min(8)]);
        }
        let (_file, disk) = image(&[0; 1000], DiskFormat::Raw);
        assert!(inspect(&disk).unwrap_err().to_string().contains("1000 bytes"));
    }

    #[test]
    fn what_is_no_image_is_named() {
        let disk = |path: &str| Disk { path: path.into(), format: DiskFormat::Raw, readonly: false };
        assert!(matches!(inspect(&disk("/nowhere/a.img")), Err(ImageError::Missing(_))));
        assert!(matches!(inspect(&disk("/tmp")), Err(ImageError::NotAnImage { what: "a folder", .. })));
        assert!(matches!(inspect(&disk("/dev/null")), Err(ImageError::NotAnImage { .. })));
    }

    #[test]
    fn a_writer_excludes_everybody_and_a_reader_excludes_writers() {
        let (_file, mut disk) = image(&[0; 512], DiskFormat::Raw);
        let lock = |byte| {
            let holder = File::open(&disk.path).unwrap();
            locks::lock_shared(&holder, byte, 1).unwrap();
            holder
        };
        check_free(&disk).unwrap();
        // As QEMU does for a writable disk: it writes, and shares writing with nobody.
        let writer = (lock(USED + WRITE), lock(UNSHARED + WRITE));
        assert!(matches!(check_free(&disk), Err(ImageError::InUse { .. })));
        disk.readonly = true;
        assert!(matches!(check_free(&disk), Err(ImageError::InUse { .. })));
        drop(writer);
        let lock = |byte| {
            let holder = File::open(&disk.path).unwrap();
            locks::lock_shared(&holder, byte, 1).unwrap();
            holder
        };
        let reader = (lock(USED + READ), lock(UNSHARED + WRITE));
        check_free(&disk).unwrap();
        drop(reader);
        disk.readonly = false;
        check_free(&disk).unwrap();
    }

    proptest! {
        #[test]
        fn no_header_makes_the_reader_panic(head in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = qcow2_size(Path::new("x"), &head);
            let mut qcow = header(3, 0, 1, 0);
            let len = head.len().min(qcow.len());
            qcow.truncate(len.max(4));
            let _ = qcow2_size(Path::new("x"), &qcow);
        }
    }
}
