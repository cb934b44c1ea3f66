//! `cargo xtask demo`: a virtual host with a VM in it; the host's kernel is replaced under it, then its VMM, and what the VM felt.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fermata_lab::{Host, Lab, LabSpec, guests, payload::vmm_binary};
use fermata_probe::report::Report;
use serde_json::Value;

/// The second update: another QEMU, at once.
const NEWER_VMM: &str = "id = \"newer-qemu\"\ntitle = \"A newer QEMU under a running VM\"\nkind = \"vmm\"\nnotice_s = 0\n\
                         [change]\nvmm = \"11.1\"\n";

/// Memory of the host that its kernels leave alone, for VMs: all of a host of 3 GiB that lies above 4 GiB.
const VAULT: &str = "memmap=1G!4G";

/// Shows it; with `keep` the host goes on running.
pub(crate) fn run(keep: bool) -> Result<()> {
    let began = Instant::now();
    let say = |what: &str| eprintln!("[{:>4.0} s] {what}", began.elapsed().as_secs_f64());
    say(
        "a virtual host: real Debian, systemd, two QEMU versions, two kernels, KVM inside; about three minutes from here",
    );
    let mut lab = Lab::up(&spec())?;
    let host = lab.host(1);
    host.wait_agent_ready(Duration::from_secs(120))?;
    println!("{}", host.run("fermata host show")?);
    say("a VM on the older QEMU; a program in it notes every pause, its memory and its clocks");
    host.write("/root/guest.toml", &guests::small_spec("guest", 11, 256, "", ""))?;
    println!("{}", host.run("fermata vm create --start /root/guest.toml")?);
    let born = host.probe(11).wait_alive(120).context("the guest did not come to life")?;
    let kernel = host.run("uname -r")?;

    say("first the host's own kernel is replaced under it, by kexec; its memory stays where it is");
    host.probe(11).mark()?;
    newer_kernel(host, &say)?;
    let jumped = felt(host)?;

    say("now its QEMU is replaced under it: rehearsal with a twin, then the pause");
    host.probe(11).mark()?;
    host.write("/root/newer-qemu.toml", NEWER_VMM)?;
    println!("{}", host.run("fermata update check /root/newer-qemu.toml")?);
    println!("{}", host.run("fermata update apply /root/newer-qemu.toml")?);
    let swapped = felt(host)?;

    println!("{}", host.run("fermata vm list")?);
    println!("kernel of the host   {} -> {}", kernel.trim(), host.run("uname -r")?.trim());
    println!("boot id of the guest {} -> {}", born.boot_id, swapped.clocks.boot_id);
    for (what, report) in [("another QEMU", &swapped), ("another host kernel", &jumped)] {
        println!("{what:<20} the guest stood still for {:.0} ms", report.gaps.max_ns() as f64 / 1e6);
    }
    let memory = host.probe(11).verify_memory()?;
    println!("memory of the guest  {} pages checked, {} wrong", memory.checked, memory.errors);
    ensure!(born.boot_id == swapped.clocks.boot_id && memory.errors == 0, "the VM did not keep what it had");
    if keep {
        lab.keep()?;
        println!("try it yourself:\n  cargo xtask lab exec --name demo host1\n  cargo xtask lab down --name demo");
    } else {
        lab.down()?;
        say("all taken down; `cargo xtask demo --keep` leaves the host running");
    }
    Ok(())
}

/// A host whose VMs' memory outlives its kernel.
fn spec() -> LabSpec {
    let mut spec = LabSpec::new("demo", 1);
    VAULT.clone_into(&mut spec.hosts[0].cmdline);
    let mut agent = "default_vmm = \"10.0\"\n[vault]\nkind = \"devdax\"\n".to_owned();
    for version in ["10.0", "11.1"] {
        agent += &format!("[vmm.\"{version}\"]\nbinary = \"{}\"\n", vmm_binary(version));
    }
    agent += "[[bridge]]\nname = \"br0\"\naddress = \"10.77.0.1/24\"\n";
    spec.hosts[0].files = vec![("/etc/fermata/agent.toml".to_owned(), agent)];
    spec
}

fn felt(host: &Host) -> Result<Report> {
    let probe = host.probe(11);
    probe.wait_alive(120).context("the guest does not answer any more")?;
    probe.report()
}

/// Applies the update and waits for its report, which the new kernel's agent writes.
fn newer_kernel(host: &Host, say: &dyn Fn(&str)) -> Result<()> {
    let boot = host.boot_id()?;
    let image = host.run("ls /boot/vmlinuz-7*")?;
    let update = format!(
        "id = \"newer-kernel\"\ntitle = \"Linux 7.2 under a running VM\"\nkind = \"kernel\"\nnotice_s = 0\n[change]\nimage = \"{}\"\n",
        image.trim()
    );
    host.write("/root/newer-kernel.toml", &update)?;
    println!("{}", host.run("fermata update check /root/newer-kernel.toml")?);
    host.run("fermata update apply --detach /root/newer-kernel.toml")?;
    host.wait_boot_after(&boot, Duration::from_secs(240))?;
    say("the new kernel is up");
    host.wait_agent_ready(Duration::from_secs(120))?;
    let over = "timeout 120 sh -c 'until fermata maintenance list | grep newer-kernel | grep -qv \"under way\"; do sleep 0.3; done'";
    host.exec_within(over, Duration::from_secs(150))?;
    let list: Value = serde_json::from_str(&host.run("fermata --json maintenance list")?)?;
    let newest = list
        .as_array()
        .into_iter()
        .flatten()
        .find(|one| one["id"].as_str().is_some_and(|id| id.contains("newer-kernel")));
    let Some(id) = newest.and_then(|one| one["id"].as_str()) else { bail!("the update is not in the list:\n{list:#}") };
    println!("{}", host.run(&format!("fermata maintenance show {id}"))?);
    Ok(())
}
