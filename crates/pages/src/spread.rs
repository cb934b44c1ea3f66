//! How long blackouts were: a histogram over round steps, and the figures under it.

use std::time::Duration;

use fermata_maintenance::time::human;
use maud::{Markup, html};

use crate::NOT_MEASURED;
use crate::frame::Figure;

/// Every blackout, by who measured it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Blackouts {
    /// Each pause, STOP to RESUME.
    pub(crate) host: Vec<Duration>,
    /// The longest of each VM, by a program in it.
    pub(crate) guest: Vec<Duration>,
}

/// A step of the histogram: longer than `above`, at most `up_to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    above: Duration,
    up_to: Duration,
}

/// A pause that the clock could not resolve still belongs to the first step.
const SHORTEST: Duration = Duration::from_nanos(1);

impl Step {
    fn holds(&self, length: Duration) -> bool {
        let length = length.max(SHORTEST);
        length > self.above && length <= self.up_to
    }
}

const BAR: f64 = 110.0;
const WIDTH: f64 = 960.0;

impl Blackouts {
    /// The picture and its figures; a sentence when there was no pause.
    pub(crate) fn show(&self) -> Markup {
        let steps = steps(self.host.iter().chain(&self.guest).copied());
        if steps.is_empty() {
            return html! { p { "No VM was paused: there is no blackout to show." } };
        }
        let counted = |from: &[Duration], step: &Step| from.iter().filter(|length| step.holds(**length)).count();
        let counts: Vec<_> =
            steps.iter().map(|step| (step, [counted(&self.host, step), counted(&self.guest, step)])).collect();
        let most = counts.iter().flat_map(|(_, both)| both).copied().max().unwrap_or(1).max(1) as f64;
        let wide = (WIDTH / counts.len() as f64).min(170.0);
        html! {
            svg viewBox={ "0 0 " (WIDTH) " " (BAR + 44.0) } role="img" aria-label="distribution of blackouts" {
                line x1="0" x2=(wide * counts.len() as f64) y1=(BAR + 20.0) y2=(BAR + 20.0) {}
                @for (number, (step, both)) in counts.iter().enumerate() {
                    @let left = wide * number as f64;
                    @for (series, count) in both.iter().copied().enumerate().filter(|(_, count)| *count > 0) {
                        @let tall = BAR * count as f64 / most;
                        @let aside = if self.guest.is_empty() { 0.0 } else { 0.3 * series as f64 - 0.15 };
                        @let middle = left + wide * (0.45 + aside);
                        rect class=(["host", "guest"][series]) x=(middle - 10.0) y=(BAR + 20.0 - tall) width="20" height=(tall) rx="2" {
                            title { (count) " measured " (["by the host", "in the guest"][series]) }
                        }
                        text x=(middle) y=(BAR + 14.0 - tall) text-anchor="middle" { (count) }
                    }
                    text class="soft" x=(left + wide * 0.45) y=(BAR + 37.0) text-anchor="middle" { "≤ " (whole(step.up_to)) }
                }
            }
            ul class="legend" {
                li { i class="host" {} "every pause, by the host: STOP to RESUME" }
                li { i class="guest" {} "the longest of a VM, by a program in it" }
            }
            table {
                tr { th {} th class="number" { "measured" } th class="number" { "shortest" } th class="number" { "half at most" }
                     th class="number" { "95 % at most" } th class="number" { "longest" } }
                (line("by the host", &self.host))
                (line("in the guest", &self.guest))
            }
        }
    }

    /// The longest of each kind, for the top of a page, where so many VMs were paused.
    pub(crate) fn figures(&self, paused: usize) -> [Figure; 2] {
        [
            Figure {
                name: "longest blackout",
                value: Self::longest(&self.host),
                note: "by the host, STOP to RESUME".to_owned(),
            },
            Figure {
                name: "longest in a guest",
                value: Self::longest(&self.guest),
                note: format!("by programs in {} of {paused} paused VMs", self.guest.len()),
            },
        ]
    }

