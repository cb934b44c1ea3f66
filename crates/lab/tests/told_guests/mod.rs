//! Guests that are told what is coming: how they ask, approve and watch.
#![allow(dead_code, reason = "each test uses what it needs")]

use std::time::{Duration, Instant};

use fermata_lab::{Host, guests};
use fermata_probe::metadata::{Answer, Sighting};
use serde_json::Value;

/// A guest by its name and the last byte of its address.
#[derive(Clone, Copy)]
pub(crate) struct Guest<'a> {
    pub(crate) host: &'a Host,
    pub(crate) name: &'static str,
    pub(crate) last: u8,
}

pub(crate) fn json(host: &Host, command: &str) -> Value {
    serde_json::from_str(&host.run(&format!("fermata --json {command}")).unwrap()).unwrap()
}

impl<'a> Guest<'a> {
    pub(crate) fn start(host: &'a Host, name: &'static str, last: u8, more: &str) -> Self {
        let spec = guests::small_spec(name, last, 128, "fermata.sample_us=50000 fermata.beat_us=500000", more);
        host.write(&format!("/tmp/{name}.toml"), &spec).unwrap();
        host.run(&format!("fermata vm create --start /tmp/{name}.toml")).unwrap();
        Self { host, name, last }
    }

    pub(crate) fn wait_alive(self) -> Self {
        self.host.probe(self.last).wait_alive(180).unwrap();
        self
    }

    /// Runs a script in the guest.
    pub(crate) fn try_run(self, script: &str) -> (i32, String) {
        self.try_run_within(script, 100)
    }

    /// As [`Self::try_run`], with a limit of its own in seconds.
    pub(crate) fn try_run_within(self, script: &str, seconds: u64) -> (i32, String) {
        let quoted = script.replace('\'', r"'\''");
        let socket = format!("$(ls -d /run/fermata/vm/{}/*/qga | tail -n 1)", self.name);
        let run = format!("fermata-probe inside {socket} {seconds} '{quoted}'");
        let ran = self.host.exec_within(&run, Duration::from_secs(seconds + 50)).unwrap();
        (ran.status, format!("{}{}", ran.stdout, ran.stderr))
    }

    pub(crate) fn run(self, script: &str) -> String {
        let (status, text) = self.try_run(script);
        assert_eq!(status, 0, "{}: {script}: {text}", self.name);
        text
    }

    pub(crate) fn ask(self, method: &str, path: &str, body: &str) -> Answer {
        let text = self.run(&format!("fermata-probe metadata {method} \"{path}\" '{body}'"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}: {text}", self.name))
    }

    pub(crate) fn knows_itself_as(self) -> String {
        self.ask("GET", "/metadata/instance/compute/name?api-version=2021-08-01&format=text", "").body
    }

    pub(crate) fn events(self) -> Vec<Value> {
        let answer = self.ask("GET", "/metadata/scheduledevents?api-version=2020-07-01", "");
        assert_eq!(answer.status, 200, "{}", answer.body);
        let document: Value = serde_json::from_str(&answer.body).unwrap();
        document["Events"].as_array().unwrap().clone()
    }

    pub(crate) fn approve(self, id: &str) {
        let body = format!("{{\"StartRequests\":[{{\"EventId\":\"{id}\"}}]}}");
        let answer = self.ask("POST", "/metadata/scheduledevents?api-version=2020-07-01", &body);
        assert_eq!((answer.status, answer.body.as_str()), (200, ""), "rule 21");
    }

    /// Polls once a second from now on.
    pub(crate) fn watch(self) {
        self.run("rm -f /run/seen; fermata-probe watch-events /run/seen 1000 >/dev/null 2>&1 &");
    }

    pub(crate) fn seen(self) -> Vec<Sighting> {
        let text = self.run("cat /run/seen");
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
    }
}

/// The statuses of one VM's event in what a poller saw, each with when it saw them first.
pub(crate) fn statuses(seen: &[Sighting], vm: &str) -> Vec<(String, u64)> {
    let mut found: Vec<(String, u64)> = Vec::new();
    for sighting in seen {
        let Ok(answer) = &sighting.seen else { continue };
        if answer.status != 200 {
            continue;
        }
        let Ok(document) = serde_json::from_str::<Value>(&answer.body) else { continue };
        let names = |event: &Value| event["Resources"].as_array().is_some_and(|all| all.iter().any(|name| name == vm));
        let event = document["Events"].as_array().into_iter().flatten().find(|event| names(event));
        let status = event.map_or("none", |event| event["EventStatus"].as_str().unwrap()).to_owned();
        if found.last().is_none_or(|(last, _)| *last != status) {
            found.push((status, sighting.wall_ms));
        }
    }
    found
}

pub(crate) fn wait<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(300));
    }
}
