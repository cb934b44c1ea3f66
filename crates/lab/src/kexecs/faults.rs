//! `cargo xtask faults kexec`: at the steps of a change of the kernel, the worst.
//!
//! ```text
//!  per case: agent told where to halt ─► update applied ─► halted ─► the fault ─► the agent goes on, or a new one comes, or the host
//!            ─► the maintenance ends ─► per VM: running on exactly one VMM, whole, as the report says? or kept and said to be?
//!            ─► what is kept is mended and taken up again: memory whole?
//! ```
//!
//! The agent halts by itself at a step it has just written down (`FERMATA_HALT_AT`).

mod bed;
mod case;
mod fault;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bed::{Bed, UNITS};
pub use case::Case;
pub use fault::{Fault, STEPS};

use super::change;
use crate::{
    cases::Book,
    host::Host,
    lab::Lab,
    spec::{HostSpec, LabSpec},
};

/// Runs cases on a host of its own, prints a table and writes `target/bench/faults-kexec.json` after each. With `go_on` those that an
/// earlier run found whole are not tried again.
///
/// # Errors
/// The lab does not come up, or a case was broken: the table says which.
pub fn run(faults: &[Fault], step: Option<&str>, go_on: bool, limit: Duration) -> Result<()> {
    let mut book = Book::open("kexec", go_on)?;
    let mut spec = LabSpec::new("faults-kexec", 1);
    spec.hosts[0] = HostSpec { memory_mib: 2560, ..HostSpec::default() }.with_vault(1024);
    let lab = Lab::up(&spec)?;
    let cut = all(lab.host(1), faults, step, limit, &mut book).err().map(|error| format!("{error:#}"));
    lab.down()?;
    book.close(table, cut)
}

fn all(host: &Host, faults: &[Fault], step: Option<&str>, limit: Duration, book: &mut Book<Case>) -> Result<()> {
    let began = Instant::now();
    let mut bed = None;
    for fault in faults {
        for at in fault.steps().iter().filter(|at| step.is_none_or(|step| step == **at)) {
            if book.has(at, &fault.to_string()) {
                continue;
            }
            if began.elapsed() > limit {
                bail!("time was up after {} min", limit.as_secs() / 60);
            }
            let made = match bed.take() {
                Some(bed) => Ok(bed),
                None => Bed::make(host),
            };
            let tried = made.and_then(|made| bed.insert(made).case(at, *fault));
            let ended = tried.is_ok();
            let case = tried.unwrap_or_else(|error| Case::that_did_not_end(at, *fault, &error));
            book.add(host, began.elapsed(), case)?;
            if !ended {
                renew(host, &mut bed).with_context(|| format!("after {fault} at {at}"))?;
            }
        }
    }
    Ok(())
}

/// A host that can be used again: booted anew, and told to halt nowhere.
fn renew(host: &Host, bed: &mut Option<Bed<'_>>) -> Result<()> {
    let before = host.boot_id().ok();
    host.forget_connections();
    host.reset()?;
    match before {
        Some(before) => drop(host.wait_boot_after(&before, change::UP)?),
        None => host.wait_agent_ready(change::UP)?,
    }
    host.halt_agent_at(None, UNITS)?;
    match bed {
        Some(bed) => bed.heal(),
        None => Ok(()),
    }
}

/// The cases as a table in Markdown.
#[must_use]
pub fn table(cases: &[Case]) -> String {
    let mut text =
        "| step | fault | verdict | maintenance | VMs | kernel | pause, ms |\n|---|---|---|---|---|---|---|".to_owned();
    for case in cases {
        let pause = case.pause_ms.map_or("-".to_owned(), |ms| format!("{ms:.0}"));
        let verdict =
            if case.broken.is_empty() { "whole".to_owned() } else { format!("BROKEN: {}", case.broken.join("; ")) };
        let ends = case.ends.join(", ");
        text += &format!(
            "\n| {} | {} | {verdict} | {} | {ends} | {} | {pause} |",
            case.step, case.fault, case.outcome, case.kernel
        );
    }
    text
}
