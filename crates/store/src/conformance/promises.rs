//! Promises one by one.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{Factory, Options};
use crate::types::{Compare, Event, EventKind, Op, OpResult, Relation, Revision, Target, Txn};
use crate::{Store, StoreError};

/// A broken promise ends the suite, with its name.
macro_rules! promise {
    ($text:literal, $holds:expr $(, $shown:expr)*) => {
        assert!($holds, concat!("broken promise: ", $text, $("; ", stringify!($shown), " = {:?}"),*) $(, $shown)*)
    };
}

type Result = std::result::Result<(), StoreError>;

pub(super) async fn all(factory: &impl Factory, options: Options) {
    let mut results = vec![
        ("revisions", revisions(&*factory.make().await).await),
        ("compares", compares(&*factory.make().await).await),
        ("atomicity", atomicity(&*factory.make().await).await),
        ("ranges", ranges(&*factory.make().await).await),
        ("watches", watches(&*factory.make().await).await),
        ("live watch", live_watch(&*factory.make().await).await),
        ("compaction", compaction(&*factory.make().await).await),
    ];
    if options.virtual_time {
        results.push(("leases", leases(&*factory.make().await).await));
    }
    for (name, result) in results {
        assert!(result.is_ok(), "{name}: the store failed: {result:?}");
    }
}

async fn revisions(store: &dyn Store) -> Result {
    let first = store.put("a", b"1".to_vec()).await?;
    promise!("the first write is revision 1 or later", first >= Revision(1), first);
    let second = store.txn(Txn::write([Op::put("b", "1"), Op::put("c", "1")])).await?;
    promise!("a transaction takes one revision", second.revision == first.next(), second);
    let read = store.txn(Txn::read([Op::get("a")])).await?;
    promise!("reading takes no revision", read.revision == second.revision, read);
    let nothing = store.txn(Txn::write([Op::delete("missing")])).await?;
    promise!("deleting what is not there takes no revision", nothing.revision == second.revision, nothing);
    promise!("and says so", nothing.results == [OpResult::Deleted(false)], nothing);
    let third = store.put("a", b"2".to_vec()).await?;
    let a = store.get("a").await?;
    let known = a.as_ref().map(|a| (a.create_revision, a.mod_revision, a.version, a.value.as_slice()));
    promise!("a key knows its revisions and version", known == Some((first, third, 2, b"2".as_slice())), a);
    let gone = store.txn(Txn::write([Op::delete("a")])).await?;
    promise!("a deleted key is gone", store.get("a").await?.is_none() && gone.revision == third.next());
    let again = store.put("a", b"2".to_vec()).await?;
    let a = store.get("a").await?;
    let known = a.as_ref().map(|a| (a.create_revision, a.version));
    promise!("a key created again is new", known == Some((again, 1)), a);
    Ok(())
}

async fn compares(store: &dyn Store) -> Result {
    let revision = store.put("a", b"m".to_vec()).await?;
    let cases = [
        ("a", Relation::Equal, Target::Version(1), true),
        ("a", Relation::Greater, Target::Version(1), false),
        ("a", Relation::Greater, Target::Version(0), true),
        ("a", Relation::Less, Target::Version(2), true),
        ("a", Relation::NotEqual, Target::Version(1), false),
        ("a", Relation::Equal, Target::ModRevision(revision), true),
        ("a", Relation::Less, Target::ModRevision(revision.next()), true),
        ("a", Relation::Equal, Target::CreateRevision(revision), true),
        ("a", Relation::Equal, Target::Value(b"m".to_vec()), true),
        ("a", Relation::Greater, Target::Value(b"l".to_vec()), true),
        ("missing", Relation::Equal, Target::Version(0), true),
        ("missing", Relation::Equal, Target::ModRevision(Revision(0)), true),
        ("missing", Relation::Equal, Target::CreateRevision(Revision(0)), true),
        ("missing", Relation::Equal, Target::Value(Vec::new()), false),
        ("missing", Relation::NotEqual, Target::Value(b"m".to_vec()), false),
    ];
    for (key, relation, target, expected) in cases {
        let compare = Compare { key: key.to_owned(), relation, target };
        let reply = store.txn(Txn { compares: vec![compare.clone()], ..Txn::default() }).await?;
        promise!("comparisons mean what they say", reply.succeeded == expected, compare);
    }
    let both = vec![Compare::unchanged("a", revision), Compare::absent("a")];
    let txn = Txn { compares: both, success: vec![Op::put("a", "yes")], failure: vec![Op::put("b", "no")] };
    let reply = store.txn(txn).await?;
    promise!("all comparisons must hold", !reply.succeeded, reply);
    promise!("else the other branch is done", store.get("b").await?.is_some());
    promise!("and only it", store.get("a").await?.is_some_and(|a| a.value == b"m"));
    Ok(())
}

