//! A controller, its agents and an operator over real sockets and TLS; only the work on hosts is played.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]
#![allow(dead_code, reason = "the stage and its hosts are shared with other tests")]

#[path = "fleet/host.rs"]
mod host;
#[path = "fleet/stage.rs"]
mod stage;

use std::time::Duration;

use clap::Parser as _;
use fermata_controller::api::openapi;
use fermata_controller::cli;
use fermata_controller::client::{Client, ClientError};
use fermata_controller::identity::{Identity, Role};
use fermata_controller::pki::Trust;
use fermata_controller::rollout::{Author, Entry, Explanation, Input};
use fermata_controller::wire::{Command, NewToken, Poll, PollReply, Secret};
use http::StatusCode;
use stage::Stage;

const HOSTS: [(&str, &[(&str, u8)]); 3] =
    [("h1", &[("web", 0), ("db", 0)]), ("h2", &[("web", 1)]), ("h3", &[("db", 1)])];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_goes_one_part_at_a_time_to_its_end() {
    let stage = Stage::new(&HOSTS).await;
    let planned = stage.plan("patch", "2").await;
    assert_eq!((planned.hosts.len(), planned.excluded.len()), (3, 0));
    stage.order("patch", "start", Command { reason: "CVE".into(), ..Command::default() }).await.unwrap();
    stage.until_phase("patch", "completed").await;
    let journal = stage.world.journal();
    assert_eq!(journal.iter().filter(|line| line.ends_with("begins")).count(), 3, "{journal:?}");
    let place = |line: &str| journal.iter().position(|known| known == line).unwrap();
    assert!(place("h1 ends") < place("h2 begins") || place("h2 ends") < place("h1 begins"), "{journal:?}");
    assert!(place("h1 ends") < place("h3 begins") || place("h3 ends") < place("h1 begins"), "{journal:?}");
    assert!(journal.iter().any(|line| line == "h2 tells of h1" || line == "h1 tells of h2"), "{journal:?}");

    let log: Vec<Entry> = stage.operator.get("/v1/rollouts/patch/log").await.unwrap();
    assert_eq!(
        (&log[0].input, &log[0].author, log[0].reason.as_str()),
        (&Input::Start, &Author::Operator("admin".into()), "CVE")
    );
    let check: serde_json::Value = stage.operator.get("/v1/rollouts/patch/check").await.unwrap();
    assert_eq!(check["clean"], true, "{check}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vm_elsewhere_approves_and_the_visited_host_hears_by_whom_before_it_begins() {
    let stage = Stage::new(&[("h1", &[("web", 0)]), ("h2", &[("web", 1)])]).await;
    stage.world.guests_approve();
    stage.plan("patch", "600").await;
    stage.order("patch", "start", Command::default()).await.unwrap();
    stage.until_phase("patch", "completed").await;
    let journal = stage.world.journal();
    let place = |line: &str| journal.iter().position(|known| known == line).unwrap_or_else(|| panic!("{journal:?}"));
    for (host, other) in [("h1", "web-h2-1"), ("h2", "web-h1")] {
        assert!(place(&format!("{host} hears of 1 by {other}")) < place(&format!("{host} begins")), "{journal:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_is_killed_goes_on_where_it_was_and_agents_finish_without_it() {
    let mut stage = Stage::new(&HOSTS).await;
    stage.world.work_lasts(Duration::from_millis(600));
    stage.plan("patch", "0").await;
    stage.order("patch", "start", Command::default()).await.unwrap();
    let count = |journal: &[String], what: &str| journal.iter().filter(|line| line.ends_with(what)).count();
    let mut kills = 0;
    while count(&stage.world.journal(), "ends") < 3 {
        let ended = count(&stage.world.journal(), "ends");
        stage.world.until(|journal| count(journal, "begins") > ended).await;
        stage.kill_controller().await;
        kills += 1;
        stage.world.until(|journal| count(journal, "begins") == count(journal, "ends")).await;
        stage.start_controller().await;
    }
    assert!(kills >= 2, "three hosts in two parts");
    stage.until_phase("patch", "completed").await;
    assert_eq!(count(&stage.world.journal(), "begins"), 3, "no host was visited twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_preflight_is_explained_with_its_reason_until_the_operator_skips_the_host() {
    let stage = Stage::new(&HOSTS[..2]).await;
    stage.world.refuses("h2", "VM a has a pass-through device");
    stage.plan("patch", "0").await;
    stage.order("patch", "start", Command::default()).await.unwrap();
    let explanation = stage
        .until("/v1/rollouts/patch/explain?host=h2", |all: &Vec<Explanation>| {
            all[0].wait.as_ref().is_some_and(|wait| wait.to_string().contains("pass-through"))
        })
        .await;
    assert!(explanation[0].earliest.is_some());
    let host = Some("h2".parse().unwrap());
    stage.order("patch", "skip", Command { host, ..Command::default() }).await.unwrap();
    stage.until_phase("patch", "completed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_visit_that_is_undone_stops_the_rollout_and_keeps_the_evidence() {
    let stage = Stage::new(&HOSTS).await;
    stage.world.undoes("h1", "state did not load");
    stage.world.undoes("h2", "state did not load");
    stage.world.undoes("h3", "state did not load");
    stage.plan("patch", "0").await;
    stage.order("patch", "start", Command::default()).await.unwrap();
    stage.until_phase("patch", "failed").await;
    let rollout: serde_json::Value = stage.operator.get("/v1/rollouts/patch").await.unwrap();
    let evidence = &rollout["state"]["phase"]["ended"]["failed"];
    assert!(evidence["failed"].to_string().contains("state did not load"), "{evidence}");
}

#[derive(clap::Parser)]
enum Fermata {
    #[command(subcommand)]
    Set(cli::SetCommand),
    #[command(subcommand)]
    Fleet(cli::FleetCommand),
    #[command(subcommand)]
    Rollout(cli::RolloutCommand),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operators_session_by_the_commands() {
    let stage = Stage::new(&HOSTS).await;
    let connection = stage.connection();
    let run = async |line: &str| {
        let shown = match Fermata::try_parse_from(format!("fermata {line}").split(' ')).unwrap() {
            Fermata::Set(command) => cli::set(command, &connection).await,
            Fermata::Fleet(command) => cli::fleet(command, &connection).await,
            Fermata::Rollout(command) => cli::rollout(command, &connection, false).await,
        };
        shown.map(|shown| shown.text).map_err(|error| error.to_string())
    };
    assert!(run("set create web --recovery 0").await.is_ok());
    assert!(run("set create web").await.unwrap_err().contains("fixed for life"));
    assert!(run("set create big --update-domains 21").await.unwrap_err().contains("20"));
    let web = run("set show web").await.unwrap();
    assert!(web.contains("web-h1") && web.contains("update domain 1"), "{web}");
    assert!(run("fleet list").await.unwrap().contains("h3"));
    assert!(run("fleet check").await.unwrap().starts_with("alignment"));

    let update = stage.folder.path().join("qemu.toml");
    std::fs::write(&update, stage::UPDATE).unwrap();
    let plan = format!("rollout plan {} --reason CVE --name patch --notice 0 --recovery 0", update.display());
    let dry = run(&format!("{plan} --dry-run")).await.unwrap();
    assert!(dry.contains("no plan can beat") && dry.contains("nothing was kept"), "{dry}");
    assert!(run("rollout start patch").await.unwrap_err().contains("no rollout `patch`"));
    assert!(run(&plan).await.unwrap().contains("next: fermata rollout start patch"));
    assert!(run(&plan).await.unwrap_err().contains("exists"));
    assert!(run("fleet cordon h2").await.is_ok());
    assert_eq!(run("rollout start patch --reason go").await.unwrap(), "rollout patch: running");
    stage
        .until("/v1/rollouts/patch/explain?host=h2", |all: &Vec<Explanation>| {
            all[0].wait == Some(fermata_controller::rollout::Wait::Cordoned)
        })
        .await;
    let explained = run("rollout explain patch --host h2").await.unwrap();
    assert!(explained.contains("waiting: it is cordoned"), "{explained}");
    assert!(run("fleet uncordon h2").await.is_ok());
    let mut shown = Vec::new();
    assert_eq!(cli::watch(&stage.operator, "patch", false, &mut shown).await.unwrap(), "ended (completed)");
    let shown = String::from_utf8(shown).unwrap();
    assert!(shown.contains("done"), "{shown}");
    let report = run("rollout report patch").await.unwrap();
    assert!(
        report.starts_with("rollout patch: ended (completed)")
            && report.contains("blackout 7.0 ms")
            && report.contains("updated")
            && report.contains("admin: \"start\": go"),
        "{report}"
    );
    assert_eq!(run("rollout check patch").await.unwrap(), "no promise was broken");
    assert!(run("rollout list").await.unwrap().contains("3 done"));
    assert!(run("rollout pause patch").await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_tokens_and_revocation_are_kept() {
    let stage = Stage::new(&HOSTS[..1]).await;
    let new = NewToken { name: "eve".into(), role: Role::View };
    let token: Secret = stage.operator.post("/v1/tokens", &new).await.unwrap();
    let viewer = stage.client(Some(token.token));
    let _: serde_json::Value = viewer.get("/v1/hosts").await.unwrap();
    let refused = viewer.post::<serde_json::Value>("/v1/rollouts/x/do/start", &Command::default()).await;
    assert!(
        matches!(&refused, Err(ClientError::Refused { status, error }) if *status == StatusCode::FORBIDDEN && error.contains("operate")),
        "{refused:?}"
    );
    let nobody = stage.client(None).get::<serde_json::Value>("/v1/hosts").await;
    assert!(matches!(nobody, Err(ClientError::Refused { status: StatusCode::UNAUTHORIZED, .. })));

    let eve = Identity::Operator { name: "eve".into(), role: Role::View };
    let _: serde_json::Value = stage.operator.post("/v1/revoke", &eve).await.unwrap();
    assert!(viewer.get::<serde_json::Value>("/v1/hosts").await.is_err());

    let agent = stage.line("h1").client();
    let report = fermata_controller::gate::OrderGate::new("h1".parse().unwrap()).report();
    let poll = Poll {
        clock: jiff::Timestamp::now(),
        report,
        host: None,
        answers: vec![],
        approvals: std::collections::BTreeMap::new(),
        visit: None,
        known: None,
        wait_ms: 0,
    };
    let _: PollReply = agent.post("/v1/agent/poll", &poll).await.unwrap();
    assert!(agent.get::<serde_json::Value>("/v1/hosts").await.is_err(), "an agent is no operator");
    let _: serde_json::Value =
        stage.operator.post("/v1/revoke", &Identity::Agent("h1".parse().unwrap())).await.unwrap();
    let refused = agent.post::<PollReply>("/v1/agent/poll", &poll).await;
    assert!(matches!(refused, Err(ClientError::Refused { status: StatusCode::UNAUTHORIZED, .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_talks_only_to_the_controller_that_made_its_token() {
    let (stage, other) = (Stage::new(&[]).await, Stage::new(&[]).await);
    let token = other.join_token().await;
    let folder = tempfile::TempDir::new().unwrap();
    let refusal =
        fermata_controller::agent_link::join(folder.path(), &stage.address, &"h9".parse().unwrap(), &token).await;
    assert!(refusal.unwrap_err().to_string().contains("not the one that made the join token"));
    let stranger = Client::new(
        &stage.address,
        &Trust::Ca(std::fs::read_to_string(other.folder.path().join("ca.pem")).unwrap()),
        None,
        None,
    );
    assert!(matches!(stranger.unwrap().get::<String>("/healthz").await, Err(ClientError::Unreachable { .. })));
}

#[test]
fn the_checked_in_document_is_the_one_the_code_makes() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/api/openapi.json");
    let made = serde_json::to_string_pretty(&openapi()).unwrap() + "\n";
    if std::env::var_os("FERMATA_WRITE_OPENAPI").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == made,
        "docs/api/openapi.json is old; run this test with FERMATA_WRITE_OPENAPI=1 and review the change"
    );
}
