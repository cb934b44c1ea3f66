//! One VM of the service: its documents, its limits, its waiting requests.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use fermata_events::state::POLL_GRAIN;
use tokio::sync::{Notify, watch};

use crate::caller::{Caller, Documents};
use crate::limits::{Buckets, Category, Limits};

/// Everything a connection of one VM needs; found once per connection, so that no request takes a lock of all VMs.
#[derive(Debug)]
pub(crate) struct Slot {
    caller: RwLock<Arc<Caller>>,
    documents: RwLock<Arc<Documents>>,
    buckets: Mutex<Buckets>,
    limits: Limits,
    open: AtomicU32,
    waiters: AtomicU32,
    /// When the state was last told of a request, in monotonic milliseconds plus one; 0 for never.
    reported: AtomicU64,
    wake: watch::Sender<u64>,
    left: Notify,
}

/// A place that is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    slot: Arc<Slot>,
    counter: fn(&Slot) -> &AtomicU32,
}

impl Drop for Place {
    fn drop(&mut self) {
        (self.counter)(&self.slot).fetch_sub(1, Ordering::AcqRel);
        self.slot.left.notify_waiters();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere cannot leave a bucket or a pointer half written.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Slot {
    pub(crate) fn new(caller: Caller, documents: Documents, limits: Limits) -> Self {
        Self {
            caller: RwLock::new(Arc::new(caller)),
            documents: RwLock::new(Arc::new(documents)),
            buckets: Mutex::new(Buckets::new(limits)),
            limits,
            open: AtomicU32::new(0),
            waiters: AtomicU32::new(0),
            reported: AtomicU64::new(0),
            wake: watch::Sender::new(0),
            left: Notify::new(),
        }
    }

    pub(crate) fn caller(&self) -> Arc<Caller> {
        self.caller.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn documents(&self) -> Arc<Documents> {
        self.documents.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_caller(&self, caller: Caller) {
        *self.caller.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(caller);
    }

    pub(crate) fn set_documents(&self, documents: Documents) {
        *self.documents.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(documents);
        self.wake();
    }

    /// Lets every waiting request be answered.
    pub(crate) fn wake(&self) {
        self.wake.send_modify(|generation| *generation += 1);
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.wake.subscribe()
    }

    pub(crate) fn admits_request(&self, category: Category, now_ms: u64) -> bool {
        locked(&self.buckets).request(category, now_ms)
    }

    pub(crate) fn open_connection(self: &Arc<Self>, now_ms: u64) -> Option<Place> {
        if !locked(&self.buckets).connection(now_ms) {
            return None;
        }
        self.place(|slot| &slot.open, self.limits.open)
    }

    pub(crate) fn wait_place(self: &Arc<Self>) -> Option<Place> {
        self.place(|slot| &slot.waiters, self.limits.waiters)
    }

    /// Returns when no long poll is open.
    pub(crate) async fn waiters_gone(&self) {
        loop {
            // Registered before looking, so that the last one's leaving is not missed.
            let left = self.left.notified();
            if self.waiters.load(Ordering::Acquire) == 0 {
                return;
            }
            left.await;
        }
    }

    fn place(self: &Arc<Self>, counter: fn(&Self) -> &AtomicU32, most: u32) -> Option<Place> {
        let taken = counter(self).fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < most).then_some(n + 1));
        taken.is_ok().then(|| Place { slot: self.clone(), counter })
    }

    /// Whether the state should hear of this request: the first one, and then one every few minutes.
    pub(crate) fn report_due(&self, now_ms: u64) -> bool {
        let last = self.reported.load(Ordering::Acquire);
        let grain = u64::try_from(POLL_GRAIN.as_millis()).unwrap_or(u64::MAX);
        last == 0 || now_ms.saturating_sub(last - 1) >= grain
    }

    pub(crate) fn reported(&self, now_ms: u64) {
        self.reported.store(now_ms + 1, Ordering::Release);
    }
}
