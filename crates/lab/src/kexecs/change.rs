//! One update of a host's kernel.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{host::Host, spec::Kernel};

/// For a host to be up again after a jump.
pub const UP: Duration = Duration::from_secs(300);
/// For a maintenance to end after that.
const END: Duration = Duration::from_secs(180);

/// Where a host has the image of one of its kernels.
///
/// # Errors
/// It has none, or more than one.
pub fn image(host: &Host, kernel: Kernel) -> Result<String> {
    let series = if kernel == Kernel::Stable { 6 } else { 7 };
    let found = host.run(&format!("ls /boot/vmlinuz-{series}*"))?;
    match found.split_whitespace().collect::<Vec<_>>()[..] {
        [one] => Ok(one.to_owned()),
        ref all => bail!("{} has {} kernels {series}.*: {all:?}", host.name, all.len()),
    }
}

/// The update to that kernel; the same update is the same file.
///
/// # Errors
/// As [`image`].
pub fn update(host: &Host, kernel: Kernel) -> Result<String> {
    let image = image(host, kernel)?;
    Ok(format!(
        "id = \"kernel-{kernel}\"\ntitle = \"{}\"\nkind = \"kernel\"\nnotice_s = 0\n[change]\nimage = \"{image}\"\n",
        image.trim_start_matches("/boot/vmlinuz-")
    ))
}

/// Applies an update with a jump, and gives the report of the agent that the new kernel started.
///
/// # Errors
/// It is refused, the host does not come up, or the maintenance does not end. One that failed is no error: see its report.
pub fn apply(host: &Host, update: &str) -> Result<Value> {
    let boot = host.boot_id()?;
    host.write("/root/kernel.toml", update)?;
    let begun = host.run("fermata --json update apply --detach /root/kernel.toml")?;
    let begun: Value = serde_json::from_str(&begun).with_context(|| format!("read {begun}"))?;
    let id = begun["maintenance"].as_str().with_context(|| format!("{begun} names no maintenance"))?;
    host.wait_boot_after(&boot, UP)?;
    host.wait_agent_ready(Duration::from_secs(120))?;
    report(host, id)
}

/// The report of a maintenance, as soon as it has ended.
///
/// # Errors
/// It does not.
pub fn report(host: &Host, id: &str) -> Result<Value> {
    let script = format!(
        "timeout {} sh -c 'until fermata --json maintenance show {id} 2>/dev/null >/tmp/report && grep -Eq \"\\\"outcome\\\": *\\\"\" /tmp/report; do sleep 0.5; done'; cat /tmp/report",
        END.as_secs()
    );
    let text = host.exec_within(&script, END + Duration::from_secs(30))?.stdout;
    let report: Value = serde_json::from_str(&text).with_context(|| format!("the report of {id}: {text}"))?;
    if report["outcome"].is_null() {
        let journal = host.exec("journalctl -b -u fermata-agent --no-pager -o cat | tail -n 40")?.stdout;
        bail!("{id} did not end: {report:#}\n{journal}");
    }
    Ok(report)
}
