//! HTTP/1.0 and HTTP/1.1 as far as a metadata service needs it, without I/O.
//!
//! [`Parser`] is fed bytes and gives [`Step`]s; the shell moves bytes and keeps time. A guest is an untrusted client, so
//! every buffer has a limit and every malformed byte ends the connection with an answer: nothing is guessed.
//!
//! ```text
//!  bytes -> head (<= 16 KiB) -> [100 Continue] -> body (<= 64 KiB, length or chunks) -> Request -> next head
//!             \--- malformed, too large, unsupported ---> Reject (answer, close)
//! ```

mod chunked;
mod parser;
mod request;
mod response;

pub use parser::{Parser, Step};
pub use request::{Method, QueryError, Request};
pub use response::{ContentType, Response, Status};

/// Longest head (request line and header fields) in bytes.
pub const HEAD_MAX: usize = 16 * 1024;
/// Longest body in bytes, after chunked coding is taken off.
pub const BODY_MAX: usize = 64 * 1024;
/// Most header fields of a request.
pub const FIELDS_MAX: usize = 64;
