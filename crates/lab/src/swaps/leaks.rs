//! What a host holds on behalf of its VMs: counted before many updates and after, nothing may have become more.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::host::Host;

/// What a host holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Open descriptors of the agent.
    pub descriptors: i64,
    /// VMMs, helpers of the agent and units of theirs.
    pub processes: i64,
    /// Files of the agent (but its data bases, which keep history), taps, and files in shared memory.
    pub files: i64,
    /// Memory of the agent itself, in KiB.
    pub agent_kib: i64,
    /// Memory shared between processes on the host, in KiB: guests' memory above all.
    pub shared_kib: i64,
}

const COUNT: &str = "\
    agent=$(systemctl show -p MainPID --value fermata-agent)
    d=$(ls /proc/$agent/fd | wc -l)
    p=$(pgrep -c 'qemu-system|fermata'; true)
    u=$(systemctl list-units --all --plain --no-legend 'fermata-*' | wc -l)
    f=$(find /run/fermata /var/lib/fermata /dev/shm -type f -o -type s 2>/dev/null | grep -v '\\.db' | wc -l)
    t=$(ls /sys/class/net | wc -l)
    a=$(awk '/^VmRSS/{print $2}' /proc/$agent/status)
    s=$(awk '/^Shmem:/{print $2}' /proc/meminfo)
    echo \"{\\\"descriptors\\\":$d,\\\"processes\\\":$((p + u)),\\\"files\\\":$((f + t)),\\\"agent_kib\\\":$a,\\\"shared_kib\\\":$s}\"";

impl Held {
    /// Counts now.
    ///
    /// # Errors
    /// The host does not answer.
    pub fn by(host: &Host) -> Result<Self> {
        let text = host.run(COUNT)?;
        serde_json::from_str(&text).with_context(|| format!("read what the host holds: {text}"))
    }

    /// What it holds more than `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            descriptors: self.descriptors - before.descriptors,
            processes: self.processes - before.processes,
            files: self.files - before.files,
            agent_kib: self.agent_kib - before.agent_kib,
            shared_kib: self.shared_kib - before.shared_kib,
        }
    }
}
