//! The chunked transfer coding (RFC 9112, section 7.1), strictly.

use super::BODY_MAX;

/// Longest chunk-size line or trailer line. Extensions and trailers are allowed and ignored.
const LINE_MAX: usize = 256;
/// Most trailer lines.
const TRAILERS_MAX: u8 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Size,
    Data { left: usize },
    DataEnd,
    Trailer { seen: u8 },
}

/// Takes the coding off as bytes come.
#[derive(Debug)]
pub(crate) struct Chunked {
    at: At,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChunkError {
    Malformed,
    TooLarge,
}

impl Chunked {
    pub(crate) const fn new() -> Self {
        Self { at: At::Size }
    }

    /// Moves what can be decoded from `input` to `body`. Gives the number of bytes used, and whether the body is whole.
    pub(crate) fn decode(&mut self, input: &[u8], body: &mut Vec<u8>) -> Result<(usize, bool), ChunkError> {
        let mut used = 0;
        loop {
            let rest = &input[used..];
            match self.at {
                At::Data { left } => {
                    let take = left.min(rest.len());
                    body.extend_from_slice(&rest[..take]);
                    used += take;
                    if take < left {
                        self.at = At::Data { left: left - take };
                        return Ok((used, false));
                    }
                    self.at = At::DataEnd;
                }
                At::Size | At::DataEnd | At::Trailer { .. } => {
                    let Some(line) = line(rest)? else { return Ok((used, false)) };
                    used += line.len() + 2;
                    if self.line(line, body.len())? {
                        return Ok((used, true));
                    }
                }
            }
        }
    }

    /// One line; true when it ended the body.
    fn line(&mut self, line: &[u8], so_far: usize) -> Result<bool, ChunkError> {
        self.at = match self.at {
            At::DataEnd if line.is_empty() => At::Size,
            At::Size => match size(line)? {
                0 => At::Trailer { seen: 0 },
                left if left > BODY_MAX - so_far => return Err(ChunkError::TooLarge),
                left => At::Data { left },
            },
            At::Trailer { .. } if line.is_empty() => return Ok(true),
            At::Trailer { seen } if seen < TRAILERS_MAX => At::Trailer { seen: seen + 1 },
            At::DataEnd | At::Trailer { .. } | At::Data { .. } => return Err(ChunkError::Malformed),
        };
        Ok(false)
    }
}

/// The line that `bytes` begins with, without its CR LF; `None` while it is not whole.
fn line(bytes: &[u8]) -> Result<Option<&[u8]>, ChunkError> {
    match bytes.iter().take(LINE_MAX).position(|b| *b == b'\n') {
        Some(0) => Err(ChunkError::Malformed),
        Some(end) if bytes[end - 1] == b'\r' => Ok(Some(&bytes[..end - 1])),
        Some(_) => Err(ChunkError::Malformed),
        None if bytes.len() >= LINE_MAX => Err(ChunkError::Malformed),
        None => Ok(None),
    }
}

fn size(line: &[u8]) -> Result<usize, ChunkError> {
    let digits = line.split(|b| *b == b';').next().unwrap_or_default().trim_ascii_end();
    let text = std::str::from_utf8(digits).map_err(|_| ChunkError::Malformed)?;
    if text.is_empty() || text.len() > 8 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(ChunkError::Malformed);
    }
    usize::from_str_radix(text, 16).map_err(|_| ChunkError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn whole(input: &[u8]) -> Result<(usize, bool, Vec<u8>), ChunkError> {
        let mut body = Vec::new();
        Chunked::new().decode(input, &mut body).map(|(used, done)| (used, done, body))
    }

    #[test]
    fn chunks_extensions_and_trailers() {
        let input = b"4;x=y\r\nWiki\r\n5\r\npedia\r\n0\r\nA: b\r\n\r\nGET";
        assert_eq!(whole(input), Ok((input.len() - 3, true, b"Wikipedia".to_vec())));
    }

    #[test]
    fn what_is_not_chunked_is_refused() {
        for bad in ["\n", "x\r\n", "-1\r\n", "4\nWiki", "4\r\nWikiX\r\n", "\r\n", "fffffffff\r\n", "0x4\r\n"] {
            assert_eq!(whole(bad.as_bytes()).unwrap_err(), ChunkError::Malformed, "{bad:?}");
        }
        assert_eq!(whole(b"10001\r\n").unwrap_err(), ChunkError::TooLarge);
        assert_eq!(whole(&[b'1'; 300]).unwrap_err(), ChunkError::Malformed);
    }

    proptest! {
        #[test]
        fn the_cuts_between_packets_do_not_matter(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..50), 0..8), cut in 1usize..40) {
            let mut wire = Vec::new();
            for part in &parts {
                wire.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
                wire.extend_from_slice(part);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            let (mut decoder, mut body, mut pending, mut done) = (Chunked::new(), Vec::new(), Vec::new(), false);
            for piece in wire.chunks(cut) {
                pending.extend_from_slice(piece);
                let (used, end) = decoder.decode(&pending, &mut body).unwrap();
                pending.drain(..used);
                done |= end;
            }
            prop_assert!(done && pending.is_empty());
            prop_assert_eq!(body, parts.concat());
        }
    }
}
