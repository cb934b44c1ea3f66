//! The normative rules of the wire, each by its number, over real sockets.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::*;
use fermata_events::*;
use fermata_imds::limits::{Limits, Rate};
use fermata_imds::*;

const EVENTS: &str = "/metadata/scheduledevents?api-version=2020-07-01";
const INSTANCE: &str = "/metadata/instance?api-version=2021-08-01";

#[tokio::test]
async fn rule_01_plain_http_10_and_11_without_redirects() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    let mut old = guest.connect().await;
    old.send(format!("GET {EVENTS} HTTP/1.0\r\nMetadata: true\r\n\r\n")).await;
    let answer = old.answer().await;
    assert_eq!((answer.status, answer.header("Connection")), (200, Some("close")));
    assert!(old.closed().await);
    assert_eq!(guest.get("/metadata/scheduledevents").await.status, 400);
    assert_eq!(guest.get("/").await.status, 404);
}

#[tokio::test]
async fn rule_02_close_is_answered_with_close_and_kept_connections_serve_on() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    let mut wire = guest.connect().await;
    for _ in 0..3 {
        wire.send(format!("GET {EVENTS} HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n")).await;
        let answer = wire.answer().await;
        assert_eq!((answer.status, answer.header("Connection")), (200, None));
    }
    wire.send(
        format!("GET {EVENTS} HTTP/1.1\r\nHost: h\r\nMetadata: true\r\nConnection: close\r\n\r\n")
            .replace("Host: h", "Host: 169.254.169.254"),
    )
    .await;
    let answer = wire.answer().await;
    assert_eq!((answer.status, answer.header("Connection")), (200, Some("close")));
    assert!(wire.closed().await);
}

#[tokio::test]
async fn rule_03_media_types_length_and_date() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    let json = guest.events().await;
    assert_eq!(json.header("Content-Type"), Some("application/json; charset=utf-8"));
    assert_eq!(json.header("Date"), Some("Wed, 31 May 2023 16:44:00 GMT"));
    let text = guest.get("/metadata/instance/compute/name?api-version=2021-08-01&format=text").await;
    assert_eq!(text.header("Content-Type"), Some("text/plain; charset=utf-8"));
    assert_eq!(text.body, "alone");
    // On a connection that is kept, too, the date is that of each answer.
    let mut wire = guest.connect().await;
    for date in ["Wed, 31 May 2023 16:44:00 GMT", "Wed, 31 May 2023 16:44:01 GMT"] {
        wire.send(format!("GET {EVENTS} HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n")).await;
        assert_eq!(wire.answer().await.header("Date"), Some(date));
        host.clock.pass(Duration::from_secs(1));
    }
}

#[tokio::test]
async fn rule_04_paths_ignore_case_and_one_trailing_slash() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    for path in ["/metadata/scheduledEvents", "/Metadata/ScheduledEvents", "/metadata/scheduledevents/"] {
        assert_eq!(guest.get(&format!("{path}?api-version=2020-07-01")).await.status, 200, "{path}");
    }
    for path in
        ["/metadata/scheduledevents//", "//metadata/scheduledevents", "/metadata/scheduledevents/x", "/metadata"]
    {
        assert_eq!(guest.get(&format!("{path}?api-version=2020-07-01")).await.status, 404, "{path}");
    }
    let leaf = guest.get("/metadata/instance/Compute/VMID?api-version=2021-08-01&format=text").await;
    assert_eq!(leaf.status, 200);
}

