//! The dead-man against real processes, a real journal and a scripted monitor.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fermata_maintenance::authority::Authority;
use fermata_maintenance::dead_man::{Client, Guarded, Settings, Vmm, mono_now, serve};
use fermata_maintenance::journal::Journal;
use fermata_maintenance::machine::{Entry, Owner, Stamped, plan};
use fermata_maintenance::mechanism::Choice;
use fermata_maintenance::order::{Gate, Keeper, Order};
use fermata_maintenance::time::{Mono, Now, Wall};
use fermata_maintenance::update::Update;
use fermata_maintenance::witness;
use fermata_model::VmName;
use fermata_vault::process::Process;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::process::{Child, Command};

/// A monitor that knows `cont` and `query-status`.
fn monitor(path: PathBuf) -> Arc<AtomicBool> {
    let running = Arc::new(AtomicBool::new(false));
    let told = running.clone();
    let listener = UnixListener::bind(path).unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let running = told.clone();
            tokio::spawn(async move {
                let (reader, mut writer) = stream.into_split();
                let greeting =
                    r#"{"QMP":{"version":{"qemu":{"major":11,"minor":1,"micro":0},"package":""},"capabilities":[]}}"#;
                writer.write_all(format!("{greeting}\r\n").as_bytes()).await.unwrap();
                let mut lines = BufReader::new(reader).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    let command: serde_json::Value = serde_json::from_str(&line).unwrap();
                    let result = match command["execute"].as_str().unwrap() {
                        "cont" => {
                            running.store(true, Ordering::SeqCst);
                            serde_json::json!({})
                        }
                        "query-status" => {
                            let running = running.load(Ordering::SeqCst);
                            let status = if running { "running" } else { "paused" };
                            serde_json::json!({"status": status, "running": running})
                        }
                        _ => serde_json::json!({}),
                    };
                    let answer = serde_json::json!({"return": result, "id": command["id"]});
                    if writer.write_all(format!("{answer}\r\n").as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    running
}

struct Host {
    folder: TempDir,
    agent: Child,
    old: Child,
    new: Child,
    old_runs: Arc<AtomicBool>,
    new_runs: Arc<AtomicBool>,
}

fn sleeper() -> Child {
    Command::new("sleep").arg("600").kill_on_drop(true).spawn().unwrap()
}

fn pid(child: &Child) -> i32 {
    i32::try_from(child.id().unwrap()).unwrap()
}

fn vm() -> VmName {
    "web-1".parse().unwrap()
}

impl Host {
    /// A host whose agent holds the authority and whose journal names `owner`.
    async fn new(owner: Owner) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut agent = Command::new("flock")
            .args(["--no-fork", path("authority").to_str().unwrap(), "sh", "-c", "echo ready; exec sleep 600"])
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(agent.stdout.take().unwrap()).read_line(&mut ready).await.unwrap();
        write_journal(&path("journal.db"), owner);
        let (old_runs, new_runs) = (monitor(path("old.qmp")), monitor(path("new.qmp")));
        Self { agent, old: sleeper(), new: sleeper(), old_runs, new_runs, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn guarded(&self, contested: bool) -> Guarded {
        let vmm = |child: &Child, name: &str| Vmm {
            process: Process::open(pid(child)).unwrap().identity(),
            rescue: self.path(name),
        };
        let new = contested.then(|| vmm(&self.new, "new.qmp"));
        Guarded { vm: vm(), old: vmm(&self.old, "old.qmp"), new, contested }
    }

    async fn dead_man(&self) -> Client {
        let settings = Settings {
            control: self.path("control"),
            journal: self.path("journal.db"),
            authority: self.path("authority"),
            maintenance: "m-1".parse().unwrap(),
            agent: pid(&self.agent),
        };
        tokio::spawn(serve(settings));
        Client::connect(&self.path("control"), Duration::from_secs(5)).await.unwrap()
    }

    fn runs(&self) -> (bool, bool) {
        (self.old_runs.load(Ordering::SeqCst), self.new_runs.load(Ordering::SeqCst))
    }
}

fn write_journal(path: &Path, owner: Owner) {
    let text = "id = \"qemu\"\ntitle = \"QEMU\"\nkind = \"vmm\"\n[change]\nvmm = \"11.1\"\n";
    let update = Update::from_toml(text).unwrap();
    let json = format!(
        "{{\"plans\":[{{\"vm\":\"{}\",\"mechanism\":\"swap\",\"forecast\":{{\"upper_us\":1,\"basis\":{{\"kind\":\"default\"}}}},\"budget\":30000,\"paused\":false}}],\"refusals\":[]}}",
        vm()
    );
    let choice: Choice = serde_json::from_str(&json).unwrap();
    let gate = Gate { not_before: Wall(1), lead: Duration::from_secs(2), keeper: Keeper::Clock };
    let order = Order::new("m-1".parse().unwrap(), update, choice, gate).unwrap();
    let now = Now { mono: Mono(1), wall: Wall(1) };
    let mut journal = Journal::open(path).unwrap();
    let (state, _) = plan(order, "boot".parse().unwrap(), now).commit(&mut journal).unwrap();
    let entry = Stamped { at: now, entry: Entry::Owner { vm: vm(), owner } };
    use fermata_maintenance::machine::{Durability, Log};
    journal.append(&"m-1".parse().unwrap(), state.entries, &[entry], Durability::Process).unwrap();
}

fn soon() -> Mono {
    mono_now().after(Duration::from_millis(150))
}

/// Waits until the dead-man has fired: it answers again only afterwards.
async fn after_the_deadline(client: &mut Client) -> Vec<String> {
    tokio::time::sleep(Duration::from_millis(200)).await;
    client.disarm(vec![vm()]).await.unwrap().into_values().map(|freed| freed.how).collect()
}

#[tokio::test]
async fn a_dead_man_that_is_disarmed_in_time_does_nothing() {
    let mut host = Host::new(Owner::Old).await;
    let mut client = host.dead_man().await;
    client.arm(soon(), vec![host.guarded(false)]).await.unwrap();
    assert!(client.disarm(vec![vm()]).await.unwrap().is_empty());
    assert!(after_the_deadline(&mut client).await.is_empty());
    assert_eq!(host.runs(), (false, false));
    assert!(host.agent.try_wait().unwrap().is_none(), "the agent lives");
    client.exit().await.unwrap();
}

#[tokio::test]
async fn a_held_vm_runs_after_the_deadline_and_the_stuck_agent_is_ended() {
    let mut host = Host::new(Owner::Old).await;
    let mut client = host.dead_man().await;
    client.arm(soon(), vec![host.guarded(false)]).await.unwrap();
    assert_eq!(after_the_deadline(&mut client).await, ["its VMM runs"]);
    assert_eq!(host.runs(), (true, false));
    assert!(host.agent.wait().await.unwrap().code().is_none(), "killed");
}

#[tokio::test]
async fn a_vm_between_two_vmms_goes_back_when_the_journal_names_the_old_one() {
    let mut host = Host::new(Owner::Old).await;
    let mut client = host.dead_man().await;
    client.arm(soon(), vec![host.guarded(true)]).await.unwrap();
    assert_eq!(after_the_deadline(&mut client).await, ["its old VMM runs, the new one is dead"]);
    assert_eq!(host.runs(), (true, false));
    assert!(host.new.wait().await.unwrap().code().is_none(), "the new VMM is killed");
}

#[tokio::test]
async fn a_vm_between_two_vmms_goes_on_when_the_journal_names_the_new_one() {
    let mut host = Host::new(Owner::New).await;
    let mut client = host.dead_man().await;
    client.arm(soon(), vec![host.guarded(true)]).await.unwrap();
    assert_eq!(after_the_deadline(&mut client).await, ["its new VMM runs"]);
    assert_eq!(host.runs(), (false, true));
    assert!(host.new.try_wait().unwrap().is_none() && host.old.try_wait().unwrap().is_none(), "no VMM is killed");
}

/// The journal has lost its unsynced end: what is in memory tells.
#[tokio::test]
async fn a_vm_that_may_have_run_in_its_new_vmm_goes_on_there_whatever_the_journal_says() {
    let mut host = Host::new(Owner::Old).await;
    witness::may_run(host.folder.path(), "m-1").unwrap();
    let mut client = host.dead_man().await;
    client.arm(soon(), vec![host.guarded(true)]).await.unwrap();
    assert_eq!(after_the_deadline(&mut client).await, ["its new VMM runs"]);
    assert_eq!(host.runs(), (false, true));
    assert!(host.new.try_wait().unwrap().is_none() && host.old.try_wait().unwrap().is_none(), "no VMM is killed");
}

#[tokio::test]
async fn a_contested_vm_is_left_alone_while_another_agent_is_in_charge() {
    let mut host = Host::new(Owner::Old).await;
    let mut client = host.dead_man().await;
    // The agent that armed is dead, and the next one is in charge already: this test.
    host.agent.kill().await.unwrap();
    let _authority = Authority::take(&host.path("authority"), Duration::from_secs(5)).await.unwrap();
    client.arm(soon(), vec![host.guarded(true)]).await.unwrap();
    // It is asked in the middle of its tries, so it may have to finish one first.
    let fired = after_the_deadline(&mut client).await;
    assert!(fired.is_empty(), "{fired:?}");
    assert_eq!(host.runs(), (false, false));
}

#[tokio::test]
async fn without_a_reachable_monitor_nothing_may_be_paused() {
    let host = Host::new(Owner::Old).await;
    let mut client = host.dead_man().await;
    let mut guarded = host.guarded(false);
    guarded.old.rescue = host.path("nobody.qmp");
    let refused = client.arm(soon(), vec![guarded]).await.unwrap_err().to_string();
    assert!(refused.contains("web-1") && refused.contains("rescue monitor"), "{refused}");
}

/// Another process that arms and then does nothing: this test binary once more.
#[tokio::test]
async fn the_agent_that_armed_last_is_the_one_that_is_ended() {
    if let Ok(control) = std::env::var("FERMATA_STUCK_AGENT") {
        let guarded = serde_json::from_str(&std::env::var("FERMATA_GUARDED").unwrap()).unwrap();
        let mut client = Client::connect(Path::new(&control), Duration::from_secs(5)).await.unwrap();
        client.arm(soon(), vec![guarded]).await.unwrap();
        std::future::pending::<()>().await;
    }
    let mut host = Host::new(Owner::Old).await;
    let first = host.dead_man().await;
    let mut second = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_agent_that_armed_last_is_the_one_that_is_ended"])
        .env("FERMATA_STUCK_AGENT", host.path("control"))
        .env("FERMATA_GUARDED", serde_json::to_string(&host.guarded(false)).unwrap())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    assert!(second.wait().await.unwrap().code().is_none(), "the stuck agent is killed");
    assert_eq!(host.runs(), (true, false));
    assert!(host.agent.try_wait().unwrap().is_none(), "the one that started the dead-man is not in charge any more");
    drop(first);
}
