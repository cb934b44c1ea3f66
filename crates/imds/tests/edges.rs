//! The same rules of the wire at their edges: one byte more, the other verb, the id of somebody else.
#![allow(clippy::unwrap_used, reason = "test support: a failure is a failed test")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::*;
use fermata_events::*;
use fermata_imds::limits::{Limits, Rate};
use fermata_imds::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const EVENTS: &str = "/metadata/scheduledevents?api-version=2020-07-01";
const INSTANCE: &str = "/metadata/instance?api-version=2021-08-01";
const HEAD_MAX: usize = 16 * 1024;
const BODY_MAX: usize = 64 * 1024;

fn approval(id: &str) -> String {
    format!(r#"{{"StartRequests":[{{"EventId":"{id}"}}]}}"#)
}

async fn post_to(guest: &Guest, path: &str, body: &str) -> Answer {
    let lines = format!("Metadata: true\r\nContent-Length: {}\r\n", body.len());
    guest.ask(&format!("POST {path}"), &lines, body.as_bytes()).await
}

#[tokio::test]
async fn rule_03_and_02_errors_have_length_date_and_media_type_and_say_when_they_close() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    let long = format!("Metadata: true\r\nContent-Length: {}\r\n", BODY_MAX + 1);
    let table = [
        (guest.get("/metadata/scheduledevents").await, 400, false),
        (guest.get("/nothing").await, 404, false),
        (guest.ask(&format!("PUT {EVENTS}"), "Metadata: true\r\n", b"").await, 405, false),
        (guest.ask(&format!("POST {EVENTS}"), &long, b"").await, 413, true),
        (guest.ask("GET\t/", "", b"").await, 400, true),
    ];
    for (answer, status, closes) in table {
        assert_eq!((answer.status, answer.header("Connection") == Some("close")), (status, closes), "{answer:?}");
        assert_eq!(answer.header("Content-Type"), Some("application/json; charset=utf-8"), "{answer:?}");
        assert_eq!(answer.header("Date"), Some("Wed, 31 May 2023 16:44:00 GMT"), "{answer:?}");
        assert_eq!(answer.header("Content-Length"), Some(answer.body.len().to_string().as_str()), "{answer:?}");
    }
}

#[tokio::test]
async fn rule_05_and_10_the_extensions_want_the_header_and_their_verb() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    let defer = "/metadata/x-maintenance/v1/events/00000000-0000-0000-0000-000000000000/defer";
    for path in ["/metadata/x-maintenance/v1/events", "/metadata/x-maintenance/v1/history"] {
        assert_eq!(guest.get(path).await.status, 200, "{path}");
        assert_eq!(guest.ask(&format!("GET {path}"), "", b"").await.status, 400, "{path}");
        let forwarded = guest.get_with(path, "X-Forwarded-For:\r\n").await;
        assert_eq!(forwarded.status, 400, "{path}");
        let posted = post_to(&guest, path, "{}").await;
        assert_eq!((posted.status, posted.header("Allow")), (405, Some("GET, HEAD")), "{path}");
    }
    let asked = guest.get(defer).await;
    assert_eq!((asked.status, asked.header("Allow")), (405, Some("POST")));
    let bare = guest.ask(&format!("POST {defer}"), "Content-Length: 2\r\n", b"{}").await;
    assert_eq!(bare.body, r#"{"error":"Bad request. Required metadata header not specified"}"#);
}

