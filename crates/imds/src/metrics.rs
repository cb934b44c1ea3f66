//! Counters, and their text for Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use fermata_events::{Action, Lifecycle, Record};

use crate::http::Status;

/// Upper bounds of the pause histogram, in seconds.
const PAUSE_BOUNDS: [f64; 9] = [0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];

/// What is counted while the service runs.
#[derive(Debug, Default)]
pub struct Metrics {
    answers: Mutex<BTreeMap<Status, u64>>,
    steps: Mutex<BTreeMap<&'static str, u64>>,
    pub(crate) connections: AtomicU64,
    pub(crate) refused_connections: AtomicU64,
    pub(crate) unknown_callers: AtomicU64,
    pub(crate) long_polls: AtomicU64,
}

impl Metrics {
    pub(crate) fn answer(&self, status: Status) {
        *self.answers.lock().unwrap_or_else(PoisonError::into_inner).entry(status).or_insert(0) += 1;
    }

    pub(crate) fn action(&self, action: &Action) {
        let Action::Notify { notice } = action else { return };
        let step = match notice.step {
            Lifecycle::Scheduled => "scheduled",
            Lifecycle::Approved => "approved",
            Lifecycle::Deferred => "deferred",
            Lifecycle::Started => "started",
            Lifecycle::Removed => "removed",
            Lifecycle::Overrun => "overrun",
        };
        *self.steps.lock().unwrap_or_else(PoisonError::into_inner).entry(step).or_insert(0) += 1;
    }

    /// The text form. `vms` and `open` are gauges; the histogram is of the records that are kept.
    #[must_use]
    pub fn text(&self, vms: usize, open_events: usize, history: &[Record]) -> String {
        let mut out = String::new();
        let mut line = |text: std::fmt::Arguments<'_>| {
            // Writing to a String cannot fail.
            let _ = out.write_fmt(text);
            out.push('\n');
        };
        line(format_args!("# TYPE fermata_imds_answers_total counter"));
        for (status, count) in self.answers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            line(format_args!("fermata_imds_answers_total{{code=\"{}\"}} {count}", status.code()));
        }
        line(format_args!("# TYPE fermata_events_steps_total counter"));
        for (step, count) in self.steps.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            line(format_args!("fermata_events_steps_total{{step=\"{step}\"}} {count}"));
        }
        for (name, counter) in [
            ("connections", &self.connections),
            ("refused_connections", &self.refused_connections),
            ("unknown_callers", &self.unknown_callers),
            ("long_polls", &self.long_polls),
        ] {
            line(format_args!("# TYPE fermata_imds_{name}_total counter"));
            line(format_args!("fermata_imds_{name}_total {}", counter.load(Ordering::Relaxed)));
        }
        line(format_args!("# TYPE fermata_imds_vms gauge\nfermata_imds_vms {vms}"));
        line(format_args!("# TYPE fermata_events_open gauge\nfermata_events_open {open_events}"));
        let pauses: Vec<f64> = history
            .iter()
            .filter(|record| !record.simulated)
            .flat_map(|record| record.vms.values())
            .filter_map(|felt| felt.pause_ms)
            .map(|ms| std::time::Duration::from_millis(ms).as_secs_f64())
            .collect();
        line(format_args!("# TYPE fermata_events_pause_seconds histogram"));
        for bound in PAUSE_BOUNDS {
            let count = pauses.iter().filter(|pause| **pause <= bound).count();
            line(format_args!("fermata_events_pause_seconds_bucket{{le=\"{bound}\"}} {count}"));
        }
        line(format_args!("fermata_events_pause_seconds_bucket{{le=\"+Inf\"}} {}", pauses.len()));
        line(format_args!("fermata_events_pause_seconds_sum {}", pauses.iter().sum::<f64>()));
        line(format_args!("fermata_events_pause_seconds_count {}", pauses.len()));
        out
    }
}
