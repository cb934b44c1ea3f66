//! A command inside a guest, run from its host through the guest's own agent (qemu-guest-agent, `guest-exec`).

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// What a command left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Its exit status; a signal's is 128 and its number.
    pub status: i64,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

fn odd(what: &str, value: &Value) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the guest's agent: {what}: {value}"))
}

struct Agent {
    lines: BufReader<UnixStream>,
}

impl Agent {
    fn connect(socket: &Path, limit: Duration) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(limit))?;
        let mut agent = Self { lines: BufReader::new(stream) };
        // Whatever an earlier user did not read comes first; the number tells where ours begins.
        let number = u64::from(std::process::id()) << 16 | 0x5a5a;
        agent.say(&json!({ "execute": "guest-sync", "arguments": { "id": number } }))?;
        while agent.hear()?["return"] != number {}
        Ok(agent)
    }

    fn say(&mut self, message: &Value) -> io::Result<()> {
        writeln!(self.lines.get_mut(), "{message}")
    }

    fn hear(&mut self) -> io::Result<Value> {
        let mut line = Vec::new();
        if self.lines.read_until(b'\n', &mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let text: Vec<u8> = line.into_iter().filter(|byte| *byte != 0xff).collect();
        Ok(serde_json::from_slice(&text)?)
    }

    fn call(&mut self, command: &str, arguments: &Value) -> io::Result<Value> {
        self.say(&json!({ "execute": command, "arguments": arguments }))?;
        let answer = self.hear()?;
        answer.get("return").cloned().ok_or_else(|| odd("it refused", &answer))
    }
}

/// Runs a shell script in the guest whose agent is at `socket`, and waits for its end.
///
/// # Errors
/// No agent answers, or the script has not ended after `limit`.
pub fn run(socket: &Path, script: &str, limit: Duration) -> io::Result<Ran> {
    let until = Instant::now() + limit;
    let mut agent = Agent::connect(socket, limit.min(Duration::from_secs(20)))?;
    let start = json!({ "path": "/bin/sh", "arg": ["-c", script], "capture-output": true });
    let began = agent.call("guest-exec", &start)?;
    loop {
        let status = agent.call("guest-exec-status", &json!({ "pid": began["pid"] }))?;
        if status["exited"] == true {
            let text = |key: &str| decode(status[key].as_str().unwrap_or_default());
            let code = status["exitcode"].as_i64().or_else(|| Some(128 + status["signal"].as_i64()?));
            return Ok(Ran {
                status: code.ok_or_else(|| odd("no exit status", &status))?,
                out: text("out-data"),
                err: text("err-data"),
            });
        }
        if Instant::now() > until {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("`{script}` did not end within {limit:?}")));
        }
        #[expect(clippy::disallowed_methods, reason = "the agent tells a command's end only when asked")]
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Base 64 (RFC 4648) to text; anything else is left out.
fn decode(text: &str) -> String {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let mut bytes = Vec::new();
    let (mut held, mut bits) = (0u32, 0u32);
    for six in text.bytes().filter_map(digit) {
        held = held << 6 | u32::from(six);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits & 0xff) as u8);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_64_of_any_length_is_read() {
        for (text, encoded) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("a~?\n", "YX4/Cg==")] {
            assert_eq!(decode(encoded), text);
        }
    }
}
