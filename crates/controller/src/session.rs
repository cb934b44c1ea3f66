//! A controller's memory of one rollout, and the transaction that makes a decision true.
//!
//! Any number of controllers may hold a session of the same rollout. Each decision goes like this:
//!
//! 1. [`Session::read`]: what has to be read: the log's next line, the locks of the host's sets, its slot.
//! 2. [`Session::decide`]: if the log has gone on, the session follows it and asks to read again. Else the core decides, and the answer is a
//!    transaction that holds only if *nothing that was read has changed*.
//! 3. [`Session::committed`]: if the store took it, the decision is part of the log, and its locks and order are written with
//!    it. If not, somebody else was faster: begin anew.
//!
//! Nothing here waits or talks; the shell and the simulation drive it alike.

use std::sync::Arc;

use fermata_model::HostName;
use fermata_store::{Compare, KeyValue, Op, OpResult, Revision, Txn, TxnReply};
use jiff::Timestamp;

use crate::lock::SetLock;
use crate::order::Slot;
use crate::records::{self, RecordError, cordon_key, decode, encode, lock_key, log_key, slot_key};
use crate::rollout::{Action, Author, Definition, DefinitionError, Entry, Input, Refusal, Rollout, View};

/// A decision that is true as soon as the store takes it.
#[derive(Debug, Clone)]
#[must_use]
pub struct Commit {
    /// What to give to the store.
    pub txn: Txn,
    /// The line it adds to the log.
    pub entry: Entry,
    after: Rollout,
}

/// What came of an input.
#[derive(Debug, Clone)]
pub enum Decided {
    /// The session was behind and has followed the log by one line; read again.
    Behind,
    /// Give this to the store.
    Commit(Box<Commit>),
}

/// Why there is no decision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// The core does not take the input.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A record cannot be read.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A line of the log that the rules would not have written.
    #[error(
        "line {number} of the log of rollout {rollout} does not follow from the rules; stop all controllers and check the log"
    )]
    Log {
        /// The rollout.
        rollout: String,
        /// The line.
        number: u64,
    },
}

/// A controller's memory of one rollout; it may be behind the log.
#[derive(Debug, Clone)]
pub struct Session {
    rollout: Rollout,
    next: u64,
    /// The revision of the definition it was made from, where definitions can be replaced before the start.
    made_of: Option<Revision>,
}

/// What was read for one host, with the revisions it had.
struct Read {
    view: View,
    compares: Vec<Compare>,
}

impl Session {
    /// A session at the beginning of the log.
    ///
    /// # Errors
    /// [`DefinitionError`].
    pub fn new(definition: Arc<Definition>) -> Result<Self, DefinitionError> {
        Ok(Self { rollout: Rollout::new(definition)?, next: 1, made_of: None })
    }

    /// The same, made from a record: the first decision holds only while the record is as it was read.
    #[must_use]
    pub fn made_of(self, revision: Revision) -> Self {
        Self { made_of: Some(revision), ..self }
    }

    /// Whether the record it was made from has been replaced; a rollout that has begun keeps its definition.
    #[must_use]
    pub fn outdated(&self, revision: Revision) -> bool {
        self.next == 1 && self.made_of.is_some_and(|made_of| made_of != revision)
    }

    /// The rollout, as far as the log is known.
    #[must_use]
    pub const fn rollout(&self) -> &Rollout {
        &self.rollout
    }

    /// The number of the next line.
    #[must_use]
    pub const fn next(&self) -> u64 {
        self.next
    }

    /// What has to be read before a decision on a host, or on the rollout as a whole. Order matters to [`Session::decide`].
    pub fn read(&self, host: Option<&HostName>) -> Txn {
        let definition = self.rollout.definition();
        let mut ops = vec![Op::get(log_key(&definition.id, self.next))];
        if let Some(host) = host {
            ops.push(Op::get(slot_key(host)));
            ops.push(Op::get(cordon_key(host)));
            let sets = definition.hosts.get(host).into_iter().flat_map(|task| task.sets.keys());
            ops.extend(sets.map(|set| Op::get(lock_key(set))));
        }
        Txn::read(ops)
    }