async fn atomicity(store: &dyn Store) -> Result {
    store.put("a", b"1".to_vec()).await?;
    let before = store.range("").await?;
    let refused = [
        (Txn::write([Op::put("x", "1"), Op::put("", "1")]), "an empty key is refused"),
        (Txn::write([Op::put("x", "1"), Op::put("y", "1"), Op::put("x", "2")]), "a key is written once at most"),
        (
            Txn::write([
                Op::put("x", "1"),
                Op::Put { key: "y".into(), value: Vec::new(), lease: Some(crate::LeaseId(u64::MAX >> 1)) },
            ]),
            "an unknown lease is refused",
        ),
    ];
    for (txn, why) in refused {
        let reply = store.txn(txn).await;
        let understood =
            matches!(reply, Err(StoreError::EmptyKey | StoreError::DuplicateKey(_) | StoreError::LeaseNotFound(_)));
        assert!(understood, "broken promise: {why}; {reply:?}");
        promise!("a refused transaction leaves nothing behind", store.range("").await? == before);
    }
    let reply = store
        .txn(Txn::write([Op::put("b", "2"), Op::get("b"), Op::Range { prefix: String::new() }, Op::delete("a")]))
        .await?;
    let seen: Vec<usize> = reply
        .results
        .iter()
        .map(|result| match result {
            OpResult::Found(keys) => keys.len(),
            OpResult::Put | OpResult::Deleted(_) => 0,
        })
        .collect();
    promise!("operations see what those before them did", seen == [0, 1, 2, 0], reply);
    Ok(())
}

async fn ranges(store: &dyn Store) -> Result {
    for key in ["a", "a/", "a/b", "a/c", "a0", "b", "a/\u{10ffff}", "a/\u{7f}"] {
        store.put(key, key.as_bytes().to_vec()).await?;
    }
    let last = store.put("z", Vec::new()).await?;
    let found = store.range("a/").await?;
    let keys: Vec<&str> = found.keys.iter().map(|row| row.key.as_str()).collect();
    promise!("a prefix gives its keys in byte order", keys == ["a/", "a/b", "a/c", "a/\u{7f}", "a/\u{10ffff}"], keys);
    promise!("a range says at which revision it is true", found.revision == last, found.revision);
    promise!("the empty prefix gives all keys", store.range("").await?.keys.len() == 9);
    Ok(())
}

async fn watches(store: &dyn Store) -> Result {
    let start = store.range("").await?.revision.next();
    let _ = store.txn(Txn::write([Op::put("w/a", "1"), Op::put("w/b", "1"), Op::put("other", "1")])).await?;
    store.put("w/a", b"2".to_vec()).await?;
    let _ = store.txn(Txn::write([Op::delete("w/b")])).await?;
    let mut watch = store.watch("w/", start);
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(describe(&watch.next().await?, start));
    }
    promise!("a watch replays the past in order", seen == ["0 w/a=1", "0 w/b=1", "1 w/a=2", "2 w/b gone"], seen);
    let mut later = store.watch("w/", Revision(start.0 + 2));
    let event = describe(&later.next().await?, start);
    promise!("a watch begins where it was told", event == "2 w/b gone", event);
    Ok(())
}

fn describe(event: &Event, start: Revision) -> String {
    let at = event.revision.0 - start.0;
    match &event.kind {
        EventKind::Put(row) => format!("{at} {}={}", event.key, String::from_utf8_lossy(&row.value)),
        EventKind::Delete => format!("{at} {} gone", event.key),
    }
}

