//! Loading another kernel and jumping into it.
//!
//! `kexec_file_load(2)`, whose image the kernel itself checks, `kexec_load(2)` and `reboot(2)`. Nothing of user space is stopped on the way: what
//! must be on a disk is synced before. A kernel that shall be entered while VMs stand is unpacked first where that can be done ([`load_unpacked`]).

#![expect(unsafe_code, reason = "kexec_file_load and kexec_load are in no safe library")]

mod efi;
mod image;
mod kernel;
mod params;
mod place;
mod unpacked;

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// linux/kexec.h: unload instead of load.
const UNLOAD: libc::c_ulong = 1;
/// linux/kexec.h: there is no initial RAM disk.
const NO_INITRAMFS: libc::c_ulong = 4;

/// What runs before the kernel proper, its version's text in it, has at most 64 sectors (Documentation/arch/x86/boot.rst, `setup_sects`).
const HEAD: u64 = 65 * 512;

/// Why a kernel was not loaded, or not entered.
#[derive(Debug, thiserror::Error)]
pub enum KexecError {
    /// A file cannot be opened.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The image is none.
    #[error("{0} is no Linux kernel for x86 (bzImage)")]
    NoKernel(PathBuf),
    /// The command line cannot be passed.
    #[error("the kernel's command line has a zero byte in it")]
    Cmdline,
    /// The kernel refused.
    #[error(
        "the running kernel did not {what}: {source}; see the kernel log (lockdown, signatures, kexec_load_disabled, too little memory)"
    )]
    Refused {
        /// What was asked.
        what: &'static str,
        /// Its reason.
        source: io::Error,
    },
}

fn refused(what: &'static str) -> KexecError {
    KexecError::Refused { what, source: io::Error::last_os_error() }
}

/// Loads a kernel to be entered by [`jump`]; one that was loaded before is replaced.
///
/// # Errors
/// [`KexecError`]; what was loaded before may be gone then.
pub fn load(image: &Path, initrd: Option<&Path>, cmdline: &str) -> Result<(), KexecError> {
    let open = |path: &Path| File::open(path).map_err(|source| KexecError::File { path: path.to_owned(), source });
    let kernel = open(image)?;
    let initrd = initrd.map(open).transpose()?;
    let cmdline = CString::new(cmdline).map_err(|_| KexecError::Cmdline)?;
    let bytes = cmdline.as_bytes_with_nul();
    let flags = if initrd.is_some() { 0 } else { NO_INITRAMFS };
    let initrd_fd = initrd.as_ref().map_or(-1, AsRawFd::as_raw_fd);
    // SAFETY: both descriptors are open for the whole call, or -1 with the flag that says so; the command line is a string
    // with its zero, of exactly the length given, and the kernel only reads it.
    let loaded = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initrd_fd,
            bytes.len() as libc::c_ulong,
            bytes.as_ptr(),
            flags,
        )
    };
    if loaded == 0 { Ok(()) } else { Err(refused("load the kernel")) }
}

/// Loads a kernel to be entered by [`jump`], unpacked, so that the jump takes less time; as [`load`] where that cannot be done, and then says why.
///
/// # Errors
/// As [`load`].
pub fn load_unpacked(image: &Path, initrd: Option<&Path>, cmdline: &str) -> Result<Option<String>, KexecError> {
    let read = |path: &Path| std::fs::read(path).map_err(|source| KexecError::File { path: path.to_owned(), source });
    match unpacked::load(&read(image)?, initrd.map(read).transpose()?, cmdline) {
        Ok(()) => Ok(None),
        Err(why) => load(image, initrd, cmdline).map(|()| Some(why)),
    }
}

/// Forgets the kernel that was loaded, if one was.
///
/// # Errors
/// [`KexecError::Refused`].
pub fn unload() -> Result<(), KexecError> {
    // SAFETY: with this flag the kernel looks at no other argument.
    let unloaded = unsafe { libc::syscall(libc::SYS_kexec_file_load, -1, -1, 0, std::ptr::null::<u8>(), UNLOAD) };
    if unloaded == 0 { Ok(()) } else { Err(refused("unload the kernel")) }
}

/// Whether a kernel is loaded.
#[must_use]
pub fn is_loaded() -> bool {
    std::fs::read_to_string("/sys/kernel/kexec_loaded").is_ok_and(|text| text.trim() == "1")
}

/// Jumps into the loaded kernel at once: nothing is stopped, nothing is synced. Returns only when the kernel refuses.
#[must_use]
pub fn jump() -> KexecError {
    match rustix::system::reboot(rustix::system::RebootCommand::Kexec) {
        Err(errno) => KexecError::Refused { what: "jump", source: errno.into() },
        Ok(()) => KexecError::Refused { what: "jump", source: io::Error::other("it came back without a word") },
    }
}

/// The release (`uname -r`) of a kernel image. Reads its head only: it is asked right after a jump too, when nothing of the disk is cached.
///
/// # Errors
/// [`KexecError::File`], [`KexecError::NoKernel`].
pub fn release_of(image: &Path) -> Result<String, KexecError> {
    let failed = |source| KexecError::File { path: image.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(image).map_err(failed)?.take(HEAD).read_to_end(&mut bytes).map_err(failed)?;
    release_in(&bytes).ok_or_else(|| KexecError::NoKernel(image.to_owned()))
}

/// Documentation/arch/x86/boot.rst: `HdrS` at 0x202, `kernel_version` at 0x20e, an offset from 0x200.
fn release_in(image: &[u8]) -> Option<String> {
    if image.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let at = usize::from(u16::from_le_bytes(image.get(0x20e..0x210)?.try_into().ok()?)) + 0x200;
    let text = image.get(at..)?.split(|byte| *byte == 0).next()?;
    Some(std::str::from_utf8(text.get(..text.len().min(256))?).ok()?.split_whitespace().next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_read_from_the_image() {
        let mut image = vec![0; 0x1000];
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x300u16.to_le_bytes());
        image[0x500..0x51c].copy_from_slice(b"7.2.12+deb13-cloud-amd64 (x)");
        assert_eq!(release_in(&image).unwrap(), "7.2.12+deb13-cloud-amd64");
        assert_eq!(release_in(&image[..0x400]), None);
        image[0x202] = 0;
        assert_eq!(release_in(&image), None);
        let error = release_of(Path::new("/proc/self/exe")).unwrap_err().to_string();
        assert!(error.contains("no Linux kernel"), "{error}");
    }
}
