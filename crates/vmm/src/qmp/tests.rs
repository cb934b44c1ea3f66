use super::*;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, ReadHalf, WriteHalf};

const LIMIT: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(50);

/// The VMM's end of a monitor, played by a test.
struct Monitor {
    lines: tokio::io::Lines<BufReader<ReadHalf<DuplexStream>>>,
    writer: WriteHalf<DuplexStream>,
}

impl Monitor {
    async fn say(&mut self, value: Value) {
        self.writer.write_all(format!("{value}\r\n").as_bytes()).await.unwrap();
    }

    async fn hear(&mut self) -> Value {
        serde_json::from_str(&self.lines.next_line().await.unwrap().unwrap()).unwrap()
    }
}

async fn connected() -> (Qmp, Monitor) {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let (reader, writer) = tokio::io::split(theirs);
    let mut monitor = Monitor { lines: BufReader::new(reader).lines(), writer };
    let play = tokio::spawn(async move {
        let version = json!({"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": "Debian"});
        monitor.say(json!({"QMP": {"version": version, "capabilities": ["oob"]}})).await;
        let capabilities = monitor.hear().await;
        assert_eq!(capabilities["execute"], "qmp_capabilities");
        monitor.say(json!({"return": {}, "id": capabilities["id"]})).await;
        monitor
    });
    let (reader, writer) = tokio::io::split(ours);
    let qmp = Qmp::over(reader, writer, LIMIT).await.unwrap();
    (qmp, play.await.unwrap())
}

#[tokio::test]
async fn answers_find_their_caller_whatever_their_order() {
    let (qmp, mut monitor) = connected().await;
    assert_eq!(qmp.greeting().version, (10, 0, 2));
    let play = tokio::spawn(async move {
        let (first, second) = (monitor.hear().await, monitor.hear().await);
        for command in [second, first] {
            let answer = match command["execute"].as_str().unwrap() {
                "query-status" => json!({"status": "postmigrate", "running": false}),
                _ => json!({}),
            };
            monitor.say(json!({"return": answer, "id": command["id"]})).await;
        }
        monitor
    });
    let (status, stop) = tokio::join!(qmp.execute(&QueryStatus {}), qmp.execute(&Stop {}));
    assert_eq!(status.unwrap(), RunStatus { status: RunState::Postmigrate, running: false });
    stop.unwrap();
    play.await.unwrap();
}

#[tokio::test]
async fn a_late_answer_is_thrown_away_and_the_connection_goes_on() {
    let (qmp, mut monitor) = connected().await;
    let error = qmp.execute_within(&Stop {}, SHORT).await.unwrap_err();
    assert!(matches!(error, QmpError::Timeout { command: "stop", .. }));
    let late = monitor.hear().await;
    monitor.say(json!({"return": {}, "id": late["id"]})).await;
    let play = tokio::spawn(async move {
        let command = monitor.hear().await;
        monitor.say(json!({"return": {"status": "running", "running": true}, "id": command["id"]})).await;
        monitor
    });
    assert!(qmp.execute(&QueryStatus {}).await.unwrap().running);
    play.await.unwrap();
}

#[tokio::test]
async fn a_refusal_keeps_the_vmms_words() {
    let (qmp, mut monitor) = connected().await;
    let play = tokio::spawn(async move {
        let command = monitor.hear().await;
        assert_eq!(command["arguments"], json!({"mode": "cpr-transfer"}));
        let error = json!({"class": "GenericError", "desc": "no such mode"});
        monitor.say(json!({"error": error, "id": command["id"]})).await;
        monitor
    });
    let error = qmp.execute(&MigrateSetParameters { mode: Some(Mode::CprTransfer) }).await.unwrap_err();
    assert!(error.is_refusal());
    assert_eq!(error.to_string(), "the VMM refused `migrate-set-parameters`: no such mode (GenericError)");
    play.await.unwrap();
}