    /// Decides on an input with what was read by [`Session::read`] for the same host.
    ///
    /// # Errors
    /// [`SessionError`]; the session is as it was.
    pub fn decide(
        &mut self,
        input: Input,
        author: Author,
        reason: String,
        now: Timestamp,
        read: TxnReply,
    ) -> Result<Decided, SessionError> {
        let mut rows = read.results.into_iter().map(OpResult::into_first);
        if let Some(row) = rows.next().flatten() {
            self.follow(&decode(&row)?)?;
            return Ok(Decided::Behind);
        }
        let Read { view, mut compares } = self.view(input.host(), rows)?;
        let mut after = self.rollout.clone();
        let actions = after.step(&input, &view, now)?;
        let id = self.rollout.definition().id.clone();
        let mut success: Vec<Op> = actions.iter().filter_map(write).collect();
        let entry = Entry { number: self.next, at: now, author, reason, input, view, actions };
        let key = log_key(&id, self.next);
        compares.push(Compare::absent(key.clone()));
        if let Some(revision) = self.made_of.filter(|_| self.next == 1) {
            compares.push(Compare::unchanged(records::definition_key(&id), revision));
        }
        success.push(Op::put(key, encode(&entry)));
        Ok(Decided::Commit(Box::new(Commit { txn: Txn { compares, success, failure: Vec::new() }, entry, after })))
    }

    /// What the store said to a commit. Anything else than "taken" leaves the session to find out by reading.
    pub fn committed(&mut self, commit: Commit, taken: bool) {
        if taken && commit.entry.number == self.next {
            self.rollout = commit.after;
            self.next += 1;
        }
    }

    /// Follows the log by one line.
    ///
    /// # Errors
    /// [`SessionError::Log`] when the line does not follow from the rules.
    pub fn follow(&mut self, entry: &Entry) -> Result<(), SessionError> {
        let wrong = || SessionError::Log { rollout: self.rollout.definition().id.to_string(), number: entry.number };
        if entry.number != self.next {
            return Err(wrong());
        }
        let mut after = self.rollout.clone();
        let actions = after.step(&entry.input, &entry.view, entry.at).map_err(|_| wrong())?;
        if actions != entry.actions {
            return Err(wrong());
        }
        self.rollout = after;
        self.next += 1;
        Ok(())
    }

    /// What the store says of a host, from the reply to [`Session::read`]; for explanations.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn view_of(&self, host: &HostName, read: TxnReply) -> Result<View, RecordError> {
        let rows = read.results.into_iter().skip(1).map(OpResult::into_first);
        Ok(self.view(Some(host), rows)?.view)
    }

    fn view(
        &self,
        host: Option<&HostName>,
        mut rows: impl Iterator<Item = Option<KeyValue>>,
    ) -> Result<Read, RecordError> {
        let mut read = Read { view: View::default(), compares: Vec::new() };
        let Some(host) = host else { return Ok(read) };
        let mut next = |key: String, compares: &mut Vec<Compare>| {
            let row = rows.next().flatten();
            let revision = row.as_ref().map_or(Revision(0), |row| row.mod_revision);
            compares.push(Compare::unchanged(key, revision));
            row
        };
        if let Some(row) = next(slot_key(host), &mut read.compares) {
            read.view.slot = decode::<Slot>(&row)?;
        }
        read.view.cordoned = next(cordon_key(host), &mut read.compares).is_some();
        if let Some(task) = self.rollout.definition().hosts.get(host) {
            for set in task.sets.keys() {
                if let Some(row) = next(lock_key(set), &mut read.compares) {
                    read.view.locks.insert(set.clone(), decode::<SetLock>(&row)?);
                }
            }
        }
        Ok(read)
    }
}

fn write(action: &Action) -> Option<Op> {
    match action {
        Action::Lock { set, lock } => Some(Op::put(records::lock_key(set), encode(lock))),
        Action::Slot { host, slot } => Some(Op::put(records::slot_key(host), encode(slot))),
        Action::Alarm { .. } => None,
    }
}
