//! A running virtual host: commands, files, power.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    command::{self, await_some},
    payload::Keys,
    process::Process,
    qmp,
};

/// The environment of the agent before the service manager.
const FIRST_ENV: &str = "/etc/fermata/first.env";

/// Time for a host to boot on a machine without hardware virtualisation that is busy with other things.
pub const BOOT: Duration = Duration::from_secs(240);

/// Usual time limit of a command inside a host.
pub const COMMAND: Duration = Duration::from_secs(120);

/// Line of the console that ends a boot; the boot's id follows.
const READY: &str = "fermata-lab: ready ";

/// A virtual host. A plain value: any process can make one from the lab's state.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Host {
    /// Name of its lab.
    pub lab: String,
    /// Its name, also inside.
    pub name: String,
    /// Folder of its state.
    pub(crate) folder: PathBuf,
    /// Folder of its sockets.
    pub(crate) sockets: PathBuf,
    /// Its QEMU.
    pub(crate) process: Process,
    /// Port of its SSH server on the loopback.
    pub(crate) ssh_port: u16,
}

/// What a command inside a host did.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit status.
    pub status: i32,
    /// What it wrote.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

/// What every VM's processor does, twice (one that is halted with no timer set and no interrupt pending never goes on), its registers and what is on its
/// stack, and what KVM does for all of them meanwhile. Addresses become names by the difference to a symbol of the same kernel (`/proc/kallsyms`).
pub(crate) const VCPUS: &str = r#"ask() { printf '{"execute":"human-monitor-command","arguments":{"command-line":"%s"}}\n' "$1"; }; \
    for monitor in /run/fermata/vm/*/*/rescue /run/fermata/vm/*/*/rescue; do echo "--- $monitor"; \
    { echo '{"execute":"qmp_capabilities"}'; ask 'info status'; ask 'info registers'; ask 'info lapic'; ask 'x/96gx $sp'; } | \
    socat -t 2 - "UNIX-CONNECT:$monitor" 2>&1 | sed 's/\\r\\n/\n/g' | \
    grep -aE "VM status|^R[A-Z0-9]+ ?=|^CR|LVTT|Timer|ISR|IRR|rror|nknown|[0-9a-f]{16}: 0x"; done; top -H -b -n 1 | head -n 16; \
    mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing; cd /sys/kernel/tracing && echo 1 > events/kvm/enable && sleep 0.3; \
    echo 0 > events/kvm/enable; grep -v '^#' trace | tail -n 80; cd /"#;

impl Host {
    /// Runs a shell command as root; its exit status is part of the answer, not an error.
    ///
    /// # Errors
    /// The host does not answer, or the command takes longer than [`COMMAND`].
    pub fn exec(&self, script: &str) -> Result<Output> {
        self.exec_within(script, COMMAND)
    }

    /// As [`Self::exec`], with a time limit of its own.
    ///
    /// # Errors
    /// As [`Self::exec`].
    pub fn exec_within(&self, script: &str, limit: Duration) -> Result<Output> {
        let finished =
            command::finish(self.ssh()?.arg("--").arg(script), limit).with_context(|| self.describe(script))?;
        let stderr = String::from_utf8_lossy(&finished.stderr).into_owned();
        let status = finished.status.code().unwrap_or(255);
        if status == 255 {
            // ssh's own status; what broke is in the log of the connection, not in what the command wrote.
            bail!(
                "the connection to {} broke at {script:?}: {}\n{}\n{}",
                self.name,
                stderr.trim(),
                self.ssh_tail(),
                self.console_tail(15)
            );
        }
        Ok(Output { status, stdout: String::from_utf8_lossy(&finished.stdout).into_owned(), stderr })
    }

    /// Runs a shell command that must succeed; gives what it wrote.
    ///
    /// # Errors
    /// As [`Self::exec`], and when it fails.
    pub fn run(&self, script: &str) -> Result<String> {
        let output = self.exec(script)?;
        if output.status != 0 {
            bail!(
                "{} on {} ended with status {}:\n{}{}",
                script,
                self.name,
                output.status,
                output.stdout,
                output.stderr
            );
        }
        Ok(output.stdout)
    }

    /// Copies a file or folder into the host.
    ///
    /// # Errors
    /// It cannot be read here or written there.
    pub fn copy_to(&self, from: &Path, to: &str) -> Result<()> {
        command::succeed(self.scp()?.arg(from).arg(format!("{ALIAS}:{to}")), COMMAND)?;
        Ok(())
    }

    /// Copies a file or folder out of the host.
    ///
    /// # Errors
    /// It cannot be read there or written here.
    pub fn copy_from(&self, from: &str, to: &Path) -> Result<()> {
        command::succeed(self.scp()?.arg(format!("{ALIAS}:{from}")).arg(to), COMMAND)?;
        Ok(())
    }

