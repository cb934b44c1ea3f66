//! The writer thread: group commit, then effects in order.

use std::sync::{PoisonError, Weak, mpsc};

use fermata_events::{Action, Change, State};
use fermata_model::VmName;
use tokio::sync::oneshot;

use super::inventory::{self, VmRecord};
use super::{ApplyError, Settings, Shared};
use crate::caller::Documents;
use crate::webhook;

/// A change of what the agent told about a VM.
pub(super) enum RecordChange {
    Upsert(Box<VmRecord>),
    Remove(VmName),
}

/// One applied input on its way to the disk.
pub(super) struct Job {
    changes: Vec<Change>,
    outgoing: Vec<(String, String)>,
    /// Rendered when the state changed: what is shown must be what this job wrote, not what a later one will.
    documents: Vec<(VmName, Documents)>,
    record: Option<(RecordChange, Option<Documents>)>,
    actions: Vec<Action>,
    reply: oneshot::Sender<Result<Vec<Action>, ApplyError>>,
}

impl Job {
    pub(super) fn new(
        state: &State,
        settings: &Settings,
        actions: Vec<Action>,
        record: Option<RecordChange>,
        reply: oneshot::Sender<Result<Vec<Action>, ApplyError>>,
    ) -> Self {
        let (mut changes, mut outgoing, mut documents, mut rest) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for action in actions {
            match action {
                Action::Persist { changes: writes } => changes.extend(writes),
                other => {
                    if let Action::DocumentsChanged { vms } = &other {
                        documents.extend(vms.iter().filter_map(|vm| Some((vm.clone(), Documents::render(state, vm)?))));
                    }
                    if let Action::Notify { notice } = &other {
                        let targets = settings.webhooks.iter();
                        outgoing.extend(targets.map(|target| (target.url.clone(), webhook::cloud_event(notice))));
                    }
                    rest.push(other);
                }
            }
        }
        let record = record.map(|change| {
            changes.push(change.write());
            let documents = Documents::render(state, change.vm());
            (change, documents)
        });
        Self { changes, outgoing, documents, record, actions: rest, reply }
    }
}

/// Runs until the service is dropped.
pub(super) fn spawn(shared: Weak<Shared>, queue: mpsc::Receiver<Job>) {
    std::thread::Builder::new()
        .name("imds-writer".to_owned())
        .spawn(move || {
            while let Ok(first) = queue.recv() {
                let Some(shared) = shared.upgrade() else { return };
                let mut jobs = vec![first];
                jobs.extend(queue.try_iter());
                commit(&shared, jobs, &queue);
            }
        })
        .expect("a thread can be started when the process starts");
}

fn commit(shared: &Shared, jobs: Vec<Job>, queue: &mpsc::Receiver<Job>) {
    let changes: Vec<Change> = jobs.iter().flat_map(|job| job.changes.iter().cloned()).collect();
    let outgoing: Vec<(String, String)> = jobs.iter().flat_map(|job| job.outgoing.iter().cloned()).collect();
    if !changes.is_empty() || !outgoing.is_empty() {
        let result = shared.store.lock().unwrap_or_else(PoisonError::into_inner).commit(&changes, &outgoing);
        if let Err(error) = result {
            take_back(shared, jobs, queue, &error.to_string());
            return;
        }
    }
    if !outgoing.is_empty() {
        shared.outgoing.notify_one();
    }
    for job in jobs {
        effects(shared, job);
    }
    shared.changed.notify_one();
}

fn effects(shared: &Shared, job: Job) {
    if let Some((change, documents)) = job.record {
        shared.show(change, documents);
    }
    let slots = shared.slots.read().unwrap_or_else(PoisonError::into_inner);
    for (vm, documents) in job.documents {
        if let Some(slot) = slots.get(&vm) {
            slot.set_documents(documents);
        }
    }
    for action in &job.actions {
        if let Action::WakeWaiters { vms } = action {
            vms.iter().filter_map(|vm| slots.get(vm)).for_each(|slot| slot.wake());
        }
        shared.metrics.action(action);
    }
    drop(slots);
    for action in &job.actions {
        // Nobody listening is not an error: the agent may be restarting, and reads the state when it is back.
        let _ = shared.feed.send(action.clone());
    }
    let _ = job.reply.send(Ok(job.actions));
}

/// Refuses everything that was built on writes that did not happen, and reads the state back.
fn take_back(shared: &Shared, mut jobs: Vec<Job>, queue: &mpsc::Receiver<Job>, reason: &str) {
    tracing::error!(reason, "the state could not be made durable; going back to what is on disk");
    let mut core = shared.core.lock().unwrap_or_else(PoisonError::into_inner);
    jobs.extend(queue.try_iter());
    let mut store = shared.store.lock().unwrap_or_else(PoisonError::into_inner);
    let epoch = core.state.epoch();
    match inventory::load(store.as_mut(), &shared.settings, epoch, shared.clock.now()) {
        Ok((_, state)) => core.state = state,
        Err(error) => tracing::error!(%error, "the store cannot be read either; keeping the state in memory"),
    }
    drop(store);
    drop(core);
    for job in jobs {
        let _ = job.reply.send(Err(ApplyError::NotDurable(reason.to_owned())));
    }
}
