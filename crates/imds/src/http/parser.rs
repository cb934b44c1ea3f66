//! From bytes to requests.

use super::chunked::{ChunkError, Chunked};
use super::request::percent_decode;
use super::{BODY_MAX, FIELDS_MAX, HEAD_MAX, Method, Request, Response, Status};

/// What the shell does next.
#[derive(Debug)]
pub enum Step {
    /// Read more. `started` says whether a request has begun, for the header time limit.
    More {
        /// Whether a request has begun.
        started: bool,
    },
    /// Send `100 Continue`, then go on.
    Continue,
    /// A whole request.
    Request(Request),
    /// Send this and close.
    Reject(Response),
}

#[derive(Debug)]
enum At {
    Head,
    Length { request: Request, length: usize, expects: bool },
    Chunks { request: Request, decoder: Chunked, expects: bool },
}

/// The reading half of one connection.
#[derive(Debug)]
pub struct Parser {
    buffer: Vec<u8>,
    /// How far the buffer was searched for the end of the head, so that dripping bytes cost no more than a flood.
    searched: usize,
    at: At,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

/// How the body is delimited.
enum Framing {
    None,
    Length(usize),
    Chunked,
}

impl Parser {
    /// A parser for a fresh connection.
    #[must_use]
    pub const fn new() -> Self {
        Self { buffer: Vec::new(), searched: 0, at: At::Head }
    }

    /// The bytes that are held, for accounting.
    #[must_use]
    pub fn held(&self) -> usize {
        self.buffer.capacity()
    }

    /// Takes bytes in. The shell reads at most a few KiB at a time and calls [`Parser::step`] until it asks for more, so
    /// the buffer stays near its limits.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next step.
    pub fn step(&mut self) -> Step {
        match std::mem::replace(&mut self.at, At::Head) {
            At::Head => self.head(),
            At::Length { mut request, length, expects } => {
                if self.buffer.len() < length {
                    let say_continue = expects && self.buffer.is_empty();
                    self.at = At::Length { request, length, expects: false };
                    return if say_continue { Step::Continue } else { Step::More { started: true } };
                }
                request.body = self.buffer[..length].to_vec();
                self.consume(length);
                Step::Request(request)
            }
            At::Chunks { mut request, mut decoder, expects } => {
                let decoded = decoder.decode(&self.buffer, &mut request.body);
                match decoded {
                    Ok((used, true)) => {
                        self.consume(used);
                        Step::Request(request)
                    }
                    Ok((used, false)) => {
                        let say_continue = expects && self.buffer.is_empty();
                        self.consume(used);
                        self.at = At::Chunks { request, decoder, expects: false };
                        if say_continue { Step::Continue } else { Step::More { started: true } }
                    }
                    Err(ChunkError::TooLarge) => Step::Reject(too_large()),
                    Err(ChunkError::Malformed) => Step::Reject(bad("The chunked body is malformed")),
                }
            }
        }
    }

    fn consume(&mut self, count: usize) {
        self.buffer.drain(..count);
        self.searched = 0;
        // One large request must not pin its memory for the life of the connection.
        if self.buffer.is_empty() && self.buffer.capacity() > 4096 {
            self.buffer = Vec::new();
        }
    }