#[tokio::test]
async fn rule_05_the_header_matrix() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    let table = [
        ("", 400),
        ("Metadata: true\r\n", 200),
        ("Metadata: True\r\n", 200),
        ("METADATA: TRUE\r\n", 200),
        ("metadata:true\r\n", 200),
        ("Metadata: 1\r\n", 400),
        ("Metadata: false\r\n", 400),
        ("Metadata:\r\n", 400),
        ("Metadata: true\r\nX-Forwarded-For: 10.0.0.1\r\n", 400),
        ("Metadata: true\r\nx-forwarded-for:\r\n", 400),
        ("Metadata: true\r\nX-Forwarded-Host: x\r\n", 200),
    ];
    for (lines, status) in table {
        for path in [EVENTS, INSTANCE, "/metadata/versions"] {
            let answer = guest.ask(&format!("GET {path}"), lines, b"").await;
            assert_eq!(answer.status, status, "{path} {lines:?}");
            assert!(status == 200 || answer.json()["error"].is_string());
        }
        let post = format!("{lines}Content-Length: 20\r\n");
        let answer = guest.ask(&format!("POST {EVENTS}"), &post, br#"{"StartRequests":[]}"#).await;
        assert_eq!(answer.status, status, "POST {lines:?}");
    }
    let missing = guest.ask(&format!("GET {EVENTS}"), "", b"").await;
    assert_eq!(missing.body, r#"{"error":"Bad request. Required metadata header not specified"}"#);
}

#[tokio::test]
async fn rule_06_and_23_the_body_matrix() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    guest.events().await;
    host.ok(Input::Announce(announce("j", &["alone"], 900))).await;
    host.ok(Input::Announce(announce("k", &["other"], 0))).await;
    let id = guest.ids().await[0].clone();
    let foreign = host.guest("other").await.ids().await[0].clone();
    let one = |id: &str| format!(r#"{{"EventId":"{id}"}}"#);
    let table: Vec<(String, u16)> = vec![
        (format!(r#"{{"StartRequests":[{}]}}"#, one(&id)), 200),
        (format!("\u{feff}{{\"StartRequests\":[{}]}}", one(&id)), 200),
        (format!(r#"{{"DocumentIncarnation":null,"StartRequests":[{}]}}"#, one(&id)), 200),
        (format!(r#"{{"DocumentIncarnation":"5","StartRequests":[{}]}}"#, one(&id)), 200),
        (format!(r#"{{"DocumentIncarnation":5,"StartRequests":[{0},{0}]}}"#, one(&id)), 200),
        (format!(r#"{{"startrequests":[{{"eventid":"{}"}}]}}"#, id.to_lowercase()), 200),
        (r#"{"StartRequests":[]}"#.to_owned(), 200),
        (format!(r#"{{"StartRequests":[{},{}]}}"#, one(&id), one(&foreign)), 400),
        (format!(r#"{{"StartRequests":[{}]}}"#, one(&foreign)), 400),
        (format!(r#"{{"StartRequests":[{}]}}"#, one("00000000-0000-0000-0000-000000000000")), 400),
        (format!(r#"{{"StartRequests":[{}]}}"#, one("x")), 400),
        (r#"{"StartRequests":[{"EventId":5}]}"#.to_owned(), 400),
        (r#"{"StartRequests":["x"]}"#.to_owned(), 400),
        (r#"{"StartRequests":{}}"#.to_owned(), 400),
        (r#"{"StartRequests":[{"EventId""#.to_owned(), 400),
        ("[]".to_owned(), 400),
        ("{}".to_owned(), 400),
        (String::new(), 400),
        ("EventId=1".to_owned(), 400),
        ("[".repeat(60_000), 400),
    ];
    for (body, status) in table {
        let answer = guest.post(body.as_bytes()).await;
        assert_eq!(answer.status, status, "{body}");
        assert_eq!(answer.body.is_empty(), status == 200, "rule 21: an empty body on success");
    }
    // Whatever the media type says.
    let body = format!(r#"{{"StartRequests":[{}]}}"#, one(&id));
    for kind in ["application/x-www-form-urlencoded", "text/plain", "application/json; charset=utf-8", "a"] {
        let lines = format!("Metadata: true\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n", body.len());
        assert_eq!(guest.ask(&format!("POST {EVENTS}"), &lines, body.as_bytes()).await.status, 200, "{kind}");
    }
    let chunks = format!("5\r\n{}\r\n{:x}\r\n{}\r\n0\r\n\r\n", &body[..5], body.len() - 5, &body[5..]);
    let lines = "Metadata: true\r\nTransfer-Encoding: chunked\r\n";
    assert_eq!(guest.ask(&format!("POST {EVENTS}"), lines, chunks.as_bytes()).await.status, 200);
}

#[tokio::test]
async fn rule_06_expect_100_continue() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    let mut wire = guest.connect().await;
    let body = r#"{"StartRequests":[]}"#;
    wire.send(format!(
        "POST {EVENTS} HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    ))
    .await;
    assert_eq!(wire.answer().await.status, 100);
    wire.send(body).await;
    assert_eq!(wire.answer().await.status, 200);
}

#[tokio::test]
async fn rule_07_and_08_and_09_versions_are_per_category_and_unknown_keys_ignored() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    let table = [
        ("/metadata/scheduledevents?api-version=2020-07-01", 200),
        ("/metadata/scheduledevents?API-Version=2020-07-01", 200),
        ("/metadata/scheduledevents?api-version=2020-07-01&format=json&x=y", 200),
        ("/metadata/scheduledevents?api-version=2020-07-01&api-version=2020-07-01", 400),
        ("/metadata/scheduledevents?api-version=2020-07-01&x=1&X=2", 400),
        ("/metadata/scheduledevents?api-version=2021-08-01", 400),
        ("/metadata/scheduledevents?api-version=latest", 400),
        ("/metadata/instance?api-version=2020-07-01", 400),
        ("/metadata/instance?api-version=2021-08-01", 200),
        ("/metadata/versions?whatever=1", 200),
    ];
    for (path, status) in table {
        let lines = "x-ms-client-request-id: 1\r\nx-ms-version: 2\r\nUser-Agent: a\r\n";
        assert_eq!(guest.get_with(path, lines).await.status, status, "{path}");
    }
    for version in ApiVersion::ALL {
        assert_eq!(
            guest.get(&format!("/metadata/scheduledevents?api-version={version}")).await.status,
            200,
            "{version}"
        );
    }
    let newest = guest.get("/metadata/scheduledevents?api-version=1").await.json();
    assert_eq!(newest["newest-versions"], serde_json::json!(["2020-07-01", "2019-08-01", "2019-04-01"]));
}

#[tokio::test]
async fn rule_10_other_verbs_are_405_and_nothing_is_said_about_origins() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    for verb in ["OPTIONS", "PUT", "DELETE", "TRACE", "PATCH", "CONNECT", "get"] {
        let answer = guest.ask(&format!("{verb} {EVENTS}"), "Metadata: true\r\nOrigin: http://x\r\n", b"").await;
        assert_eq!((answer.status, answer.header("Allow")), (405, Some("GET, HEAD, POST")), "{verb}");
        assert!(!answer.head.to_lowercase().contains("access-control"));
    }
    let answer = guest.ask(&format!("POST {INSTANCE}"), "Metadata: true\r\n", b"").await;
    assert_eq!((answer.status, answer.header("Allow")), (405, Some("GET, HEAD")));
}

#[tokio::test]
async fn rule_19_etag_and_304_on_get_only() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    let first = guest.events().await;
    let tag = first.header("ETag").unwrap().to_owned();
    assert!(tag.starts_with('"') && tag.ends_with("-1-2020-07-01\""), "{tag}");
    let bare = tag.trim_matches('"');
    for same in [tag.clone(), format!("W/{tag}"), bare.to_owned(), "*".to_owned(), format!("\"x\", {tag}")] {
        let answer = guest.get_with(EVENTS, &format!("If-None-Match: {same}\r\n")).await;
        assert_eq!((answer.status, answer.body.as_str()), (304, ""), "{same}");
        assert_eq!(answer.header("ETag"), Some(tag.as_str()));
    }
    for other in ["0", "null", "\"\"", "-1"] {
        assert_eq!(guest.get_with(EVENTS, &format!("If-None-Match: {other}\r\n")).await.status, 200, "{other}");
    }
    host.ok(Input::Announce(announce("j", &["alone"], 900))).await;
    assert_eq!(guest.get_with(EVENTS, &format!("If-None-Match: {tag}\r\n")).await.status, 200);
    let id = guest.ids().await[0].clone();
    let body = format!(r#"{{"StartRequests":[{{"EventId":"{id}"}}]}}"#);
    let now = guest.events().await.header("ETag").unwrap().to_owned();
    for header in ["If-None-Match: *", &format!("If-None-Match: {now}"), "If-Match: \"x\""] {
        let lines = format!("Metadata: true\r\n{header}\r\nContent-Length: {}\r\n", body.len());
        assert_eq!(guest.ask(&format!("POST {EVENTS}"), &lines, body.as_bytes()).await.status, 200, "{header}");
    }
}

#[tokio::test]
async fn rule_21_and_22_an_approval_is_200_and_empty_at_any_time() {
    let host = Host::new(settings()).await;
    let guest = host.guest("web1").await;
    guest.events().await;
    host.ok(Input::Announce(announce("j", &["web0"], 900))).await;
    let id = guest.ids().await[0].clone();
    let empty = |answer: Answer| (answer.status, answer.body.len()) == (200, 0);
    assert!(empty(guest.approve(&id).await), "a peer approves");
    assert!(empty(guest.approve(&id).await), "again");
    host.ok(Input::Start { job: job("j") }).await;
    assert!(empty(guest.approve(&id).await), "after Started");
    host.ok(Input::Finish { job: job("j"), outcome: Outcome::Done }).await;
    assert!(guest.ids().await.is_empty());
    assert!(empty(guest.approve(&id).await), "after the end");
    assert_eq!(host.guest("alone").await.approve(&id).await.status, 400, "out of scope");
}

#[tokio::test]
async fn rule_25_and_27_and_28_the_instance_tree() {
    let host = Host::new(settings()).await;
    let guest = host.guest("web0").await;
    let whole = guest.get(INSTANCE).await.json();
    assert_eq!(whole["compute"]["name"], "web0");
    assert!(whole.get("extended").is_none());
    let extended = guest.get(&format!("{INSTANCE}&extended=true")).await.json();
    assert_eq!(extended["extended"]["compute"]["ppsType"], "None");
    let text = |path: &str| format!("/metadata/instance{path}?api-version=2021-08-01&format=text");
    let json = |path: &str| format!("/metadata/instance{path}?api-version=2021-08-01&format=json");
    let table = [
        (text("/compute/zone"), 200, ""),
        (text(""), 200, "compute/\nnetwork/"),
        (text("/compute/osProfile"), 200, "adminUsername\ncomputerName\ndisablePasswordAuthentication"),
        (text("/network/interface"), 200, ""),
    ];
    for (path, status, body) in table {
        let answer = guest.get(&path).await;
        assert_eq!((answer.status, answer.body.as_str()), (status, body), "{path}");
    }
    for (path, status) in [
        (json("/compute/name"), 400),
        (json("/compute"), 200),
        (json("/compute/nothing"), 404),
        (json("/network/interface/0"), 404),
        (json("/compute/name/x"), 404),
        ("/metadata/instance?api-version=2021-08-01&format=xml".to_owned(), 400),
        ("/metadata/instance/compute/physicalZone?api-version=2021-08-01&format=text".to_owned(), 404),
        ("/metadata/instance/compute/physicalZone?api-version=2023-11-15&format=text".to_owned(), 200),
    ] {
        assert_eq!(guest.get(&path).await.status, status, "{path}");
    }
}

#[tokio::test]
async fn rule_26_a_missing_version_names_the_newest_three() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    for path in ["/metadata/instance", "/metadata/instance/compute", "/metadata/instance?api-version=1"] {
        let answer = guest.get(path).await;
        assert_eq!(answer.status, 400);
        let newest = &answer.json()["newest-versions"];
        assert_eq!(*newest, serde_json::json!(["2025-04-07", "2024-07-17", "2024-03-15"]), "{path}");
    }
    let versions = guest.get("/metadata/versions").await.json();
    assert_eq!(versions["apiVersions"].as_array().unwrap().len(), 35);
}

#[tokio::test]
async fn rule_29_404_and_410_while_loading_and_identity_without_delay() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    for path in [
        "/metadata/loadbalancer",
        "/metadata/reprovisiondata",
        "/metadata/attested/document?api-version=2018-10-01",
        "/x",
    ] {
        let answer = guest.get(path).await;
        assert_eq!((answer.status, answer.body.as_str()), (404, r#"{"error":"Not found"}"#), "{path}");
    }
    let token = guest.get("/metadata/identity/oauth2/token?api-version=2018-02-01&resource=x").await;
    assert_eq!((token.status, token.json()["error_description"].as_str()), (400, Some("Identity not found")));
    host.service.set_loading(true);
    assert_eq!(guest.events().await.status, 410);
    assert_eq!(host.guest("stranger").await.events().await.status, 410, "a VM whose record has not come yet");
    host.service.set_loading(false);
    assert_eq!(guest.events().await.status, 200);
}

#[tokio::test]
async fn rule_29_and_31_bursts_pass_then_429_with_retry_after_and_other_vms_are_not_touched() {
    let host = Host::new(Settings { limits: Limits::default(), ..Settings::default() }).await;
    let (noisy, quiet) = (host.guest("alone").await, host.guest("other").await);
    for n in 0..30 {
        assert_eq!(noisy.events().await.status, 200, "request {n} of a burst");
    }
    let refused = noisy.events().await;
    assert_eq!((refused.status, refused.header("Retry-After")), (429, Some("1")));
    assert_eq!(quiet.events().await.status, 200);
    for leaf in 0..30 {
        let answer = noisy.get("/metadata/instance/compute/vmId?api-version=2019-06-04&format=text").await;
        assert_eq!(answer.status, 200, "leaf {leaf}: a bucket of its own");
    }
    host.clock.pass(Duration::from_secs(1));
    assert_eq!(noisy.events().await.status, 200);
}

#[tokio::test]
async fn rule_30_ordinary_requests_take_milliseconds() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    guest.events().await;
    let mut slowest = Duration::ZERO;
    for path in [EVENTS, INSTANCE, "/metadata/instance/compute/name?api-version=2021-08-01&format=text", "/nothing"] {
        let begun = std::time::Instant::now();
        guest.get(path).await;
        slowest = slowest.max(begun.elapsed());
    }
    assert!(slowest < Duration::from_millis(100), "{slowest:?}");
}

#[tokio::test]
async fn rule_42_no_200_for_what_could_not_be_written() {
    let broken = Arc::new(AtomicBool::new(false));
    let store = Fragile { inner: SqliteStore::in_memory().unwrap(), broken: broken.clone() };
    let host = Host::with(Box::new(store), settings()).await;
    let guest = host.guest("alone").await;
    broken.store(true, Ordering::Release);
    assert_eq!(guest.events().await.status, 503, "enablement is durable before it is answered");
    broken.store(false, Ordering::Release);
    assert_eq!(guest.events().await.status, 200);
    host.ok(Input::Announce(announce("j", &["alone"], 900))).await;
    let id = guest.ids().await[0].clone();
    broken.store(true, Ordering::Release);
    assert_eq!(guest.approve(&id).await.status, 503);
    broken.store(false, Ordering::Release);
    assert!(!host.service.gate(&job("j")).is_empty(), "the approval did not happen");
    assert_eq!(guest.approve(&id).await.status, 200);
    assert!(host.service.gate(&job("j")).is_empty());
}

#[tokio::test]
async fn rule_18_and_42_everything_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.db");
    let before = {
        let host = Host::with(Box::new(SqliteStore::open(&path).unwrap()), settings()).await;
        let guest = host.guest("alone").await;
        guest.events().await;
        host.ok(Input::Announce(announce("j", &["alone"], 900))).await;
        let id = guest.ids().await[0].clone();
        assert_eq!(guest.approve(&id).await.status, 200);
        guest.events().await
    };
    // No agent has said anything yet: what the store holds is enough to answer.
    let service =
        Service::open(Box::new(SqliteStore::open(&path).unwrap()), Arc::new(HandClock::new()), settings()).unwrap();
    let host = Host { service, clock: HandClock::new() };
    let after = host.guest("alone").await.events().await;
    assert_eq!((&after.body, after.header("ETag")), (&before.body, before.header("ETag")));
    assert!(host.service.gate(&job("j")).is_empty(), "the approval survived");
    assert!(host.service.read(|state, now| state.enabled_at(&"vm/alone".parse().unwrap(), now.wall)));
}

#[tokio::test]
async fn rule_45_a_long_poll_ends_with_news_and_before_a_pause() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    let wait = |tag: String, guest: SocketGuest| async move {
        guest.0.get_with(&format!("{EVENTS}&wait=60"), &format!("If-None-Match: {tag}\r\n")).await
    };
    assert_eq!(guest.get_with(&format!("{EVENTS}&wait=60"), "If-None-Match: 0\r\n").await.status, 200, "news at once");
    let tag = guest.events().await.header("ETag").unwrap().to_owned();
    let poll = tokio::spawn(wait(tag, SocketGuest(Guest { address: guest.address })));
    until_waiting(&host, 1).await;
    host.ok(Input::Announce(announce("j", &["alone"], 0))).await;
    let news = poll.await.unwrap();
    assert_eq!((news.status, news.json()["Events"][0]["EventStatus"].as_str()), (200, Some("Scheduled")));
    host.ok(Input::Start { job: job("j") }).await;
    let tag = guest.events().await.header("ETag").unwrap().to_owned();
    let poll = tokio::spawn(wait(tag, SocketGuest(Guest { address: guest.address })));
    until_waiting(&host, 2).await;
    host.pass(Duration::from_secs(5)).await;
    host.ok(Input::Pausing { job: job("j"), vms: vec![] }).await;
    host.service.waiters_gone(&[vm("alone")], Duration::from_secs(5)).await;
    assert_eq!(poll.await.unwrap().status, 304);
}

#[tokio::test]
async fn rule_44_half_done_requests_do_not_hold_up_a_pause_and_go_on_after_it() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    let tag = guest.events().await.header("ETag").unwrap().to_owned();
    let head = |first: &str, lines: &str| {
        format!("{first} HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n{lines}\r\n")
    };
    let body = r#"{"StartRequests":[]}"#;
    let get = head(&format!("GET {EVENTS}"), "");
    let post = head(&format!("POST {EVENTS}"), &format!("Content-Length: {}\r\n", body.len()));
    let (mut getting, mut posting, mut polling) = (guest.connect().await, guest.connect().await, guest.connect().await);
    getting.send(&get[..30]).await;
    posting.send(post + &body[..7]).await;
    host.ok(Input::Announce(announce("j", &["other"], 0))).await;
    polling.send(head(&format!("GET {EVENTS}&wait=60"), &format!("If-None-Match: {tag}\r\n"))).await;
    until_waiting(&host, 1).await;
    host.ok(Input::Announce(announce("k", &["web0"], 0))).await;
    host.ok(Input::Start { job: job("j") }).await;
    host.pass(Duration::from_secs(5)).await;
    // The pause of another VM wakes nobody here; the pause of this one does.
    let begun = std::time::Instant::now();
    host.ok(Input::Pausing { job: job("j"), vms: vec![] }).await;
    host.ok(Input::Announce(announce("mine", &["alone"], 0))).await;
    assert_eq!(polling.answer().await.status, 200, "news for this VM");
    host.ok(Input::Start { job: job("mine") }).await;
    host.pass(Duration::from_secs(5)).await;
    host.ok(Input::Pausing { job: job("mine"), vms: vec![] }).await;
    host.service.waiters_gone(&[vm("alone")], Duration::from_secs(5)).await;
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    host.ok(Input::Resumed { job: job("mine"), vm: vm("alone"), paused_ms: 3_000 }).await;
    getting.send(&get[30..]).await;
    posting.send(&body[7..]).await;
    assert_eq!((getting.answer().await.status, posting.answer().await.status), (200, 200));
    drop((getting, posting));
    assert_eq!(guest.statuses().await, ["Started"]);
}

struct SocketGuest(Guest);

/// Waits until `count` long polls have begun in all, by the service's own counter.
async fn until_waiting(host: &Host, count: u64) {
    let wanted = format!("fermata_imds_long_polls_total {count}\n");
    while !host.service.metrics_text().contains(&wanted) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn rule_46_slow_requests_end_after_ten_seconds_and_idle_connections_later() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    let mut slow = guest.connect().await;
    slow.send("GET / HT").await;
    let begun = tokio::time::Instant::now();
    assert_eq!(slow.answer().await.status, 408);
    assert!((9..=11).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    let mut idle = guest.connect().await;
    let begun = tokio::time::Instant::now();
    assert!(idle.closed().await);
    assert!((60..=90).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn rule_46_sixteen_connections_and_no_more_per_vm() {
    let limits = Limits { connections: Rate { per_second: 1_000, burst: 1_000 }, ..Limits::default() };
    let host = Host::new(Settings { limits, ..Settings::default() }).await;
    let guest = host.guest("alone").await;
    let mut open = Vec::new();
    for _ in 0..16 {
        let mut wire = guest.connect().await;
        wire.send("GET /metadata/versions HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n").await;
        assert_eq!(wire.answer().await.status, 200);
        open.push(wire);
    }
    let whole = "GET /metadata/versions HTTP/1.0\r\nMetadata: true\r\n\r\n";
    assert_eq!(guest.connect().await.exchange_all(whole).await, "", "the seventeenth");
    assert_eq!(host.guest("other").await.events().await.status, 200, "another VM has its own sixteen");
    let body = vec![b' '; 65 * 1024];
    assert_eq!(host.guest("other").await.post(&body).await.status, 413);
}

#[tokio::test]
async fn rule_46_a_flooding_vm_is_cut_off_at_the_door() {
    let host = Host::new(Settings { limits: Limits::default(), ..Settings::default() }).await;
    let guest = host.guest("alone").await;
    let mut refused = 0;
    for _ in 0..200 {
        let mut wire = guest.connect().await;
        let request = "GET /metadata/versions HTTP/1.0\r\nMetadata: true\r\n\r\n";
        // A refused connection is reset, before or after the request leaves.
        let said = wire.exchange_all(request).await;
        refused += u32::from(said.is_empty());
    }
    assert_eq!(refused, 100, "the bucket holds 100 connections, and no time passes");
}

#[tokio::test]
async fn rule_48_a_get_changes_nothing_but_enablement() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    host.ok(Input::Announce(announce("j", &["alone"], 900))).await;
    let id = guest.ids().await[0].clone();
    // Approvals, deferrals and gates are in the native form, not in the document.
    let look =
        || host.service.read(|state, _| serde_json::to_string(&state.all_native_events(Now::default())).unwrap());
    let before = (look(), guest.events().await.body);
    for path in [
        format!("{EVENTS}&StartRequests={id}"),
        format!("/metadata/scheduledevents/{id}?api-version=2020-07-01"),
        format!("/metadata/x-maintenance/v1/events/{id}/defer?until={}", START_MS + 1_000_000),
    ] {
        guest.get(&path).await;
        let head = format!("HEAD {path} HTTP/1.0\r\nMetadata: true\r\n\r\n");
        let said = guest.connect().await.exchange_all(&head).await;
        assert!(said.ends_with("\r\n\r\n"), "rule 3 still, and no body: {said}");
    }
    assert_eq!((look(), guest.events().await.body), before);
}

#[tokio::test]
async fn a_host_header_that_names_somebody_else_is_refused() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    for (name, status) in [("169.254.169.254", 200), ("169.254.169.254:80", 200), ("evil.example", 400), ("", 400)] {
        let mut wire = guest.connect().await;
        wire.send(format!(
            "GET /metadata/versions HTTP/1.1\r\nHost: {name}\r\nMetadata: true\r\nConnection: close\r\n\r\n"
        ))
        .await;
        assert_eq!(wire.answer().await.status, status, "{name}");
    }
}

#[tokio::test]
async fn the_native_extensions() {
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    guest.events().await;
    host.ok(Input::Announce(announce("j", &["alone"], 900))).await;
    host.ok(Input::Announce(announce("k", &["other"], 900))).await;
    let native = guest.get("/metadata/x-maintenance/v1/events").await.json();
    let event = &native["events"][0];
    assert_eq!(native["events"].as_array().unwrap().len(), 1);
    assert_eq!(native["serverTimeUnixMs"], START_MS);
    assert_eq!(event["resources"][0], serde_json::json!({ "vm": "alone", "expectedPauseMs": 6_000 }));
    assert_eq!((&event["gate"]["state"], &event["gate"]["waits"][0]), (&"waiting".into(), &"notice".into()));
    let id = event["eventId"].as_str().unwrap().to_owned();
    let defer = |until: i64| {
        let body = format!(r#"{{"until":{until}}}"#);
        (format!("Metadata: true\r\nContent-Length: {}\r\n", body.len()), body)
    };
    let path = format!("POST /metadata/x-maintenance/v1/events/{id}/defer");
    let (lines, body) = defer(START_MS + 2_000_000);
    assert_eq!(guest.ask(&path, &lines, body.as_bytes()).await.status, 409, "beyond the operator's limit");
    let (lines, body) = defer(START_MS + 1_200_000);
    assert_eq!(guest.ask(&path, &lines, body.as_bytes()).await.status, 200);
    let native = guest.get("/metadata/x-maintenance/v1/events").await.json();
    assert_eq!(native["events"][0]["deferredUntilUnixMs"], START_MS + 1_200_000);
    guest.approve(&id).await;
    host.ok(Input::Start { job: job("j") }).await;
    host.pass(Duration::from_secs(5)).await;
    host.ok(Input::Pausing { job: job("j"), vms: vec![] }).await;
    host.ok(Input::Resumed { job: job("j"), vm: vm("alone"), paused_ms: 1_234 }).await;
    assert_eq!(guest.statuses().await, ["Started"], "rule 33: resumed, not yet verified");
    host.ok(Input::ClockVerified { job: job("j"), vm: vm("alone"), clock_step_ms: 1_234 }).await;
    host.ok(Input::Finish { job: job("j"), outcome: Outcome::Done }).await;
    let history = guest.get("/metadata/x-maintenance/v1/history?since=0").await.json();
    assert_eq!(history["events"][0]["vms"]["alone"], serde_json::json!({ "pauseMs": 1_234, "clockStepMs": 1_234 }));
    let time = guest.get("/metadata/x-maintenance/v1/time").await.json();
    assert_eq!((&time["hostUnixMs"], &time["lastResync"]["pauseMs"]), (&(START_MS + 5_000).into(), &1_234.into()));
    assert_eq!(
        host.guest("other").await.get("/metadata/x-maintenance/v1/history").await.json()["events"],
        serde_json::json!([])
    );
}