    /// Writes a text file in the host.
    ///
    /// # Errors
    /// As [`Self::copy_to`].
    pub fn write(&self, path: &str, content: &str) -> Result<()> {
        let file = self.folder.join(format!("write-{}", &command::digest([path, content])[..12]));
        fs::write(&file, content)?;
        let copied = self.copy_to(&file, path);
        fs::remove_file(&file)?;
        copied
    }

    /// Cuts the power and starts again; returns at once. What was not synced to disk may be lost, as in life.
    ///
    /// # Errors
    /// The host's QEMU does not answer.
    pub fn reset(&self) -> Result<()> {
        self.forget_connections();
        qmp::execute(&self.socket("qmp"), "system_reset", &json!({}))?;
        Ok(())
    }

    /// Identity of the present boot.
    ///
    /// # Errors
    /// The host does not answer.
    pub fn boot_id(&self) -> Result<String> {
        Ok(self.run("cat /proc/sys/kernel/random/boot_id")?.trim().to_owned())
    }

    /// Waits until a boot other than `before` is up: after a reset, a reboot or a kexec.
    ///
    /// # Errors
    /// None came in time; the error ends with the console's last lines.
    pub fn wait_boot_after(&self, before: &str, limit: Duration) -> Result<String> {
        let boot = self.await_ready(limit, |boot| boot != before)?;
        self.forget_connections();
        Ok(boot)
    }

    /// Waits until the host is up for the first time.
    ///
    /// # Errors
    /// As [`Self::wait_boot_after`].
    pub fn wait_ready(&self, limit: Duration) -> Result<String> {
        self.await_ready(limit, |_| true)
    }

    fn await_ready(&self, limit: Duration, fits: impl Fn(&str) -> bool) -> Result<String> {
        let answer = await_some(limit, Duration::from_millis(100), || {
            if !self.process.is_alive() {
                bail!("the QEMU of {} ended by itself\n{}", self.name, self.console_tail(15));
            }
            let log = String::from_utf8_lossy(&fs::read(self.console_log()).unwrap_or_default()).into_owned();
            let last = log.lines().rev().find_map(|line| Some(line.split_once(READY)?.1.trim().to_owned()));
            Ok(last.filter(|boot| boot.len() == 36 && fits(boot)))
        })?;
        answer.with_context(|| {
            format!("{} was not up within {} s\n{}", self.name, limit.as_secs(), self.console_tail(25))
        })
    }

    /// Waits until the agent takes requests.
    ///
    /// # Errors
    /// It does not in time; the error tells what its journal says.
    pub fn wait_agent_ready(&self, limit: Duration) -> Result<()> {
        let seconds = limit.as_secs();
        let script = format!(
            "timeout {seconds} sh -c 'until [ -S /run/fermata/agent.sock ] && systemctl -q is-active fermata-agent; do sleep 0.2; done'"
        );
        let output = self.exec_within(&script, limit + Duration::from_secs(30))?;
        if output.status != 0 {
            let journal = self.exec("journalctl -u fermata-agent -n 20 --no-pager -o cat")?;
            bail!("the agent on {} was not ready within {seconds} s; its journal:\n{}", self.name, journal.stdout);
        }
        Ok(())
    }

    /// Tells the agent at which step of a maintenance to halt by itself (`FERMATA_HALT_AT`), or no longer to, and starts it anew. `units`
    /// is the folder for it: below `/run` it is forgotten with the kernel.
    ///
    /// # Errors
    /// The agent does not get ready.
    pub fn halt_agent_at(&self, step: Option<&str>, units: &str) -> Result<()> {
        let folder = format!("{units}/fermata-agent.service.d");
        // The agent that runs before the service manager has its environment from a file of its own.
        let script = step.map_or_else(
            || format!("rm -rf {folder} {FIRST_ENV}"),
            |step| {
                format!(
                    "mkdir -p {folder} && printf '[Service]\\nEnvironment=\"FERMATA_HALT_AT={step}\"\\n' >{folder}/halt.conf; \
                     echo 'FERMATA_HALT_AT={step}' >{FIRST_ENV}"
                )
            },
        );
        self.run(&format!(
            "{script}; rm -f /run/fermata/halted; systemctl daemon-reload; systemctl restart fermata-agent; sync"
        ))?;
        self.wait_agent_ready(Duration::from_secs(90))
    }

    /// What a person would look at when something went wrong: the agent's log of this boot, VMMs, taps, what maintenances tell.
    #[must_use]
    pub fn evidence(&self) -> String {
        const LOOK: &str = "date; uname -r; fermata maintenance list; fermata vm list; pgrep -af qemu-system | cut -c1-120; \
            ip -br link; bridge fdb show br br0 | grep -v permanent; tc qdisc show; \
            for id in $(fermata --json maintenance list | grep -o '\"maintenance\": *\"[^\"]*' | cut -d'\"' -f4); do fermata maintenance report $id; done; \
            journalctl --no-pager -b -o short-precise -u 'fermata-*' | tail -n 300";
        let seen = match self.exec_within(&format!("{VCPUS}; {LOOK}"), Duration::from_secs(60)) {
            Ok(output) => output.stdout + &output.stderr,
            Err(error) => format!("{error:#}"),
        };
        format!("{seen}\n{}", self.console_tail(40))
    }

