//! What processes have in memory of the files they run from: what others that start like them will ask of the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use fermata_first::note::Part;

/// Pages between two parts that are asked for with them: the disk answers one long question sooner than two.
const GAP: u64 = 16;
/// Bit 63 of an entry of a page map: the page is in memory (Linux, `Documentation/admin-guide/mm/pagemap.rst`).
const PRESENT: u64 = 1 << 63;
/// Bytes of such an entry.
const ENTRY: usize = 8;

/// One line of a process's map, in pages.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    file: PathBuf,
    /// Where in the process.
    at: Range<u64>,
    /// Where in the file it begins.
    from: u64,
}

/// The parts of files these processes have in memory; of one whose pages are not told, the whole files.
pub(super) fn by(processes: &[i32]) -> Vec<Part> {
    let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
    let mut seen: BTreeMap<PathBuf, BTreeSet<u64>> = BTreeMap::new();
    let mut whole = BTreeSet::new();
    for pid in processes {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let pages = File::open(format!("/proc/{pid}/pagemap"));
        for mapping in maps.lines().filter_map(|line| mapping(line, page)) {
            match pages.as_ref().map_err(|error| error.kind().into()).and_then(|pages| in_memory(pages, &mapping.at)) {
                Ok(present) => {
                    let noted = seen.entry(mapping.file).or_default();
                    noted.extend(present.into_iter().map(|nth| mapping.from + nth));
                }
                Err(_) => _ = whole.insert(mapping.file),
            }
        }
    }
    let part = |file: &PathBuf, pages: Range<u64>| Part {
        file: file.clone(),
        from: pages.start * page,
        length: Some((pages.end - pages.start) * page),
    };
    let parts = seen.iter().filter(|(file, _)| !whole.contains(*file));
    let parts = parts.flat_map(|(file, pages)| runs(pages).into_iter().map(|run| part(file, run)).collect::<Vec<_>>());
    let all = parts.chain(whole.iter().cloned().map(Part::whole));
    all.filter(|part| part.file.is_file()).collect()
}

/// A line of proc(5)'s maps that is of a file on a disk.
fn mapping(line: &str, page: u64) -> Option<Mapping> {
    let file = &line[line.find('/')?..];
    if file.ends_with(" (deleted)") || file.starts_with("/dev/") || file.starts_with("/memfd") {
        return None;
    }
    let mut words = line.split_whitespace();
    let hex = |text: &str| u64::from_str_radix(text, 16).ok().map(|bytes| bytes / page);
    let (start, end) = words.next()?.split_once('-')?;
    let from = words.nth(1)?;
    Some(Mapping { file: file.into(), at: hex(start)?..hex(end)?, from: hex(from)? })
}

/// Which of these pages of a process are in memory, counted from the first.
fn in_memory(map: &File, pages: &Range<u64>) -> io::Result<Vec<u64>> {
    let count = usize::try_from(pages.end.saturating_sub(pages.start)).map_err(io::Error::other)?;
    let mut told = vec![0; count * ENTRY];
    map.read_exact_at(&mut told, pages.start * ENTRY as u64)?;
    let (entries, _) = told.as_chunks::<ENTRY>();
    let present = |entry: &[u8; ENTRY]| u64::from_ne_bytes(*entry) & PRESENT != 0;
    Ok((0..).zip(entries).filter(|(_, entry)| present(entry)).map(|(nth, _)| nth).collect())
}

/// Pages that follow each other, or nearly.
fn runs(pages: &BTreeSet<u64>) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for &page in pages {
        match runs.last_mut() {
            Some(run) if page <= run.end + GAP => run.end = page + 1,
            _ => runs.push(page..page + 1),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_on_disks_are_read_of_a_map() {
        let qemu = mapping("55d05000-55d08000 r-xp 00002000 fe:00 12 /usr/bin/qemu-system-x86_64", 4096).unwrap();
        assert_eq!(qemu, Mapping { file: "/usr/bin/qemu-system-x86_64".into(), at: 0x55d05..0x55d08, from: 2 });
        for other in [
            "7f00-7f01 rw-p 0000 00:00 0 ",
            "7f02-7f03 rw-s 0000 00:01 4 /memfd:ram (deleted)",
            "7f04-7f05 rw-s 0000 00:05 9 /dev/dax0.0",
            "7f06-7f07 r-xp 0000 fe:00 9 /usr/lib/libc.so.6 (deleted)",
            "7ffc-7ffd rw-p 0 00:00 0 [stack]",
        ] {
            assert_eq!(mapping(other, 4096), None, "{other}");
        }
    }

    #[test]
    fn near_pages_are_asked_for_together() {
        assert_eq!(runs(&BTreeSet::from([3, 4, 5, 5 + GAP, 40 + GAP])), [3..6 + GAP, 40 + GAP..41 + GAP]);
        assert_eq!(runs(&BTreeSet::new()), []);
    }

    #[test]
    fn this_process_has_some_of_itself_in_memory() {
        let me = std::env::current_exe().unwrap();
        let size = me.metadata().unwrap().len();
        let own: Vec<Part> =
            by(&[rustix::process::getpid().as_raw_pid()]).into_iter().filter(|p| p.file == me).collect();
        let bytes: u64 = own.iter().map(|part| part.length.expect("its pages are told")).sum();
        assert!((1..=size.next_multiple_of(4096)).contains(&bytes), "{bytes} of {size}");
        assert!(own.iter().all(|part| part.from < size), "{own:?}");
    }

    #[test]
    fn of_one_that_is_gone_nothing_is_known() {
        assert_eq!(by(&[i32::MAX]), []);
    }
}
