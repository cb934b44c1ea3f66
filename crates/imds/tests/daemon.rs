//! The service as a process: socket from its parent, killed at any moment, and guests notice a delay at most.
#![allow(clippy::unwrap_used, reason = "test support: a failure is a failed test")]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{announce, vm};
use fermata_events::{Action, Input};
use fermata_imds::control::{Call, ControlClient};
use fermata_imds::daemon::{self, Options};
use fermata_imds::{ByListener, VmRecord};

const FOLDER: &str = "FERMATA_TEST_DAEMON";

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(listener: &TcpListener, folder: &Path) -> Daemon {
    let socket: OwnedFd = listener.try_clone().unwrap().into();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_service_comes_back_with_everything_and_refuses_no_connection", "--nocapture"])
        .env(FOLDER, folder)
        .stdin(Stdio::from(socket))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    Daemon(child)
}

async fn agent(path: &Path) -> ControlClient {
    let begun = Instant::now();
    loop {
        match ControlClient::connect(path).await {
            Ok(client) => return client,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(20), "{error}"),
        }
        tokio::task::yield_now().await;
    }
}

/// A guest with a client of its own: one request, one answer.
fn ask(listener: &TcpListener, method: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let request = format!(
        "{method} /metadata/scheduledevents?api-version=2020-07-01 HTTP/1.0\r\nMetadata: true\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_service_comes_back_with_everything_and_refuses_no_connection() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        let folder = Path::new(&folder);
        let options = Options { state: folder.join("state.db"), control: folder.join("sock"), ..Options::default() };
        daemon::run(options, Some(Arc::new(ByListener(vm("a"))))).await.unwrap();
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("sock");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let first = start(&listener, folder.path());
    let mut client = agent(&control).await;
    assert!(ask(&listener, "GET", "").starts_with("HTTP/1.1 410"), "no VM is known yet");
    let _: Vec<Action> = client.call(Call::Upsert { record: Box::new(VmRecord::new(vm("a"))) }).await.unwrap();
    assert!(ask(&listener, "GET", "").starts_with("HTTP/1.1 200"));
    client.apply(Input::Announce(announce("m", &["a"], 900))).await.unwrap();
    let document = ask(&listener, "GET", "");
    let id = document.split("\"EventId\":\"").nth(1).unwrap()[..36].to_owned();
    let approval = format!(r#"{{"StartRequests":[{{"EventId":"{id}"}}]}}"#);
    assert!(ask(&listener, "POST", &approval).starts_with("HTTP/1.1 200"));
    // SIGKILL: nothing is tidied up.
    drop(first);
    // The socket outlives the process, as systemd keeps it: this request waits in its queue.
    let early = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| ask(&listener, "GET", ""));
        let second = start(&listener, folder.path());
        (waiting.join().unwrap(), second)
    });
    let body = |answer: &str| answer.split_once("\r\n\r\n").unwrap().1.to_owned();
    assert_eq!(body(&early.0), body(&document), "the same document, before any agent came");
    let mut client = agent(&control).await;
    let jobs: Vec<fermata_imds::control::JobView> = client.call(Call::Jobs).await.unwrap();
    assert!(jobs[0].waits.is_empty(), "the approval survived: {:?}", jobs[0].waits);
}
