//! Answers and their bytes.

use bytes::Bytes;

/// The status codes in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u16)]
pub enum Status {
    /// Done.
    Ok = 200,
    /// The document is the one the client has.
    NotModified = 304,
    /// The request breaks a rule.
    BadRequest = 400,
    /// No such thing.
    NotFound = 404,
    /// Not with this verb.
    MethodNotAllowed = 405,
    /// Too slow.
    RequestTimeout = 408,
    /// A deferral that the operator does not allow.
    Conflict = 409,
    /// State is loading; try again.
    Gone = 410,
    /// The body is too large.
    ContentTooLarge = 413,
    /// An expectation other than `100-continue`.
    ExpectationFailed = 417,
    /// Too many requests.
    TooManyRequests = 429,
    /// The head is too large.
    HeadTooLarge = 431,
    /// The state cannot be written.
    Unavailable = 503,
    /// Neither HTTP/1.0 nor HTTP/1.1.
    VersionNotSupported = 505,
}

impl Status {
    /// The number.
    #[must_use]
    pub const fn code(self) -> u16 {
        self as u16
    }

    const fn reason(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::NotModified => "Not Modified",
            Self::BadRequest => "Bad Request",
            Self::NotFound => "Not Found",
            Self::MethodNotAllowed => "Method Not Allowed",
            Self::RequestTimeout => "Request Timeout",
            Self::Conflict => "Conflict",
            Self::Gone => "Gone",
            Self::ContentTooLarge => "Content Too Large",
            Self::ExpectationFailed => "Expectation Failed",
            Self::TooManyRequests => "Too Many Requests",
            Self::HeadTooLarge => "Request Header Fields Too Large",
            Self::Unavailable => "Service Unavailable",
            Self::VersionNotSupported => "HTTP Version Not Supported",
        }
    }
}

/// The two media types of the protocol. Clients refuse JSON under any other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContentType {
    /// `application/json; charset=utf-8`
    Json,
    /// `text/plain; charset=utf-8`
    Text,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Response {
    pub(crate) status: Status,
    pub(crate) content_type: ContentType,
    pub(crate) body: Bytes,
    pub(crate) etag: Option<Bytes>,
    pub(crate) allow: Option<&'static str>,
    pub(crate) retry_after_s: Option<u32>,
}

impl Response {
    /// An answer with a body.
    pub fn new(status: Status, content_type: ContentType, body: impl Into<Bytes>) -> Self {
        Self { status, content_type, body: body.into(), etag: None, allow: None, retry_after_s: None }
    }

    /// 200 with JSON.
    pub fn json(body: impl Into<Bytes>) -> Self {
        Self::new(Status::Ok, ContentType::Json, body)
    }

    /// 200 with text.
    pub fn text(body: impl Into<Bytes>) -> Self {
        Self::new(Status::Ok, ContentType::Text, body)
    }

    /// 200 without a body.
    pub fn empty() -> Self {
        Self::json(Bytes::new())
    }

    /// An error with the protocol's error object.
    pub fn error(status: Status, message: &str) -> Self {
        let body = serde_json::json!({ "error": message }).to_string();
        let mut response = Self::new(status, ContentType::Json, body);
        if status == Status::TooManyRequests || status == Status::Unavailable || status == Status::Gone {
            response.retry_after_s = Some(1);
        }
        response
    }

    /// The status code.
    #[must_use]
    pub const fn status(&self) -> Status {
        self.status
    }

    /// The body.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The entity tag.
    #[must_use]
    pub fn etag(&self) -> Option<&[u8]> {
        self.etag.as_deref()
    }

    /// Appends the answer to `out`. `date` is an HTTP date; `head_only` leaves the body away and keeps its length.
    pub fn write(&self, out: &mut Vec<u8>, date: &str, keep_alive: bool, http10: bool, head_only: bool) {
        let mut number = [0; 20];
        out.extend_from_slice(b"HTTP/1.1 ");
        out.extend_from_slice(digits(u64::from(self.status.code()), &mut number));
        out.push(b' ');
        out.extend_from_slice(self.status.reason().as_bytes());
        out.extend_from_slice(b"\r\nDate: ");
        out.extend_from_slice(date.as_bytes());
        // 304 has no content; a length there would be the one of the 200 (RFC 9110, 8.6), so none is sent.
        if self.status != Status::NotModified {
            out.extend_from_slice(match self.content_type {
                ContentType::Json => {
                    b"\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: ".as_slice()
                }
                ContentType::Text => b"\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: ".as_slice(),
            });
            out.extend_from_slice(digits(self.body.len() as u64, &mut number));
        }
        if let Some(etag) = &self.etag {
            out.extend_from_slice(b"\r\nETag: ");
            out.extend_from_slice(etag);
        }
        if let Some(allow) = self.allow {
            out.extend_from_slice(b"\r\nAllow: ");
            out.extend_from_slice(allow.as_bytes());
        }
        if let Some(seconds) = self.retry_after_s {
            out.extend_from_slice(b"\r\nRetry-After: ");
            out.extend_from_slice(digits(u64::from(seconds), &mut number));
        }
        // Said aloud whenever it holds: a pooled client that is not told re-uses the dead socket for its next POST.
        out.extend_from_slice(match (keep_alive, http10) {
            (false, _) => b"\r\nConnection: close\r\n\r\n".as_slice(),
            (true, true) => b"\r\nConnection: keep-alive\r\n\r\n".as_slice(),
            (true, false) => b"\r\n\r\n".as_slice(),
        });
        if !head_only && self.status != Status::NotModified {
            out.extend_from_slice(&self.body);
        }
    }
}

fn digits(mut number: u64, buffer: &mut [u8; 20]) -> &[u8] {
    let mut at = buffer.len();
    loop {
        at -= 1;
        buffer[at] = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        if number == 0 {
            return &buffer[at..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(response: &Response, keep_alive: bool, http10: bool, head_only: bool) -> String {
        let mut out = Vec::new();
        response.write(&mut out, "Thu, 01 Jan 1970 00:00:00 GMT", keep_alive, http10, head_only);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn rule_03_length_date_and_media_type_are_always_there() {
        assert_eq!(
            text(&Response::json("{}"), true, false, false),
            "HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nContent-Type: application/json; charset=utf-8\r\nContent-Length: 2\r\n\r\n{}"
        );
        assert!(
            text(&Response::text(""), true, false, false)
                .contains("text/plain; charset=utf-8\r\nContent-Length: 0\r\n")
        );
        assert!(text(&Response::json("{}"), true, true, true).ends_with("Length: 2\r\nConnection: keep-alive\r\n\r\n"));
    }

    #[test]
    fn rule_02_a_close_is_said_aloud() {
        assert!(text(&Response::empty(), false, false, false).contains("\r\nConnection: close\r\n"));
    }
}