#[tokio::test]
async fn rule_07_an_approval_without_a_version_is_refused_and_approves_nothing() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    guest.events().await;
    host.ok(Input::Announce(announce("j", &["alone"], 900))).await;
    let body = approval(&guest.ids().await[0]);
    for path in [
        "/metadata/scheduledevents",
        "/metadata/scheduledevents?",
        "/metadata/scheduledevents?api-version",
        "/metadata/scheduledevents?api-version=",
        "/metadata/scheduledevents?api-version=latest",
        "/metadata/scheduledevents?version=2020-07-01",
        "/metadata/scheduledevents?api-version=2020-07-01&api-version=2020-07-01",
        "/metadata/scheduledevents?api-version=2020-07-01&API-VERSION=2020-07-01",
        "/metadata/scheduledevents?api-version=2020-07-01&x=1&X=1",
        // A version of the other category (rule 8).
        "/metadata/scheduledevents?api-version=2021-08-01",
    ] {
        let answer = post_to(&guest, path, &body).await;
        assert_eq!(answer.status, 400, "{path}");
        assert!(!host.service.gate(&job("j")).is_empty(), "{path} approved");
        let twice = path.to_lowercase().matches("api-version").count() > 1 || path.contains("X=1");
        let newest = serde_json::json!(["2020-07-01", "2019-08-01", "2019-04-01"]);
        assert_eq!(answer.json()["newest-versions"] == newest, !twice, "{path}: {answer:?}");
        // The same for who only reads.
        assert_eq!(guest.get(path).await.status, 400, "GET {path}");
    }
    assert_eq!(post_to(&guest, "/Metadata/ScheduledEvents/?Api-Version=2019-08-01", &body).await.status, 200);
    assert!(host.service.gate(&job("j")).is_empty(), "rule 8: with another version than the GET had");
}

#[tokio::test]
async fn rule_16_resources_hold_the_name_that_the_vm_reads_of_itself() {
    let host = Host::new(settings()).await;
    let guest = host.guest("web0").await;
    host.ok(Input::Announce(announce("j", &["web0"], 0))).await;
    let name = guest.get("/metadata/instance/compute/name?api-version=2021-08-01&format=text").await.body;
    let peer = host.guest("web1").await.events().await.json();
    assert_eq!(peer["Events"][0]["Resources"], serde_json::json!([name]));
}

#[tokio::test]
async fn rule_18_a_number_that_could_not_be_kept_was_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let broken = Arc::new(AtomicBool::new(false));
    let store = Fragile { inner: SqliteStore::open(&path).unwrap(), broken: broken.clone() };
    let host = Host::with(Box::new(store), settings()).await;
    let guest = host.guest("alone").await;
    let read = async || (guest.events().await.body, guest.events().await.header("ETag").unwrap().to_owned());
    let before = read().await;
    broken.store(true, Ordering::Release);
    let refused = host.service.apply(Input::Announce(announce("lost", &["alone"], 900))).await;
    assert!(matches!(refused, Err(ApplyError::NotDurable(_))), "{refused:?}");
    assert_eq!(read().await, before);
    broken.store(false, Ordering::Release);
    host.ok(Input::Announce(announce("kept", &["alone"], 900))).await;
    let after = read().await;
    let id = EventId::derived(announce("kept", &[], 0).seed, &"vm/alone".parse().unwrap());
    assert!(after.0.starts_with(&format!(r#"{{"DocumentIncarnation":2,"Events":[{{"EventId":"{id}""#)), "{after:?}");
    // Opened again, as after a crash: the same number, bytes and tag; the next change has the next number.
    let again = Service::open(Box::new(SqliteStore::open(&path).unwrap()), Arc::new(HandClock::new()), settings());
    let host = Host { service: again.unwrap(), clock: HandClock::new() };
    let guest = host.guest("alone").await;
    let answer = guest.events().await;
    assert_eq!((answer.body.clone(), answer.header("ETag").unwrap().to_owned()), after);
    host.ok(Input::Cancel { job: job("kept") }).await;
    assert_eq!(guest.events().await.body, r#"{"DocumentIncarnation":3,"Events":[]}"#);
}

#[tokio::test]
async fn rule_19_a_tag_is_of_one_version_and_does_not_come_back_with_the_content() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    let tag = async |version: ApiVersion| {
        let answer = guest.get(&format!("/metadata/scheduledevents?api-version={version}")).await;
        answer.header("ETag").unwrap().to_owned()
    };
    let mut tags = std::collections::BTreeSet::new();
    for version in ApiVersion::ALL {
        assert!(tags.insert(tag(version).await), "{version}");
    }
    let empty = tag(ApiVersion::NEWEST).await;
    let none_match = format!("If-None-Match: {empty}\r\n");
    let other = guest.get_with("/metadata/scheduledevents?api-version=2019-08-01", &none_match).await;
    assert_eq!(other.status, 200, "another version's tag");
    for lines in [format!("If-None-Match: \"x\"\r\n{none_match}"), format!("{none_match}If-None-Match: \"x\"\r\n")] {
        assert_eq!(guest.get_with(EVENTS, &lines).await.status, 304, "a list over two lines: {lines}");
    }
    host.ok(Input::Announce(announce("j", &["alone"], 900))).await;
    host.ok(Input::Cancel { job: job("j") }).await;
    assert!(tags.insert(tag(ApiVersion::NEWEST).await), "empty again, and another document all the same");
    let stale = guest.get_with(EVENTS, &format!("If-None-Match: {empty}\r\n")).await;
    assert_eq!((stale.status, stale.header("Content-Length").is_some()), (200, true));
}

#[tokio::test]
async fn rule_22_a_cancelled_event_is_approved_over_the_wire_without_effect() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    guest.events().await;
    host.ok(Input::Announce(announce("j", &["alone"], 900))).await;
    let id = guest.ids().await[0].clone();
    host.ok(Input::Cancel { job: job("j") }).await;
    let before = guest.events().await.body;
    let both = format!(r#"{{"StartRequests":[{{"EventId":"{id}"}},{{"EventId":"{}"}}]}}"#, id.to_lowercase());
    for body in [approval(&id), both] {
        let answer = guest.post(body.as_bytes()).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, ""), "{body}");
    }
    assert_eq!(guest.events().await.body, before, "it does not come back");
    assert_eq!(host.service.history(UnixMs(0))[0].approved_by, []);
}

