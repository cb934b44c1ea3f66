//! What guests wrote on their serial consoles, kept within bounds.
//!
//! A VMM appends all that its guest writes to a file in the run folder, which is memory of the host: a guest must not fill it.
//! Now and then the older part of each file is given back (a hole is punched); sizes and offsets stay, so the VMM need not
//! know, and nothing it writes meanwhile is lost. Invariant: after [`bound`], a file occupies at most [`KEEP`] bytes and a page
//! plus what the guest wrote since.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};

/// What is kept of each console, in bytes.
const KEEP: u64 = 256 << 10;

/// How often the consoles are looked at. The fastest emulated port writes a few MiB in this time.
const EVERY: Duration = Duration::from_secs(5);

/// Keeps the consoles of all VMs within bounds, for ever.
pub(crate) async fn keep_bounded(run_dir: &Path) {
    let mut ticks = tokio::time::interval(EVERY);
    loop {
        ticks.tick().await;
        let Ok(vms) = fs::read_dir(run_dir.join("vm")) else { continue };
        for vm in vms.flatten() {
            let log = vm.path().join("console.log");
            if let Err(error) = OpenOptions::new().write(true).open(&log).and_then(|file| bound(&file))
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %log.display(), %error, "a console's log is not bounded");
            }
        }
    }
}

/// Gives back all but the end of a file.
fn bound(file: &File) -> io::Result<()> {
    let meta = file.metadata()?;
    // Blocks of 512 bytes, whatever the file system's own (stat(2)).
    if meta.blocks() * 512 <= 2 * KEEP {
        return Ok(());
    }
    let older = meta.len().saturating_sub(KEEP);
    fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, older)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom, Write};

    use super::*;

    #[test]
    fn a_talkative_guest_occupies_no_more_than_its_share_and_its_last_words_stay() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = dir.path().join("console.log");
        let mut vmm = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        for round in 0..20 {
            vmm.write_all(&[b'a' + round; 1 << 20]).unwrap();
            bound(&OpenOptions::new().write(true).open(&path).unwrap()).unwrap();
            vmm.write_all(b"last words").unwrap();
            assert!(fs::metadata(&path).unwrap().blocks() * 512 <= 2 * KEEP + (64 << 10), "round {round}");
        }
        let mut file = File::open(&path).unwrap();
        file.seek(SeekFrom::End(-14)).unwrap();
        let mut end = String::new();
        file.read_to_string(&mut end).unwrap();
        assert_eq!(end, "ttttlast words");
    }
}
