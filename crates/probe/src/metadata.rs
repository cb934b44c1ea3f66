//! The metadata service, as a program in a guest sees it: one request, or a poller that writes down every change.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Clocks;

/// Where the service is.
const SERVICE: (Ipv4Addr, u16) = (Ipv4Addr::new(169, 254, 169, 254), 80);
/// What a poller asks for.
const EVENTS: &str = "/metadata/scheduledevents?api-version=2020-07-01";
/// How long a connection or an answer may take; most known clients give it as long.
const LIMIT: Duration = Duration::from_secs(5);

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// HTTP's status.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// What a poller saw, once for every change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sighting {
    /// When on the guest's monotonic clock, in milliseconds.
    pub monotonic_ms: u64,
    /// When on its wall clock, in milliseconds since 1970.
    pub wall_ms: u64,
    /// How many polls there were until then, this one included.
    pub polls: u64,
    /// The answer, or in words why there was none.
    pub seen: Result<Answer, String>,
}

/// One request.
///
/// # Errors
/// No connection or no sound answer within five seconds.
pub fn ask(method: &str, path: &str, body: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from(SERVICE), LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let length = body.len();
    let head = "Host: 169.254.169.254\r\nMetadata: true\r\nConnection: close";
    write!(stream, "{method} {path} HTTP/1.1\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    read(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no HTTP answer: {text:?}")))
}

fn read(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()?;
    Some(Answer { status, body: body.to_owned() })
}

/// Asks for events again and again and adds a line of JSON to `file` for every answer that differs from the one before. With
/// `approve` it approves every event that is scheduled, as a program does that is ready at once. Never ends by itself.
///
/// # Errors
/// The file cannot be written.
pub fn watch(file: &Path, every: Duration, approve: bool) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(file)?;
    let mut last = None;
    let mut polls = 0;
    loop {
        let seen = ask("GET", EVENTS, "").map_err(|error| error.to_string());
        polls += 1;
        if last.as_ref() != Some(&seen) {
            let now = Clocks::now();
            let (monotonic_ms, wall_ms) = (now.monotonic_ns / 1_000_000, now.wall_ns / 1_000_000);
            let line = Sighting { monotonic_ms, wall_ms, polls, seen: seen.clone() };
            writeln!(file, "{}", serde_json::to_string(&line)?)?;
            for event in seen.iter().filter(|_| approve).flat_map(|answer| scheduled(&answer.body)) {
                // One that was not heard is still scheduled at the next poll.
                let _ = ask("POST", EVENTS, &format!("{{\"StartRequests\":[{{\"EventId\":\"{event}\"}}]}}"));
            }
            last = Some(seen);
        }
        #[expect(clippy::disallowed_methods, reason = "polling at a fixed rate is what it is for")]
        std::thread::sleep(every);
    }
}

/// The ids of events in a document that wait for approval.
fn scheduled(document: &str) -> Vec<String> {
    let document: serde_json::Value = serde_json::from_str(document).unwrap_or_default();
    let events = document["Events"].as_array().into_iter().flatten();
    let waiting = events.filter(|event| event["EventStatus"] == "Scheduled");
    waiting.filter_map(|event| event["EventId"].as_str().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_scheduled_is_approved() {
        let document =
            r#"{"Events":[{"EventId":"a","EventStatus":"Started"},{"EventId":"b","EventStatus":"Scheduled"}]}"#;
        assert_eq!(scheduled(document), ["b"]);
        assert!(scheduled("no document").is_empty());
    }

    #[test]
    fn an_answer_is_its_status_and_its_body() {
        let answer = read("HTTP/1.1 200 OK\r\nDate: x\r\n\r\n{\"a\":1}");
        assert_eq!(answer, Some(Answer { status: 200, body: "{\"a\":1}".to_owned() }));
        assert_eq!(read("SSH-2.0-OpenSSH"), None);
    }
}