#[tokio::test]
async fn rule_28_extended_is_accepted_everywhere_and_adds_one_member_for_who_asked() {
    let host = Host::new(settings()).await;
    let guest = host.guest("web0").await;
    let wanted = serde_json::json!({ "compute": { "hasCustomData": false, "ppsType": "None" } });
    // Plain and extended in turn: what one caller asked for is not another's answer.
    for (key, shown) in [
        ("", false),
        ("&extended=true", true),
        ("&extended=false", false),
        ("&extended=True", true),
        ("&EXTENDED=TRUE", true),
        ("&extended=", false),
        ("&extended=1", false),
        ("&extended", false),
        ("&format=json&extended=true", true),
    ] {
        let answer = guest.get(&format!("{INSTANCE}{key}")).await;
        assert_eq!(answer.status, 200, "{key}");
        assert_eq!(answer.json().get("extended"), shown.then_some(&wanted), "{key}");
        assert_eq!(answer.json()["compute"]["name"], "web0", "{key}");
    }
    for version in ["2017-03-01", "2019-06-01", "2025-04-07"] {
        let document = guest.get(&format!("/metadata/instance?api-version={version}&extended=true")).await.json();
        assert_eq!(document["extended"], wanted, "{version}");
    }
    let head = format!("HEAD {INSTANCE}&extended=true HTTP/1.0\r\nMetadata: true\r\n\r\n");
    let head = guest.connect().await.exchange_all(&head).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "a client asks so whether it is there");
    let text = async |path: &str| {
        let answer = guest.get(&format!("/metadata/instance{path}&api-version=2021-08-01&format=text")).await;
        (answer.status, answer.body)
    };
    assert_eq!(text("?extended=true").await, (200, "compute/\nextended/\nnetwork/".to_owned()));
    assert_eq!(text("/extended/compute/ppsType?extended=true").await, (200, "None".to_owned()));
    assert_eq!(text("/extended/compute/ppsType?extended=false").await.0, 404);
    assert_eq!(text("/compute/name?extended=true").await, (200, "web0".to_owned()));
}