async fn live_watch(store: &dyn Store) -> Result {
    let mut watch = store.watch("w/", store.range("").await?.revision.next());
    let quiet = tokio::time::timeout(Duration::from_millis(20), watch.next()).await;
    promise!("a watch waits while nothing happens", quiet.is_err(), quiet);
    store.put("other", Vec::new()).await?;
    let quiet = tokio::time::timeout(Duration::from_millis(20), watch.next()).await;
    promise!("a watch is not woken by other keys", quiet.is_err(), quiet);
    let (event, _) = tokio::join!(tokio::time::timeout(Duration::from_secs(10), watch.next()), async {
        store.put("w/a", b"1".to_vec()).await
    });
    let key = event.map(|event| event.map(|event| event.key));
    promise!("a watch is woken by a write", matches!(&key, Ok(Ok(key)) if key == "w/a"), key);
    Ok(())
}

async fn compaction(store: &dyn Store) -> Result {
    let first = store.put("a", b"1".to_vec()).await?;
    let second = store.put("a", b"2".to_vec()).await?;
    store.put("b", b"1".to_vec()).await?;
    let before = store.range("").await?;
    store.compact(second).await?;
    promise!("compaction keeps live keys", store.range("").await? == before);
    let refused = store.watch("", first).next().await;
    promise!(
        "a watch from before says that events are gone",
        refused == Err(StoreError::Compacted { asked: first, compacted: second }),
        refused
    );
    let next = store.watch("", second.next()).next().await?;
    promise!("a watch from after goes on", next.key == "b", next);
    let future = store.compact(Revision(before.revision.0 + 9)).await;
    promise!("the future cannot be compacted", matches!(future, Err(StoreError::FutureRevision { .. })), future);
    let again = store.compact(second).await;
    promise!("what is compacted stays compacted", matches!(again, Err(StoreError::Compacted { .. })), again);
    store.put("c", Vec::new()).await?;
    Ok(())
}

async fn leases(store: &dyn Store) -> Result {
    let start = Timestamp::UNIX_EPOCH;
    let at = |seconds| start + SignedDuration::from_secs(seconds);
    let lease = store.lease_grant(Duration::from_secs(10), start).await?;
    let leased = |key: &str| Op::Put { key: key.into(), value: Vec::new(), lease: Some(lease) };
    let _ = store.txn(Txn::write([leased("l/a"), leased("l/b"), leased("l/c"), Op::put("l/d", "")])).await?;
    store.put("l/c", Vec::new()).await?;
    store.tick(at(9)).await?;
    promise!("a lease holds until its time is up", store.range("l/").await?.keys.len() == 4);
    store.lease_keep_alive(lease, at(9)).await?;
    store.tick(at(18)).await?;
    promise!("a sign of life makes it longer", store.range("l/").await?.keys.len() == 4);
    let before = store.range("").await?.revision;
    store.tick(at(19)).await?;
    let left: Vec<String> = store.range("l/").await?.keys.into_iter().map(|row| row.key).collect();
    promise!("a lease takes its keys with it, and only its", left == ["l/c", "l/d"], left);
    let mut watch = store.watch("l/", before.next());
    let events = [watch.next().await?, watch.next().await?];
    let seen = events.each_ref().map(|event| describe(event, before.next()));
    promise!("in one revision, seen by a watch", seen == ["0 l/a gone", "0 l/b gone"], seen);
    let late = store.lease_keep_alive(lease, at(19)).await;
    promise!("an ended lease stays ended", late == Err(StoreError::LeaseNotFound(lease)), late);
    let other = store.lease_grant(Duration::from_secs(10), at(20)).await?;
    promise!("a lease's name is not used again", other != lease, other);
    let late = store.lease_keep_alive(other, at(30)).await;
    promise!("time counts even before anybody looks", late == Err(StoreError::LeaseNotFound(other)), late);
    let third = store.lease_grant(Duration::from_secs(10), at(40)).await?;
    let _ = store.txn(Txn::write([Op::Put { key: "l/e".into(), value: Vec::new(), lease: Some(third) }])).await?;
    store.lease_revoke(third).await?;
    promise!("a revoked lease takes its keys with it", store.get("l/e").await?.is_none());
    Ok(())
}
