//! The page of one maintenance on one host.

use std::time::Duration;

use fermata_maintenance::clock::ClockOutcome;
use fermata_maintenance::machine::Outcome;
use fermata_maintenance::report::{Report, Timed, VmEnd, VmReport, name};
use fermata_maintenance::time::human;
use maud::{Markup, html};

use crate::NOT_MEASURED;
use crate::frame::{self, Figure, Mood};
use crate::spread::Blackouts;
use crate::timeline::{Bar, Kind, Row, timeline};

/// The page. A maintenance that still runs is shown as far as it is.
#[must_use]
pub fn page(report: &Report) -> String {
    let facts = [
        ("update", format!("{}, by {}", report.update, report.mechanism)),
        ("maintenance", report.maintenance.to_string()),
        ("time", format!("{} to {}", report.ordered, report.last)),
        ("file", format!("sha256 {}", report.digest)),
    ];
    let body = html! {
        (frame::figures(&figures(report)))
        (trouble(report))
        (stages(report))
        (window(report))
        (frame::section("Blackouts", "How long VMs stood still.", &blackouts(report).show()))
        (vms(report))
        (acts(report))
    };
    frame::page(&report.title, badge(report), &facts, &body)
}

fn badge(report: &Report) -> (&'static str, Mood) {
    match report.outcome {
        Some(Outcome::Done) => ("done", Mood::Good),
        Some(Outcome::Failed) => ("failed", Mood::Bad),
        Some(Outcome::Aborted) => ("aborted", Mood::Neutral),
        None => ("still running", Mood::Neutral),
    }
}

fn blackouts(report: &Report) -> Blackouts {
    Blackouts {
        host: report.vms.iter().flat_map(|vm| &vm.host_blackouts).map(|pause| pause.0).collect(),
        guest: report.vms.iter().filter_map(|vm| vm.guest_blackout).collect(),
    }
}

fn figures(report: &Report) -> Vec<Figure> {
    let measured = blackouts(report);
    let updated = report.vms.iter().filter(|vm| vm.end == VmEnd::Updated).count();
    let clocks = report.vms.iter().filter_map(|vm| remaining(vm.clock.as_ref()?));
    let worst = clocks.clone().max();
    let paused = report.vms.iter().filter(|vm| !vm.host_blackouts.is_empty()).count();
    let [longest, longest_in_a_guest] = measured.figures(paused);
    vec![
        Figure {
            name: "VMs",
            value: report.vms.len().to_string(),
            note: format!("{updated} updated, {paused} paused"),
        },
        longest,
        longest_in_a_guest,
        Figure {
            name: "largest clock error left",
            value: worst.map_or_else(|| NOT_MEASURED.to_owned(), human),
            note: format!("read back in {} of {paused} paused VMs", clocks.count()),
        },
    ]
}

/// How wrong a clock was when it was looked at last; nothing when that is not known.
fn remaining(clock: &ClockOutcome) -> Option<Duration> {
    match clock {
        ClockOutcome::Corrected { after_us, .. } => Some(Duration::from_micros(after_us.unsigned_abs())),
        ClockOutcome::WithinTolerance { error_us } => Some(Duration::from_micros(error_us.unsigned_abs())),
        ClockOutcome::NotCorrected { .. } => None,
    }
}

fn trouble(report: &Report) -> Markup {
    html! {
        @if let Some(trouble) = &report.trouble {
            div class="trouble" {
                p { strong { (if trouble.aborted { "Stopped" } else { "Failed" }) " in " (name(trouble.stage)) }
                    @if let Some(act) = &trouble.act { ", " (act) } }
                p { (trouble.text) }
                p { "The change is "
                    (if report.undone { "undone by the undo steps." }
                     else if report.change_in_effect { "in effect, at least in part." } else { "not in effect." }) }
            }
        }
        @if !report.loose_ends.is_empty() {
            div class="trouble" { p { strong { "Left behind" } } @for end in &report.loose_ends { p { (end) } } }
        }
    }
}

pub(crate) fn kind_of_stage(stage: &str) -> Kind {
    match stage {
        "planned" | "announced" => Kind::Wait,
        "window" | "undo while held" => Kind::Window,
        "undo" => Kind::Undo,
        "verify" | "closing" => Kind::After,
        _ => Kind::Work,
    }
}

