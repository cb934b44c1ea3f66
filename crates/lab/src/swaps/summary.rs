//! What `cargo xtask bench swap` found: all measurements, the numbers of the promises from them (pure), and the table.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::figures::Figures;
use super::measure::Swap;

/// All that was measured.
#[derive(Debug, Default)]
pub(super) struct Measured {
    pub(super) swaps: Vec<Swap>,
    pub(super) floors: Vec<Floor>,
    pub(super) quiet: Vec<Quiet>,
    pub(super) broken_memory: u64,
    pub(super) broken_disk: u64,
    pub(super) leaked: Option<Value>,
    pub(super) down: Option<String>,
    pub(super) notes: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Floor {
    pub(super) vcpus: u32,
    pub(super) memory_mib: u64,
    pub(super) from: String,
    pub(super) to: String,
    pub(super) way: &'static str,
    pub(super) host_blackout_ms: f64,
    pub(super) guest_blackout_ms: f64,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct Quiet {
    pub(super) seconds: f64,
    pub(super) sample_gap_ms: f64,
    pub(super) tcp_gap_ms: f64,
    pub(super) udp_gap_ms: f64,
}

/// The numbers of the promises. Those of the transfer stand for the whole: a step down by file is longer by its nature and is
/// told apart under `by_way`.
pub(super) fn summary(measured: &Measured) -> Value {
    let ended = |swap: &&Swap| swap.host_blackout_ms.is_some();
    let alone: Vec<&Swap> = measured.swaps.iter().filter(ended).filter(|swap| swap.company.0 == 1).collect();
    let transfer: Vec<&Swap> = alone.iter().copied().filter(|swap| swap.way == "transfer").collect();
    let of = |swaps: &[&Swap], what: fn(&Swap) -> f64| Figures::of(swaps.iter().map(|swap| what(swap)));
    let host = |swap: &Swap| swap.host_blackout_ms.unwrap_or(0.0);
    let floor = |fits: &dyn Fn(&Floor) -> bool| {
        Figures::of(measured.floors.iter().filter(|floor| fits(floor)).map(|floor| floor.host_blackout_ms))
    };
    let floor_guest = Figures::of(
        measured.floors.iter().filter(|floor| floor.way == "transfer").map(|floor| floor.guest_blackout_ms),
    );
    let part = |swaps: &[&Swap], floor: Figures| {
        json!({
            "host_blackout_ms": of(swaps, host), "guest_blackout_ms": of(swaps, |swap| swap.guest_blackout_ms),
            "tcp_gap_ms": of(swaps, |swap| swap.tcp_gap_ms), "floor_ms": floor,
        })
    };
    let mut by_memory = BTreeMap::new();
    for memory in alone.iter().map(|swap| swap.memory_mib) {
        let these: Vec<&Swap> = transfer.iter().copied().filter(|swap| swap.memory_mib == memory).collect();
        let floor = floor(&|floor| floor.memory_mib == memory && floor.way == "transfer");
        by_memory.insert(format!("{memory:>4} MiB"), part(&these, floor));
    }
    let mut by_way = BTreeMap::new();
    for way in ["transfer", "file"] {
        let these: Vec<&Swap> = alone.iter().copied().filter(|swap| swap.way == way).collect();
        by_way.insert(way, part(&these, floor(&|floor| floor.way == way)));
    }
    let mut by_vms = BTreeMap::new();
    for company in measured.swaps.iter().map(|swap| swap.company) {
        let these: Vec<&Swap> = measured
            .swaps
            .iter()
            .filter(ended)
            .filter(|swap| swap.company == company && swap.way == "transfer")
            .collect();
        by_vms.insert(format!("{} VMs, {} at once", company.0, company.1), part(&these, Figures::default()));
    }
    let sum = |what: fn(&Swap) -> u64| measured.swaps.iter().map(what).sum::<u64>();
    let failed = measured.swaps.iter().filter(|swap| swap.host_blackout_ms.is_none()).map(|swap| &swap.outcome);
    let (host_all, floor_all) = (of(&transfer, host), floor(&|floor| floor.way == "transfer"));
    json!({
        "host_blackout_ms": host_all,
        "guest_blackout_ms": of(&transfer, |swap| swap.guest_blackout_ms),
        "floor_ms": floor_all,
        "floor_guest_blackout_ms": floor_guest,
        "tcp_gap_ms": of(&transfer, |swap| swap.tcp_gap_ms),
        "udp_gap_ms": of(&transfer, |swap| swap.udp_gap_ms),
        "undisturbed_gap_ms": Figures::of(measured.quiet.iter().map(|quiet| quiet.tcp_gap_ms)),
        "undisturbed_sample_gap_ms": Figures::of(measured.quiet.iter().map(|quiet| quiet.sample_gap_ms)),
        "clock_error_ms": Figures::of(measured.swaps.iter().filter(ended).map(|swap| swap.clock_error_ms.abs())),
        "clock_known_to_ms": Figures::of(measured.swaps.iter().filter(ended).map(|swap| swap.clock_known_to_ms)),
        "retransmission_timeouts": sum(|swap| swap.guest_timeouts + swap.host_timeouts),
        "retransmission_timeouts_of_guests": sum(|swap| swap.guest_timeouts),
        "packets_lost": sum(|swap| swap.packets_lost),
        "reconnects": sum(|swap| swap.reconnects),
        "memory_broken": measured.broken_memory,
        "disk_broken": measured.broken_disk + measured.swaps.iter().map(|swap| swap.disk_errors).max().unwrap_or(0),
        "boot_id_changed": measured.swaps.iter().filter(|swap| !swap.boot_id_kept).count(),
        "leaked": measured.leaked,
        "failed": failed.collect::<Vec<_>>(),
        "downgrade_refused": measured.down,
        "by_memory": by_memory,
        "by_vms": by_vms,
        "by_way": by_way,
        "promises": promises(measured, &transfer, host_all, floor_all),
        "notes": measured.notes,
    })
}

/// Each promise with what was found; `null` where the run does not tell.
fn promises(measured: &Measured, transfer: &[&Swap], host: Figures, floor: Figures) -> Value {
    let ratio = |a: Option<f64>, b: Option<f64>| Some((a? / b? * 100.0).round() / 100.0);
    let median = |fits: &dyn Fn(&Swap) -> bool| {
        Figures::of(transfer.iter().filter(|swap| fits(swap)).filter_map(|swap| swap.host_blackout_ms)).median
    };
    let company = |together: bool| {
        let these =
            measured.swaps.iter().filter(|s| s.company.0 > 1 && (s.company.1 > 1) == together && s.way == "transfer");
        Figures::of(these.filter_map(|swap| swap.host_blackout_ms))
    };
    let guest_over_host = transfer.iter().filter_map(|swap| Some(swap.guest_blackout_ms - swap.host_blackout_ms?));
    let quiet = measured.quiet.iter().map(|quiet| quiet.tcp_gap_ms).fold(0.0, f64::max);
    let tcp_over_guest = transfer.iter().map(|swap| swap.tcp_gap_ms - swap.guest_blackout_ms - quiet);
    json!({
        "host_blackout_to_floor": ratio(host.median, floor.median),
        "host_blackout_to_floor_allowed": 1.2,
        "guest_less_host_blackout_ms": Figures::of(guest_over_host),
        "guest_less_host_blackout_allowed_ms": 5.0,
        // What the same costs the guest where nobody looks after it: cold shadows of its memory, and one processor for all.
        "guest_less_host_blackout_by_hand_ms": Figures::of(
            measured.floors.iter().filter(|floor| floor.way == "transfer").map(|floor| floor.guest_blackout_ms - floor.host_blackout_ms)
        ),
        "tcp_gap_less_guest_blackout_and_quiet_ms": Figures::of(tcp_over_guest),
        "tcp_gap_less_guest_blackout_and_quiet_allowed_ms": 0.0,
        "large_memory_to_small": ratio(median(&|swap| swap.memory_mib == 2048), median(&|swap| swap.memory_mib == 256)),
        "large_memory_to_small_allowed": 1.3,
        "together_to_one_by_one": ratio(company(true).max, company(false).max),
        "together_to_one_by_one_allowed": 1.5,
    })
}

/// The table.
pub(super) fn print(head: &Value, measured: &Measured) {
    let summary = summary(measured);
    println!(
        "machine      {}\naccelerator  {}\nversions     {}",
        head["machine"], head["accelerator"], head["versions"]
    );
    println!("{:<34} {:>5}  median / p99 / max, ms", "", "count");
    let line = |name: &str, figures: &Value| {
        let one = |key: &str| figures[key].as_f64().map_or("-".to_owned(), |value| format!("{value:.1}"));
        println!("{name:<34} {:>5}  {} / {} / {}", figures["count"], one("median"), one("p99"), one("max"));
    };
    for key in [
        "host_blackout_ms",
        "guest_blackout_ms",
        "floor_ms",
        "floor_guest_blackout_ms",
        "tcp_gap_ms",
        "udp_gap_ms",
        "clock_error_ms",
        "undisturbed_gap_ms",
    ] {
        line(key, &summary[key]);
    }
    for part in ["by_memory", "by_vms", "by_way"] {
        for (name, figures) in summary[part].as_object().into_iter().flatten() {
            line(&format!("{part} {name}, host blackout"), &figures["host_blackout_ms"]);
            if figures["floor_ms"]["count"].as_u64().unwrap_or(0) > 0 {
                line(&format!("{part} {name}, floor"), &figures["floor_ms"]);
            }
        }
    }
    for key in [
        "retransmission_timeouts",
        "packets_lost",
        "reconnects",
        "memory_broken",
        "disk_broken",
        "boot_id_changed",
        "failed",
        "leaked",
        "promises",
        "notes",
    ] {
        println!("{key:<34} {}", summary[key]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_any_swap_has_every_key_and_no_number() {
        let summary = summary(&Measured::default());
        for key in
            ["host_blackout_ms", "guest_blackout_ms", "floor_ms", "tcp_gap_ms", "undisturbed_gap_ms", "clock_error_ms"]
        {
            assert_eq!(summary[key]["median"], Value::Null, "{key}");
        }
        for key in ["retransmission_timeouts", "packets_lost", "memory_broken", "disk_broken", "boot_id_changed"] {
            assert_eq!(summary[key], 0, "{key}");
        }
        assert!(summary["by_memory"].is_object() && summary["by_vms"].is_object());
    }
}
