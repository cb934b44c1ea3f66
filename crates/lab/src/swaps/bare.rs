//! The floor: a VM with the command line of one of Fermata's, started and swapped by hand on the same host; or taken through a
//! restart of the host in a file, as one does without Fermata.
//!
//! What differs from Fermata's own: memory is a file in `/dev/shm` and taps are opened by name, because a shell lends no
//! descriptors. Both VMMs run as root in a unit of their own.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use fermata_probe::bare::Stood;
use serde_json::{Value, json};

use super::{guest::Guest, measure};
use crate::{host::Host, payload};

const LIMIT: Duration = Duration::from_secs(180);

/// A VM that nobody but this value looks after.
#[derive(Debug)]
pub struct Bare<'a> {
    host: &'a Host,
    guest: Guest,
    arguments: Vec<String>,
    side: char,
    /// The VMM that runs it.
    pub vmm: String,
}

/// How long it stood, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Floor {
    /// STOP to RESUME.
    pub host_blackout_ms: f64,
    /// From its last sample before to its first one after.
    pub guest_blackout_ms: f64,
}

impl<'a> Bare<'a> {
    /// Starts a VM like `like`, which runs under Fermata and was never swapped.
    ///
    /// # Errors
    /// It does not come to life.
    pub fn start(host: &'a Host, like: &Guest, last: u8) -> Result<Self> {
        let view: Value = serde_json::from_str(&host.run(&format!("fermata --json vm show {}", like.name))?)?;
        let pid = view["process"]["pid"].as_u64().with_context(|| format!("{} does not run", like.name))?;
        let vmm = view["process"]["vmm"].as_str().context("a running VM has a VMM")?.to_owned();
        let text = host.run(&format!("tr '\\0' '\\n' < /proc/{pid}/cmdline"))?;
        let guest = Guest { name: format!("bare{last}"), last, ..like.clone() };
        let arguments = rewrite(text.lines().skip(1), like, &guest)?;
        let bare = Self { host, guest, arguments, side: 'a', vmm };
        bare.clear();
        host.run(&format!("truncate -s 64M {}", bare.guest.image()))?;
        bare.links()?;
        host.run(&bare.run('a', &bare.vmm, &[]))?;
        bare.guest.probe(host).wait_alive(180)?;
        Ok(bare)
    }

    /// The VM, for whoever asks its probe.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    fn links(&self) -> Result<()> {
        let name = &self.guest.name;
        for side in ['a', 'b'] {
            self.host.run(&format!(
                "ip tuntap add dev {name}-{side} mode tap vnet_hdr && ip link set {name}-{side} master br0 up"
            ))?;
        }
        Ok(())
    }

    /// Puts it into a file on the host's disk, memory and all, and ends its VMM.
    ///
    /// # Errors
    /// The VMM refuses.
    pub fn suspend(&self) -> Result<()> {
        let (folder, file) = (self.folder(), self.state_file());
        self.host.exec_within(&format!("fermata-probe bare-suspend {folder}/{} {file}", self.side), LIMIT)?;
        Ok(())
    }

    /// Lets it go on from that file, after a restart of the host.
    ///
    /// # Errors
    /// The VMM refuses.
    pub fn wake(&mut self) -> Result<()> {
        self.links()?;
        self.side = 'a';
        let words = ["-incoming", "defer", "-S"].map(str::to_owned);
        let wake = format!("fermata-probe bare-wake {}/a {}", self.folder(), self.state_file());
        let output = self.host.exec_within(&format!("{} && {wake}", self.run('a', &self.vmm, &words)), LIMIT)?;
        if output.status != 0 {
            bail!("{} does not wake: {}", self.guest.name, output.stderr);
        }
        Ok(())
    }

    fn folder(&self) -> String {
        folder_of(&self.guest)
    }

    fn state_file(&self) -> String {
        format!("{}.state", self.guest.image())
    }

    /// Swaps it and tells how long it stood.
    ///
    /// # Errors
    /// A VMM refuses.
    pub fn swap(&mut self, to: &str, way: &str) -> Result<Floor> {
        let (old, new) = (self.side, if self.side == 'a' { 'b' } else { 'a' });
        let (folder, name) = (self.folder(), &self.guest.name);
        let unix = |kind: &str, socket: &str| {
            format!(
                "{{\"channel-type\":\"{kind}\",\"addr\":{{\"transport\":\"socket\",\"type\":\"unix\",\"path\":\"{folder}/{new}/{socket}\"}}}}"
            )
        };
        let (incoming, ready) = match way {
            "transfer" => (
                vec!["-incoming".to_owned(), unix("main", "incoming"), "-incoming".to_owned(), unix("cpr", "cpr")],
                "cpr",
            ),
            _ => (vec!["-incoming".to_owned(), "defer".to_owned()], "qmp"),
        };
        let more: Vec<String> = incoming.into_iter().chain(["-S".to_owned()]).collect();
        // As under Fermata, the VM is handed over some time after the new VMM was started, not while it starts.
        let script = format!(
            "{}\ntimeout 60 sh -c 'until grep -q \" {folder}/{new}/{ready}$\" /proc/net/unix; do sleep 0.1; done' && sleep 1 && \
             fermata-probe bare-swap {folder}/{old} {folder}/{new} {way} && {{ systemctl stop {name}-{old} || ! systemctl -q is-active {name}-{old}; }} && rm -rf {folder}/{old}",
            self.run(new, to, &more)
        );
        let before = measure::snapshot(self.host, &self.guest)?;
        self.guest.probe(self.host).mark()?;
        let output = self.host.exec_within(&script, LIMIT)?;
        if output.status != 0 {
            let log = self.host.run(&format!("journalctl -q -n 20 -o cat -u {name}-{old} -u {name}-{new}"))?;
            bail!("the bare swap from {} to {to} by {way} failed: {}{log}", self.vmm, output.stderr);
        }
        let stood: Stood = serde_json::from_str(output.stdout.lines().next().unwrap_or_default())?;
        (self.side, self.vmm) = (new, to.to_owned());
        let after = measure::snapshot(self.host, &self.guest)?;
        let ns = |us: u64| i64::try_from(us).map(|us| us * 1000).context("a time stamp of this century");
        let pause = (ns(stood.stopped_us)?, ns(stood.resumed_us)?);
        let gaps = &after.report.gaps.largest;
        Ok(Floor {
            host_blackout_ms: measure::signed_ms(pause.1 - pause.0),
            guest_blackout_ms: measure::signed_ms(measure::blackout(gaps, &before.offset, &after.offset, Some(pause))),
        })
    }

    /// Ends it; nothing is left.
    pub fn end(self) {
        self.clear();
    }

    fn clear(&self) {
        // Each may be missing; a host that does not answer is noticed by whatever comes next.
        let (n, folder) = (&self.guest.name, self.folder());
        let script = format!(
            "systemctl stop {n}-a {n}-b; ip link del {n}-a; ip link del {n}-b; rm -rf {folder} {} {} {}",
            memory_of(&self.guest),
            self.guest.image(),
            self.state_file()
        );
        let _ = self.host.exec(&format!("{{ {script}; }} 2>/dev/null"));
    }

    fn run(&self, side: char, version: &str, more: &[String]) -> String {
        let words = self.arguments.iter().map(|word| word.replace("@SIDE@", &side.to_string()));
        let words: Vec<String> = words.chain(more.iter().cloned()).map(|word| quoted(&word)).collect();
        format!(
            "mkdir -p {}/{side} && systemd-run --quiet --collect --unit={}-{side} --slice=fermata.slice {} {}",
            self.folder(),
            self.guest.name,
            payload::vmm_binary(version),
            words.join(" ")
        )
    }
}

