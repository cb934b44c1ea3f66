//! What operators get: simulations that touch nothing, and webhooks that tell every step, in order, to each target.
#![allow(clippy::unwrap_used, reason = "test support: a failure is a failed test")]

mod common;

use std::time::{Duration, Instant};

use common::*;
use fermata_events::*;
use fermata_imds::control::{self, Call, ControlClient, Simulated};
use fermata_imds::webhook::{Target, signature};
use fermata_imds::*;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;

/// A target: what it was sent, with when, and its answers in turn; the last one for good.
struct Receiver {
    url: String,
    got: mpsc::UnboundedReceiver<(Instant, String, Value)>,
}

impl Receiver {
    async fn new(answers: &'static [&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let (to, got) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            for number in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut text = String::new();
                let (head, body) = loop {
                    let mut more = [0; 4096];
                    let count = stream.read(&mut more).await.unwrap();
                    text.push_str(std::str::from_utf8(&more[..count]).unwrap());
                    let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
                    if body.len() == length.parse::<usize>().unwrap() {
                        break (head.to_owned(), body.to_owned());
                    }
                };
                let status = answers[number.min(answers.len() - 1)];
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
                let signed = head.lines().find_map(|line| line.strip_prefix("x-fermata-signature: ")).unwrap();
                let seconds = signed[2..].split(',').next().unwrap().parse().unwrap();
                assert_eq!(signed, signature("s", seconds, &body), "signed over its very bytes");
                to.send((Instant::now(), head, serde_json::from_str(&body).unwrap())).unwrap();
            }
        });
        Self { url, got }
    }

    fn target(&self) -> Target {
        Target { url: self.url.clone(), secret: "s".to_owned(), ca: None }
    }

    async fn take(&mut self, count: usize) -> Vec<(Instant, String, Value)> {
        let mut all = Vec::new();
        while all.len() < count {
            all.push(tokio::time::timeout(Duration::from_secs(20), self.got.recv()).await.expect("in time").unwrap());
        }
        all
    }
}

fn step(event: &Value) -> &str {
    event["type"].as_str().unwrap().strip_prefix("fermata.event.").unwrap().strip_suffix(".v1").unwrap()
}

async fn operator(host: &Host, folder: &std::path::Path) -> ControlClient {
    let path = folder.join("imds.sock");
    tokio::spawn(control::serve(UnixListener::bind(&path).unwrap(), host.service.clone()));
    ControlClient::connect(&path).await.unwrap()
}

const LIFE: [&str; 5] = ["scheduled", "approved", "started", "overrun", "removed"];