#[tokio::test]
async fn when_the_vmm_dies_everybody_is_told() {
    let (qmp, mut monitor) = connected().await;
    let mut events = qmp.events();
    let stamp = json!({"seconds": 10, "microseconds": 5});
    monitor.say(json!({"event": "STOP", "timestamp": stamp})).await;
    monitor.say(json!({"event": "MIGRATION", "data": {"status": "pre-switchover"}, "timestamp": stamp})).await;
    monitor.say(json!({"event": "NEWS", "data": {"a": 1}, "timestamp": stamp})).await;
    let event = events.next().await.unwrap();
    assert_eq!((event.kind, event.at.as_micros()), (EventKind::Stop, 10_000_005));
    assert_eq!(events.next().await.unwrap().kind, EventKind::Migration(MigrationStatus::PreSwitchover));
    assert_eq!(events.next().await.unwrap().kind, EventKind::Other(json!({"a": 1})));
    let waiting = tokio::spawn({
        let qmp = qmp.clone();
        async move { qmp.execute(&Cont {}).await }
    });
    monitor.hear().await;
    drop(monitor);
    assert!(matches!(waiting.await.unwrap(), Err(QmpError::Closed { command: "cont" })));
    assert!(events.next().await.is_none());
    qmp.closed().await;
    assert!(matches!(qmp.execute(&Cont {}).await, Err(QmpError::Closed { .. })));
    assert!(qmp.events().next().await.is_none());
}

#[tokio::test]
async fn what_is_no_monitor_is_refused() {
    let (ours, theirs) = tokio::io::duplex(1024);
    let (reader, writer) = tokio::io::split(ours);
    let (_keep, mut other) = tokio::io::split(theirs);
    other.write_all(b"220 mail ready\r\n").await.unwrap();
    assert!(matches!(Qmp::over(reader, writer, LIMIT).await, Err(QmpError::Protocol { .. })));
    assert!(matches!(Qmp::connect(Path::new("/nowhere/qmp"), SHORT).await, Err(QmpError::Connect { .. })));
}

/// Connects to a monitor of `path`, which `make` brings there meanwhile.
async fn connected_at(path: &Path, make: impl FnOnce(&Path) -> std::os::unix::net::UnixListener) -> Qmp {
    let connecting = Qmp::connect(path, LIMIT);
    let serving = async {
        // Whoever connects has looked by then, in vain.
        tokio::task::yield_now().await;
        let listener = make(path);
        listener.set_nonblocking(true).unwrap();
        let (mut stream, _) = tokio::net::UnixListener::from_std(listener).unwrap().accept().await.unwrap();
        let version = json!({"qemu": {"major": 10, "minor": 0, "micro": 2}, "package": "Debian"});
        let greeting = json!({"QMP": {"version": version, "capabilities": []}});
        stream.write_all(format!("{greeting}\r\n").as_bytes()).await.unwrap();
        let mut lines = BufReader::new(stream).lines();
        let asked: Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
        let answer = json!({"return": {}, "id": asked["id"]});
        lines.get_mut().get_mut().write_all(format!("{answer}\r\n").as_bytes()).await.unwrap();
        lines
    };
    let (qmp, _keep) = tokio::join!(connecting, serving);
    qmp.unwrap()
}

#[tokio::test]
async fn a_monitor_is_found_that_comes_late() {
    let folder = tempfile::tempdir().unwrap();
    let bind = |path: &Path| std::os::unix::net::UnixListener::bind(path).unwrap();
    let qmp = connected_at(&folder.path().join("qmp"), bind).await;
    assert_eq!(qmp.greeting().version, (10, 0, 2));
    // Also when others come first, when it gets its name late, and when not even its folder was there.
    connected_at(&folder.path().join("second"), |path| {
        std::fs::write(path.with_file_name("console"), "").unwrap();
        bind(path)
    })
    .await;
    connected_at(&folder.path().join("third"), |path| {
        let listener = bind(&path.with_file_name("tmp"));
        std::fs::rename(path.with_file_name("tmp"), path).unwrap();
        listener
    })
    .await;
    connected_at(&folder.path().join("new/fourth"), |path| {
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        bind(path)
    })
    .await;
    // One that nobody listens at any more is replaced.
    drop(bind(&folder.path().join("fifth")));
    connected_at(&folder.path().join("fifth"), |path| {
        std::fs::remove_file(path).unwrap();
        bind(path)
    })
    .await;
}
