//! The journal on a real disk: full, read-only, shared, cut off.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::time::Duration;

use fermata_maintenance::journal::{Journal, JournalError};
use fermata_maintenance::machine::{Durability, Entry, Log, Maintenance, Op, Stage, Stamped, StartError};
use fermata_maintenance::mechanism::Choice;
use fermata_maintenance::order::{Gate, Keeper, Order};
use fermata_maintenance::time::{Mono, Now, Wall};
use fermata_maintenance::update::Update;
use fermata_model::Mechanism;

const UPDATE: &str = "id = \"tz\"\ntitle = \"TZ\"\nkind = \"package\"\n[change]\ncommand = [\"/bin/a\"]\n";

fn order(id: &str, update: &str) -> Order {
    let gate = Gate { not_before: Wall(1), lead: Duration::from_secs(5), keeper: Keeper::Clock };
    Order::new(id.parse().unwrap(), Update::from_toml(update).unwrap(), Choice::default(), gate).unwrap()
}

fn now() -> Now {
    Now { mono: Mono(1), wall: Wall(1_000_000) }
}

fn begin(journal: &mut Journal, id: &str, update: &str) -> Result<usize, StartError> {
    Maintenance::begin(order(id, update), "boot".parse().unwrap(), journal, now()).map(|(_, acts)| acts.len())
}

fn entry() -> Stamped {
    Stamped { at: now(), entry: Entry::Approved { by: "x".repeat(100) } }
}

#[test]
fn what_was_written_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let id = "m-1".parse().unwrap();
    let written = {
        let mut journal = Journal::open(&path).unwrap();
        begin(&mut journal, "m-1", UPDATE).unwrap();
        journal.entries(&id).unwrap()
    };
    assert!(matches!(written[0].entry, Entry::Planned { .. }));
    assert!(matches!(&written.last().unwrap().entry, Entry::Began(act) if act.id.op == Op::Preflight));
    let journal = Journal::open(&path).unwrap();
    assert_eq!(journal.entries(&id).unwrap(), written);
    assert_eq!(journal.unfinished().unwrap(), [id]);
    assert_eq!(Journal::open_to_read(&path).unwrap().list().unwrap().len(), 1);
}

#[test]
fn of_two_writers_with_one_past_the_second_is_told_to_stop() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let mut first = Journal::open(&path).unwrap();
    begin(&mut first, "m-1", UPDATE).unwrap();
    let mut second = Journal::open(&path).unwrap();
    let id = "m-1".parse().unwrap();
    let next = u64::try_from(first.entries(&id).unwrap().len()).unwrap();
    first.append(&id, next, &[entry()], Durability::Power).unwrap();
    let failure = second.append(&id, next, &[entry()], Durability::Power).unwrap_err();
    assert!(failure.superseded, "{failure}");
}

#[test]
fn a_changed_file_under_an_old_id_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(&folder.path().join("journal.db")).unwrap();
    begin(&mut journal, "m-1", UPDATE).unwrap();
    begin(&mut journal, "m-2", UPDATE).unwrap();
    let refused = begin(&mut journal, "m-3", &format!("{UPDATE}# changed\n")).unwrap_err().to_string();
    assert!(refused.contains("tz") && refused.contains("id of its own"), "{refused}");
    assert_eq!(journal.list().unwrap().len(), 2);
}

#[test]
fn entries_cannot_be_changed_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    begin(&mut Journal::open(&path).unwrap(), "m-1", UPDATE).unwrap();
    let db = rusqlite::Connection::open(&path).unwrap();
    assert!(db.execute("UPDATE entries SET entry = '{}'", []).is_err());
}

#[test]
fn a_missing_entry_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    begin(&mut Journal::open(&path).unwrap(), "m-1", UPDATE).unwrap();
    rusqlite::Connection::open(&path).unwrap().execute("DELETE FROM entries WHERE number = 1", []).unwrap();
    let error = Journal::open(&path).unwrap().entries(&"m-1".parse().unwrap()).unwrap_err();
    assert!(matches!(error, JournalError::Unreadable { .. }), "{error}");
}

