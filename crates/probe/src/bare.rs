//! The floor: a VM changes its VMM by bare QMP commands, without Fermata, as one would type them. What this takes is what no
//! orchestration on the same host with the same VMMs can take less of.
//!
//! The new VMM runs already and waits on its socket, as under Fermata; it was started with `-S`, so that the moment of its
//! resume is one that was ordered. Network and clock are not looked after.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How long any single step may take.
const LIMIT: Duration = Duration::from_secs(120);

/// How the state goes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// `cpr-transfer`: the state is loaded while it is sent.
    Transfer,
    /// `cpr-reboot` through a file on tmpfs: written whole, then loaded.
    File,
}

/// When the VM stood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stood {
    /// The old VMM's STOP, in microseconds since 1970.
    pub stopped_us: u64,
    /// The new VMM's RESUME, in microseconds since 1970.
    pub resumed_us: u64,
}

/// Swaps: `old` and `new` are folders with the sockets `qmp`, `incoming` and `cpr`.
///
/// # Errors
/// A VMM does not answer or refuses; the VM is then wherever it got to.
pub fn swap(old: &Path, new: &Path, way: Way) -> io::Result<Stood> {
    let mut from = Monitor::connect(&old.join("qmp"))?;
    let mode = if way == Way::Transfer { "cpr-transfer" } else { "cpr-reboot" };
    let capabilities = json!({"capabilities": [
        {"capability": "events", "state": true},
        {"capability": "x-ignore-shared", "state": way == Way::File},
    ]});
    from.execute("migrate-set-parameters", json!({"mode": mode}))?;
    from.execute("migrate-set-capabilities", capabilities.clone())?;
    let unix = |kind: &str, name: &str| json!({"channel-type": kind, "addr": {"transport": "socket", "type": "unix", "path": new.join(name)}});
    let mut to = match way {
        Way::Transfer => {
            from.execute("migrate", json!({"channels": [unix("main", "incoming"), unix("cpr", "cpr")]}))?;
            let to = Monitor::connect(&new.join("qmp"))?;
            from.completed()?;
            to
        }
        Way::File => {
            let mut to = Monitor::connect(&new.join("qmp"))?;
            to.execute("migrate-set-parameters", json!({"mode": mode}))?;
            to.execute("migrate-set-capabilities", capabilities)?;
            let file = json!({"channels": [{"channel-type": "main",
                "addr": {"transport": "file", "filename": new.join("state"), "offset": 0}}]});
            from.execute("migrate", file.clone())?;
            from.completed()?;
            to.execute("migrate-incoming", file)?;
            to
        }
    };
    let resumed_us = to.run_when_loaded()?;
    let stopped_us = from.event(|name, _| name == "STOP")?;
    from.execute("quit", Value::Null)?;
    Ok(Stood { stopped_us, resumed_us })
}

/// Writes a VM with all its memory into a file and ends its VMM, as one does before a host is restarted. When it stopped, in
/// microseconds since 1970.
///
/// # Errors
/// The VMM (whose socket `qmp` is in `folder`) does not answer or refuses.
pub fn suspend(folder: &Path, file: &Path) -> io::Result<u64> {
    let mut from = Monitor::connect(&folder.join("qmp"))?;
    from.execute("migrate-set-capabilities", json!({"capabilities": [{"capability": "events", "state": true}]}))?;
    from.execute("stop", Value::Null)?;
    from.execute("migrate", whole(file))?;
    from.completed()?;
    let stopped_us = from.event(|name, _| name == "STOP")?;
    from.execute("quit", Value::Null)?;
    Ok(stopped_us)
}

/// Loads what [`suspend`] wrote into a VMM that was started with `-incoming defer -S`, and lets it run. When it did, in microseconds
/// since 1970.
///
/// # Errors
/// The VMM does not answer or refuses.
pub fn wake(folder: &Path, file: &Path) -> io::Result<u64> {
    let mut to = Monitor::connect(&folder.join("qmp"))?;
    to.execute("migrate-incoming", whole(file))?;
    to.run_when_loaded()
}

fn whole(file: &Path) -> Value {
    json!({"channels": [{"channel-type": "main", "addr": {"transport": "file", "filename": file, "offset": 0}}]})
}

