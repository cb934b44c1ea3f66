//! Several hosts and the network between them.
//!
//! ```text
//!  up: image, guests' disk, payloads ─► switch ─► QEMU of each host ─► state file ─► wait until all are ready
//!  down: end every process of the state ─► remove the state
//! ```
//! Invariant: the state file names a process from the moment it runs, so `down` from anywhere leaves nothing behind.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{
    artifact, command, fault, guests,
    host::{BOOT, Host},
    image::Image,
    machine::{Acceleration, Machine},
    network, package, paths,
    payload::{self, Identity, Programs},
    prerequisites,
    process::Process,
    progress::Step,
    qmp,
    spec::LabSpec,
};

/// A lab that is up. Dropping it takes it down, unless it was [kept](Lab::keep).
#[derive(Debug)]
pub struct Lab {
    state: State,
    kept: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    name: String,
    sockets: PathBuf,
    /// Who made it: when a test dies, the next one cleans up after it.
    owner: Process,
    kept: bool,
    switch: Option<Process>,
    hosts: Vec<Host>,
}

impl Lab {
    /// Makes a lab and waits until its hosts are up.
    ///
    /// # Errors
    /// Something is missing, or a host does not come up; nothing is left running then.
    pub fn up(spec: &LabSpec) -> Result<Self> {
        spec.check()?;
        sweep()?;
        prerequisites::ensure()?;
        let fermata = if spec.as_shipped { artifact::fermata_optimised()? } else { artifact::fermata()? };
        let programs = Programs { probe: artifact::probe()?, package: package::of(&fermata)? };
        let image = Image::ensure()?;
        let guests = guests::disk(&image, &programs.probe, spec.debian_guest)?;
        let switch = artifact::switch()?;

        let folder = paths::run(&spec.name);
        fs::create_dir_all(paths::runs())?;
        if let Err(error) = fs::create_dir(&folder) {
            bail!("a lab named {} is there already ({error}); take it down with `cargo xtask lab down`", spec.name);
        }
        let state = State {
            name: spec.name.clone(),
            sockets: paths::sockets(&spec.name)?,
            owner: Process::of(std::process::id())?,
            kept: false,
            switch: None,
            hosts: Vec::new(),
        };
        let mut lab = Self { state, kept: false };
        lab.save()?;
        let step =
            Step::begin(&format!("boot {} host{}", spec.hosts.len(), if spec.hosts.len() == 1 { "" } else { "s" }));
        lab.start_switch(&switch, spec.hosts.len())?;
        for number in 1..=spec.hosts.len() {
            lab.start_host(spec, number, &image, &programs, guests.clone())?;
        }
        for host in &lab.state.hosts {
            host.wait_ready(BOOT)?;
        }
        step.done();
        let step = Step::begin("wait for the agents");
        for (host, _) in lab.state.hosts.iter().zip(&spec.hosts).filter(|(_, spec)| !spec.bare) {
            host.wait_agent_ready(Duration::from_secs(120))?;
        }
        step.done();
        Ok(lab)
    }

