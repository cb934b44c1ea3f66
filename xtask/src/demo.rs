//! `cargo xtask demo`: a virtual host, a VM in it, its VMM replaced under it, and what the VM felt.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fermata_lab::{Host, Lab, LabSpec};

/// The guest: Debian's kernel with the probe as main program.
const GUEST: &str = r#"name = "guest"
vcpus = 1
memory = "256MiB"
firmware = { kernel = { image = "/var/lib/fermata-lab/images/small/vmlinuz", initrd = "/var/lib/fermata-lab/images/small/initrd.img", cmdline = "console=ttyS0 quiet" } }
[[nic]]
bridge = "br0"
mac = "52:54:00:00:00:0b"
"#;

/// The update: another QEMU, at once.
const UPDATE: &str = "id = \"newer-qemu\"\ntitle = \"A newer QEMU under a running VM\"\nkind = \"vmm\"\nnotice_s = 0\n\
                      [change]\nvmm = \"11.1\"\n";

/// Shows it; with `keep` the host goes on running.
pub(crate) fn run(keep: bool) -> Result<()> {
    let began = Instant::now();
    let say = |what: &str| eprintln!("[{:>4.0} s] {what}", began.elapsed().as_secs_f64());
    say("a virtual host: real Debian, systemd, two QEMU versions, KVM inside");
    let mut lab = Lab::up(&LabSpec::new("demo", 1))?;
    let host = lab.host(1);
    host.wait_agent_ready(Duration::from_secs(120))?;
    println!("{}", host.run("fermata host show")?);
    say("a VM on the older QEMU; a program in it notes every pause, its memory and its connections");
    host.write("/root/guest.toml", GUEST)?;
    println!("{}", host.run("fermata vm create --start /root/guest.toml")?);
    let probe = host.probe(11);
    let before = probe.wait_alive(120).context("the guest did not come to life")?;
    say("the guest lives; now its QEMU is replaced under it (rehearsal first, then the pause)");
    replace(host)?;
    let after = probe.report()?;
    let memory = probe.verify_memory()?;
    println!("{}", host.run("fermata vm list")?);
    println!("boot id      {} before, {} after", before.boot_id, after.clocks.boot_id);
    println!("memory       {} pages checked, {} wrong", memory.checked, memory.errors);
    println!("blackout     {:.0} ms without a tick, as the guest noted", after.gaps.max_ns() as f64 / 1e6);
    ensure!(before.boot_id == after.clocks.boot_id && memory.errors == 0, "the VM did not keep what it had");
    if keep {
        lab.keep()?;
        println!("try it yourself:\n  cargo xtask lab exec --name demo host1\n  cargo xtask lab down --name demo");
    } else {
        lab.down()?;
        say("all taken down; `cargo xtask demo --keep` leaves the host running");
    }
    Ok(())
}

fn replace(host: &Host) -> Result<()> {
    host.write("/root/newer-qemu.toml", UPDATE)?;
    println!("{}", host.run("fermata update check /root/newer-qemu.toml")?);
    host.probe(11).mark()?;
    println!("{}", host.run("fermata update apply /root/newer-qemu.toml")?);
    Ok(())
}