struct Monitor {
    lines: io::Lines<BufReader<UnixStream>>,
    writer: UnixStream,
    events: Vec<Value>,
}

impl Monitor {
    /// Connects as soon as somebody listens.
    fn connect(path: &Path) -> io::Result<Self> {
        let begin = Instant::now();
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if begin.elapsed() > LIMIT => return Err(error),
                Err(_) => crate::clock::rest(Duration::from_micros(200)),
            }
        };
        stream.set_read_timeout(Some(LIMIT))?;
        let mut monitor =
            Self { writer: stream.try_clone()?, lines: BufReader::new(stream).lines(), events: Vec::new() };
        monitor.execute("qmp_capabilities", Value::Null)?;
        Ok(monitor)
    }

    fn execute(&mut self, command: &str, arguments: Value) -> io::Result<Value> {
        let mut order = json!({"execute": command});
        if !arguments.is_null() {
            order["arguments"] = arguments;
        }
        self.writer.write_all(format!("{order}\n").as_bytes())?;
        loop {
            let message = self.next()?;
            if let Some(error) = message.get("error") {
                return Err(io::Error::other(format!("{command}: {}", error["desc"])));
            }
            if let Some(answer) = message.get("return") {
                return Ok(answer.clone());
            }
            self.events.push(message);
        }
    }

    fn next(&mut self) -> io::Result<Value> {
        let line = self.lines.next().unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))?;
        serde_json::from_str(&line).map_err(io::Error::other)
    }

    /// When an event came, in microseconds since 1970; one that came already counts.
    fn event(&mut self, wanted: impl Fn(&str, &Value) -> bool) -> io::Result<u64> {
        let mut at = 0;
        loop {
            while at == self.events.len() {
                let message = self.next()?;
                self.events.push(message);
            }
            let event = &self.events[at];
            if event["event"].as_str().is_some_and(|name| wanted(name, &event["data"])) {
                let time = &event["timestamp"];
                let part = |key: &str| time[key].as_u64().unwrap_or(0);
                return Ok(part("seconds") * 1_000_000 + part("microseconds"));
            }
            at += 1;
        }
    }

    /// Lets the VM run as soon as its state is loaded; when that was.
    fn run_when_loaded(&mut self) -> io::Result<u64> {
        let begin = Instant::now();
        while self.execute("query-status", Value::Null)?["status"] == "inmigrate" {
            if begin.elapsed() > LIMIT {
                return Err(io::Error::other("the new VMM never had the VM"));
            }
            crate::clock::rest(Duration::from_micros(200));
        }
        self.execute("cont", Value::Null)?;
        self.event(|name, _| name == "RESUME")
    }

    fn completed(&mut self) -> io::Result<()> {
        let over = |name: &str, data: &Value| {
            name == "MIGRATION" && (data["status"] == "completed" || data["status"] == "failed")
        };
        self.event(over)?;
        if self.events.iter().any(|event| event["data"]["status"] == "failed") {
            let why = self.execute("query-migrate", Value::Null)?;
            return Err(io::Error::other(format!("the hand over failed: {}", why["error-desc"])));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A monitor that answers everything, and tells of a STOP before its second answer.
    #[test]
    fn an_event_between_answers_is_kept_with_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        let serving = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut writer = stream.try_clone().unwrap();
            writer.write_all(b"{\"QMP\": {}}\n").unwrap();
            let mut lines = BufReader::new(stream).lines();
            lines.next().unwrap().unwrap();
            writer.write_all(b"{\"return\": {}}\n").unwrap();
            lines.next().unwrap().unwrap();
            let stop = "{\"event\": \"STOP\", \"timestamp\": {\"seconds\": 2, \"microseconds\": 5}}\n";
            writer.write_all(stop.as_bytes()).unwrap();
            writer.write_all(b"{\"return\": {\"status\": \"paused\"}}\n").unwrap();
        });
        let mut monitor = Monitor::connect(&path).unwrap();
        assert_eq!(monitor.execute("query-status", Value::Null).unwrap()["status"], "paused");
        assert_eq!(monitor.event(|name, _| name == "STOP").unwrap(), 2_000_005);
        serving.join().unwrap();
    }
}
