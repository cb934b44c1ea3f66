//! A small mutation engine: deterministic, no dependency, good enough to reach the second and third branch.

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// A stream of its own for every seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 when `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.word() % bound).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        u8::try_from(self.word() & 0xff).unwrap_or(0)
    }
}

/// Pieces that mean something to the parsers.
const TOKENS: [&[u8]; 44] = [
    b"\r\n",
    b"\r\n\r\n",
    b"\n\n",
    b"GET ",
    b"POST ",
    b"HEAD ",
    b" HTTP/1.0",
    b" HTTP/1.1",
    b"Metadata: True\r\n",
    b"X-Forwarded-For:\r\n",
    b"Connection: close\r\n",
    b"Expect: 100-continue\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 0\r\n",
    b"Content-Length: 65536\r\n",
    b"Content-Length: 18446744073709551616\r\n",
    b"Host: 169.254.169.254\r\n",
    b"If-None-Match: *\r\n",
    b"api-version=2020-07-01",
    b"api-version=2025-04-07",
    b"&",
    b"=",
    b"?",
    b"%00",
    b"%2f",
    b"%",
    b"format=text",
    b"extended=true",
    b"wait=30",
    b"/",
    b"//",
    b"/..",
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\"EventId\":",
    b"\"StartRequests\":[",
    b"null",
    b"\xef\xbb\xbf",
    b"\xff",
    b"0\r\n\r\n",
    b"ffffffffffffffff\r\n",
];

/// One of `corpus`, changed a few times.
#[must_use]
pub fn mutated(corpus: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = corpus.get(random.below(corpus.len())).cloned().unwrap_or_default();
    // One in eight stays as it is: pipelined and cut input of sound requests is a case of its own.
    let rounds = random.below(8);
    for _ in 0..rounds {
        change(&mut input, corpus, random);
    }
    input
}

fn change(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let end = (at + random.below(16)).min(input.len());
    match random.below(9) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => input[at] = random.byte(),
        2 => {
            let token = TOKENS[random.below(TOKENS.len())];
            input.splice(at..at, token.iter().copied());
        }
        3 => {
            let token = TOKENS[random.below(TOKENS.len())];
            input.splice(at..end, token.iter().copied());
        }
        4 => drop(input.drain(at..end)),
        5 => input.truncate(at),
        6 => {
            let piece = input[at..end].to_vec();
            let most = if random.below(64) == 0 { 4_096 } else { 8 };
            let times = 1 + random.below(most);
            input.splice(at..at, piece.repeat(times));
        }
        7 => {
            let other = &corpus[random.below(corpus.len())];
            let from = random.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => {
            let other = &corpus[random.below(corpus.len())];
            input.extend_from_slice(other);
        }
    }
    input.truncate(256 * 1024);
}
