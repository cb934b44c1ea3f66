//! Guests with a probe as main program.

use std::fmt::Write;

use anyhow::{Context, Result, bail};
use fermata_probe::{clock::Clocks, disk::Check, report::Report};

use crate::{
    guest::Probe,
    host::{Host, VCPUS},
};

/// A guest of the lab on a host, a VM of Fermata.
#[derive(Debug, Clone)]
pub struct Guest {
    /// Its name.
    pub name: String,
    /// Last byte of its address.
    pub last: u8,
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u64,
    /// Format of its disk.
    pub format: Format,
    /// More words for its kernel's command line.
    pub cmdline: String,
    /// More lines for its specification.
    pub extra: String,
}

/// Format of a disk image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The bytes as they are.
    Raw,
    /// QEMU's own.
    Qcow2,
}

impl Guest {
    /// A guest of one processor and 256 MiB.
    #[must_use]
    pub fn new(name: &str, last: u8) -> Self {
        Self {
            name: name.to_owned(),
            last,
            vcpus: 1,
            memory_mib: 256,
            format: Format::Raw,
            cmdline: "fermata.memory=32".to_owned(),
            extra: String::new(),
        }
    }

    /// Of another size.
    #[must_use]
    pub fn sized(self, memory_mib: u64, vcpus: u32) -> Self {
        Self { memory_mib, vcpus, ..self }
    }

    /// Where its disk is, in the host.
    #[must_use]
    pub fn image(&self) -> String {
        format!("/srv/{}.img", self.name)
    }

    /// Its specification.
    #[must_use]
    pub fn toml(&self) -> String {
        let Self { name, last, vcpus, memory_mib, cmdline, extra, .. } = self;
        let format = if self.format == Format::Raw { "raw" } else { "qcow2" };
        let small = format!("{}/small", crate::guests::FOLDER);
        let mut text = String::new();
        let _ = writeln!(text, "name = \"{name}\"\nvcpus = {vcpus}\nmemory = \"{memory_mib}MiB\"\n{extra}");
        let _ = writeln!(
            text,
            "firmware = {{ kernel = {{ image = \"{small}/vmlinuz\", initrd = \"{small}/initrd.img\", \
             cmdline = \"console=ttyS0 quiet fermata.disk=/dev/vda {cmdline}\" }} }}"
        );
        let _ = writeln!(text, "[[disk]]\npath = \"{}\"\nformat = \"{format}\"", self.image());
        let _ = writeln!(text, "[[nic]]\nbridge = \"br0\"\nmac = \"52:54:00:00:00:{last:02x}\"");
        text
    }

    /// Makes its disk and the VM.
    ///
    /// # Errors
    /// Fermata refuses it.
    pub fn create(&self, host: &Host) -> Result<()> {
        host.run(&match self.format {
            Format::Raw => format!("truncate -s 64M {}", self.image()),
            Format::Qcow2 => format!("qemu-img create -q -f qcow2 {} 64M", self.image()),
        })?;
        let file = format!("/tmp/{}.toml", self.name);
        host.write(&file, &self.toml())?;
        host.run(&format!("fermata vm create {file}"))?;
        Ok(())
    }

    /// Starts it and waits until its probe answers.
    ///
    /// # Errors
    /// It does not come to life.
    pub fn start(&self, host: &Host) -> Result<Clocks> {
        host.run(&format!("fermata vm start {}", self.name))?;
        self.probe(host).wait_alive(180)
    }

    /// What is to be seen of it from outside when it does not answer.
    #[must_use]
    pub fn last_words(&self, host: &Host) -> String {
        let name = &self.name;
        let look = format!(
            "{VCPUS}; fermata vm show {name}; tail -c 2000 /run/fermata/vm/{name}/console.log; journalctl -q --no-pager -n 5 -u 'fermata-vm-{name}-*'; \
             ip -br link; dmesg | tail -n 5"
        );
        host.run(&look).unwrap_or_else(|error| format!("{error:#}"))
    }

    /// Its probe.
    #[must_use]
    pub fn probe<'a>(&self, host: &'a Host) -> Probe<'a> {
        host.probe(self.last)
    }

    /// Ends it and reads its disk: every record that was acknowledged before must be there.
    ///
    /// # Errors
    /// It does not answer, or does not end.
    pub fn end(&self, host: &Host) -> Result<Check> {
        let acknowledged = acknowledged(&self.probe(host).report()?)?;
        host.run(&format!("fermata vm stop {} --force", self.name))?;
        self.check_disk(host, acknowledged)
    }

    /// Reads the disk of a guest that is not running, of which records up to `acknowledged` were promised.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn check_disk(&self, host: &Host, acknowledged: u64) -> Result<Check> {
        let image = self.image();
        let raw = match self.format {
            Format::Raw => image,
            Format::Qcow2 => {
                host.run(&format!("qemu-img check -q {image} && qemu-img convert -O raw {image} {image}.raw"))?;
                format!("{image}.raw")
            }
        };
        let text = host.run(&format!("fermata-probe check-disk {raw} {acknowledged}"))?;
        serde_json::from_str(&text).with_context(|| format!("read what the checker said: {text}"))
    }

    /// Ends and forgets it, and removes its disk.
    ///
    /// # Errors
    /// It does not end.
    pub fn remove(&self, host: &Host) -> Result<()> {
        host.run(&format!("fermata vm delete --force {n} && rm -f {i} {i}.raw", n = self.name, i = self.image()))?;
        Ok(())
    }
}

/// How often probes of so many VMs do what, as words for their kernels. At their usual pace those of many take all of one emulated processor, and
/// measure each other: each of several does less, so that together they do about as much as one.
#[must_use]
pub fn pace(vms: usize, sample_us: usize) -> String {
    let (beat, memory, disk) = (10_000 * vms.max(4), 20_000 * vms, 50_000 * vms);
    format!("fermata.sample_us={sample_us} fermata.beat_us={beat} fermata.memory_us={memory} fermata.disk_us={disk}")
}

/// The last record that a guest's disk acknowledged.
///
/// # Errors
/// It has no disk witness, or wrote nothing.
pub fn acknowledged(report: &Report) -> Result<u64> {
    match &report.disk {
        Some(disk) if disk.acknowledged > 0 => Ok(disk.acknowledged),
        other => bail!("the disk witness wrote nothing: {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_probes_do_about_as_much_as_one() {
        let words = |vms, sample| pace(vms, sample).replace("fermata.", "");
        assert_eq!(words(1, 4_000), "sample_us=4000 beat_us=40000 memory_us=20000 disk_us=50000");
        assert_eq!(words(8, 20_000), "sample_us=20000 beat_us=80000 memory_us=160000 disk_us=400000");
    }
}
