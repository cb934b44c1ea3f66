//! The page of a rollout over many hosts.

use std::time::Duration;

use fermata_controller::order::Outcome;
use fermata_controller::report::{RolloutReport, VisitReport};
use fermata_controller::wire::{MaintenanceProgress, VmProgress};
use fermata_maintenance::time::human;
use jiff::Timestamp;
use maud::{Markup, html};

use crate::NOT_MEASURED;
use crate::frame::{self, Figure, Mood};
use crate::maintenance::{STAGES, kind_of_stage};
use crate::spread::Blackouts;
use crate::timeline::{Bar, Kind, Row, timeline};

/// The page of the rollout called `name`, which stands at `phase`.
#[must_use]
pub fn page(name: &str, phase: &str, report: &RolloutReport) -> String {
    let times: Vec<Timestamp> = report.hosts.values().flatten().flat_map(moments).collect();
    let (first, last) = (times.iter().min().copied(), times.iter().max().copied());
    let time = match (first, last) {
        (Some(first), Some(last)) => format!("{first:.3} to {last:.3}"),
        _ => "no host was visited yet".to_owned(),
    };
    let facts = [("rollout", name.to_owned()), ("visits", time)];
    let body = html! {
        (frame::figures(&figures(report)))
        @if let (Some(first), Some(last)) = (first, last) { (hosts(report, first, last)) }
        (stages(report))
        (frame::section("Blackouts", "How long VMs stood still.", &blackouts(report).show()))
        (vms(report))
        (orders(report))
    };
    frame::page(&format!("Rollout {name}"), (phase, mood(phase)), &facts, &body)
}

fn mood(phase: &str) -> Mood {
    // `ended (completed)`, `stopping (failed (...))`, `running`.
    match phase {
        _ if phase.contains("completed") => Mood::Good,
        _ if phase.contains("failed") => Mood::Bad,
        _ => Mood::Neutral,
    }
}

fn moments(visit: &VisitReport) -> impl Iterator<Item = Timestamp> {
    [visit.ordered, visit.announced, visit.begun, visit.ended, visit.healthy].into_iter().flatten()
}

fn maintenances(report: &RolloutReport) -> impl Iterator<Item = (&str, &MaintenanceProgress)> {
    let visits = report.measured.iter().flat_map(|(host, visits)| visits.iter().map(move |visit| (host, visit)));
    visits.flat_map(|(host, visit)| visit.maintenances.iter().map(move |one| (host.as_ref(), one)))
}

fn blackouts(report: &RolloutReport) -> Blackouts {
    let vms = || maintenances(report).flat_map(|(_, one)| &one.vms);
    Blackouts {
        host: vms().flat_map(|vm| &vm.host_blackouts_us).copied().map(Duration::from_micros).collect(),
        guest: vms().filter_map(|vm| vm.guest_blackout_us).map(Duration::from_micros).collect(),
    }
}

fn figures(report: &RolloutReport) -> Vec<Figure> {
    let measured = blackouts(report);
    let visits = || report.hosts.values().flatten();
    let updated = visits().filter(|visit| visit.outcome == Some(Outcome::Updated)).count();
    let work = visits().filter_map(|visit| between(visit.begun, visit.ended)).max();
    let vms = maintenances(report).flat_map(|(_, one)| &one.vms);
    let paused = vms.filter(|vm| !vm.host_blackouts_us.is_empty()).count();
    let [longest, longest_in_a_guest] = measured.figures(paused);
    vec![
        Figure {
            name: "hosts visited",
            value: report.hosts.len().to_string(),
            note: format!("{updated} of {} visits ended updated", visits().count()),
        },
        longest,
        longest_in_a_guest,
        Figure {
            name: "longest work on a host",
            value: work.map_or_else(|| NOT_MEASURED.to_owned(), human),
            note: "first heard at work to heard ended".to_owned(),
        },
    ]
}

fn between(from: Option<Timestamp>, to: Option<Timestamp>) -> Option<Duration> {
    Duration::try_from(to?.duration_since(from?)).ok()
}

/// Every visit by the controller's clock.
fn hosts(report: &RolloutReport, first: Timestamp, last: Timestamp) -> Markup {
    let at = |time: Timestamp| time.duration_since(first).as_secs_f64();
    let bar = |from: Option<Timestamp>, to: Option<Timestamp>, kind, word: &str| {
        let length = between(from, to)?;
        let told = format!("{word}: {}", human(length));
        Some(Bar { from: at(from?), to: at(to?), kind, word: word.to_owned(), told })
    };
    let rows: Vec<Row> = report
        .hosts
        .iter()
        .map(|(host, visits)| {
            let bars = visits.iter().flat_map(|visit| {
                let notice = bar(visit.ordered, visit.begun.or(visit.ended), Kind::Wait, "notice");
                let work = bar(visit.begun, visit.ended, Kind::Window, "work");
                [notice, work, bar(visit.ended, visit.healthy, Kind::After, "health")].into_iter().flatten()
            });
            let end = visits.last().map_or_else(String::new, |visit| outcome(visit).0);
            Row { label: host.to_string(), bars: bars.collect(), end }
        })
        .collect();
    let legend = [
        (Kind::Wait, "notice: ordered until work begins"),
        (Kind::Window, "at work"),
        (Kind::After, "until all VMs were healthy"),
    ];
    let content = html! {
        @if let Some(picture) = timeline(&rows, 0.0, at(last), &legend) { (picture) }
        table {
            tr { th { "host" } th class="number" { "notice" } th class="number" { "work" } th class="number" { "healthy after" } th { "came to" } }
            @for (host, visits) in &report.hosts { @for visit in visits {
                @let (word, mood) = outcome(visit);
                tr {
                    td class="whole" { (host) }
                    @for length in [between(visit.ordered, visit.begun.or(visit.ended)), between(visit.begun, visit.ended),
                                    between(visit.ended, visit.healthy)] {
                        td class="number" { (length.map_or_else(|| NOT_MEASURED.to_owned(), human)) }
                    }
                    td class=(mood.class()) { (word) }
                }
            } }
        }
    };
    frame::section("Hosts", "Visits by the controller's clock, from the first order on.", &content)
}

