//! Rows of bars over one axis of time.

use maud::{Markup, html};

/// What a bar is, as its colour says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// VMs run, nothing is done: notice.
    Wait,
    /// VMs run, something is done.
    Work,
    /// VMs may be paused.
    Window,
    /// This VM is paused.
    Pause,
    /// VMs run again, and it is seen to that they do.
    After,
    /// Something is taken back, or did not work.
    Undo,
}

impl Kind {
    const fn class(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Work => "work",
            Self::Window => "window",
            Self::Pause => "pause",
            Self::After => "after",
            Self::Undo => "undo",
        }
    }
}

/// A bar, in seconds from wherever the timeline counts.
#[derive(Debug, Clone)]
pub(crate) struct Bar {
    pub(crate) from: f64,
    pub(crate) to: f64,
    pub(crate) kind: Kind,
    /// Shown in the bar where there is room.
    pub(crate) word: String,
    /// Shown when pointed at.
    pub(crate) told: String,
}

/// A row; the text at its end may be empty.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) label: String,
    pub(crate) bars: Vec<Bar>,
    pub(crate) end: String,
}

const WIDTH: f64 = 960.0;
const LABEL: f64 = 130.0;
/// Room at the end of rows, when any has a text there.
const END: f64 = 270.0;
const HEIGHT: f64 = 24.0;
/// Narrower than this, a bar could not be seen.
const THINNEST: f64 = 1.5;
/// About as wide as a letter is.
const LETTER: f64 = 6.4;

/// The picture, from `start` to `end` in seconds; nothing when there is no time or no row to show.
pub(crate) fn timeline(rows: &[Row], start: f64, end: f64, legend: &[(Kind, &str)]) -> Option<Markup> {
    let span = end - start;
    if rows.is_empty() || !span.is_finite() || span <= 0.0 {
        return None;
    }
    let right = if rows.iter().any(|row| !row.end.is_empty()) { WIDTH - END } else { WIDTH - 20.0 };
    let x = |at: f64| LABEL + ((at - start) / span).clamp(0.0, 1.0) * (right - LABEL);
    let bottom = HEIGHT * rows.len() as f64;
    let ticks = ticks(span);
    Some(html! {
        svg viewBox={ "0 0 " (WIDTH) " " (bottom + 24.0) } role="img" aria-label="timeline" {
            @for tick in &ticks {
                line x1=(px(x(start + tick))) x2=(px(x(start + tick))) y1="0" y2=(bottom) {}
                text class="soft" x=(px(x(start + tick))) y=(bottom + 16.0) text-anchor="middle" { (axis(*tick)) }
            }
            @for (number, row) in rows.iter().enumerate() {
                @let top = HEIGHT * number as f64;
                text x="0" y=(top + 16.0) { title { (row.label) } (shortened(&row.label, LABEL)) }
                @for bar in &row.bars {
                    @let width = (x(bar.to) - x(bar.from)).max(THINNEST);
                    rect class=(bar.kind.class()) x=(px(x(bar.from))) y=(top + 4.0) width=(px(width)) height=(HEIGHT - 8.0) rx="2" {
                        title { (bar.told) }
                    }
                    @if !bar.word.is_empty() && bar.word.chars().count() as f64 * LETTER < width - 6.0 {
                        text class=(if bar.kind == Kind::Pause { "inside on-pause" } else { "inside" }) x=(px(x(bar.from) + 4.0)) y=(top + 16.0) { (bar.word) }
                    }
                }
                @if !row.end.is_empty() { text class="soft" x=(right + 12.0) y=(top + 16.0) { (shortened(&row.end, END)) } }
            }
        }
        ul class="legend" { @for (kind, word) in legend { li { i class=(kind.class()) {} (word) } } }
    })
}

/// Tenths of a unit are finer than any screen.
fn px(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn shortened(text: &str, room: f64) -> String {
    let letters = (room / LETTER) as usize;
    if text.chars().count() <= letters {
        return text.to_owned();
    }
    text.chars().take(letters - 1).chain(['…']).collect()
}

/// Round times, at most eight of them, from 0 on.
fn ticks(span: f64) -> Vec<f64> {
    const MINUTES: [f64; 10] = [30.0, 60.0, 120.0, 300.0, 600.0, 1_800.0, 3_600.0, 7_200.0, 21_600.0, 86_400.0];
    let small = (-6..=1).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power)));
    let fits = |step: &f64| span / step <= 7.0;
    let step = small.filter(|step| *step < 15.0).chain(MINUTES).find(fits).unwrap_or(span / 7.0);
    (0..8).map(|number| f64::from(number) * step).take_while(|tick| *tick <= span).collect()
}

/// A time on the axis: `0`, `20 ms`, `1.5 s`, `5 min`, `2 h`.
fn axis(seconds: f64) -> String {
    let rounded = |value: f64| (value * 1_000.0).round() / 1_000.0;
    if seconds == 0.0 {
        "0".to_owned()
    } else if seconds < 1e-3 {
        format!("{} us", rounded(seconds * 1e6))
    } else if seconds < 1.0 {
        format!("{} ms", rounded(seconds * 1e3))
    } else if seconds < 60.0 || (seconds < 120.0 && seconds % 30.0 != 0.0) {
        format!("{} s", rounded(seconds))
    } else if seconds < 7_200.0 {
        format!("{} min", rounded(seconds / 60.0))
    } else {
        format!("{} h", rounded(seconds / 3_600.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_few_and_within_the_span() {
        for span in [2e-5, 0.083, 0.9, 1.0, 59.0, 61.0, 900.0, 5_000.0, 90_000.0, 9e6] {
            let ticks = ticks(span);
            assert!((2..=8).contains(&ticks.len()), "{span}: {ticks:?}");
            assert!(ticks.iter().all(|tick| (0.0..=span).contains(tick)), "{span}: {ticks:?}");
        }
        assert_eq!(
            ticks(0.083).iter().copied().map(axis).collect::<Vec<_>>(),
            ["0", "20 ms", "40 ms", "60 ms", "80 ms"]
        );
        assert_eq!(axis(ticks(900.0)[1]), "5 min");
        assert_eq!(
            ticks(130.0).iter().copied().map(axis).collect::<Vec<_>>(),
            ["0", "30 s", "1 min", "1.5 min", "2 min"]
        );
    }

    #[test]
    fn a_short_pause_in_a_long_time_can_still_be_seen() {
        let bar = Bar { from: 10.0, to: 10.001, kind: Kind::Pause, word: String::new(), told: "1 ms".to_owned() };
        let row = Row { label: "a".repeat(60), bars: vec![bar], end: String::new() };
        let text = timeline(&[row], 0.0, 3_600.0, &[(Kind::Pause, "paused")]).unwrap().into_string();
        assert!(text.contains("class=\"pause\""), "{text}");
        assert!(text.contains("width=\"1.5\""), "{text}");
        assert!(text.contains('…'), "{text}");
    }

    #[test]
    fn no_time_is_no_picture() {
        let row = Row { label: "a".to_owned(), bars: Vec::new(), end: String::new() };
        assert!(timeline(&[], 0.0, 1.0, &[]).is_none());
        assert!(timeline(std::slice::from_ref(&row), 1.0, 1.0, &[]).is_none());
        assert!(timeline(&[row], 0.0, f64::NAN, &[]).is_none());
    }
}
