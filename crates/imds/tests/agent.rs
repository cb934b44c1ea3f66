//! The other side: the agent's control socket, operators' simulations, webhooks.
#![allow(clippy::unwrap_used, reason = "test support: a failure is a failed test")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::*;
use fermata_events::*;
use fermata_imds::control::{Call, ControlClient, Hello, JobView, Simulated, Vms};
use fermata_imds::webhook::{Target, signature};
use fermata_imds::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};

async fn control(service: &Service, folder: &std::path::Path) -> std::path::PathBuf {
    let path = folder.join("imds.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(control::serve(listener, service.clone()));
    path
}

async fn until(agent: &mut ControlClient, wanted: impl Fn(&Action) -> bool) -> Action {
    loop {
        match tokio::time::timeout(Duration::from_secs(10), agent.news()).await.expect("news in time").unwrap() {
            control::News::Action(action) if wanted(&action) => return action,
            control::News::Action(_) | control::News::Lost(_) => {}
        }
    }
}

#[tokio::test]
async fn an_agent_drives_a_maintenance_and_hears_what_guests_answer() {
    let folder = tempfile::tempdir().unwrap();
    let host = Host::new(settings()).await;
    let guest = host.guest("alone").await;
    let path = control(&host.service, folder.path()).await;
    let mut agent = ControlClient::connect(&path).await.unwrap();
    let hello: Hello = agent.call(Call::Hello).await.unwrap();
    assert_eq!(hello.protocol, 1);
    let () = agent.call(Call::Subscribe).await.unwrap();
    guest.events().await;
    agent.apply(Input::Announce(announce("m", &["alone"], 900))).await.unwrap();
    let id = guest.ids().await[0].clone();
    let refused = agent.apply(Input::Start { job: job("m") }).await.unwrap_err().to_string();
    assert!(refused.contains("may not start"), "{refused}");
    assert_eq!(guest.approve(&id).await.status, 200);
    let _ = until(&mut agent, |action| matches!(action, Action::GateOpened { .. })).await;

    // The agent dies; guests do not notice; the next one finds the open gate.
    drop(agent);
    assert_eq!(guest.statuses().await, ["Scheduled"]);
    let mut agent = ControlClient::connect(&path).await.unwrap();
    let jobs: Vec<JobView> = agent.call(Call::Jobs).await.unwrap();
    assert_eq!((jobs[0].job.id.0.as_str(), jobs[0].waits.len()), ("m", 0));
    agent.apply(Input::Start { job: job("m") }).await.unwrap();
    assert_eq!(guest.statuses().await, ["Started"]);
    host.clock.pass(Duration::from_secs(5));
    agent.apply(Input::Pausing { job: job("m"), vms: vec![] }).await.unwrap();
    agent.apply(Input::Resumed { job: job("m"), vm: vm("alone"), paused_ms: 800 }).await.unwrap();
    agent.apply(Input::ClockVerified { job: job("m"), vm: vm("alone"), clock_step_ms: 800 }).await.unwrap();
    agent.apply(Input::Finish { job: job("m"), outcome: Outcome::Done }).await.unwrap();
    assert!(guest.statuses().await.is_empty());
    let records: Vec<Record> = agent.call(Call::History { since: UnixMs(0) }).await.unwrap();
    assert_eq!(records[0].vms[&vm("alone")].pause_ms, Some(800));
    let vms: Vms = agent.call(Call::Vms).await.unwrap();
    assert!(vms[&vm("alone")].enabled && !vms[&vm("other")].enabled);
    let metrics: String = agent.call(Call::Metrics).await.unwrap();
    assert!(metrics.contains("fermata_events_pause_seconds_bucket{le=\"1\"} 1\n"), "{metrics}");
}

#[tokio::test]
async fn an_operator_plays_a_whole_life_cycle_and_cancels_another() {
    let folder = tempfile::tempdir().unwrap();
    let host = Host::new(settings()).await;
    let guest = host.guest("web1").await;
    guest.events().await;
    let path = control(&host.service, folder.path()).await;
    let mut operator = ControlClient::connect(&path).await.unwrap();
    let simulate = Call::Simulate { vms: vec![vm("web0")], kind: EventKind::Freeze, notice_s: 60, pause_ms: 3_000 };
    let first: Simulated = operator.call(simulate.clone()).await.unwrap();
    assert_eq!(guest.ids().await, [first.events[0].to_string()]);
    let _: Vec<Action> = operator.call(Call::CancelEvent { event: first.events[0] }).await.unwrap();
    assert!(guest.ids().await.is_empty());
    let second: Simulated = operator.call(simulate).await.unwrap();
    assert_ne!(first.events, second.events);
    let mut seen = Vec::new();
    for _ in 0..80 {
        let statuses = guest.statuses().await;
        if seen.last() != Some(&statuses) {
            seen.push(statuses);
        }
        host.pass(Duration::from_secs(1)).await;
    }
    assert_eq!(seen, [vec!["Scheduled".to_owned()], vec!["Started".to_owned()], vec![]]);
}

#[tokio::test]
async fn a_line_that_is_no_call_is_answered_and_the_connection_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let host = Host::new(settings()).await;
    let path = control(&host.service, folder.path()).await;
    let mut stream = tokio::net::UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"what?\n{\"id\":7,\"call\":\"hello\"}\n").await.unwrap();
    let mut text = String::new();
    while text.lines().count() < 2 || !text.ends_with('\n') {
        let mut buffer = [0; 1024];
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(count > 0, "{text}");
        text.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
    }
    assert!(text.starts_with(r#"{"id":0,"error":"control: the line is no call"#), "{text}");
    assert!(text.lines().nth(1).unwrap().starts_with(r#"{"id":7,"ok":{"#), "{text}");
}

/// Takes one request; gives its head and body, and answers with `status`.
async fn receive(listener: &TcpListener, status: &str) -> (String, String) {
    let (stream, _) = listener.accept().await.unwrap();
    take(stream, status).await
}

async fn take(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin, status: &str) -> (String, String) {
    let mut bytes = Vec::new();
    loop {
        let mut more = [0; 4096];
        let count = stream.read(&mut more).await.unwrap();
        bytes.extend_from_slice(&more[..count]);
        let text = String::from_utf8(bytes.clone()).unwrap();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length: ").map(str::to_owned));
            if body.len() == length.unwrap().parse::<usize>().unwrap() {
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
                return (head.to_owned(), body.to_owned());
            }
        }
    }
}

#[tokio::test]
async fn a_webhook_is_signed_and_tried_until_it_is_taken_across_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state.db");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let settings =
        || Settings { webhooks: vec![Target { url: url.clone(), secret: "s".to_owned(), ca: None }], ..settings() };
    let first = {
        let host = Host::with(Box::new(SqliteStore::open(&file).unwrap()), settings()).await;
        host.ok(Input::Announce(announce("j", &["alone"], 900))).await;
        let service = host.service.clone();
        let delivery = tokio::spawn(async move { service.run_webhooks().await });
        let refused = receive(&listener, "500 Broken").await;
        delivery.abort();
        let _ = delivery.await;
        refused
    };
    let store = Box::new(SqliteStore::open(&file).unwrap());
    let service = Service::open(store, Arc::new(HandClock::new()), settings()).unwrap();
    let delivering = service.clone();
    let delivery = tokio::spawn(async move { delivering.run_webhooks().await });
    let second = receive(&listener, "204 Taken").await;
    assert_eq!(first.1, second.1, "the same message, with the same id");
    let signed = second.0.lines().find_map(|l| l.strip_prefix("x-fermata-signature: ")).unwrap();
    assert_eq!(signed, signature("s", START_MS / 1000, &second.1));
    let event: serde_json::Value = serde_json::from_str(&second.1).unwrap();
    assert_eq!((&event["specversion"], &event["type"]), (&"1.0".into(), &"fermata.event.scheduled.v1".into()));
    assert_eq!((&event["time"], &event["subject"]), (&"2023-05-31T16:44:00.000Z".into(), &"vm/alone".into()));
    service.apply(Input::Cancel { job: job("j") }).await.unwrap();
    let third = receive(&listener, "200 OK").await;
    assert!(third.1.contains("fermata.event.removed.v1") && third.1.contains("cancelled"), "{}", third.1);
    delivery.abort();
}

#[tokio::test]
async fn a_webhook_goes_over_tls_to_whom_the_operator_trusts_and_to_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("localhost:0").await.unwrap();
    let url = format!("https://localhost:{}/hook", listener.local_addr().unwrap().port());
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, own.cert.pem()).unwrap();
    let stranger = folder.path().join("stranger.pem");
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&stranger, other.cert.pem()).unwrap();
    for (ca, trusted) in [(stranger, false), (ca, true)] {
        let target = Target { url: url.clone(), secret: "s".to_owned(), ca: Some(ca) };
        let host = Host::new(Settings { webhooks: vec![target], ..settings() }).await;
        host.ok(Input::Announce(announce("j", &["alone"], 900))).await;
        let service = host.service.clone();
        let delivery = tokio::spawn(async move { service.run_webhooks().await });
        let (stream, _) = listener.accept().await.unwrap();
        match acceptor.accept(stream).await {
            Ok(stream) => {
                assert!(trusted, "nothing is said to a target that nobody vouches for");
                assert!(take(stream, "204 Taken").await.1.contains("fermata.event.scheduled.v1"));
            }
            Err(_) => assert!(!trusted, "the target is who it should be"),
        }
        delivery.abort();
    }
}

