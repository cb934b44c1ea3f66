//! A kernel unpacked before the jump: what its boot code would do while VMs stand is done while they run.
//!
//! ```text
//!  kexec_file_load   jump ─► purgatory hashes all ─► boot code unpacks, chooses addresses, moves ─► kernel proper
//!  here              unpacked, addresses chosen, moved ─► jump ───────────────────────────────────► kernel proper
//! ```
//!
//! Where the boot code does more than that (encrypted memory), where signatures are asked for, or where anything is not as it is known to be, the
//! image is loaded as it is by `kexec_file_load`, which is always right. Why is told.
//!
//! Invariant: what is loaded is put into memory that [`super::place::Free`] gives, never into a vault.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use super::efi::Efi;
use super::image::Image;
use super::kernel::Kernel;
use super::params::{self, Given, Piece};
use super::place::{self, Free};

/// Kernel command line: the kernel changes over to encrypted memory as it starts.
const ENCRYPTED: &str = "mem_encrypt=on";
/// `PAGE_SIZE`
const PAGE: u64 = 4096;

/// Bytes for a place in memory.
#[derive(Debug)]
struct Segment {
    bytes: Vec<u8>,
    at: u64,
}

/// Everything that is random here.
#[derive(Debug, Clone, Copy)]
struct Dice {
    place: u64,
    slide: u64,
    seed: [u8; 32],
}

impl Dice {
    fn rolled() -> io::Result<Self> {
        let mut bytes = [0; 48];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        let mut dice = Self { place: 0, slide: 0, seed: [0; 32] };
        dice.seed.copy_from_slice(&bytes[16..]);
        for (number, bytes) in [&mut dice.place, &mut dice.slide].into_iter().zip(bytes.chunks(8)) {
            *number = bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte));
        }
        Ok(dice)
    }
}

/// What this host says of itself.
#[derive(Debug)]
struct Host {
    cmdline: String,
    iomem: String,
    map: Vec<Piece>,
    parameters: Vec<u8>,
    efi: Option<Efi>,
    /// Whether paging has five levels.
    five_levels: bool,
}

impl Host {
    /// This one; an error is what keeps it from entering an unpacked kernel.
    fn this() -> Result<Self, String> {
        let text = |path: &str| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
        let features = text("/proc/cpuinfo")?;
        let features = features.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
        let five_levels = features.split_whitespace().any(|feature| feature == "la57");
        let mut map = Vec::new();
        let folder = Path::new("/sys/firmware/memmap");
        while let Ok(start) = fs::read_to_string(folder.join(map.len().to_string()).join("start")) {
            let other = |name: &str| text(&format!("{}/{}/{name}", folder.display(), map.len()));
            let piece = Piece::of(&start, &other("end")?, &other("type")?);
            map.push(piece.ok_or("its memory map cannot be read")?);
        }
        let parameters = "/sys/kernel/boot_params/data";
        let parameters = fs::read(parameters).map_err(|error| format!("{parameters}: {error}"))?;
        let folder = Path::new("/sys/firmware/efi");
        let efi = folder.exists().then(|| Efi::of(folder, &parameters)).transpose()?;
        let iomem = text("/proc/iomem")?;
        let map = params::less(map, &place::reserved(&iomem)?);
        Ok(Self { cmdline: text("/proc/cmdline")?, iomem, map, parameters, efi, five_levels })
    }
}

/// Loads a kernel, unpacked, to be entered by a jump.
///
/// # Errors
/// Why it must be loaded as it is, in words; what was loaded before is as it was then.
pub(super) fn load(image: &[u8], initrd: Option<Vec<u8>>, cmdline: &str) -> Result<(), String> {
    let dice = Dice::rolled().map_err(|error| format!("/dev/urandom: {error}"))?;
    let (segments, entry) = lay_out(&Host::this()?, image, initrd, cmdline, dice)?;
    enter(&segments, entry).map_err(|error| format!("kexec_load: {error}"))
}

fn lay_out(
    host: &Host,
    image: &[u8],
    initrd: Option<Vec<u8>>,
    cmdline: &str,
    dice: Dice,
) -> Result<(Vec<Segment>, u64), String> {
    if [host.cmdline.as_str(), cmdline].iter().any(|line| line.split_whitespace().any(|word| word == ENCRYPTED)) {
        return Err(format!("memory is encrypted (`{ENCRYPTED}`)"));
    }
    let image = Image::of(image)?;
    if host.five_levels && !image.has_five_levels()? {
        return Err("paging has five levels here, and it knows four".to_owned());
    }
    let mut kernel = Kernel::of(&image.unpacked()?, image.linked_for()?)?;
    let (alignment, needs) = (image.alignment()?, image.needs()?.max(kernel.size()));
    let mut free = Free::of(&host.iomem, cmdline)?;
    let no_room = || "no place for it in memory".to_owned();
    let at = free.anywhere(needs, alignment, dice.place).ok_or_else(no_room)?;
    let slides =
        if cmdline.split_whitespace().any(|word| word == "nokaslr") { 0 } else { kernel.reach(needs) / alignment };
    kernel.slide(dice.slide % (slides + 1) * alignment)?;
    let initrd = match initrd {
        Some(bytes) => Some(Segment { at: free.highest(bytes.len() as u64).ok_or_else(no_room)?, bytes }),
        None => None,
    };
    let given = Given {
        running: &host.parameters,
        header: image.header()?,
        map: &host.map,
        cmdline,
        initrd: initrd.as_ref().map(|initrd| (initrd.at, initrd.bytes.len() as u64)),
        entry: at + kernel.entry,
        at_random: slides > 0,
        random: dice.seed,
        efi: host.efi.as_ref(),
    };
    let parameters = free.highest(given.size()).ok_or_else(no_room)?;
    let (bytes, first) = given.at(parameters)?;
    let kernel = Segment { bytes: kernel.image, at };
    let all = [Some(kernel), initrd, Some(Segment { bytes, at: parameters })];
    Ok((all.into_iter().flatten().collect(), first))
}

fn enter(segments: &[Segment], entry: u64) -> io::Result<()> {
    /// linux/kexec.h
    #[repr(C)]
    struct KexecSegment {
        buf: *const u8,
        bufsz: libc::size_t,
        mem: libc::c_ulong,
        memsz: libc::size_t,
    }
    let raw = |segment: &Segment| KexecSegment {
        buf: segment.bytes.as_ptr(),
        bufsz: segment.bytes.len(),
        mem: segment.at,
        memsz: segment.bytes.len().next_multiple_of(PAGE as usize),
    };
    let raw: Vec<KexecSegment> = segments.iter().map(raw).collect();
    // SAFETY: each element names bytes of a vector that lives in `segments` until the call is over, with their number; the kernel only reads them.
    let loaded = unsafe { libc::syscall(libc::SYS_kexec_load, entry, raw.len(), raw.as_ptr(), 0 as libc::c_ulong) };
    if loaded == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