fn folder_of(guest: &Guest) -> String {
    format!("/run/{}", guest.name)
}

fn memory_of(guest: &Guest) -> String {
    format!("/dev/shm/{}.mem", guest.name)
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// The command line of a VM of Fermata, for one run by hand; `@SIDE@` stands for what differs between its two VMMs.
fn rewrite<'a>(words: impl Iterator<Item = &'a str>, like: &Guest, guest: &Guest) -> Result<Vec<String>> {
    let words: Vec<&str> = words.collect();
    if words.contains(&"-incoming") {
        bail!("{} was swapped already; the floor is measured from a fresh VM", like.name);
    }
    let monitor = words.iter().find_map(|word| word.strip_prefix("socket,id=qmp,path="));
    let folder = monitor.and_then(|rest| rest.split("/qmp").next()).context("a VM of Fermata has a monitor")?;
    let above = folder.rsplit_once('/').map_or(folder, |(above, _)| above);
    let mac = |last: u8| format!("52:54:00:00:00:{last:02x}");
    let own = folder_of(guest);
    let word = |word: &&str| {
        if word.starts_with('{') && word.contains("\"vhostfd\"") {
            return json!({"type": "tap", "id": "nic0", "ifname": format!("{}-@SIDE@", guest.name), "script": "no",
                "downscript": "no", "vhost": true})
            .to_string();
        }
        if let Some(mut object) = word.starts_with('{').then(|| serde_json::from_str::<Value>(word).ok()).flatten()
            && object["qom-type"] == "memory-backend-file"
        {
            object["mem-path"] = json!(memory_of(guest));
            // Where a VM's memory lies in a vault.
            if let Some(fields) = object.as_object_mut() {
                fields.remove("offset");
                fields.remove("align");
            }
            return object.to_string();
        }
        word.replace(folder, &format!("{own}/@SIDE@"))
            .replace(above, &own)
            .replace(&like.image(), &guest.image())
            .replace(&mac(like.last), &mac(guest.last))
    };
    Ok(words.iter().map(word).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_is_made_one_for_hands() {
        let like = Guest::new("g1", 11);
        let guest = Guest::new("bare12", 12);
        let words = [
            "socket,id=qmp,path=/run/fermata/vm/g1/1/qmp,server=on",
            "socket,logfile=/run/fermata/vm/g1/console.log",
            "{\"mem-path\":\"/proc/self/fd/10\",\"qom-type\":\"memory-backend-file\",\"offset\":4096}",
            "{\"fd\":\"20\",\"vhostfd\":\"52\"}",
            "virtio-net-pci,mac=52:54:00:00:00:0b",
            "/srv/g1.img",
        ];
        let made = rewrite(words.into_iter(), &like, &guest).unwrap();
        assert_eq!(made[0], "socket,id=qmp,path=/run/bare12/@SIDE@/qmp,server=on");
        assert_eq!(made[1], "socket,logfile=/run/bare12/console.log");
        let memory: Value = serde_json::from_str(&made[2]).unwrap();
        assert_eq!(memory, json!({"mem-path": "/dev/shm/bare12.mem", "qom-type": "memory-backend-file"}));
        assert!(made[3].contains("\"ifname\":\"bare12-@SIDE@\""));
        assert_eq!((made[4].as_str(), made[5].as_str()), ("virtio-net-pci,mac=52:54:00:00:00:0c", "/srv/bare12.img"));
        assert!(rewrite(["-incoming"].into_iter(), &like, &guest).is_err());
    }
}
