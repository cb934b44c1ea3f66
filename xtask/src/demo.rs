//! `cargo xtask demo`: a virtual host with a VM in it; the host's kernel is replaced under it, then its VMM, and what the VM felt.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fermata_lab::{
    Host, Kernel, Lab, LabSpec, guests,
    kexecs::{change, measure},
};
use fermata_probe::report::Report;
use serde_json::Value;

/// The second update: another QEMU, at once.
const NEWER_VMM: &str = "id = \"newer-qemu\"\ntitle = \"A newer QEMU under a running VM\"\nkind = \"vmm\"\nnotice_s = 0\n\
                         [change]\nvmm = \"11.1\"\n";

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
    let jumped = newer_kernel(host, &say)?;

    say("now its QEMU is replaced under it: rehearsal with a twin, then the pause");
    host.write("/root/newer-qemu.toml", NEWER_VMM)?;
    println!("{}", host.run("fermata update check /root/newer-qemu.toml")?);
    println!("{}", host.run("fermata update apply /root/newer-qemu.toml")?);
    let list: Value = serde_json::from_str(&host.run("fermata --json maintenance list")?)?;
    let swap = list
        .as_array()
        .into_iter()
        .flatten()
        .find(|one| one["id"].as_str().is_some_and(|id| id.contains("newer-qemu")));
    let swap = swap.and_then(|one| one["id"].as_str()).context("the swap is in the list")?;
    let swapped: Value = serde_json::from_str(&host.run(&format!("fermata --json maintenance show {swap}"))?)?;
    let now = felt(host)?;

    println!("{}", host.run("fermata vm list")?);
    println!("kernel of the host   {} -> {}", kernel.trim(), host.run("uname -r")?.trim());
    println!("boot id of the guest {} -> {}", born.boot_id, now.clocks.boot_id);
    for (what, report) in [("another host kernel", &jumped), ("another QEMU", &swapped)] {
        let stood = measure::host_blackout_ms(report, "guest").context("a VM that was updated was paused")?;
        println!("{what:<20} the VM stood still for {stood:.0} ms, {}", report["vms"][0]["end"]["kind"]);
    }
    let memory = host.probe(11).verify_memory()?;
    println!("memory of the guest  {} pages checked, {} wrong", memory.checked, memory.errors);
    ensure!(born.boot_id == now.clocks.boot_id && memory.errors == 0, "the VM did not keep what it had");
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
    spec.hosts[0].memory_mib = 2048;
    spec.hosts[0] = spec.hosts[0].clone().with_vault(1024);
    spec
}

fn felt(host: &Host) -> Result<Report> {
    let probe = host.probe(11);
    probe.wait_alive(120).context("the guest does not answer any more")?;
    probe.report()
}

/// Applies the update and waits for its report, which the new kernel's agent writes.
fn newer_kernel(host: &Host, say: &dyn Fn(&str)) -> Result<Value> {
    let update = change::update(host, Kernel::Backports)?;
    host.write("/root/newer-kernel.toml", &update)?;
    println!("{}", host.run("fermata update check /root/newer-kernel.toml")?);
    let report = change::apply(host, &update)?;
    say("the new kernel is up");
    let id = report["maintenance"].as_str().context("a report names its maintenance")?;
    println!("{}", host.run(&format!("fermata maintenance show {id}"))?);
    Ok(report)
}