#[tokio::test]
async fn rule_35_only_a_request_that_was_answered_enables() {
    let host = Host::new(settings()).await;
    let enabled = |name: &str| {
        let scope = format!("vm/{name}").parse().unwrap();
        host.service.read(|state, now| state.enabled_at(&scope, now.wall))
    };
    let guest = host.guest("alone").await;
    guest.get("/metadata/scheduledevents").await;
    guest.ask(&format!("GET {EVENTS}"), "", b"").await;
    guest.get(INSTANCE).await;
    guest.post(br#"{"StartRequests":[]}"#).await;
    assert!(!enabled("alone"), "none of these asked for events and got them");
    guest.events().await;
    assert!(enabled("alone") && !enabled("other"));
    let head = format!("HEAD {EVENTS} HTTP/1.0\r\nMetadata: true\r\n\r\n");
    host.guest("other").await.connect().await.exchange_all(&head).await;
    assert!(enabled("other"), "HEAD is a GET without the body");
}

#[tokio::test]
async fn rule_35_who_goes_on_asking_stays_enabled_and_who_stops_does_not() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    let enabled = || host.service.read(|state, now| state.enabled_at(&"vm/alone".parse().unwrap(), now.wall));
    for hours in [1, 6, 12, 23, 23, 23] {
        guest.events().await;
        host.pass(Duration::from_secs(hours * 3600)).await;
        assert!(enabled(), "after {hours} h");
    }
    host.pass(Duration::from_secs(3600 + 1)).await;
    assert!(!enabled(), "a day without a request");
    guest.events().await;
    assert!(enabled(), "at once");
}

#[tokio::test]
async fn rule_38_a_poller_never_sees_started_of_what_was_cancelled_nor_scheduled_of_a_failure() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    let mut seen = vec![guest.statuses().await];
    host.ok(Input::Announce(announce("j", &["alone"], 900))).await;
    seen.push(guest.statuses().await);
    host.ok(Input::Cancel { job: job("j") }).await;
    seen.push(guest.statuses().await);
    host.ok(Input::Fail(Announce { kind: EventKind::Reboot, ..announce("crash", &["alone"], 900) })).await;
    seen.push(guest.statuses().await);
    let event = &guest.events().await.json()["Events"][0];
    assert_eq!((&event["EventType"], &event["NotBefore"]), (&"Reboot".into(), &"".into()));
    host.ok(Input::RunsAgain { job: job("crash"), vm: vm("alone"), paused_ms: None }).await;
    host.ok(Input::Finish { job: job("crash"), outcome: Outcome::Failed }).await;
    seen.push(guest.statuses().await);
    assert_eq!(seen, [vec![], vec!["Scheduled".to_owned()], vec![], vec!["Started".to_owned()], vec![]]);
}