fn outcome(visit: &VisitReport) -> (String, Mood) {
    match &visit.outcome {
        None => ("no outcome yet".to_owned(), Mood::Neutral),
        Some(Outcome::Updated) => ("updated".to_owned(), Mood::Good),
        Some(Outcome::Refused(reason)) => (format!("refused: {reason}"), Mood::Neutral),
        Some(Outcome::Undone(reason)) => (format!("undone: {reason}"), Mood::Bad),
        Some(Outcome::Lost(reason)) => (format!("lost: {reason}"), Mood::Bad),
    }
}

/// Stages as each host measured them: they follow each other without a gap, so lengths are places.
fn stages(report: &RolloutReport) -> Markup {
    let mut longest = 0.0_f64;
    let rows: Vec<Row> = maintenances(report)
        .map(|(host, one)| {
            let mut from = 0.0;
            let bars = one.stages.iter().map(|stage| {
                let length = Duration::from_micros(stage.took_us);
                let told = format!("{}: {}", stage.stage, human(length));
                let to = from + length.as_secs_f64();
                let bar = Bar { from, to, kind: kind_of_stage(&stage.stage), word: stage.stage.clone(), told };
                from = to;
                bar
            });
            let row = Row { label: host.to_owned(), bars: bars.collect(), end: one.update.clone() };
            longest = longest.max(from);
            row
        })
        .collect();
    let troubles: Vec<_> =
        maintenances(report).filter_map(|(host, one)| Some((host, one, one.trouble.as_ref()?))).collect();
    let content = html! {
        @if let Some(picture) = timeline(&rows, 0.0, longest, STAGES) { (picture) }
        @else { p { "No host has measured a stage yet." } }
        @if !troubles.is_empty() {
            div class="trouble" { @for (host, one, trouble) in &troubles { p { strong { (host) ", " (one.update) } ": " (trouble) } } }
        }
    };
    frame::section("Stages", "Each update on each host, by the host's own clock, from its order on.", &content)
}

fn vms(report: &RolloutReport) -> Markup {
    let all: Vec<_> =
        maintenances(report).flat_map(|(host, one)| one.vms.iter().map(move |vm| (host, one, vm))).collect();
    let length = |us: Option<u64>| us.map_or_else(|| NOT_MEASURED.to_owned(), |us| human(Duration::from_micros(us)));
    let paused = |vm: &VmProgress| !vm.host_blackouts_us.is_empty();
    let content = html! {
        @if all.is_empty() { p { "No VM was reported yet." } } @else {
            table {
                tr { th { "VM" } th { "host" } th { "update" } th { "how" } th class="number" { "blackout, host" } th class="number" { "in the guest" }
                     th class="number" { "forecast" } th { "clock" } th { "now" } }
                @for (host, one, vm) in all {
                    tr {
                        td class="whole" { (vm.vm) } td class="whole" { (host) } td { (one.update) } td { (vm.mechanism) }
                        @if paused(vm) {
                            td class="number" { @for us in &vm.host_blackouts_us { div { (length(Some(*us))) } } }
                            td class="number" { (length(vm.guest_blackout_us)) }
                            td class="number" { (length(Some(vm.forecast_us))) }
                            td { (vm.clock.as_deref().unwrap_or(NOT_MEASURED)) }
                        } @else if let Some(most) = vm.may_have_stood_us {
                            td class="number" { "not known, at most " (length(Some(most))) } td {} td {} td {}
                        } @else { td class="number" { "not paused" } td {} td {} td {} }
                        td { (vm.end) }
                    }
                }
            }
        }
    };
    frame::section("VMs", "What each of them felt in each update, as its host reported it.", &content)
}

fn orders(report: &RolloutReport) -> Markup {
    let content = html! {
        @if report.orders.is_empty() { p { "No operator ordered anything." } } @else {
            table {
                tr { th { "when" } th { "who" } th { "what" } th { "why" } }
                @for (at, who, what, why) in &report.orders {
                    tr { td { (format!("{at:.3}")) } td { (who) } td class="small" { (what) } td { (why) } }
                }
            }
        }
    };
    frame::section("Orders", "What operators ordered, and why.", &content)
}