    fn head(&mut self) -> Step {
        // Some clients send an empty line after a body; RFC 9112, 2.2 says to ignore it before a request line.
        let blank = self.buffer.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
        if blank > 0 {
            self.consume(blank);
        }
        let from = self.searched.saturating_sub(3);
        let Some(end) = find_end(&self.buffer[from..]).map(|end| from + end) else {
            if self.buffer.len() > HEAD_MAX {
                return Step::Reject(head_too_large());
            }
            self.searched = self.buffer.len();
            return Step::More { started: !self.buffer.is_empty() };
        };
        if end > HEAD_MAX {
            return Step::Reject(head_too_large());
        }
        let parsed = parse_head(&self.buffer[..end]);
        self.consume(end);
        match parsed {
            Err(response) => Step::Reject(response),
            Ok((request, Framing::None, _)) => Step::Request(request),
            Ok((request, Framing::Length(length), expects)) => {
                self.at = At::Length { request, length, expects };
                self.step()
            }
            Ok((request, Framing::Chunked, expects)) => {
                self.at = At::Chunks { request, decoder: Chunked::new(), expects };
                self.step()
            }
        }
    }
}

/// The end of the head: behind the first empty line.
fn find_end(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(newline) = bytes[at..].iter().position(|b| *b == b'\n') {
        at += newline + 1;
        match &bytes[at..] {
            [b'\n', ..] => return Some(at + 1),
            [b'\r', b'\n', ..] => return Some(at + 2),
            _ => {}
        }
    }
    None
}

fn bad(what: &str) -> Response {
    Response::error(Status::BadRequest, &format!("Bad request. {what}"))
}

fn too_large() -> Response {
    Response::error(Status::ContentTooLarge, "Bad request. The body is longer than 64 KiB")
}

fn head_too_large() -> Response {
    Response::error(Status::HeadTooLarge, "Bad request. The header is longer than 16 KiB or has more than 64 fields")
}

fn parse_head(head: &[u8]) -> Result<(Request, Framing, bool), Response> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut parsed = httparse::Request::new(&mut fields);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Err(bad("The request is incomplete")),
        Err(httparse::Error::TooManyHeaders) => return Err(head_too_large()),
        Err(httparse::Error::Version) => {
            return Err(Response::error(Status::VersionNotSupported, "Bad request. Use HTTP/1.1"));
        }
        Err(_) => return Err(bad("The request is malformed")),
    }
    let http10 = parsed.version == Some(0);
    let mut request = Request {
        method: Some(match parsed.method.unwrap_or_default() {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "POST" => Method::Post,
            _ => Method::Other,
        }),
        keep_alive: !http10,
        http10,
        ..Request::default()
    };
    target(&mut request, parsed.path.unwrap_or_default())?;
    let (mut length, mut chunked, mut expects) = (None, false, false);
    for field in parsed.headers.iter() {
        let text = String::from_utf8_lossy(field.value);
        let value = text.trim();
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        if is("metadata") {
            request.metadata = Some(value.to_owned());
        } else if is("host") {
            if request.host.replace(value.to_owned()).is_some() {
                return Err(bad("Host stands twice"));
            }
        } else if is("connection") {
            for token in value.split(',').map(str::trim) {
                if token.eq_ignore_ascii_case("close") {
                    request.keep_alive = false;
                } else if token.eq_ignore_ascii_case("keep-alive") && http10 {
                    request.keep_alive = true;
                }
            }
        } else if is("if-none-match") {
            let all = request.if_none_match.get_or_insert_default();
            if !all.is_empty() {
                all.push(',');
            }
            all.push_str(value);
        } else if is("user-agent") {
            request.user_agent = value.to_owned();
        } else if is("x-forwarded-for") {
            request.forwarded = true;
        } else if is("content-length") {
            let number = Some(content_length(value)?);
            if length.is_some() && length != number {
                return Err(bad("Content-Length stands twice"));
            }
            length = number;
        } else if is("transfer-encoding") {
            if chunked || http10 || !value.eq_ignore_ascii_case("chunked") {
                return Err(bad("The transfer coding is not supported; use chunked, once"));
            }
            chunked = true;
        } else if is("expect") {
            if !value.eq_ignore_ascii_case("100-continue") {
                return Err(Response::error(
                    Status::ExpectationFailed,
                    "Bad request. The expectation is not supported",
                ));
            }
            expects = !http10;
        }
    }
    if !http10 && request.host.is_none() {
        return Err(bad("Host is missing"));
    }
    let framing = match (length, chunked) {
        // Two lengths are how requests are smuggled.
        (Some(_), true) => return Err(bad("Content-Length and Transfer-Encoding exclude each other")),
        (Some(length), false) if length > BODY_MAX => return Err(too_large()),
        (None | Some(0), false) => Framing::None,
        (Some(length), false) => Framing::Length(length),
        (None, true) => Framing::Chunked,
    };
    Ok((request, framing, expects))
}

fn content_length(value: &str) -> Result<usize, Response> {
    if value.is_empty() || !value.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad("Content-Length is not a number"));
    }
    // More digits than fit is simply too large.
    Ok(value.parse().unwrap_or(usize::MAX))
}

