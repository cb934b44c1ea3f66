//! Lines of JSON both ways: one task reads, one writes.
//!
//! Callers never write themselves: a caller that gives up in the middle of a line would garble the next command.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::JoinHandle;

use super::event::RawEvent;
use super::{Event, Greeting, QmpError};

/// Events kept for a slow subscriber.
const BACKLOG: usize = 1024;

#[derive(Debug, Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

type Answer = Result<Value, Refusal>;

#[derive(Debug, Default)]
struct Shared {
    waiting: BTreeMap<u64, oneshot::Sender<Answer>>,
    next: u64,
    /// `None` once the other side has closed: later subscribers see the end at once.
    events: Option<broadcast::Sender<Event>>,
}

pub(super) struct Wire {
    shared: Arc<Mutex<Shared>>,
    lines: mpsc::UnboundedSender<String>,
    tasks: [JoinHandle<()>; 2],
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").finish_non_exhaustive()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn locked(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    // No code panics while it holds the lock, and the data is whole between any two statements.
    shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Wire {
    pub(super) async fn greet<R, W>(reader: R, writer: W) -> Result<(Self, Greeting), QmpError>
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let mut reader = BufReader::new(reader);
        let mut line = String::new();
        let read = reader.read_line(&mut line).await;
        if !matches!(read, Ok(1..)) {
            return Err(QmpError::Closed { command: "greeting" });
        }
        let greeting = greeting(&line)?;
        let (events, _) = broadcast::channel(BACKLOG);
        let shared = Arc::new(Mutex::new(Shared { events: Some(events), ..Shared::default() }));
        let (lines, outgoing) = mpsc::unbounded_channel();
        let tasks = [tokio::spawn(read_all(reader, Arc::clone(&shared))), tokio::spawn(write_all(writer, outgoing))];
        Ok((Self { shared, lines, tasks }, greeting))
    }

    pub(super) fn subscribe(&self) -> broadcast::Receiver<Event> {
        match &locked(&self.shared).events {
            Some(events) => events.subscribe(),
            // The sender is dropped here: the receiver is at its end.
            None => broadcast::channel(1).1,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        locked(&self.shared).events.is_none()
    }

    pub(super) async fn call(
        &self,
        command: &'static str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        let (sender, receiver) = oneshot::channel();
        let id = {
            let mut shared = locked(&self.shared);
            if shared.events.is_none() {
                return Err(QmpError::Closed { command });
            }
            shared.next += 1;
            let id = shared.next;
            shared.waiting.insert(id, sender);
            id
        };
        let mut message = json!({"execute": command, "id": id});
        if arguments.as_object().is_some_and(|fields| !fields.is_empty()) {
            message["arguments"] = arguments;
        }
        let answer = tokio::time::timeout(limit, async {
            let mut line = message.to_string();
            line.push('\n');
            self.lines.send(line).map_err(|_| QmpError::Closed { command })?;
            receiver.await.map_err(|_| QmpError::Closed { command })
        })
        .await;
        locked(&self.shared).waiting.remove(&id);
        match answer {
            Err(_) => Err(QmpError::Timeout { command, limit }),
            Ok(Err(error)) => Err(error),
            Ok(Ok(Err(Refusal { class, desc }))) => Err(QmpError::Refused { command, class, desc }),
            Ok(Ok(Ok(value))) => Ok(value),
        }
    }
}

fn greeting(line: &str) -> Result<Greeting, QmpError> {
    let wrong = || QmpError::Protocol { what: format!("its greeting is `{}`", line.trim_end()) };
    let value: Value = serde_json::from_str(line).map_err(|_| wrong())?;
    let version = &value["QMP"]["version"];
    let number = |key: &str| version["qemu"][key].as_u64().and_then(|n| u16::try_from(n).ok()).ok_or_else(wrong);
    Ok(Greeting {
        version: (number("major")?, number("minor")?, number("micro")?),
        package: version["package"].as_str().unwrap_or_default().to_owned(),
    })
}

async fn write_all(mut writer: impl AsyncWrite + Unpin, mut lines: mpsc::UnboundedReceiver<String>) {
    while let Some(line) = lines.recv().await {
        // The reader notices a broken connection and tells everybody.
        if writer.write_all(line.as_bytes()).await.is_err() || writer.flush().await.is_err() {
            return;
        }
    }
}

async fn read_all(reader: impl AsyncBufReadExt + Unpin, shared: Arc<Mutex<Shared>>) {
    let mut lines = reader.lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str::<Value>(&line) {
            Ok(value) => dispatch(value, &shared),
            Err(error) => {
                tracing::warn!(%error, line, "a VMM sent a line that is not JSON");
                break;
            }
        }
    }
    let mut shared = locked(&shared);
    // Dropping the senders tells every caller and subscriber.
    shared.waiting.clear();
    shared.events = None;
}

fn dispatch(mut value: Value, shared: &Mutex<Shared>) {
    if value.get("event").is_some() {
        match serde_json::from_value::<RawEvent>(value) {
            Ok(raw) => {
                if let Some(events) = &locked(shared).events {
                    // Nobody listening is no error.
                    let _ = events.send(raw.into());
                }
            }
            Err(error) => tracing::warn!(%error, "a VMM sent an event that cannot be read"),
        }
        return;
    }
    let answer = match (value.get_mut("return").map(Value::take), value.get_mut("error").map(Value::take)) {
        (Some(value), _) => Ok(value),
        (None, Some(error)) => Err(serde_json::from_value(error.clone())
            .unwrap_or_else(|_| Refusal { class: "Unknown".to_owned(), desc: error.to_string() })),
        (None, None) => return,
    };
    let caller = value["id"].as_u64().and_then(|id| locked(shared).waiting.remove(&id));
    if let Some(caller) = caller {
        // A caller that gave up is not there any more.
        let _ = caller.send(answer);
    }
}
