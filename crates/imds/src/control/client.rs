//! The agent's end of the control socket.

use std::collections::VecDeque;
use std::path::Path;

use fermata_events::{Action, Input};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::{Call, Line, Numbered};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No service.
    #[error("control: the metadata service cannot be reached; is `fermata imds` running?")]
    Unreachable(#[source] std::io::Error),
    /// The connection ended.
    #[error("control: the metadata service closed the connection; connect again and read the state")]
    Closed,
    /// Not our protocol.
    #[error("control: the answer is not understood ({0}); agent and service must be of one version")]
    Garbled(String),
    /// The service refused.
    #[error("{0}")]
    Refused(String),
}

/// A connection to the service: one call at a time; news that come in between are kept.
#[derive(Debug)]
pub struct ControlClient {
    lines: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
    next: u64,
    partial: Vec<u8>,
    news: VecDeque<News>,
}

/// What a subscriber hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// Something happened.
    Action(Action),
    /// This many actions were missed; read the state.
    Lost(u64),
}

impl ControlClient {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens at `path`.
    pub async fn connect(path: &Path) -> Result<Self, ControlError> {
        let (read, write) = UnixStream::connect(path).await.map_err(ControlError::Unreachable)?.into_split();
        Ok(Self { lines: BufReader::new(read), write, next: 1, partial: Vec::new(), news: VecDeque::new() })
    }

    async fn line(&mut self) -> Result<Line, ControlError> {
        let count = self.lines.read_until(b'\n', &mut self.partial).await.map_err(|_| ControlError::Closed)?;
        if count == 0 || self.partial.last() != Some(&b'\n') {
            return Err(ControlError::Closed);
        }
        let line = serde_json::from_slice(&self.partial).map_err(|e| ControlError::Garbled(e.to_string()));
        self.partial.clear();
        line
    }

    /// Makes a call and waits for its answer.
    ///
    /// # Errors
    /// The service's refusal, or the loss of the connection.
    pub async fn call<T: DeserializeOwned>(&mut self, call: Call) -> Result<T, ControlError> {
        let number = self.next;
        self.next += 1;
        let mut bytes =
            serde_json::to_vec(&Numbered { id: number, call }).map_err(|e| ControlError::Garbled(e.to_string()))?;
        bytes.push(b'\n');
        self.write.write_all(&bytes).await.map_err(|_| ControlError::Closed)?;
        loop {
            match self.line().await? {
                Line::Ok { id, ok } if id == number => {
                    return serde_json::from_value(ok).map_err(|e| ControlError::Garbled(e.to_string()));
                }
                Line::Error { id, error } if id == number || id == 0 => return Err(ControlError::Refused(error)),
                Line::Ok { .. } | Line::Error { .. } => {}
                Line::News { news } => self.news.push_back(News::Action(news)),
                Line::Lost { lost } => self.news.push_back(News::Lost(lost)),
            }
        }
    }

    /// Applies an input to the events core.
    ///
    /// # Errors
    /// As [`ControlClient::call`].
    pub async fn apply(&mut self, input: Input) -> Result<Vec<Action>, ControlError> {
        self.call(Call::Apply { input }).await
    }

    /// Waits for the next news; needs a former [`Call::Subscribe`]. Safe to be cancelled.
    ///
    /// # Errors
    /// When the connection is lost.
    pub async fn news(&mut self) -> Result<News, ControlError> {
        loop {
            if let Some(news) = self.news.pop_front() {
                return Ok(news);
            }
            match self.line().await? {
                Line::News { news } => return Ok(News::Action(news)),
                Line::Lost { lost } => return Ok(News::Lost(lost)),
                Line::Ok { .. } | Line::Error { .. } => {}
            }
        }
    }
}
