//! Nothing acknowledged is lost, and nothing is half there, when the process is killed while it writes.
//!
//! Its own harness: the same binary is the writer (a child) and the judge.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use fermata_store::{Op, Revision, SqliteStore, Store as _, StoreError, Txn};

const ROUNDS: u64 = 12;

async fn write_forever(folder: &Path) -> Result<(), StoreError> {
    let store = SqliteStore::open_in(folder).await?;
    let mut number = store.get("left").await?.map_or(0, |row| row.version);
    loop {
        number += 1;
        let value = number.to_string();
        let log = Op::put(format!("log/{number:08}"), value.clone());
        let _ = store.txn(Txn::write([Op::put("left", value.clone()), log, Op::put("right", value)])).await?;
        println!("{number}");
        // The judge counts what it was told; a full pipe would only slow the writer down.
        let _ = std::io::stdout().flush();
    }
}

async fn judge(folder: &Path, acknowledged: u64, round: u64) {
    let store = SqliteStore::open_in(folder).await.unwrap();
    let left = store.get("left").await.unwrap().unwrap();
    let right = store.get("right").await.unwrap().unwrap();
    assert_eq!((&left.value, left.mod_revision, left.version), (&right.value, right.mod_revision, right.version));
    assert!(left.version >= acknowledged, "round {round}: {acknowledged} acknowledged, {} found", left.version);
    let log = store.range("log/").await.unwrap();
    assert_eq!(log.keys.len() as u64, left.version, "round {round}: a transaction is half there");
    assert_eq!(log.revision, Revision(left.version), "round {round}: one revision per transaction");
    let mut watch = store.watch("log/", Revision(1));
    for expected in 1..=left.version {
        let event = watch.next().await.unwrap();
        assert_eq!(event.revision, Revision(expected), "round {round}: the event log has a gap");
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if let Some(folder) = std::env::var_os("FERMATA_STORE_CRASH_WRITER") {
        let failure = runtime.block_on(write_forever(Path::new(&folder)));
        panic!("the writer ended by itself: {failure:?}");
    }
    let folder = tempfile::TempDir::new().unwrap();
    for round in 1..=ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env("FERMATA_STORE_CRASH_WRITER", folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Killed after a different number of writes each round, so at a different point of the write-ahead log.
        let mut acknowledged = 0;
        for _ in 0..round * 7 % 31 + 1 {
            acknowledged = lines.next().unwrap().unwrap().parse().unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged = lines.map_while(Result::ok).filter_map(|line| line.parse().ok()).last().unwrap_or(acknowledged);
        runtime.block_on(judge(folder.path(), acknowledged, round));
    }
    println!("crash: {ROUNDS} kills while writing, everything acknowledged was found");
}