#[tokio::test]
async fn a_link_survives_the_services_restart_and_tells_open_gates_again() {
    use fermata_imds::link::{Announcement, Link, Told};
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state.db");
    let path = folder.path().join("imds.sock");
    let open = |clock: HandClock| {
        Service::open(Box::new(SqliteStore::open(&file).unwrap()), Arc::new(clock), settings()).unwrap()
    };
    let link = Arc::new(Link::new(path.clone()));
    let (to, mut told) = tokio::sync::mpsc::unbounded_channel();
    let listening = {
        let link = link.clone();
        tokio::spawn(async move { link.listen(to).await })
    };
    let announce = || {
        link.announce(Announcement {
            job: job("m"),
            host: "host1".to_owned(),
            kind: EventKind::Freeze,
            source: EventSource::Platform,
            description: String::new(),
            reason: "kernel".to_owned(),
            notice: Duration::from_secs(900),
            lead: Duration::from_secs(2),
            defer: event::DeferLimits::default(),
            affected: vec![Affected::new(vm("a"), PauseBound::AtMostMs(2_000))],
        })
    };
    // The runtime of the first service is dropped with every connection, as a killed process would drop them.
    let first = tokio::task::spawn_blocking({
        let (open, path) = (open(HandClock::new()), path.clone());
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
            let server = std::thread::spawn(move || {
                runtime.block_on(async {
                    let listener = UnixListener::bind(path).unwrap();
                    tokio::select! { _ = control::serve(listener, open) => {}, _ = stopped => {} }
                });
            });
            (stop, server)
        }
    })
    .await
    .unwrap();
    link.sync(vec![VmRecord::new(vm("a")), VmRecord::new(vm("b"))]).await.unwrap();
    link.sync(vec![VmRecord::new(vm("a"))]).await.unwrap();
    announce().await.unwrap();
    assert_eq!(told.recv().await, Some(Told::Connected));
    assert_eq!(told.recv().await, Some(Told::GateOpened(job("m"))), "nobody asked, so no notice is owed");
    drop(first.0);
    tokio::task::spawn_blocking(move || first.1.join().unwrap()).await.unwrap();
    std::fs::remove_file(&path).unwrap();
    let service = open(HandClock::new());
    tokio::spawn(control::serve(UnixListener::bind(&path).unwrap(), service.clone()));
    assert_eq!(told.recv().await, Some(Told::Connected));
    assert_eq!(told.recv().await, Some(Told::GateOpened(job("m"))), "told again");
    announce().await.expect("the same announcement changes nothing");
    assert_eq!(service.read(|state, _| (state.vms().count(), state.events().count())), (1, 1));
    link.apply(Input::Start { job: job("m") }).await.unwrap();
    link.apply(Input::Finish { job: job("m"), outcome: Outcome::Undone }).await.unwrap();
    while told.recv().await != Some(Told::Over(job("m"), Outcome::Undone)) {}
    drop(told);
    listening.await.unwrap();
}