    /// The longest that was measured, or that nobody did.
    fn longest(all: &[Duration]) -> String {
        all.iter().max().map_or_else(|| NOT_MEASURED.to_owned(), |longest| human(*longest))
    }
}

fn line(who: &str, all: &[Duration]) -> Markup {
    let mut sorted = all.to_vec();
    sorted.sort_unstable();
    let cells = [0.0, 0.5, 0.95, 1.0].map(|share| rank(&sorted, share));
    html! {
        tr { td { (who) } td class="number" { (all.len()) }
             @for cell in cells { td class="number" { (cell.map_or_else(|| NOT_MEASURED.to_owned(), human)) } } }
    }
}

/// The smallest value that at least this share of all reaches: one that was measured, never one in between.
fn rank(sorted: &[Duration], share: f64) -> Option<Duration> {
    let number = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(number.saturating_sub(1)).copied()
}

/// Fine steps where blackouts are alike, coarse ones where they are far apart.
const LADDERS: [&[u64]; 3] = [&[100, 120, 150, 200, 250, 300, 400, 500, 600, 800], &[100, 200, 500], &[100]];
/// More could not be told apart.
const MOST: usize = 12;

/// Round steps that hold every value, without a gap.
fn steps(all: impl Iterator<Item = Duration> + Clone) -> Vec<Step> {
    let (Some(shortest), Some(longest)) = (all.clone().min(), all.max()) else { return Vec::new() };
    let mut steps = Vec::new();
    for digits in LADDERS {
        let ladder = (0..=10_u32).flat_map(|power| digits.iter().map(move |digit| digit * 10_u64.pow(power)));
        steps.clear();
        let mut above = Duration::ZERO;
        for up_to in ladder.map(Duration::from_micros) {
            if up_to >= shortest && above < longest.max(SHORTEST) {
                steps.push(Step { above, up_to });
            }
            above = up_to;
        }
        if steps.len() <= MOST {
            break;
        }
    }
    steps
}

/// A round length: `20 ms`, `1.5 s`.
fn whole(length: Duration) -> String {
    let micros = length.as_micros();
    match micros {
        0..1_000 => format!("{micros} us"),
        1_000..1_000_000 => format!("{} ms", micros as f64 / 1e3),
        _ => format!("{} s", micros as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[test]
    fn every_blackout_is_in_exactly_one_step() {
        let all = [
            Duration::ZERO,
            ms(1),
            ms(2),
            ms(3),
            ms(83),
            ms(20_400),
            Duration::from_micros(1_001),
            Duration::from_micros(7),
        ];
        let steps = steps(all.into_iter());
        for one in all {
            let holding = steps.iter().filter(|step| step.holds(one)).count();
            assert_eq!(holding, 1, "{one:?} in {steps:?}");
        }
        assert!(steps.windows(2).all(|pair| pair[0].up_to == pair[1].above), "{steps:?}");
        assert!(steps.len() <= MOST, "{steps:?}");
        assert_eq!(super::steps([ms(83)].into_iter()).len(), 1, "one value needs one step");
        assert_eq!(super::steps([ms(83), ms(110)].into_iter()).len(), 2, "alike is not the same");
    }

    #[test]
    fn a_quantile_is_a_measured_value() {
        let sorted = [ms(1), ms(2), ms(9), ms(50)];
        let told = [0.0, 0.5, 0.95, 1.0].map(|share| rank(&sorted, share).unwrap());
        assert_eq!(told, [ms(1), ms(2), ms(50), ms(50)]);
        assert_eq!(rank(&[], 0.5), None);
    }

    #[test]
    fn what_nobody_measured_is_not_made_up() {
        let text = Blackouts { host: vec![ms(83)], guest: Vec::new() }.show().into_string();
        assert!(
            text.contains("in the guest</td><td class=\"number\">0</td><td class=\"number\">not measured"),
            "{text}"
        );
        assert!(Blackouts::default().show().into_string().contains("No VM was paused"));
        assert_eq!(Blackouts::longest(&[]), "not measured");
    }
}
