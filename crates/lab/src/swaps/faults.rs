//! `cargo xtask faults swap`: at every step of a swap, the worst.
//!
//! ```text
//!  per case: agent told where to halt ─► update applied ─► halted ─► the fault ─► agent goes on, or a new one comes
//!            ─► the maintenance ends ─► exactly one VMM? memory, disk, network whole? pause within the budget? report true?
//! ```
//!
//! The agent halts by itself at a step it has just written down (`FERMATA_HALT_AT`). A case whose fault has nothing to hit at
//! its step, such as a new VMM that is not there yet, is told as such and not counted as passed.

mod bed;
mod case;
mod fault;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bed::Bed;
pub use case::Case;
pub use fault::{Fault, SHORT, STEPS};

use crate::{cases::Book, host::Host, lab::Lab, spec::LabSpec};

/// Runs cases on a host of its own, prints a table and writes `target/bench/faults-swap.json`. With `go_on` those that an earlier run
/// found whole are not tried again.
///
/// # Errors
/// The lab does not come up, or a case was broken: the table says which.
pub fn run(steps: &[&str], faults: &[Fault], go_on: bool, limit: Duration) -> Result<()> {
    let mut book = Book::open("swap", go_on)?;
    let lab = Lab::up(&LabSpec::new("faults-swap", 1))?;
    let cut = all(lab.host(1), steps, faults, limit, &mut book).err().map(|error| format!("{error:#}"));
    lab.down()?;
    book.close(table, cut)
}

/// The cases as a table in Markdown.
#[must_use]
pub fn table(cases: &[Case]) -> String {
    let mut text = "| step | fault | verdict | maintenance | VM | pause, ms |\n|---|---|---|---|---|---|".to_owned();
    for case in cases {
        let pause = case.pause_ms.map_or("-".to_owned(), |ms| format!("{ms:.0}"));
        let verdict = if case.broken.is_empty() {
            case.verdict().to_owned()
        } else {
            format!("BROKEN: {}", case.broken.join("; "))
        };
        text +=
            &format!("\n| {} | {} | {verdict} | {} | {} | {pause} |", case.step, case.fault, case.outcome, case.end);
    }
    text
}

/// Runs cases on a host and returns them.
///
/// # Errors
/// It ended early: time was up, or the host is no use any more.
pub fn cases(host: &Host, steps: &[&str], faults: &[Fault], limit: Duration) -> Result<Vec<Case>> {
    let mut book = Book::open("swap-test", false)?;
    all(host, steps, faults, limit, &mut book)?;
    Ok(book.into_cases())
}

fn all(host: &Host, steps: &[&str], faults: &[Fault], limit: Duration, book: &mut Book<Case>) -> Result<()> {
    let began = Instant::now();
    let mut bed = Bed::make(host)?;
    for fault in faults {
        for step in steps.iter().filter(|step| fault.fits(step)) {
            if book.has(step, &fault.to_string()) {
                continue;
            }
            if began.elapsed() > limit {
                bail!("time was up after {} min", limit.as_secs() / 60);
            }
            let tried = bed.case(step, *fault);
            let ended = tried.is_ok();
            let case = tried.unwrap_or_else(|error| Case::that_did_not_end(step, *fault, &error));
            book.add(host, began.elapsed(), case)?;
            if !ended {
                bed.renew().with_context(|| format!("after {fault} at {step}"))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_tells_what_is_broken_and_what_had_nothing_to_hit() {
        let case = |applied, broken: &[&str]| Case {
            step: "hand over".to_owned(),
            fault: Fault::NewVmmKilled,
            applied,
            outcome: "failed".to_owned(),
            end: "as_before".to_owned(),
            trouble: String::new(),
            pause_ms: Some(12.4),
            broken: broken.iter().map(|&text| text.to_owned()).collect(),
            took_s: 1.0,
        };
        let text = table(&[case(true, &[]), case(false, &[]), case(true, &["2 VMMs"])]);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(lines[0], "| hand over | new VMM killed | whole | failed | as_before | 12 |");
        assert!(lines[1].contains("nothing to hit") && lines[2].contains("BROKEN: 2 VMMs"));
    }
}
