//! What a page owes its reader: everything that was measured, nothing that was not, and no way out of its text.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::time::Duration;

use fermata_controller::report::{RolloutReport, VisitReport};
use fermata_controller::wire::VisitProgress;
use fermata_maintenance::clock::ClockOutcome;
use fermata_maintenance::machine::{Outcome, Stage, Trouble};
use fermata_maintenance::report::{Report, VmEnd};
use serde_json::{Value, json};

/// A swap of one VM that was measured by host and guest, and one that nobody could measure in the guest.
fn swap() -> Report {
    let vm = |name: &str, guest: Value, clock: Value| {
        json!({
            "vm": name, "mechanism": "swap", "note": null, "budget": 2000,
            "forecast": { "upper_us": 500_000, "basis": { "kind": "default" } },
            "host_blackouts": [83_400], "blackouts_began": [3_100_000], "guest_blackout_us": guest, "clock": clock,
            "end": { "kind": "updated" },
            "acts": [{ "what": "hand over", "from_us": 3_090_000, "took_us": 80_000 },
                     { "what": "resume", "from_us": 3_170_000, "took_us": 15_000 }]
        })
    };
    serde_json::from_value(json!({
        "maintenance": "newer-qemu-1", "update": "newer-qemu", "title": "A newer QEMU", "mechanism": "swap",
        "digest": "0".repeat(64), "outcome": "done", "stage": "closing", "trouble": null, "undone": false,
        "change_in_effect": true, "loose_ends": [], "ordered": 1_600_000_000_000_000_u64, "last": 1_600_000_005_000_000_u64,
        "stages": [{ "what": "planned", "from_us": 0, "took_us": 1_000_000 }, { "what": "rehearse", "from_us": 1_000_000, "took_us": 2_000_000 },
                   { "what": "window", "from_us": 3_000_000, "took_us": 400_000 }],
        "acts": [{ "what": "end events", "from_us": 3_500_000, "took_us": 1_000 }],
        "vms": [vm("web", json!(91_000), json!({ "kind": "corrected", "before_us": -90_000, "after_us": 40 })), vm("db", json!(null), json!(null))]
    }))
    .unwrap()
}

/// A page is made of itself alone.
fn check(page: &str) {
    assert!(page.starts_with("<!DOCTYPE html>"), "{page}");
    for outside in ["<script", "<link", "<img", "<iframe", "@import", "url(", "://"] {
        assert!(!page.contains(outside), "{outside} in {page}");
    }
    for element in ["html", "body", "svg", "table", "section", "rect", "text", "title", "div"] {
        let opened = page.matches(&format!("<{element} ")).count() + page.matches(&format!("<{element}>")).count();
        assert_eq!(opened, page.matches(&format!("</{element}>")).count(), "{element} is not closed: {page}");
    }
}

#[test]
fn a_maintenance_shows_what_was_measured() {
    let page = fermata_pages::maintenance(&swap());
    check(&page);
    for told in [
        "A newer QEMU",
        "83.4 ms",
        "91.0 ms",
        "−90.0 ms → +40 us",
        "window 400.0 ms",
        "hand over 80.0 ms",
        "sha256 000",
    ] {
        assert!(page.contains(told), "{told} in {page}");
    }
    assert_eq!(page.matches("<title>paused for 83.4 ms</title>").count(), 2, "one pause per VM");
}

#[test]
fn what_nobody_measured_is_called_that_and_no_number() {
    let mut report = swap();
    report.vms.remove(0);
    let page = fermata_pages::maintenance(&report);
    check(&page);
    assert!(page.contains("<span class=\"name\">longest in a guest</span><strong>not measured</strong>"), "{page}");
    assert!(page.contains("by programs in 0 of 1 paused VMs"), "{page}");
    assert!(
        page.contains("<span class=\"name\">largest clock error left</span><strong>not measured</strong>"),
        "{page}"
    );
    assert!(page.contains("83.4 ms; clock not measured"), "{page}");

    report.vms[0].clock =
        Some(ClockOutcome::NotCorrected { reason: "no agent".to_owned(), helps: "install one".to_owned() });
    let page = fermata_pages::maintenance(&report);
    assert!(page.contains("clock not corrected: no agent"), "{page}");
    assert!(page.contains("<strong>not measured</strong><span class=\"note\">read back in 0 of 1"), "{page}");
}

#[test]
fn a_report_of_an_agent_before_this_one_has_figures_but_no_places() {
    let mut value = serde_json::to_value(swap()).unwrap();
    for vm in value["vms"].as_array_mut().unwrap() {
        vm.as_object_mut().unwrap().remove("blackouts_began");
        vm["acts"] = json!([{ "what": "hand over", "took_us": 80_000 }]);
    }
    value["stages"] = json!([{ "what": "window", "took_us": 400_000 }]);
    value["acts"] = json!([]);
    let page = fermata_pages::maintenance(&serde_json::from_value(value).unwrap());
    check(&page);
    assert!(page.contains("window 400.0 ms") && page.contains("83.4 ms"), "{page}");
    assert!(!page.contains("aria-label=\"timeline\""), "nothing is drawn where nothing is known: {page}");
}

