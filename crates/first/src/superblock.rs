//! Which file system a block device holds: the identity in its superblock, which stays when disks are found in another order.
//!
//! | kind | mark | identity |
//! |---|---|---|
//! | ext2, ext3, ext4 (Linux, `fs/ext4/ext4.h`) | `53 ef` at 1080 | 16 bytes at 1128 |
//! | XFS (Linux, `fs/xfs/libxfs/xfs_format.h`) | `XFSB` at 0 | 16 bytes at 32 |
//!
//! Other kinds are not told: one of several devices has to be put together first.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// As much of a device as tells.
const LENGTH: usize = 2048;

/// The identity of the file system on a device, as hexadecimal digits.
///
/// # Errors
/// The device's; none on a device whose kind of file system is not told.
pub fn of(device: &Path) -> io::Result<Option<String>> {
    let mut head = [0; LENGTH];
    match File::open(device)?.read_exact_at(&mut head, 0) {
        Ok(()) => Ok(identity(&head)),
        // Smaller than any file system.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn identity(head: &[u8; LENGTH]) -> Option<String> {
    let at = if head[1080..1082] == [0x53, 0xef] {
        1128
    } else if head.starts_with(b"XFSB") {
        32
    } else {
        return None;
    };
    let identity = &head[at..at + 16];
    // Nobody gave it one.
    let is_one = identity.iter().any(|byte| *byte != 0);
    is_one.then(|| identity.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_identity_is_that_of_the_tools() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        File::create(&image).unwrap().set_len(1 << 20).unwrap();
        assert_eq!(of(&image).unwrap(), None, "empty");
        let uuid = "00112233-4455-6677-8899-aabbccddeeff";
        let made = Command::new("/sbin/mkfs.ext4").args(["-q", "-F", "-U", uuid]).arg(&image).status();
        if made.is_ok_and(|status| status.success()) {
            assert_eq!(of(&image).unwrap(), Some(uuid.replace('-', "")));
        }
        let mut xfs = [0; LENGTH];
        xfs[..4].copy_from_slice(b"XFSB");
        assert_eq!(identity(&xfs), None);
        xfs[47] = 0xab;
        assert_eq!(identity(&xfs), Some("000000000000000000000000000000ab".to_owned()));
        File::create(&image).unwrap().set_len(100).unwrap();
        assert_eq!(of(&image).unwrap(), None, "too small");
        assert!(of(Path::new("/nowhere")).is_err());
    }
}
