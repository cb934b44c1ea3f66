//! A kernel image for x86 (bzImage): its head, and the kernel proper that is packed in it.
//!
//! Layout and fields: Documentation/arch/x86/boot.rst. Invariant: a field is read only where the image is long enough for it.

use std::io::{self, Write};
use std::ops::Range;
use std::process::{Command, Stdio};

/// The fields for boot loaders, where boot parameters have them as well.
pub(super) const HEADER: usize = 0x1f1;
/// Boot protocol 2.12 says in `xloadflags` what a 64-bit boot loader may do.
const OLDEST: u16 = 0x020c;
/// `xloadflags`, `XLF_KERNEL_64`: there is an entry in 64-bit mode.
const KERNEL_64: u16 = 1;

/// `XLF_5LEVEL_ENABLED`: it runs where paging has five levels.
const FIVE_LEVELS: u16 = 0x40;

/// The head of an image, checked.
#[derive(Debug)]
pub(super) struct Image<'a> {
    bytes: &'a [u8],
}

impl<'a> Image<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Result<Self, String> {
        let image = Self { bytes };
        if bytes.get(0x202..0x206) != Some(b"HdrS".as_slice()) {
            return Err("it is no bzImage".to_owned());
        }
        if image.u16(0x206)? < OLDEST || image.u16(0x236)? & KERNEL_64 == 0 {
            return Err("it is for an older boot protocol than 2.12, or not of 64 bits".to_owned());
        }
        Ok(image)
    }

    fn part<const N: usize>(&self, at: usize) -> Result<[u8; N], String> {
        let bytes = self.bytes.get(at..at + N).and_then(|part| part.try_into().ok());
        bytes.ok_or_else(|| format!("the image ends before {at:#x}"))
    }

    fn u16(&self, at: usize) -> Result<u16, String> {
        self.part(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Result<u32, String> {
        self.part(at).map(u32::from_le_bytes)
    }

    /// All fields for boot loaders: `jump` says where they end.
    pub(super) fn header(&self) -> Result<&'a [u8], String> {
        let [_, length] = self.part(0x200)?;
        self.bytes.get(HEADER..0x202 + usize::from(length)).ok_or_else(|| "its header is cut off".to_owned())
    }

    /// `init_size`: memory in one piece that the kernel uses before it looks at the memory map.
    pub(super) fn needs(&self) -> Result<u64, String> {
        self.u32(0x260).map(u64::from)
    }

    /// Whether it can be entered where paging has five levels: its boot code would change over to four for it.
    pub(super) fn has_five_levels(&self) -> Result<bool, String> {
        Ok(self.u16(0x236)? & FIVE_LEVELS != 0)
    }

    /// `kernel_alignment`, in bytes.
    pub(super) fn alignment(&self) -> Result<u64, String> {
        match self.u32(0x230)? {
            alignment if alignment.is_power_of_two() => Ok(u64::from(alignment)),
            other => Err(format!("an alignment of {other:#x}")),
        }
    }

    /// `pref_address`, for which the kernel proper is linked.
    pub(super) fn linked_for(&self) -> Result<u64, String> {
        self.part(0x258).map(u64::from_le_bytes)
    }

    /// The kernel proper with its relocations, unpacked by the program for the format.
    pub(super) fn unpacked(&self) -> Result<Vec<u8>, String> {
        let sectors = match self.part::<1>(HEADER)?[0] {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let size = |field: u32| usize::try_from(field).map_err(|e| e.to_string());
        let from = (sectors + 1) * 512 + size(self.u32(0x248)?)?;
        let payload = from..from.saturating_add(size(self.u32(0x24c)?)?);
        unpack(self.bytes, payload)
    }
}

fn unpack(bytes: &[u8], payload: Range<usize>) -> Result<Vec<u8>, String> {
    let payload = bytes.get(payload).ok_or("the packed kernel is cut off")?;
    // The size when unpacked comes after what is packed (arch/x86/boot/compressed/mkpiggy.c).
    let (packed, length) = payload.split_last_chunk().ok_or("no packed kernel")?;
    let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|e| e.to_string())?;
    let (program, options): (_, &[&str]) = match packed {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", &["-dc"]),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => ("xz", &["-dc", "--single-stream"]),
        [0x1f, 0x8b, ..] => ("gzip", &["-dc"]),
        _ => return Err("it is packed in a format that is not known here".to_owned()),
    };
    let unpacked = filtered(program, options, packed).map_err(|error| format!("{program}: {error}"))?;
    if unpacked.len() == length { Ok(unpacked) } else { Err(format!("{} bytes instead of {length}", unpacked.len())) }
}

/// What a program makes of bytes.
fn filtered(program: &str, options: &[&str], bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut command = Command::new(program);
    command.args(options).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().ok_or_else(|| io::Error::other("no way in"))?;
    std::thread::scope(|scope| {
        // One that ends early says why by its status.
        scope.spawn(move || stdin.write_all(bytes).ok());
        child.wait_with_output()
    })
    .and_then(|output| match output.status.success() {
        true => Ok(output.stdout),
        false => Err(io::Error::other(output.status.to_string())),
    })
}