    /// The last lines of the serial console.
    #[must_use]
    pub fn console_tail(&self, lines: usize) -> String {
        let text = command::tail(&fs::read(self.console_log()).unwrap_or_default(), lines);
        let end = if self.is_running() {
            String::new()
        } else {
            let words = command::tail(&fs::read(self.folder.join("qemu.err")).unwrap_or_default(), lines);
            format!("\n--- its QEMU has ended; its last words ---\n{words}")
        };
        format!("--- console of {} ({}) ---\n{text}{end}", self.name, self.console_log().display())
    }

    /// Log of the serial console, of all boots.
    #[must_use]
    pub fn console_log(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    /// A socket of the host: `console` or `qmp`.
    #[must_use]
    pub fn socket(&self, kind: &str) -> PathBuf {
        self.sockets.join(format!("{}.{kind}", self.name))
    }

    /// Whether its QEMU runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.process.is_alive()
    }

    /// Memory that its QEMU occupies on this machine, in bytes (`VmRSS` of proc(5)).
    ///
    /// # Errors
    /// It does not run.
    pub fn memory_used(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.pid))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS: has it ended?")?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib << 10)
    }

    /// An `ssh` command to the host; for people, who may want a terminal.
    ///
    /// # Errors
    /// The keys of the lab are lost.
    pub fn ssh(&self) -> Result<Command> {
        self.connect()?;
        let mut ssh = Command::new("ssh");
        ssh.args(self.ssh_options()?).arg(ALIAS).stdin(std::process::Stdio::null());
        Ok(ssh)
    }

    /// Opens the connection that all commands share: the handshake is what costs, in an emulated CPU.
    ///
    /// It belongs to nobody's terminal and writes a log of its own, so that a connection that breaks says why.
    fn connect(&self) -> Result<()> {
        use std::os::unix::process::CommandExt;
        let lock = fs::File::create(self.folder.join("ssh.lock"))?;
        lock.lock()?;
        if self.socket("ssh").exists() {
            return Ok(());
        }
        let mut master = Command::new("ssh");
        master.args(self.ssh_options()?).args(["-M", "-N", "-f", "-o", "LogLevel=VERBOSE", "-E"]).arg(self.ssh_log());
        master.arg(ALIAS).process_group(0).stdin(std::process::Stdio::null());
        let connected = command::finish(&mut master, Duration::from_secs(90))?;
        if !connected.status.success() {
            bail!("{} takes no connection:\n{}\n{}", self.name, self.ssh_tail(), self.console_tail(15));
        }
        Ok(())
    }

    /// Log of the shared connection.
    fn ssh_log(&self) -> PathBuf {
        self.folder.join("ssh.log")
    }

    fn ssh_tail(&self) -> String {
        let text = command::tail(&fs::read(self.ssh_log()).unwrap_or_default(), 10);
        format!("--- connection to {} ({}) ---\n{text}", self.name, self.ssh_log().display())
    }

    fn scp(&self) -> Result<Command> {
        self.connect()?;
        let mut scp = Command::new("scp");
        scp.args(["-q", "-r"]).args(self.ssh_options()?);
        Ok(scp)
    }

    fn ssh_options(&self) -> Result<Vec<String>> {
        let client = Keys::ensure()?.client;
        let mut words = vec!["-F".to_owned(), "/dev/null".to_owned(), "-i".to_owned(), client.display().to_string()];
        let control = self.socket("ssh");
        for option in [
            "HostName=127.0.0.1".to_owned(),
            format!("Port={}", self.ssh_port),
            "User=root".to_owned(),
            "BatchMode=yes".to_owned(),
            "IdentitiesOnly=yes".to_owned(),
            // The host's key is the same for all labs of this workspace and reachable on the loopback only.
            "StrictHostKeyChecking=no".to_owned(),
            "UserKnownHostsFile=/dev/null".to_owned(),
            "LogLevel=ERROR".to_owned(),
            "ConnectTimeout=60".to_owned(),
            "ServerAliveInterval=10".to_owned(),
            "ServerAliveCountMax=6".to_owned(),
            format!("ControlPath={}", control.display()),
        ] {
            words.extend(["-o".to_owned(), option]);
        }
        Ok(words)
    }

    /// Ends the shared connection: after a reset it leads nowhere.
    pub(crate) fn forget_connections(&self) {
        if let Ok(options) = self.ssh_options() {
            // Without a connection there is nothing to end.
            let mut ssh = Command::new("ssh");
            let _ = command::finish(ssh.args(options).args(["-O", "exit", ALIAS]), Duration::from_secs(10));
            let _ = fs::remove_file(self.socket("ssh"));
        }
    }

    fn describe(&self, script: &str) -> String {
        format!("run {script:?} on {}\n{}", self.name, self.console_tail(10))
    }
}

/// What ssh calls the host; its options say where it is.
const ALIAS: &str = "fermata-lab-host";
