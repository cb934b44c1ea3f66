//! The control port: a request a line, an answer a line, over TCP.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use crate::report::{Answer, Request};

/// Answers requests forever on a port, each connection in a thread of its own.
///
/// # Errors
/// The port cannot be taken.
pub fn serve(port: u16, answer: impl Fn(Request) -> Answer + Send + Sync + Clone + 'static) -> io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            thread::spawn(move || converse(stream, answer));
        }
    });
    Ok(())
}

fn converse(stream: TcpStream, answer: impl Fn(Request) -> Answer) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    for line in BufReader::new(stream).lines() {
        let reply = match serde_json::from_str(&line?) {
            Ok(request) => answer(request),
            Err(error) => Answer::Refused { reason: format!("{error}; ask for example {{\"ask\":\"report\"}}") },
        };
        let mut text = serde_json::to_string(&reply)?;
        text.push('\n');
        writer.write_all(text.as_bytes())?;
    }
    Ok(())
}

/// Why a probe did not answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// No connection, or it broke, or the time was up.
    #[error("the probe at {address} does not answer; is its guest running, and on this network?")]
    Connection {
        /// Where the probe should be.
        address: SocketAddr,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// Something answered that is no probe, or one of another version.
    #[error("what answers at {address} is not a probe of this version: {answer:?}")]
    Answer {
        /// Where the answer came from.
        address: SocketAddr,
        /// What it said.
        answer: String,
    },
}

/// Asks a probe or sink one question.
///
/// # Errors
/// See [`AskError`].
pub fn ask(address: SocketAddr, request: Request, limit: Duration) -> Result<Answer, AskError> {
    let connection = |source| AskError::Connection { address, source };
    let mut stream = TcpStream::connect_timeout(&address, limit).map_err(connection)?;
    stream.set_read_timeout(Some(limit)).map_err(connection)?;
    let text = serde_json::to_string(&request).map_err(|error| connection(error.into()))? + "\n";
    stream.write_all(text.as_bytes()).map_err(connection)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).map_err(connection)?;
    serde_json::from_str(&line).map_err(|_| AskError::Answer { address, answer: line })
}
