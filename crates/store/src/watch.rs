//! Watching: a cursor over the event log that waits at its end.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::watch::Receiver;

use crate::Reply;
use crate::error::StoreError;
use crate::types::{Event, Revision};

/// Where a watch gets its events.
pub trait WatchSource: Send {
    /// Waits for events after those given before; whole revisions, in order, never empty.
    fn next(&mut self) -> Reply<'_, Vec<Event>>;
}

/// A watch; dropping it ends it.
pub struct Watch {
    source: Box<dyn WatchSource>,
    ready: VecDeque<Event>,
}

impl Watch {
    /// A watch on a source of an implementation.
    #[must_use]
    pub fn new(source: impl WatchSource + 'static) -> Self {
        Self { source: Box::new(source), ready: VecDeque::new() }
    }

    /// The next event; waits until there is one. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`StoreError::Compacted`]: events were missed for good, read the range again. [`StoreError::Unavailable`].
    pub async fn next(&mut self) -> Result<Event, StoreError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            self.ready.extend(self.source.next().await?);
        }
    }
}

/// Reads events of embedded tables.
pub(crate) trait ReadEvents: Send + Sync + 'static {
    fn events<'a>(&'a self, prefix: &'a str, from: Revision) -> Reply<'a, Vec<Event>>;
}

/// A cursor over embedded tables: reads, and at the end waits for the revision to move.
pub(crate) struct Cursor<T> {
    pub(crate) tables: Arc<T>,
    pub(crate) moved: Receiver<Revision>,
    pub(crate) prefix: String,
    pub(crate) from: Revision,
}

impl<T: ReadEvents> WatchSource for Cursor<T> {
    fn next(&mut self) -> Reply<'_, Vec<Event>> {
        Box::pin(async move {
            loop {
                // Marked as seen before reading: a write in between wakes us again rather than being slept over.
                let seen = *self.moved.borrow_and_update();
                let events = self.tables.events(&self.prefix, self.from).await?;
                if let Some(last) = events.last() {
                    self.from = last.revision.next();
                    return Ok(events);
                }
                // Nothing for this prefix up to `seen`, so compaction up to there loses nothing of ours.
                self.from = self.from.max(seen.next());
                self.moved.changed().await.map_err(|_| StoreError::Unavailable {
                    doing: "watching",
                    reason: "the store was closed".into(),
                })?;
            }
        })
    }
}