fn target(request: &mut Request, target: &str) -> Result<(), Response> {
    // RFC 9112, 3.2.2: a server accepts the absolute form, which clients send through a proxy setting.
    let scheme = target.get(..7).is_some_and(|s| s.eq_ignore_ascii_case("http://"));
    let local = if scheme {
        let rest = &target[7..];
        rest.find(['/', '?']).map_or("/", |at| &rest[at..])
    } else {
        target
    };
    let local = local.split('#').next().unwrap_or_default();
    let (path, query) = local.split_once('?').unwrap_or((local, ""));
    request.path = percent_decode(path, false).ok_or_else(|| bad("The path is malformed"))?;
    query.clone_into(&mut request.query);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(bytes: &[u8]) -> Step {
        let mut parser = Parser::new();
        parser.feed(bytes);
        parser.step()
    }

    fn status(bytes: &str) -> u16 {
        match parse(bytes.as_bytes()) {
            Step::Reject(response) => response.status().code(),
            Step::Request(_) => 200,
            Step::More { .. } => 0,
            Step::Continue => 100,
        }
    }

    #[test]
    fn rule_01_http_10_and_11() {
        let Step::Request(old) = parse(b"GET /a?b=1 HTTP/1.0\r\n\r\n") else { panic!() };
        assert!(!old.keep_alive && old.path == "/a");
        let Step::Request(kept) = parse(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n") else { panic!() };
        assert!(kept.keep_alive);
        let Step::Request(new) = parse(b"GET http://169.254.169.254/x HTTP/1.1\r\nHost: h\r\n\r\n") else { panic!() };
        assert!(new.keep_alive && new.path == "/x");
        assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), 400, "1.1 without a host");
        assert_eq!(status("GET / HTTP/2.0\r\n\r\n"), 505);
        assert_eq!(status("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505);
        assert_eq!(status("\x16\x03\x01\x02\n\n"), 400);
    }

    #[test]
    fn rule_06_lengths_chunks_and_continue() {
        let post = |fields: &str| format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        let mut parser = Parser::new();
        parser.feed(post("Content-Length: 2\r\nExpect: 100-Continue\r\n").as_bytes());
        assert!(matches!(parser.step(), Step::Continue));
        assert!(matches!(parser.step(), Step::More { started: true }));
        parser.feed(b"{}GET");
        assert!(matches!(parser.step(), Step::Request(r) if r.body == b"{}"));
        parser.feed(b" / HTTP/1.0\n\n");
        assert!(matches!(parser.step(), Step::Request(r) if r.method() == Method::Get));
        assert_eq!(status(&post("Expect: fish\r\n")), 417);
        assert_eq!(status(&post("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n")), 400);
        assert_eq!(status(&post("Content-Length: 1\r\nContent-Length: 2\r\n")), 400);
        assert_eq!(status(&post("Content-Length: +1\r\n")), 400);
        assert_eq!(status(&post("Transfer-Encoding: gzip\r\n")), 400);
        assert_eq!(status(&post("Content-Length: 1\r\nExpect: 100-continue\r\n\r\n")), 200, "no need to continue");
    }

    #[test]
    fn rule_46_head_and_body_have_limits() {
        let long = "x".repeat(HEAD_MAX);
        assert_eq!(status(&format!("GET /{long} HTTP/1.1\r\nHost: h\r\n\r\n")), 431);
        assert_eq!(status(&format!("GET /{long}{long}")), 431, "without an end");
        assert_eq!(status(&format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(FIELDS_MAX + 1))), 431);
        assert_eq!(status("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 65537\r\n\r\n"), 413);
        assert_eq!(status("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999999\r\n\r\n"), 413);
        assert_eq!(status("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nFFFFF\r\n"), 413);
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_cuts_never_panic_and_stay_within_limits(bytes: Vec<u8>, cut in 1usize..64) {
            let mut parser = Parser::new();
            for piece in bytes.chunks(cut) {
                parser.feed(piece);
                for _ in 0..8 {
                    if matches!(parser.step(), Step::More { .. } | Step::Reject(_)) { break; }
                }
            }
            prop_assert!(parser.held() <= 2 * (HEAD_MAX + BODY_MAX));
        }
    }
}
