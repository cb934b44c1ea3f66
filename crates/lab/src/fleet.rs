//! A fleet of virtual hosts: a controller on the first, agents that joined it on all.
//!
//! The controller lives on a host that it updates, which is the harder case: it is away while that host changes its kernel.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{host::Host, lab::Lab};

/// Hosts that have joined a controller.
#[derive(Debug)]
pub struct Fleet {
    /// The hosts; the first of them are members, others are not.
    pub lab: Lab,
    members: usize,
}

impl Fleet {
    /// Makes one of the first hosts of a lab, and waits until these have joined.
    ///
    /// # Errors
    /// A host does not join within seven minutes, or a command fails there.
    pub fn form(lab: Lab, members: usize) -> Result<Self> {
        let fleet = Self { lab, members };
        for host in fleet.hosts() {
            host.wait_agent_ready(Duration::from_secs(120))?;
        }
        fleet.controller().run("fermata controller init && systemctl enable --now fermata-controller")?;
        let token = fleet.json("controller token")?["token"].as_str().context("a token")?.to_owned();
        for host in fleet.hosts() {
            host.write("/root/join", &token)?;
            let member = "\n[fleet]\ncontroller = \"10.88.0.1:7440\"\ntoken_file = \"/root/join\"\n";
            host.run(&format!("printf '{}' >> /etc/fermata/agent.toml", member.replace('\n', "\\n")))?;
            host.run("systemctl restart fermata-agent")?;
        }
        fleet.await_json("fleet list", "all hosts joined", |all| {
            all.as_object().map_or(0, serde_json::Map::len) == members
        })?;
        Ok(fleet)
    }

    /// Its members.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.lab.hosts()[..self.members]
    }

    /// The host with the controller.
    #[must_use]
    pub fn controller(&self) -> &Host {
        self.lab.host(1)
    }

    /// What a command of `fermata` answers on the controller's host.
    ///
    /// # Errors
    /// It answers no JSON.
    pub fn json(&self, command: &str) -> Result<Value> {
        let output = self.controller().exec(&format!("fermata --json {command}"))?;
        serde_json::from_str(&output.stdout).with_context(|| format!("{command}: {}{}", output.stdout, output.stderr))
    }

    /// Asks until the answer is as wanted; the controller may be away for a while.
    ///
    /// # Errors
    /// Nothing changes for seven minutes, or half an hour has passed; the text has the journals of all hosts.
    pub fn await_json(&self, command: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        self.watch_json(command, what, |value| wanted(value).then(|| value.clone()))
    }

    /// Asks again and again, shows each answer to `look`, until that returns something.
    ///
    /// # Errors
    /// As [`Self::await_json`].
    #[expect(clippy::disallowed_methods, reason = "asked through ssh; nothing there tells this machine of a change")]
    pub fn watch_json<T>(&self, command: &str, what: &str, mut look: impl FnMut(&Value) -> Option<T>) -> Result<T> {
        // A visit to an emulated host takes minutes, and how many there are is the caller's.
        const STILL: Duration = Duration::from_secs(420);
        const LONGEST: Duration = Duration::from_secs(1_800);
        const SHORTEST: Duration = Duration::from_millis(500);
        let began = Instant::now();
        let (mut seen, mut news, mut changed) = (String::new(), Value::Null, began);
        while changed.elapsed() < STILL && began.elapsed() < LONGEST {
            let asking = Instant::now();
            let asked = self.controller().exec_within(&format!("fermata --json {command}"), Duration::from_secs(30));
            // An error is no end: its host may be changing its kernel.
            seen =
                asked.as_ref().map_or_else(|error| format!("{error:#}"), |all| format!("{}{}", all.stdout, all.stderr));
            if let Some(value) = asked.ok().and_then(|all| serde_json::from_str::<Value>(&all.stdout).ok()) {
                if let Some(found) = look(&value) {
                    return Ok(found);
                }
                if value != news {
                    (news, changed) = (value, Instant::now());
                }
            }
            // A question costs an emulated host half a second of the processor that its VMs run on: half of the time it is left alone.
            thread::sleep(asking.elapsed().clamp(SHORTEST, SHORTEST * 6));
        }
        let journals = self.hosts().iter().map(|host| {
            let journal = host.exec("journalctl -u fermata-agent -u fermata-controller -n 40 --no-pager -o cat");
            format!("--- {}\n{}", host.name, journal.map(|output| output.stdout).unwrap_or_default())
        });
        let waited = began.elapsed().as_secs();
        bail!("{what}: not within {waited} s; last: {seen}\n{}", journals.collect::<String>())
    }

    /// Plans a rollout of an update; `file` is what the update needs besides its name.
    ///
    /// # Errors
    /// The plan is refused.
    pub fn plan(&self, name: &str, file: &str, rest: &str) -> Result<Value> {
        let text = format!("id = \"{name}\"\ntitle = \"{name}\"\n{file}");
        self.controller().write(&format!("/tmp/{name}.toml"), &text)?;
        self.json(&format!("rollout plan /tmp/{name}.toml --name {name} --reason lab --recovery 0 {rest}"))
    }

    /// Waits until a rollout is in a phase.
    ///
    /// # Errors
    /// As [`Self::await_json`].
    pub fn phase(&self, name: &str, wanted: &str) -> Result<Value> {
        self.await_json("rollout list", &format!("rollout {name} {wanted}"), |all| {
            all.as_array().into_iter().flatten().any(|line| line["id"] == name && line["phase"] == wanted)
        })
    }
}