#[tokio::test]
async fn every_step_is_told_in_order_and_a_target_that_fails_holds_up_nobody_else() {
    let (mut good, mut slow) = (Receiver::new(&["204 Taken"]).await, Receiver::new(&["500 Broken", "200 OK"]).await);
    let settings = Settings { webhooks: vec![slow.target(), good.target()], ..settings() };
    let host = Host::new(settings).await;
    let guest = host.guest("alone").await;
    guest.events().await;
    host.ok(Input::Announce(announce("j", &["alone"], 900))).await;
    guest.approve(&guest.ids().await[0]).await;
    host.ok(Input::Start { job: job("j") }).await;
    host.pass(Duration::from_secs(5)).await;
    host.ok(Input::Pausing { job: job("j"), vms: vec![] }).await;
    host.ok(Input::Resumed { job: job("j"), vm: vm("alone"), paused_ms: 6_001 }).await;
    host.ok(Input::ClockVerified { job: job("j"), vm: vm("alone"), clock_step_ms: 6_001 }).await;
    host.ok(Input::Finish { job: job("j"), outcome: Outcome::Done }).await;
    let service = host.service.clone();
    let delivery = tokio::spawn(async move { service.run_webhooks().await });

    let good = good.take(5).await;
    let steps: Vec<&str> = good.iter().map(|(_, _, event)| step(event)).collect();
    assert_eq!(steps, LIFE);
    let ids: std::collections::BTreeSet<&str> =
        good.iter().map(|(_, _, event)| event["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 5, "each step has an id of its own: {ids:?}");
    for (_, head, event) in &good {
        assert!(head.starts_with("POST /hook HTTP/1.1"), "{head}");
        assert!(head.contains("content-type: application/cloudevents+json"), "{head}");
        assert_eq!((&event["specversion"], &event["source"]), (&"1.0".into(), &"/fermata/events".into()));
        assert_eq!(event["data"]["resources"], serde_json::json!(["alone"]));
        assert_eq!(event["data"].get("simulated"), None, "it is the real thing");
    }
    assert_eq!((&good[3].2["data"]["vm"], &good[4].2["data"]["outcome"]), (&"alone".into(), &"done".into()));

    let slow = slow.take(6).await;
    let steps: Vec<&str> = slow.iter().map(|(_, _, event)| step(event)).collect();
    assert_eq!(steps, ["scheduled", "scheduled", "approved", "started", "overrun", "removed"]);
    assert_eq!(slow[0].2, slow[1].2, "the same message again, with the same id");
    assert!(slow[1].0 - slow[0].0 >= Duration::from_secs(1), "not at once: {:?}", slow[1].0 - slow[0].0);
    assert!(good[4].0 < slow[1].0, "the other target has long been told");
    delivery.abort();
}

#[tokio::test]
async fn a_simulation_is_approved_like_the_real_thing_and_marked_as_none() {
    let folder = tempfile::tempdir().unwrap();
    let mut receiver = Receiver::new(&["204 Taken"]).await;
    let host = Host::new(Settings { webhooks: vec![receiver.target()], ..settings() }).await;
    let guest = host.guest("web1").await;
    guest.events().await;
    let mut operator = operator(&host, folder.path()).await;
    let simulate = Call::Simulate { vms: vec![vm("web0")], kind: EventKind::Freeze, notice_s: 900, pause_ms: 3_500 };
    let played: Simulated = operator.call(simulate).await.unwrap();
    let event = guest.events().await.json()["Events"][0].clone();
    assert_eq!((&event["EventStatus"], &event["EventType"]), (&"Scheduled".into(), &"Freeze".into()));
    assert_eq!((&event["DurationInSeconds"], &event["EventSource"]), (&4.into(), &"Platform".into()));
    assert_eq!(event["NotBefore"], "Wed, 31 May 2023 16:59:00 GMT", "a real notice");
    host.pass(Duration::from_secs(600)).await;
    assert_eq!(guest.statuses().await, ["Scheduled"]);
    guest.approve(event["EventId"].as_str().unwrap()).await;
    assert_eq!(guest.statuses().await, ["Started"], "approved");
    host.pass(Duration::from_secs(5)).await;
    host.pass(Duration::from_millis(3_499)).await;
    assert_eq!(guest.statuses().await, ["Started"], "the pause that is played is not over");
    host.pass(Duration::from_millis(1)).await;
    assert!(guest.statuses().await.is_empty());
    let records: Vec<Record> = operator.call(Call::History { since: UnixMs(0) }).await.unwrap();
    assert_eq!((records[0].event_id, records[0].simulated), (played.events[0], true));
    assert_eq!(records[0].vms[&vm("web0")].pause_ms, Some(3_500));
    let metrics: String = operator.call(Call::Metrics).await.unwrap();
    assert!(metrics.contains("fermata_events_pause_seconds_count 0\n"), "no VM was paused: {metrics}");
    assert!(metrics.contains("fermata_events_steps_total{step=\"removed\"} 1\n"), "{metrics}");
    let service = host.service.clone();
    let delivery = tokio::spawn(async move { service.run_webhooks().await });
    let told = receiver.take(4).await;
    let steps: Vec<&str> = told.iter().map(|(_, _, event)| step(event)).collect();
    assert_eq!(steps, ["scheduled", "approved", "started", "removed"]);
    assert!(told.iter().all(|(_, _, event)| event["data"]["simulated"] == true), "{told:?}");
    delivery.abort();
}

#[tokio::test]
async fn what_has_started_is_not_cancelled_by_its_event_and_an_operator_approves_whatever_the_policy() {
    let folder = tempfile::tempdir().unwrap();
    let events = Config { policy: ApprovalPolicy::OperatorOnly, ..Config::default() };
    let host = Host::new(Settings { events, ..settings() }).await;
    let guest = host.guest("alone").await;
    guest.events().await;
    let mut operator = operator(&host, folder.path()).await;
    operator.apply(Input::Announce(announce("j", &["alone"], 900))).await.unwrap();
    let event = host.service.read(|state, _| state.job(&job("j")).unwrap().events[0]);
    assert_eq!(guest.approve(&event.to_string()).await.status, 200);
    assert!(operator.apply(Input::Start { job: job("j") }).await.is_err(), "a guest's word does not count");
    let by = Approver::Operator { name: "ann".to_owned() };
    operator.apply(Input::Approve { events: vec![event], by }).await.unwrap();
    operator.apply(Input::Start { job: job("j") }).await.unwrap();
    let refused = operator.call::<Vec<Action>>(Call::CancelEvent { event }).await.unwrap_err().to_string();
    assert!(refused.contains("has started"), "{refused}");
    assert_eq!(guest.statuses().await, ["Started"]);
    let unknown = Call::CancelEvent { event: EventId(uuid::Uuid::nil()) };
    let refused = operator.call::<Vec<Action>>(unknown).await.unwrap_err().to_string();
    assert!(refused.contains("no event"), "{refused}");
}
