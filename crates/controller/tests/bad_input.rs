//! What must be refused, or waited out, each with the reason and the way out: over real sockets, with played work.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]
#![allow(dead_code, reason = "the stage and its hosts are shared with other tests")]

#[path = "fleet/host.rs"]
mod host;
#[path = "fleet/stage.rs"]
mod stage;

use std::collections::BTreeMap;
use std::time::Duration;

use fermata_controller::client::ClientError;
use fermata_controller::rollout::Explanation;
use fermata_controller::wire::{Alarm, Command, KeptUpdate, Planned};
use serde_json::{Value, json};
use stage::{Stage, UPDATE};

const TWO: [(&str, &[(&str, u8)]); 2] = [("h1", &[("web", 0)]), ("h2", &[("web", 1)])];

fn refusal<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> String {
    match answer.unwrap_err() {
        ClientError::Refused { error, .. } => error,
        other => panic!("{other}"),
    }
}

async fn plan(stage: &Stage, change: impl FnOnce(&mut Value)) -> Result<Planned, ClientError> {
    let kept: KeptUpdate = stage.operator.post_text("/v1/updates", UPDATE.to_owned()).await.unwrap();
    let mut new = json!({
        "id": "patch",
        "reason": "test",
        "updates": [kept.update],
        "policy": { "recovery_s": 0, "work_s": 1 },
        "rules": { "notice": { "secs": 0, "nanos": 0 } }
    });
    change(&mut new);
    stage.operator.post("/v1/rollouts", &new).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_rollouts_of_one_set_never_overlap() {
    let stage = Stage::new(&TWO).await;
    stage.world.work_lasts(Duration::from_millis(300));
    stage.plan("first", "0").await;
    stage.plan("second", "0").await;
    stage.order("first", "start", Command::default()).await.unwrap();
    stage.order("second", "start", Command::default()).await.unwrap();
    stage.until_phase("first", "completed").await;
    stage.until_phase("second", "completed").await;
    let journal = stage.world.journal();
    let work: Vec<&String> = journal.iter().filter(|l| l.ends_with("begins") || l.ends_with("ends")).collect();
    assert_eq!(work.len(), 8, "{work:?}");
    for pair in work.chunks(2) {
        assert!(pair[0].ends_with("begins") && pair[1].ends_with("ends"), "{work:?}");
        assert_eq!(pair[0].split(' ').next(), pair[1].split(' ').next(), "{work:?}");
    }
    let alarms: BTreeMap<String, Alarm> = stage.operator.get("/v1/alarms").await.unwrap();
    assert!(alarms.is_empty(), "{alarms:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_that_nobody_knows_and_sets_with_too_many_parts_are_refused() {
    let stage = Stage::new(&TWO).await;
    let text = refusal(plan(&stage, |new| new["policy"]["only"] = json!(["h9"])).await);
    assert!(text.contains("h9") && text.contains("not in the fleet"), "{text}");
    let set = json!({ "name": "big", "update_domains": 21 });
    let text = refusal(stage.operator.post::<Value>("/v1/sets", &set).await);
    assert!(text.contains("21") && text.contains("20"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_gone_is_waited_for_and_the_reason_is_told() {
    let mut stage = Stage::new(&TWO).await;
    stage.end_agent("h2");
    plan(&stage, |new| {
        new["rules"]["preflight_limit"] = json!({ "secs": 1, "nanos": 0 });
        new["rules"]["preflight_retry"] = json!({ "secs": 60, "nanos": 0 });
    })
    .await
    .unwrap();
    stage.order("patch", "start", Command::default()).await.unwrap();
    let told = stage
        .until("/v1/rollouts/patch/explain?host=h2", |all: &Vec<Explanation>| {
            all[0].wait.as_ref().is_some_and(|wait| wait.to_string().contains("did not answer"))
        })
        .await;
    assert!(told[0].wait.as_ref().unwrap().to_string().contains("see that it runs"));
    // The other host is none the worse for it.
    stage.world.until(|journal| journal.iter().any(|line| line == "h1 ends")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_made_for_an_older_inventory_is_not_started_and_a_new_one_takes_its_place() {
    let mut stage = Stage::new(&TWO).await;
    let old = plan(&stage, |_| {}).await.unwrap();
    stage.add_host("h3", &[("web", 1)]).await;
    stage.until("/v1/hosts", |all: &Value| all.as_object().unwrap().len() == 3).await;
    let text = refusal(stage.order("patch", "start", Command::default()).await);
    assert!(text.contains("--replace") && text.contains(&old.plan), "{text}");

    let text = refusal(plan(&stage, |new| new["parent"] = json!("0".repeat(64))).await);
    assert!(text.contains("not the plan"), "{text}");
    let new = plan(&stage, |new| new["parent"] = json!(old.plan)).await.unwrap();
    assert_eq!((new.hosts.len(), new.plan == old.plan), (3, false));
    let text = refusal(plan(&stage, |new| new["parent"] = json!(old.plan)).await);
    assert!(text.contains(&new.plan), "the second of two who replace the same plan is told: {text}");

    stage.order("patch", "start", Command::default()).await.unwrap();
    let text = refusal(plan(&stage, |again| again["parent"] = json!(new.plan)).await);
    assert!(text.contains("has been started"), "{text}");
    stage.until_phase("patch", "completed").await;
    let ended = stage.world.journal().iter().filter(|line| line.ends_with("ends")).count();
    assert_eq!(ended, 3, "the new plan's hosts were visited");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_that_differs_from_what_was_given_is_refused() {
    let stage = Stage::new(&TWO).await;
    plan(&stage, |_| {}).await.unwrap();
    let other = UPDATE.replace("A newer QEMU", "Another QEMU");
    let text = refusal(stage.operator.post_text::<KeptUpdate>("/v1/updates", other).await);
    assert!(text.contains("another id"), "{text}");
    let unknown = |new: &mut Value| {
        new["id"] = json!("other");
        new["updates"][0]["digest"] = json!("0".repeat(64));
    };
    let text = refusal(plan(&stage, unknown).await);
    assert!(text.contains("nobody has given a file"), "{text}");
    let mild = |new: &mut Value| {
        new["id"] = json!("other");
        new["updates"][0]["mechanism"] = json!("none");
    };
    let text = refusal(plan(&stage, mild).await);
    assert!(text.contains("needs \"swap\""), "{text}");
    let text = refusal(stage.operator.post_text::<KeptUpdate>("/v1/updates", "id = 7".to_owned()).await);
    assert!(text.starts_with("update file"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_with_two_parts_of_a_set_is_left_out_with_the_vm_to_move_and_forced_by_administrators_only() {
    let stage = Stage::new(&[("h1", &[("web", 0), ("web", 1)]), ("h2", &[("web", 2)])]).await;
    let fleet: Value = stage.operator.get("/v1/fleet").await.unwrap();
    assert!(fleet["self_conflicts"][0].as_str().unwrap().contains("h1"), "{fleet}");
    let dry = plan(&stage, |new| new["dry_run"] = json!(true)).await.unwrap();
    let why = &dry.excluded[&"h1".parse().unwrap()];
    assert!(why.contains("web"), "{why}");
    let operator = stage.operator_of("eve", "operate").await;
    let kept: KeptUpdate = operator.post_text("/v1/updates", UPDATE.to_owned()).await.unwrap();
    let forced = json!({
        "id": "forced", "reason": "test", "updates": [kept.update],
        "policy": { "recovery_s": 0, "work_s": 1, "allow_self_conflict": ["h1"] },
        "rules": { "notice": { "secs": 0, "nanos": 0 } }
    });
    let text = refusal(operator.post::<Planned>("/v1/rollouts", &forced).await);
    assert!(text.contains("role admin"), "{text}");
    let planned: Planned = stage.operator.post("/v1/rollouts", &forced).await.unwrap();
    assert!(planned.excluded.is_empty(), "{:?}", planned.excluded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vms_without_an_update_domain_are_given_one_for_life() {
    let mut stage = Stage::new(&[]).await;
    let set = json!({ "name": "web", "update_domains": 2, "recovery_s": 0 });
    let _: Value = stage.operator.post("/v1/sets", &set).await.unwrap();
    for host in ["h2", "h3"] {
        stage.add_host(host, &[("web", u8::MAX)]).await;
    }
    stage.until("/v1/hosts", |all: &Value| all.as_object().unwrap().len() == 2).await;
    plan(&stage, |_| {}).await.unwrap();
    let parts = async |id: &str| {
        let rollout: Value = stage.operator.get(&format!("/v1/rollouts/{id}")).await.unwrap();
        ["h2", "h3"].map(|host| rollout["definition"]["hosts"][host]["sets"]["web"]["part"].clone())
    };
    let first = parts("patch").await;
    assert_ne!(first[0], first[1]);
    stage.add_host("h1", &[("web", u8::MAX)]).await;
    stage.until("/v1/hosts", |all: &Value| all.as_object().unwrap().len() == 3).await;
    plan(&stage, |new| new["id"] = json!("later")).await.unwrap();
    let rollout: Value = stage.operator.get("/v1/rollouts/later").await.unwrap();
    let later = ["h2", "h3"].map(|host| rollout["definition"]["hosts"][host]["sets"]["web"]["part"].clone());
    assert_eq!(later, first, "a VM that came later, on a host that is named first, moves nobody");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_renewed_before_they_run_out_and_operators_can_have_one() {
    let stage = Stage::with_certificates_for(&TWO[..1], Duration::from_secs(15)).await;
    let path = stage.folder.path().join("h1/credentials.json");
    let read = || std::fs::read_to_string(&path).unwrap();
    let first = read();
    tokio::time::timeout(Duration::from_secs(30), async {
        while read() == first {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .unwrap();
    // Longer than the first certificate was good for: the host is still heard.
    let seen = |all: &Value| all["h1"]["seen"].as_str().map(|text| text.parse::<jiff::Timestamp>().unwrap());
    let before: Value = stage.operator.get("/v1/hosts").await.unwrap();
    stage.until("/v1/hosts", |now: &Value| seen(now) > seen(&before)).await;

    let file = stage.folder.path().join("ann.pem");
    let line = format!("fermata operator ann --role operate --write-certificate {}", file.display());
    let shown = stage.controller_command(&line).await.unwrap();
    assert!(shown.contains("ann.pem"), "{shown}");
    let mut connection = stage.connection();
    (connection.token, connection.certificate) = (String::new(), Some(file));
    let ann = connection.client().unwrap();
    let _: Value = ann.get("/v1/hosts").await.unwrap();
    let text = refusal(ann.post::<Value>("/v1/tokens", &json!({ "name": "x", "role": "admin" })).await);
    assert!(text.contains("role admin"), "{text}");
    let who = json!({ "operator": { "name": "ann", "role": "operate" } });
    let _: Value = stage.operator.post("/v1/revoke", &who).await.unwrap();
    assert!(ann.get::<Value>("/v1/hosts").await.is_err(), "a revoked certificate opens nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_wrong_is_told_and_changes_no_order() {
    let stage = Stage::new(&TWO).await;
    let hosts: Value = stage.operator.get("/v1/hosts").await.unwrap();
    let skew = hosts["h1"]["skew_ms"].as_i64().unwrap();
    assert!(skew.abs() < 60_000, "measured against the controller's clock: {skew} ms");
}
