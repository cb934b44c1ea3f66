//! The listeners that the book shows approve a maintenance: each in a guest on a real bridge, against the real service.
//!
//! Needs what `common/net.rs` says, `curl`, `jq` and `python3`, which `cargo xtask clients` installs.
#![allow(clippy::unwrap_used, reason = "test support: a failure is a failed test")]

mod common;

/// A program of its own, run here on a thread.
mod listener {
    include!("clients/listener.rs");

    pub(crate) fn run() {
        main().map_err(|error| error.to_string()).unwrap();
    }
}

use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use common::net::{Space, bridge, in_own_namespaces, mac, port, wiring};
use common::*;
use fermata_events::*;
use fermata_imds::instance::Instance;
use fermata_imds::wire::apply;
use fermata_imds::*;

const PAGE: &str = include_str!("../../../docs/src/scheduled-events.md");

/// The listener that the page shows in a language: the block of that language that goes round.
fn shown(language: &str) -> &'static str {
    let blocks = PAGE.split("\n```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
    let mut listeners =
        blocks.filter(|(words, text)| words.split(',').next() == Some(language) && text.contains("while "));
    listeners.next().unwrap_or_else(|| panic!("the page shows no listener in {language}")).1
}

/// Ended when dropped.
struct Program(Child);

impl Program {
    fn start(mut command: Command) -> Self {
        Self(command.spawn().unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A host with a guest `vm-a`, a listener in it, and a maintenance that nobody but the listener can begin before 15 minutes.
async fn approved_by<T>(start: impl FnOnce(&Space) -> T) {
    let bridge = bridge();
    let guest = Space::new("tapa", Some(mac(1)));
    guest.ip("address add 10.0.0.5/24 dev eth0");
    guest.ip("route add 169.254.169.254/32 dev eth0");
    apply::apply(&wiring(bridge, vec![port("tapa", 1)])).unwrap();
    let store = Box::new(SqliteStore::in_memory().unwrap());
    let service = Service::open(store, Arc::new(HandClock::new()), settings()).unwrap();
    let record = VmRecord { instance: Instance::default(), ports: vec![port("tapa", 1)], ..VmRecord::new(vm("vm-a")) };
    service.upsert(record).await.unwrap();
    let listener = tokio::net::TcpListener::bind((wire::ADDRESS, 80)).await.unwrap();
    tokio::spawn(serve(listener, service.clone(), Arc::new(ByMark(service.clone()))));
    // Notice is owed to whoever has asked once; the clock stands, so it never ends by itself.
    let url = "http://169.254.169.254/metadata/scheduledevents?api-version=2020-07-01";
    assert!(guest.command("curl").args(["-sf", "-H", "Metadata:true", url]).status().unwrap().success());
    let mut feed = service.feed();
    service.apply(Input::Announce(announce("m", &["vm-a"], 900))).await.unwrap();
    assert!(!service.gate(&job("m")).is_empty(), "nothing is waited for");
    let program = start(&guest);
    let opened = async { while feed.recv().await.unwrap() != (Action::GateOpened { job: job("m") }) {} };
    tokio::time::timeout(Duration::from_secs(30), opened).await.expect("approved within 30 s");
    drop(program);
}

fn block_on(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(work);
}

#[test]
fn the_listener_in_shell_approves() {
    in_own_namespaces("the_listener_in_shell_approves", || {
        block_on(approved_by(|guest| {
            let mut command = guest.command("sh");
            command.args(["-c", shown("sh")]);
            Program::start(command)
        }));
    });
}

#[test]
fn the_listener_in_python_approves() {
    in_own_namespaces("the_listener_in_python_approves", || {
        block_on(approved_by(|guest| {
            let mut command = guest.command("/usr/bin/python3");
            command.args(["-c", shown("python")]);
            Program::start(command)
        }));
    });
}

#[test]
fn the_listener_in_rust_is_the_one_shown_and_approves() {
    let source = include_str!("clients/listener.rs");
    let program = source.split_once("\n\n").unwrap().1;
    assert!(
        PAGE.contains(program),
        "docs/src/scheduled-events.md shows another program than tests/clients/listener.rs"
    );
    in_own_namespaces("the_listener_in_rust_is_the_one_shown_and_approves", || {
        block_on(approved_by(|guest| {
            // It goes round for ever; the process of this test ends it.
            guest.within(listener::run);
        }));
    });
}