/// What the colours of stages mean.
pub(crate) const STAGES: &[(Kind, &str)] = &[
    (Kind::Wait, "notice: planned, announced"),
    (Kind::Work, "VMs run: preflight, prepare, rehearse, lead"),
    (Kind::Window, "window: VMs may be paused"),
    (Kind::After, "VMs run: verify, closing"),
    (Kind::Undo, "undo"),
];

fn bar(timed: &Timed, kind: Kind) -> Option<Bar> {
    let from = timed.from?.as_secs_f64();
    let failed = timed.failure.as_ref().map_or_else(String::new, |why| format!(", failed: {why}"));
    Some(Bar {
        from,
        to: from + timed.took.as_secs_f64(),
        kind: if timed.failure.is_some() { Kind::Undo } else { kind },
        word: timed.what.clone(),
        told: format!("{}: {}{failed}", timed.what, human(timed.took)),
    })
}

fn stages(report: &Report) -> Markup {
    let bars: Vec<_> = report.stages.iter().filter_map(|stage| bar(stage, kind_of_stage(&stage.what))).collect();
    let end = bars.iter().map(|bar| bar.to).fold(0.0, f64::max);
    let rows = [Row { label: "host".to_owned(), bars, end: String::new() }];
    // What was passed through in no time at all would only hide the others.
    let took = report.stages.iter().filter(|stage| !stage.took.is_zero());
    let list: Vec<_> = took.map(|stage| format!("{} {}", stage.what, human(stage.took))).collect();
    let content = html! {
        @if let Some(picture) = timeline(&rows, 0.0, end, STAGES) { (picture) }
        p class="explained" { @if list.is_empty() { "No stage has ended yet." } @else { (list.join(", ")) } }
    };
    frame::section("The host", "Stages of the maintenance, from the order on.", &content)
}

/// When VMs may have been paused, and what each of them felt then.
fn window(report: &Report) -> Markup {
    let stage =
        report.stages.iter().filter_map(|stage| bar(stage, Kind::Window)).filter(|stage| stage.word == "window");
    let paused = report.vms.iter().flat_map(pauses);
    let spans: Vec<_> = stage.chain(paused).map(|bar| (bar.from, bar.to)).collect();
    let start = spans.iter().map(|span| span.0).fold(f64::INFINITY, f64::min);
    let end = spans.iter().map(|span| span.1).fold(0.0, f64::max);
    let within = |bar: &Bar| bar.to > start && bar.from < end;
    let mut rows = Vec::new();
    let host: Vec<_> = report.acts.iter().filter_map(|act| bar(act, Kind::Work)).filter(within).collect();
    if !host.is_empty() {
        rows.push(Row { label: "host".to_owned(), bars: host, end: String::new() });
    }
    for vm in &report.vms {
        let acts = vm.acts.iter().filter_map(|act| bar(act, Kind::Work)).filter(within);
        let bars: Vec<_> = acts.chain(pauses(vm)).collect();
        if !bars.is_empty() {
            rows.push(Row { label: vm.vm.to_string(), bars, end: felt(vm) });
        }
    }
    let legend = [(Kind::Work, "something is done"), (Kind::Pause, "the VM is paused"), (Kind::Undo, "did not work")];
    match timeline(&rows, start, end, &legend) {
        Some(picture) => frame::section(
            "The window",
            "Each VM: what was done, and when it stood still. Seconds of the window.",
            &picture,
        ),
        None => html! {},
    }
}

/// Pauses of which it is known when they began.
fn pauses(vm: &VmReport) -> impl Iterator<Item = Bar> {
    vm.host_blackouts.iter().zip(&vm.blackouts_began).filter_map(|(length, began)| {
        let from = began.as_ref()?.0.as_secs_f64();
        let word = human(length.0);
        let told = format!("paused for {word}");
        Some(Bar { from, to: from + length.0.as_secs_f64(), kind: Kind::Pause, word, told })
    })
}

fn not_paused(vm: &VmReport) -> String {
    vm.may_have_stood.map_or_else(|| "not paused".to_owned(), |most| format!("not known, at most {}", human(most)))
}