#[tokio::test]
async fn rule_43_ids_that_are_not_the_callers_get_the_same_bytes_however_they_are_written() {
    let host = Host::new(settings()).await;
    let (owner, guest) = (host.guest("other").await, host.guest("alone").await);
    owner.events().await;
    host.ok(Input::Announce(announce("over", &["other"], 900))).await;
    let over = owner.ids().await[0].clone();
    host.ok(Input::Cancel { job: job("over") }).await;
    host.ok(Input::Announce(announce("open", &["other"], 900))).await;
    let open = owner.ids().await[0].clone();
    let unknown = "602D9444-D2CD-49C7-8624-8643E7171297".to_owned();
    let until = format!(r#"{{"until":{}}}"#, START_MS + 1_000_000);
    let ask = async |id: &str| {
        let defer = format!("/metadata/x-maintenance/v1/events/{id}/defer");
        [guest.approve(id).await, post_to(&guest, &defer, &until).await, guest.get(&defer[..defer.len() - 6]).await]
    };
    let wanted = ask(&unknown).await;
    assert_eq!(wanted.each_ref().map(|answer| answer.status), [400, 400, 404]);
    assert_eq!(wanted[0].body, r#"{"error":"Bad request. The EventId is unknown"}"#);
    for id in [&open, &over] {
        let forms = [
            id.clone(),
            id.to_lowercase(),
            id.replace('-', ""),
            format!("{{{id}}}"),
            format!("urn:uuid:{id}"),
            id[..35].to_owned(),
        ];
        for form in forms {
            assert_eq!(ask(&form).await, wanted, "{form}");
        }
    }
    let native = guest.get("/metadata/x-maintenance/v1/events").await.json();
    assert_eq!(native["events"], serde_json::json!([]));
    assert!(!host.service.gate(&job("open")).is_empty());
    assert_eq!(owner.approve(&format!(" {} ", open.to_lowercase())).await.status, 200, "the owner's word counts");
    assert!(host.service.gate(&job("open")).is_empty());
}

#[tokio::test]
async fn rule_45_four_long_polls_wait_and_a_fifth_is_told_so_at_once() {
    let host = Host::new(Settings { limits: Limits { waiters: 4, ..Limits::none() }, ..Settings::default() }).await;
    let guest = host.guest("alone").await;
    let tag = guest.events().await.header("ETag").unwrap().to_owned();
    let poll = format!(
        "GET {EVENTS}&wait=60 HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\nIf-None-Match: {tag}\r\n\r\n"
    );
    let mut waiting = Vec::new();
    for _ in 0..4 {
        let mut wire = guest.connect().await;
        wire.send(&poll).await;
        waiting.push(wire);
    }
    while !host.service.metrics_text().contains("fermata_imds_long_polls_total 4\n") {
        tokio::task::yield_now().await;
    }
    let fifth = guest.get_with(&format!("{EVENTS}&wait=60"), &format!("If-None-Match: {tag}\r\n")).await;
    assert_eq!((fifth.status, fifth.header("Retry-After")), (429, Some("1")));
    host.ok(Input::Announce(announce("j", &["alone"], 0))).await;
    for mut wire in waiting {
        assert_eq!(wire.answer().await.status, 200);
    }
}

#[tokio::test]
async fn rule_46_a_body_of_64_kib_is_taken_and_one_byte_more_is_not() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    let json = br#"{"StartRequests":[]}"#;
    let padded = |length: usize| [json.as_slice(), &vec![b' '; length - json.len()]].concat();
    let chunked = |body: &[u8]| {
        let (first, second) = body.split_at(body.len() / 2);
        let chunk = |part: &[u8]| [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat();
        [chunk(first), chunk(second), b"0\r\n\r\n".to_vec()].concat()
    };
    for (length, status) in [(BODY_MAX, 200), (BODY_MAX + 1, 413)] {
        let body = padded(length);
        assert_eq!(guest.post(&body).await.status, status, "{length} bytes");
        let lines = "Metadata: true\r\nTransfer-Encoding: chunked\r\n";
        let answer = guest.ask(&format!("POST {EVENTS}"), lines, &chunked(&body)).await;
        assert_eq!(answer.status, status, "{length} bytes in chunks");
    }
}

#[tokio::test]
async fn rule_46_a_head_of_16_kib_is_taken_and_one_byte_or_one_field_more_is_not() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    let begin = format!("GET {EVENTS} HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n");
    for (length, status) in [(HEAD_MAX, 200), (HEAD_MAX + 1, 431)] {
        let fill = length - begin.len() - "X: \r\n\r\n".len();
        let head = format!("{begin}X: {}\r\n\r\n", "x".repeat(fill));
        assert_eq!(head.len(), length);
        let mut wire = guest.connect().await;
        wire.send(&head).await;
        assert_eq!(wire.answer().await.status, status, "{length} bytes");
    }
    for (fields, status) in [(64, 200), (65, 431)] {
        let mut wire = guest.connect().await;
        wire.send(format!("{begin}{}\r\n", "a: b\r\n".repeat(fields - 2))).await;
        assert_eq!(wire.answer().await.status, status, "{fields} fields");
    }
    // Without an end, it is not waited for.
    let mut endless = guest.connect().await;
    endless.send(format!("{begin}X: {}", "x".repeat(HEAD_MAX))).await;
    assert_eq!(endless.answer().await.status, 431);
}

/// Sends a byte of `text` every three seconds; gives the status that came and after how many seconds.
async fn drip(guest: &Guest, at_once: &str, text: &'static str) -> (u16, u64) {
    let (mut read, mut write) = guest.connect().await.0.into_split();
    let begun = tokio::time::Instant::now();
    write.write_all(at_once.as_bytes()).await.unwrap();
    let dripping = tokio::spawn(async move {
        for byte in text.bytes() {
            tokio::time::sleep(Duration::from_secs(3)).await;
            if write.write_all(&[byte]).await.is_err() {
                return;
            }
        }
    });
    let mut head = [0; 12];
    read.read_exact(&mut head).await.unwrap();
    let after = begun.elapsed().as_secs();
    dripping.abort();
    (std::str::from_utf8(&head[9..]).unwrap().parse().unwrap(), after)
}

#[tokio::test(start_paused = true)]
async fn rule_46_ten_seconds_are_for_the_whole_request_and_begin_anew_with_the_next() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    let (status, after) = drip(&guest, "GET /", "metadata/versions").await;
    assert!(status == 408 && (9..=13).contains(&after), "a head in drops: {status} after {after} s");
    let post =
        format!("POST {EVENTS} HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\nContent-Length: 20\r\n\r\n");
    let (status, after) = drip(&guest, &post, r#"{"StartRequests":[]}"#).await;
    assert!(status == 408 && (9..=13).contains(&after), "a body in drops: {status} after {after} s");
    let mut kept = guest.connect().await;
    for _ in 0..3 {
        // In two parts, so that its time begins before it is whole; and then nothing for longer than a request may take.
        let begun = tokio::time::Instant::now();
        kept.send("GET /metadata/versions HTTP/1.1\r\n").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        kept.send("Host: 169.254.169.254\r\nMetadata: true\r\n\r\n").await;
        assert_eq!(kept.answer().await.status, 200, "after {:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_secs(20)).await;
    }
}

#[tokio::test]
async fn rule_46_a_place_among_the_sixteen_is_given_back() {
    let limits = Limits { connections: Rate { per_second: 100_000, burst: 100_000 }, ..Limits::none() };
    let host = Host::new(Settings { limits: Limits { open: 16, ..limits }, ..Settings::default() }).await;
    let guest = host.guest("alone").await;
    let request = "GET /metadata/versions HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n";
    let mut open = Vec::new();
    for _ in 0..16 {
        let mut wire = guest.connect().await;
        wire.send(request).await;
        assert_eq!(wire.answer().await.status, 200);
        open.push(wire);
    }
    assert_eq!(guest.connect().await.exchange_all(request).await, "", "the seventeenth");
    open.pop();
    let until = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        // The end of the sixteenth may not have been seen yet.
        let mut wire = guest.connect().await;
        let closing = request.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
        if wire.exchange_all(&closing).await.starts_with("HTTP/1.1 200") {
            break;
        }
        assert!(std::time::Instant::now() < until, "the place was not given back");
    }
}

#[tokio::test]
async fn rule_48_neither_head_nor_get_approves_whatever_body_they_bring() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    guest.events().await;
    host.ok(Input::Announce(announce("j", &["alone"], 900))).await;
    let id = guest.ids().await[0].clone();
    let look =
        || host.service.read(|state, _| serde_json::to_string(&state.all_native_events(Now::default())).unwrap());
    let before = look();
    let body = approval(&id);
    let defer = format!("/metadata/x-maintenance/v1/events/{id}/defer");
    let until = format!(r#"{{"until":{}}}"#, START_MS + 1_000_000);
    for (path, body) in [(EVENTS, &body), (defer.as_str(), &until)] {
        let lines = format!("Metadata: true\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
        let get = guest.ask(&format!("GET {path}"), &lines, body.as_bytes()).await;
        let head = format!("HEAD {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n{lines}\r\n{body}");
        let head = guest.connect().await.exchange_all(&head).await;
        assert_eq!(head, get.head, "{path}: the head of the GET, and no body");
        assert_eq!(look(), before, "{path}");
    }
    assert!(!host.service.gate(&job("j")).is_empty());
    let tag = guest.events().await.header("ETag").unwrap().to_owned();
    let same = format!("HEAD {EVENTS} HTTP/1.0\r\nMetadata: true\r\nIf-None-Match: {tag}\r\n\r\n");
    assert!(guest.connect().await.exchange_all(&same).await.starts_with("HTTP/1.1 304 "));
}
