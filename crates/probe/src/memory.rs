//! The memory witness: pages with content that follows from a seed, the page's number and how often it was written.
//!
//! A page that was lost, swapped with another, or brought back from an older state shows at once: what a page must hold is
//! known from a small table outside of it. Invariant: between two calls every page holds `pattern(seed, page, writes)`.

use crate::report::MemoryReport;

const WORDS: usize = 4096 / 8;

/// Memory under watch.
#[derive(Debug)]
pub struct Witness {
    seed: u64,
    words: Vec<u64>,
    writes: Vec<u32>,
    next: usize,
    report: MemoryReport,
}

/// The word at `index` of a page. `SplitMix64`'s mixing: cheap, and every bit of the input matters.
fn pattern(seed: u64, page: usize, writes: u32, index: usize) -> u64 {
    let mut word = seed ^ ((page as u64) << 40) ^ (u64::from(writes) << 9) ^ (index as u64);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

impl Witness {
    /// Takes and fills memory.
    #[must_use]
    pub fn new(mib: u64, seed: u64) -> Self {
        let pages = usize::try_from(mib * 256).unwrap_or(usize::MAX);
        let mut witness = Self {
            seed,
            words: vec![0; pages * WORDS],
            writes: vec![0; pages],
            next: 0,
            report: MemoryReport { mib, ..MemoryReport::default() },
        };
        for page in 0..pages {
            witness.write(page);
        }
        witness
    }

    /// Checks some pages, writes them anew, and goes on with the next ones at the next call.
    pub fn step(&mut self, pages: usize) {
        for _ in 0..pages.min(self.writes.len()) {
            let page = self.next;
            self.check(page);
            self.writes[page] = self.writes[page].wrapping_add(1);
            self.write(page);
            self.next = (page + 1) % self.writes.len();
        }
    }

    /// Checks every page now.
    pub fn verify(&mut self) -> MemoryReport {
        for page in 0..self.writes.len() {
            self.check(page);
        }
        self.report.clone()
    }

    /// What was seen so far.
    #[must_use]
    pub fn report(&self) -> MemoryReport {
        self.report.clone()
    }

    fn write(&mut self, page: usize) {
        let (seed, writes) = (self.seed, self.writes[page]);
        for (index, word) in self.words[page * WORDS..(page + 1) * WORDS].iter_mut().enumerate() {
            *word = pattern(seed, page, writes, index);
        }
    }

    fn check(&mut self, page: usize) {
        let writes = self.writes[page];
        let held = &self.words[page * WORDS..(page + 1) * WORDS];
        let wrong = held.iter().enumerate().find(|(index, word)| **word != pattern(self.seed, page, writes, *index));
        self.report.checked += 1;
        if let Some((index, word)) = wrong {
            self.report.errors += 1;
            self.report.first_error.get_or_insert_with(|| {
                format!("page {page} (written {writes} times): word {index} is {word:#x}, not what was written")
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untouched_memory_is_found_whole() {
        let mut witness = Witness::new(1, 7);
        witness.step(300);
        let report = witness.verify();
        assert_eq!((report.errors, report.checked), (0, 512));
    }

    #[test]
    fn one_flipped_bit_is_seen() {
        let mut witness = Witness::new(1, 7);
        witness.words[WORDS * 17 + 3] ^= 1;
        let report = witness.verify();
        assert_eq!(report.errors, 1);
        assert!(report.first_error.is_some_and(|error| error.contains("page 17")));
    }

    #[test]
    fn a_page_brought_back_from_before_is_seen() {
        let mut witness = Witness::new(1, 7);
        let old: Vec<u64> = witness.words[..WORDS].to_vec();
        witness.step(1);
        witness.words[..WORDS].copy_from_slice(&old);
        assert_eq!(witness.verify().errors, 1);
    }
}