#[test]
fn measured_blackouts_become_the_history_of_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let mut journal = Journal::open(&folder.path().join("journal.db")).unwrap();
    let millis = Duration::from_millis;
    journal
        .record(&[(Mechanism::Swap, millis(4)), (Mechanism::Hold, millis(1)), (Mechanism::Swap, millis(5))])
        .unwrap();
    let history = journal.history().unwrap();
    assert_eq!((history.swap, history.hold_overhead), (vec![millis(4), millis(5)], vec![millis(1)]));
}

/// Runs this test binary again with a limit on the size of files: the kernel refuses to write more, as a full disk does,
/// in the middle of whatever SQLite is doing.
fn in_a_small_world(test: &str) -> std::process::Output {
    let script = "trap '' XFSZ; ulimit -f 160; exec \"$0\" --exact \"$1\" --nocapture";
    std::process::Command::new("bash")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .env("FERMATA_SMALL_WORLD", "1")
        .output()
        .unwrap()
}

#[test]
fn a_full_disk_is_told_as_such_and_nothing_is_half_written() {
    if std::env::var_os("FERMATA_SMALL_WORLD").is_none() {
        let output = in_a_small_world("a_full_disk_is_told_as_such_and_nothing_is_half_written");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    fill(&folder.path().join("journal.db"));
}

/// Appends until it fails, then reads.
fn fill(path: &Path) {
    let id = "m-1".parse().unwrap();
    let mut journal = Journal::open(path).unwrap();
    begin(&mut journal, "m-1", UPDATE).unwrap();
    let mut next = u64::try_from(journal.entries(&id).unwrap().len()).unwrap();
    let failure = loop {
        match journal.append(&id, next, &[entry(), entry()], Durability::Process) {
            Ok(()) => next += 2,
            Err(failure) => break failure,
        }
        assert!(next < 100_000, "the limit does not work");
    };
    assert!(!failure.superseded && failure.text.contains("journal"), "{failure}");
    assert!(failure.text.contains("disk"), "{failure}");
    let read = journal.entries(&id).unwrap();
    assert_eq!(u64::try_from(read.len()).unwrap(), next, "all or nothing");
    assert!(journal.check_room().is_err(), "preflight notices");
}

#[test]
fn looking_for_room_can_be_repeated_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let mut journal = Journal::open(&path).unwrap();
    begin(&mut journal, "m-1", UPDATE).unwrap();
    journal.check_room().unwrap();
    let entries = journal.entries(&"m-1".parse().unwrap()).unwrap();
    journal.check_room().unwrap();
    assert_eq!(journal.entries(&"m-1".parse().unwrap()).unwrap(), entries);
}

#[test]
fn a_maintenance_is_not_begun_without_a_journal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    begin(&mut Journal::open(&path).unwrap(), "m-1", UPDATE).unwrap();
    let mut read_only = Journal::open_to_read(&path).unwrap();
    let refused = begin(&mut read_only, "m-2", UPDATE).unwrap_err().to_string();
    assert!(refused.contains("not begun") && refused.contains("not writable"), "{refused}");
}

#[test]
fn a_journal_that_turns_read_only_is_survived_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let mut writable = Journal::open(&path).unwrap();
    begin(&mut writable, "m-1", UPDATE).unwrap();
    let entries = writable.entries(&"m-1".parse().unwrap()).unwrap();
    let read_only = Journal::open_to_read(&path).unwrap();
    let (maintenance, acts) = Maintenance::recover(&entries, "boot".parse().unwrap(), read_only, now()).unwrap();
    assert!(acts.is_empty(), "nothing new begins: {acts:?}");
    let state = maintenance.state();
    assert!(state.adrift.as_ref().unwrap().contains("not writable"));
    assert_eq!(state.stage, Stage::Preflight);
    assert!(state.trouble.as_ref().unwrap().text.contains("journal"));
}