/// What stands at the end of a VM's row.
fn felt(vm: &VmReport) -> String {
    let Some(longest) = vm.host_blackouts.iter().max() else { return not_paused(vm) };
    format!("{}; clock {}", human(longest.0), clock(vm.clock.as_ref()))
}

fn clock(outcome: Option<&ClockOutcome>) -> String {
    match outcome {
        None => NOT_MEASURED.to_owned(),
        Some(ClockOutcome::Corrected { before_us, after_us }) => {
            format!("{} → {}", signed(*before_us), signed(*after_us))
        }
        Some(ClockOutcome::WithinTolerance { error_us }) => format!("right ({})", signed(*error_us)),
        Some(ClockOutcome::NotCorrected { reason, .. }) => format!("not corrected: {reason}"),
    }
}

fn signed(micros: i64) -> String {
    let sign = if micros < 0 { "−" } else { "+" };
    format!("{sign}{}", human(Duration::from_micros(micros.unsigned_abs())))
}

fn end(end: &VmEnd) -> (String, Mood) {
    match end {
        VmEnd::Untouched => ("untouched".to_owned(), Mood::Neutral),
        VmEnd::AsBefore => ("runs as before".to_owned(), Mood::Neutral),
        VmEnd::Updated => ("updated".to_owned(), Mood::Good),
        VmEnd::Paused => ("paused now".to_owned(), Mood::Bad),
        VmEnd::Restarted { reason } => (format!("restarted, memory lost: {reason}"), Mood::Bad),
        VmEnd::Preserved { reason } => (format!("does not run, memory and state kept: {reason}"), Mood::Bad),
        VmEnd::Lost { reason } => (format!("lost: {reason}"), Mood::Bad),
        VmEnd::Gone { reason } => (format!("ended by itself: {reason}"), Mood::Neutral),
    }
}

fn vms(report: &Report) -> Markup {
    let content = html! {
        @if report.vms.is_empty() { p { "No VM was on this host." } } @else {
            table {
                tr { th { "VM" } th { "now" } th { "how" } th class="number" { "blackout, host" } th class="number" { "in the guest" }
                     th { "clock error before → after" } th { "expected and allowed" } }
                @for vm in &report.vms {
                    @let (word, mood) = end(&vm.end);
                    tr {
                        td class="whole" { (vm.vm) }
                        td class=(mood.class()) { (word) }
                        td { (vm.mechanism) @if let Some(way) = vm.way { ", by " (way) } @if let Some(note) = &vm.note { "; " (note) } }
                        @if vm.host_blackouts.is_empty() {
                            td class="number" { (not_paused(vm)) } td {} td {} td class="small" { (vm.forecast) }
                        } @else {
                            td class="number" { @for pause in &vm.host_blackouts { div { (human(pause.0)) } } }
                            td class="number" { (vm.guest_blackout.map_or_else(|| NOT_MEASURED.to_owned(), human)) }
                            td class=(if matches!(vm.clock, Some(ClockOutcome::NotCorrected { .. })) { "" } else { "whole" }) { (clock(vm.clock.as_ref()))
                                 @if let Some(ClockOutcome::NotCorrected { helps, .. }) = &vm.clock { "; what helps: " (helps) } }
                            td class="small" { (vm.forecast) "; budget " (human(vm.budget.duration())) }
                        }
                    }
                }
            }
        }
    };
    frame::section("VMs", "What each of them felt, measured, beside what was expected and allowed.", &content)
}

fn acts(report: &Report) -> Markup {
    let words = |acts: &[Timed]| {
        let one = |act: &Timed| {
            format!("{} {}{}", act.what, human(act.took), if act.failure.is_some() { " (failed)" } else { "" })
        };
        acts.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    let content = html! {
        table {
            tr { th { "on" } th { "acts and how long each took" } }
            tr { td { "host" } td class="small" { (words(&report.acts)) } }
            @for vm in &report.vms { @if !vm.acts.is_empty() { tr { td class="whole" { (vm.vm) } td class="small" { (words(&vm.acts)) } } } }
        }
    };
    frame::section("Acts", "Everything that was done, in order.", &content)
}