#[test]
fn names_titles_and_reasons_stay_text() {
    let evil = "</title></svg><script>alert(1)</script><b a=\"'&";
    let mut report = swap();
    report.title = evil.to_owned();
    report.loose_ends = vec![evil.to_owned()];
    report.trouble = Some(Trouble { stage: Stage::Window, act: None, text: evil.to_owned(), aborted: false });
    report.outcome = Some(Outcome::Failed);
    report.stages[0].what = evil.to_owned();
    report.vms[0].acts[0].what = evil.to_owned();
    report.vms[0].acts[0].failure = Some(evil.to_owned());
    report.vms[0].note = Some(evil.to_owned());
    report.vms[0].end = VmEnd::Lost { reason: evil.to_owned() };
    report.vms[1].clock = Some(ClockOutcome::NotCorrected { reason: evil.to_owned(), helps: evil.to_owned() });
    let page = fermata_pages::maintenance(&report);
    check(&page);
    assert!(!page.contains("<b a") && page.contains("&lt;script&gt;"), "{page}");

    let mut report = rollout();
    report.orders = vec![("2020-09-13T12:26:40Z".parse().unwrap(), evil.to_owned(), evil.to_owned(), evil.to_owned())];
    for one in report.measured.values_mut().flatten().flat_map(|visit| &mut visit.maintenances) {
        one.update = evil.to_owned();
        one.trouble = Some(evil.to_owned());
        one.stages[0].stage = evil.to_owned();
        one.vms[0].end = evil.to_owned();
        one.vms[0].clock = Some(evil.to_owned());
    }
    let page = fermata_pages::rollout(evil, evil, &report);
    check(&page);
    assert!(!page.contains("<b a") && page.contains("&lt;script&gt;"), "{page}");
}

#[test]
fn an_empty_report_is_a_page_too() {
    let mut report = swap();
    report.vms.clear();
    report.stages.clear();
    report.acts.clear();
    report.outcome = None;
    let page = fermata_pages::maintenance(&report);
    check(&page);
    for told in ["still running", "No VM was on this host", "No VM was paused", "No stage has ended yet"] {
        assert!(page.contains(told), "{told} in {page}");
    }

    let page = fermata_pages::rollout("empty", "planned", &RolloutReport::default());
    check(&page);
    for told in ["no host was visited yet", "No host has measured a stage yet", "No operator ordered anything"] {
        assert!(page.contains(told), "{told} in {page}");
    }
}

fn rollout() -> RolloutReport {
    let visit: VisitReport = serde_json::from_value(json!({
        "ordered": "2020-09-13T12:26:40Z", "announced": "2020-09-13T12:26:41Z", "begun": "2020-09-13T12:41:40Z",
        "ended": "2020-09-13T12:41:50Z", "healthy": null, "outcome": null
    }))
    .unwrap();
    let measured: VisitProgress = serde_json::from_value(json!({
        "rollout": "r1", "generation": 1, "maintenances": [{
            "id": "m1", "update": "newer-qemu", "stage": "closing", "outcome": "done",
            "stages": [{ "stage": "announced", "took_us": 900_000_000_u64 }, { "stage": "window", "took_us": 300_000 }],
            "vms": [{ "vm": "web", "mechanism": "swap", "forecast_us": 500_000, "host_blackouts_us": [83_000], "end": "updated" }]
        }]
    }))
    .unwrap();
    RolloutReport {
        hosts: BTreeMap::from([("h1".parse().unwrap(), vec![visit])]),
        measured: BTreeMap::from([("h1".parse().unwrap(), vec![measured])]),
        orders: Vec::new(),
    }
}

#[test]
fn a_rollout_shows_each_host_and_each_vm() {
    let page = fermata_pages::rollout("r1", "ended (completed)", &rollout());
    check(&page);
    for told in [
        "Rollout r1",
        "<title>notice: 900.0 s</title>",
        "<title>work: 10.0 s</title>",
        "83.0 ms",
        "no outcome yet",
        "<title>window: 300.0 ms</title>",
    ] {
        assert!(page.contains(told), "{told} in {page}");
    }
    let healthy =
        "<td class=\"number\">900.0 s</td><td class=\"number\">10.0 s</td><td class=\"number\">not measured</td>";
    assert!(page.contains(healthy), "nobody saw it healthy: {page}");
}

#[test]
fn a_thousand_vms_fit_on_a_page() {
    let mut report = swap();
    let one = report.vms[0].clone();
    report.vms = (0..1_000)
        .map(|number| {
            let mut vm = one.clone();
            vm.vm = format!("vm-{number}").parse().unwrap();
            vm.host_blackouts[0].0 = Duration::from_micros(50_000 + 37 * number);
            vm
        })
        .collect();
    let page = fermata_pages::maintenance(&report);
    check(&page);
    assert!(page.len() < 3_000_000, "{} bytes", page.len());
}
