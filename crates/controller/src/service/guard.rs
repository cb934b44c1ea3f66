//! The independent check, for as long as the controller runs: what it finds is an alarm, and the rollout is paused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Controller, ServiceError};
use crate::order::RolloutId;
use crate::records::{ALARMS, alarm_key, decode, encode};
use crate::rollout::{Author, Input};
use crate::watchdog::{self, Touch};
use crate::wire::Alarm;

/// The shortest pause between two checks.
const CALM: Duration = Duration::from_secs(5);
/// The pause grows with the cost, so that checking takes at most this share of a core.
const SHARE: u32 = 20;

/// What the guard remembers of a rollout.
struct Known {
    /// The log's next line when it was looked at.
    next: u64,
    touches: Vec<Touch>,
}

impl Controller {
    /// Checks every rollout whose log has grown, until the process ends.
    pub async fn guard(self: Arc<Self>) {
        let mut known = BTreeMap::new();
        loop {
            let began = Instant::now();
            if let Err(error) = self.look(&mut known).await {
                tracing::error!(%error, "the independent check could not look; it tries again");
            }
            tokio::time::sleep((began.elapsed() * SHARE).max(CALM)).await;
        }
    }

    async fn look(&self, known: &mut BTreeMap<RolloutId, Known>) -> Result<(), ServiceError> {
        let now: Vec<(RolloutId, u64)> = {
            let sessions = self.sessions.lock().await;
            sessions.iter().map(|(id, session)| (id.clone(), session.next())).collect()
        };
        let mut grown = Vec::new();
        for (id, next) in now {
            if known.get(&id).is_some_and(|known| known.next == next) {
                continue;
            }
            let (definition, _) = self.state(&id).await?;
            let log = self.log(&id).await?;
            known.insert(id.clone(), Known { next, touches: watchdog::touches(&definition, &log) });
            let found = self.check(&id).await?;
            self.alarm(&id, found).await?;
            grown.push(id);
        }
        if !grown.is_empty() {
            let found = watchdog::overlaps(known.values().flat_map(|known| &known.touches));
            for id in grown {
                let of_this: Vec<String> =
                    found.iter().filter(|text| text.contains(&format!("(rollout {id})"))).cloned().collect();
                self.alarm(&id, of_this).await?;
            }
        }
        Ok(())
    }

    /// Raises an alarm for what is new, and stops the rollout from touching further VMs.
    async fn alarm(&self, id: &RolloutId, found: Vec<String>) -> Result<(), ServiceError> {
        let key = alarm_key(id);
        let mut alarm: Alarm = match self.store.get(&key).await? {
            Some(row) => decode(&row)?,
            None => Alarm { since: Self::now(), found: Vec::new() },
        };
        let news: Vec<String> = found.into_iter().filter(|text| !alarm.found.contains(text)).collect();
        let Some(first) = news.first().cloned() else { return Ok(()) };
        for text in &news {
            tracing::error!(rollout = %id, text, "ALARM: a promise was broken");
        }
        alarm.found.extend(news);
        self.store.put(&key, encode(&alarm)).await?;
        let reason = format!("alarm of the independent check: {first}");
        match self.give(id, Input::Pause, Author::Controller("checker".to_owned()), reason).await {
            // It is paused, stopping or over already.
            Ok(()) | Err(ServiceError::Refused(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// All alarms.
    ///
    /// # Errors
    /// The store's.
    pub async fn alarms(&self) -> Result<BTreeMap<RolloutId, Alarm>, ServiceError> {
        let rows = self.store.range(ALARMS).await?.keys;
        let alarm = |row: &fermata_store::KeyValue| {
            let id = RolloutId::from(row.key.strip_prefix(ALARMS).unwrap_or_default());
            decode::<Alarm>(row).map(|alarm| (id, alarm))
        };
        Ok(rows.iter().map(alarm).collect::<Result<_, _>>()?)
    }
}
