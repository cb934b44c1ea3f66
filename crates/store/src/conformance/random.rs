//! Random histories, compared with the reference after every step.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Runtime;

use super::reference::{Change, Live, Reference};
use super::{Factory, Options};
use crate::types::{Compare, EventKind, KeyValue, Op, Relation, Revision, Target, Txn};
use crate::{Store, StoreError};

fn key() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "a/1", "a/2", "b"]).prop_map(str::to_owned)
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..2)
}

fn compare() -> impl Strategy<Value = Compare> {
    let relation = prop::sample::select(vec![Relation::Equal, Relation::NotEqual, Relation::Less, Relation::Greater]);
    let target = prop_oneof![
        (0..4u64).prop_map(Target::Version),
        (0..12u64).prop_map(|revision| Target::CreateRevision(Revision(revision))),
        (0..12u64).prop_map(|revision| Target::ModRevision(Revision(revision))),
        value().prop_map(Target::Value),
    ];
    (key(), relation, target).prop_map(|(key, relation, target)| Compare { key, relation, target })
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => (key(), value()).prop_map(|(key, value)| Op::Put { key, value, lease: None }),
        2 => key().prop_map(Op::delete),
        1 => key().prop_map(Op::get),
    ];
    prop::collection::vec(op, 0..4)
}

fn history() -> impl Strategy<Value = Vec<Txn>> {
    let txn = (prop::collection::vec(compare(), 0..3), ops(), ops()).prop_map(|(compares, success, failure)| Txn {
        compares,
        success,
        failure,
    });
    prop::collection::vec(txn, 1..24)
}

fn known(row: KeyValue) -> (String, Live) {
    (row.key, (row.value, row.create_revision.0, row.mod_revision.0, row.version))
}

async fn check(store: &dyn Store, history: Vec<Txn>, cut: usize) -> Result<(), TestCaseError> {
    let mut reference = Reference::default();
    for txn in history {
        let expected = reference.txn(&txn);
        let reply = store.txn(txn.clone()).await;
        match (&reply, expected) {
            (Err(StoreError::DuplicateKey(_)), None) => {}
            (Ok(reply), Some(succeeded)) => {
                prop_assert_eq!((reply.succeeded, reply.revision.0), (succeeded, reference.revision), "{:?}", txn);
            }
            _ => prop_assert!(false, "{txn:?} gave {reply:?}, expected {expected:?}"),
        }
        let found = store.range("").await.map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(found.revision.0, reference.revision);
        let found: Vec<(String, Live)> = found.keys.into_iter().map(known).collect();
        prop_assert_eq!(found, reference.all());
    }
    let from = reference.changes.get(cut % reference.changes.len().max(1)).map_or(1, |change| change.revision);
    let mut watch = store.watch("a", Revision(from));
    for expected in reference.changes.iter().filter(|change| change.revision >= from && change.key.starts_with('a')) {
        let event = watch.next().await.map_err(|error| TestCaseError::fail(error.to_string()))?;
        let value = match event.kind {
            EventKind::Put(row) => Some(row.value),
            EventKind::Delete => None,
        };
        let seen = Change { revision: event.revision.0, key: event.key, value };
        prop_assert_eq!(&seen, expected);
    }
    Ok(())
}

pub(super) fn all(runtime: &Runtime, factory: &impl Factory, options: Options) {
    let mut runner =
        TestRunner::new(Config { cases: options.histories, failure_persistence: None, ..Config::default() });
    let result = runner.run(&(history(), any::<usize>()), |(history, cut)| {
        runtime.block_on(async { check(&*factory.make().await, history, cut).await })
    });
    assert!(
        result.is_ok(),
        "a random history differs from the reference:\n{}",
        result.map_or_else(|e| e.to_string(), |()| String::new())
    );
}
