//! Archives of the kind that the kernel unpacks as its initial RAM disk: `newc`
//! (kernel documentation, `driver-api/early-userspace/buffer-format`).
//!
//! ```text
//!  "070701" 13 numbers of 8 hexadecimal digits │ name, 0 │ to 4 │ content │ to 4 ─► next entry ... "TRAILER!!!"
//! ```
//!
//! Several may follow each other; what is for the kernel's first moments (microcode, tables of the firmware) is in one by itself, before
//! all others and never packed (`arch/x86/microcode`).

/// Ends an archive.
const END: &str = "TRAILER!!!";
const MAGIC: &[u8] = b"070701";
/// Magic and numbers.
const HEADER: usize = 110;
/// Type bits of `stat(2)`.
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;

/// An archive that is being written.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
}

impl Archive {
    /// One that follows others; they are kept as they are.
    #[must_use]
    pub fn after(mut others: Vec<u8>) -> Self {
        others.resize(others.len().next_multiple_of(512), 0);
        Self { bytes: others }
    }

    /// Adds a folder; it comes before what is in it.
    pub fn folder(&mut self, name: &str) {
        self.entry(name, FOLDER | 0o755, &[]);
    }

    /// Adds a file with these permissions.
    pub fn file(&mut self, name: &str, permissions: u32, content: &[u8]) {
        self.entry(name, FILE | permissions, content);
    }

    /// The archive.
    #[must_use]
    pub fn done(mut self) -> Vec<u8> {
        self.entry(END, 0, &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        let fields = [0, mode as usize, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        self.bytes.extend(MAGIC);
        for field in fields {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// What of an initial RAM disk is for the kernel's first moments: the archives at its beginning that hold nothing but what is below `kernel/`.
#[must_use]
pub fn early(initrd: &[u8]) -> &[u8] {
    let mut whole = 0;
    while let Some(length) = early_one(&initrd[whole..]) {
        whole += length;
    }
    &initrd[..whole]
}

/// The length of the archive at the beginning, with what fills it up, if it is one for the first moments.
fn early_one(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    let mut some = false;
    loop {
        let header = bytes.get(at..at + HEADER).filter(|header| header.starts_with(MAGIC))?;
        let number = |nth: usize| {
            let digits = std::str::from_utf8(&header[6 + 8 * nth..][..8]).ok()?;
            u32::from_str_radix(digits, 16).ok().map(|number| number as usize)
        };
        let (size, length) = (number(6)?, number(11)?);
        let name = bytes.get(at + HEADER..(at + HEADER).checked_add(length)?)?;
        let name = std::str::from_utf8(name.strip_suffix(&[0])?).ok()?;
        let content = (at + HEADER + length).next_multiple_of(4);
        at = content.checked_add(size)?.checked_next_multiple_of(4)?;
        if name == END {
            let filled = bytes.get(at..)?.iter().take_while(|byte| **byte == 0).count();
            return some.then_some(at + filled);
        }
        if name != "." && name != "kernel" && !name.starts_with("kernel/") {
            return None;
        }
        some = true;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn microcode() -> Vec<u8> {
        let mut archive = Archive::default();
        archive.folder("kernel");
        archive.file("kernel/x86/microcode/GenuineIntel.bin", 0o644, &[7; 4001]);
        archive.done()
    }

    #[test]
    fn an_entry_is_aligned_and_says_its_size() {
        let mut archive = Archive::default();
        archive.file("a", 0o644, b"hello");
        assert_eq!(archive.bytes.len() % 4, 0);
        assert_eq!(&archive.bytes[54..62], b"00000005");
        assert_eq!(&archive.bytes[14..22], b"000081a4");
    }

    #[test]
    fn what_is_for_the_first_moments_is_kept_and_nothing_else() {
        let mut whole = microcode();
        whole.resize(whole.len().next_multiple_of(512), 0);
        let early_length = whole.len();
        whole.extend([0x28, 0xb5, 0x2f, 0xfd]);
        assert_eq!(early(&whole).len(), early_length, "before what is packed");
        let mut other = Archive::default();
        other.file("init", 0o755, b"#!");
        let other = other.done();
        assert_eq!(early(&other), b"", "all of a host's programs are not");
        let both = [microcode(), other].concat();
        assert_eq!(early(&both), microcode());
        assert_eq!(early(&Archive::default().done()), b"", "nothing in it");
        assert_eq!(early(b""), b"");
    }

    #[test]
    fn cpio_reads_it() {
        let Ok(mut cpio) = std::process::Command::new("cpio")
            .args(["--list", "--quiet"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
        else {
            return;
        };
        use std::io::Write;
        cpio.stdin.take().unwrap().write_all(&microcode()).unwrap();
        let told = cpio.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&told.stdout), "kernel\nkernel/x86/microcode/GenuineIntel.bin\n");
    }

    proptest! {
        #[test]
        fn whatever_it_is_looked_at_without_harm(cut in 0_usize..5000, at in 0_usize..5000, byte: u8) {
            let mut bytes = microcode();
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            bytes.truncate(cut);
            prop_assert!(early(&bytes).len() <= bytes.len());
        }
    }
}
