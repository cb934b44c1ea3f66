//! Questions that wait for agents to poll, and the bell that wakes who waits.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use fermata_model::HostName;
use tokio::sync::{Notify, watch};

use crate::wire::Question;

/// Mail for agents; lost with the process, and asked for again.
pub(super) struct Mail {
    questions: Mutex<BTreeMap<HostName, Vec<Question>>>,
    /// Counts what agents should look at.
    outgoing: watch::Sender<u64>,
    incoming: Notify,
}

impl Default for Mail {
    fn default() -> Self {
        Self { questions: Mutex::default(), outgoing: watch::Sender::new(0), incoming: Notify::new() }
    }
}

impl Mail {
    /// Replaces all questions by those that are open now.
    pub(super) fn ask(&self, asked: BTreeMap<HostName, Vec<Question>>) {
        let mut questions = self.questions.lock().unwrap_or_else(PoisonError::into_inner);
        let news = asked.iter().any(|(host, asked)| questions.get(host) != Some(asked));
        *questions = asked;
        drop(questions);
        if news {
            self.outgoing.send_modify(|count| *count += 1);
        }
    }

    /// Takes the questions for a host: each is asked once until the next round finds it open still.
    pub(super) fn take(&self, host: &HostName) -> Vec<Question> {
        self.questions.lock().unwrap_or_else(PoisonError::into_inner).remove(host).unwrap_or_default()
    }

    /// Something was decided: both sides should look.
    pub(super) fn changed(&self) {
        self.outgoing.send_modify(|count| *count += 1);
        self.incoming.notify_one();
    }

    /// A cursor over changes for an agent that waits.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.outgoing.subscribe()
    }

    /// Waits until something has arrived from agents or operators.
    pub(super) async fn arrival(&self) {
        self.incoming.notified().await;
    }
}