    /// Finds a lab that another process made; it is left up when this value is dropped.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn open(name: &str) -> Result<Self> {
        let state = load(name)?;
        Ok(Self { state, kept: true })
    }

    /// Names of all labs on this machine.
    ///
    /// # Errors
    /// Their folder cannot be read.
    pub fn names() -> Result<Vec<String>> {
        let Ok(entries) = fs::read_dir(paths::runs()) else { return Ok(Vec::new()) };
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.state.name
    }

    /// Its hosts, in order.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.state.hosts
    }

    /// A host by its number, from 1.
    ///
    /// # Panics
    /// There is no such host: a mistake in the test.
    #[must_use]
    pub fn host(&self, number: usize) -> &Host {
        &self.state.hosts[number - 1]
    }

    /// Leaves it up when this process ends.
    ///
    /// # Errors
    /// Its state cannot be written.
    pub fn keep(&mut self) -> Result<()> {
        self.state.kept = true;
        self.save()?;
        self.kept = true;
        Ok(())
    }

    /// Takes down the labs of this process that it did not [keep](Self::keep): what Ctrl-C asks for.
    ///
    /// # Errors
    /// As [`Self::down`].
    pub fn down_all_of_this_process() -> Result<()> {
        let me = Process::of(std::process::id())?;
        for name in Self::names()? {
            match load(&name) {
                Ok(state) if state.owner == me && !state.kept => tear_down(&state)?,
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Takes it down.
    ///
    /// # Errors
    /// A process does not end, or a file cannot be removed.
    pub fn down(mut self) -> Result<()> {
        self.kept = true;
        tear_down(&self.state)
    }

    fn start_switch(&mut self, program: &std::path::Path, hosts: usize) -> Result<()> {
        use std::os::unix::process::CommandExt;
        let log = File::create(paths::run(&self.state.name).join("switch.log"))?;
        let mut switch = Command::new(program);
        switch.arg(&self.state.sockets).args((1..=hosts).map(|number| format!("host{number}")));
        // A group of its own: Ctrl-C is for the one who asked, not for the network.
        switch.process_group(0).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = switch.spawn().with_context(|| format!("start {}", program.display()))?;
        self.state.switch = Some(Process::of(child.id())?);
        self.save()?;
        let socket = network::switch_socket(&self.state.sockets);
        let there = command::await_some(Duration::from_secs(20), Duration::from_millis(10), || {
            Ok(socket.exists().then_some(()))
        })?;
        there.with_context(|| {
            format!("the switch did not start; see {}/switch.log", paths::run(&self.state.name).display())
        })
    }

    fn start_host(
        &mut self,
        spec: &LabSpec,
        number: usize,
        image: &Image,
        programs: &Programs,
        guests: PathBuf,
    ) -> Result<()> {
        let who = Identity { lab: &spec.name, number, count: spec.hosts.len() };
        let name = who.name();
        let folder = paths::run(&spec.name).join(&name);
        fs::create_dir_all(&folder)?;
        let host = &spec.hosts[number - 1];
        let (payload, root) = (folder.join("payload.raw"), folder.join("root.qcow2"));
        payload::write(&payload, image, programs, who, host)?;
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(image.disk()).arg(&root);
        command::succeed(&mut create, Duration::from_secs(60))?;
        let sockets = self.state.sockets.clone();
        let pid_file = folder.join("pid");
        let machine = Machine {
            emulator: image.file("outer"),
            lab: &spec.name,
            name: &name,
            number,
            spec: host,
            boot: image.boot(host.kernel)?,
            root,
            payload,
            guests,
            log: folder.join("console.log"),
            words: folder.join("qemu.log"),
            pid_file: pid_file.clone(),
            sockets: &sockets,
        };
        let mut qemu = machine.command(Acceleration::detect());
        // QEMU goes to the background once its devices are ready; what it says before is the error, later the cause of its end.
        let words = folder.join("qemu.err");
        qemu.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&words)?);
        let mut starter = qemu.spawn().context("start a virtual host")?;
        let ended = command::wait(&mut starter, Duration::from_secs(60))?;
        if !ended.is_some_and(|status| status.success()) {
            bail!("a virtual host did not start ({ended:?}):\n{}", fs::read_to_string(&words).unwrap_or_default());
        }
        let process = Process::of_pid_file(&pid_file)?;
        self.state.hosts.push(Host {
            lab: spec.name.clone(),
            name: name.clone(),
            folder,
            sockets: sockets.clone(),
            process,
            ssh_port: 0,
        });
        self.save()?;
        let port = qmp::ssh_port(&sockets.join(format!("{name}.qmp")))?;
        if let Some(host) = self.state.hosts.last_mut() {
            host.ssh_port = port;
        }
        self.save()
    }

    fn save(&self) -> Result<()> {
        let folder = paths::run(&self.state.name);
        let part = folder.join("lab.json.part");
        fs::write(&part, serde_json::to_vec_pretty(&self.state)?)?;
        fs::rename(&part, folder.join("lab.json")).context("write the lab's state")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = tear_down(&self.state)
        {
            eprintln!("lab: taking {} down failed: {error:#}", self.state.name);
        }
    }
}

fn load(name: &str) -> Result<State> {
    let file = paths::run(name).join("lab.json");
    let text = fs::read(&file)
        .with_context(|| format!("no lab named {name:?}; `cargo xtask lab list` shows those that are up"))?;
    serde_json::from_slice(&text)
        .with_context(|| format!("{} is of another version; remove it when no process uses it", file.display()))
}

fn tear_down(state: &State) -> Result<()> {
    for host in &state.hosts {
        host.forget_connections();
        host.process.kill()?;
        fault::look(&host.folder);
    }
    if let Some(switch) = state.switch {
        switch.kill()?;
    }
    for folder in [&state.sockets, &paths::run(&state.name)] {
        remove(folder)?;
    }
    Ok(())
}

/// Removes a folder with all that is in it. After Ctrl-C a command of this process that is just ending may still write there, so a few
/// tries are made: what stays would be in the way of the next lab of that name.
fn remove(folder: &Path) -> Result<()> {
    let mut last = Ok(());
    for _ in 0..5 {
        last = match fs::remove_dir_all(folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            other => other,
        };
    }
    last.with_context(|| format!("remove {}", folder.display()))
}

/// Takes down labs whose makers are gone without having done so: killed, or ended by Ctrl-C.
fn sweep() -> Result<()> {
    for name in Lab::names()? {
        let Ok(state) = load(&name) else { continue };
        if !state.kept && !state.owner.is_alive() {
            tear_down(&state)?;
        }
    }
    Ok(())
}
