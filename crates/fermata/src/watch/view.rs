//! What the live view shows. Pure: from what the controller said to lines.

use std::collections::BTreeMap;
use std::time::Duration;

use fermata_controller::rollout::{Definition, HostPhase, HostState, State};
use fermata_controller::wire::{VisitProgress, VmProgress};
use fermata_maintenance::time::human;
use fermata_model::HostName;
use jiff::Timestamp;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Gauge, Paragraph};

/// Everything that is shown.
pub(super) struct Shown {
    pub(super) definition: Definition,
    pub(super) state: State,
    pub(super) measured: BTreeMap<HostName, Vec<VisitProgress>>,
    /// The rollout's phase.
    pub(super) word: String,
    pub(super) alarms: Vec<String>,
    /// Why the controller does not answer, while it does not.
    pub(super) away: Option<String>,
    pub(super) now: Timestamp,
}

/// Draws it; `offset` lines of the hosts are scrolled away.
pub(super) fn draw(frame: &mut Frame<'_>, shown: &Shown, offset: u16) {
    let notes = notes(shown);
    let note_lines = u16::try_from(notes.len()).unwrap_or(u16::MAX);
    let areas = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(note_lines),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .split(frame.area());
    frame.render_widget(Paragraph::new(title(shown)), areas[0]);
    let (through, all) = (through(&shown.state), shown.state.hosts.len());
    let ratio = if all == 0 { 1.0 } else { through as f64 / all as f64 };
    let gauge = Gauge::default().ratio(ratio).label(format!("{through} of {all} hosts")).gauge_style(Color::Cyan);
    frame.render_widget(gauge, areas[1]);
    frame.render_widget(Paragraph::new(notes), areas[2]);
    frame.render_widget(Paragraph::new(hosts(shown)).scroll((offset, 0)), areas[3]);
    let help = Line::styled("q leaves, the rollout goes on   up and down scroll", Modifier::DIM);
    frame.render_widget(Paragraph::new(help), areas[4]);
}

fn through(state: &State) -> usize {
    state.hosts.values().filter(|host| host.phase.at_end()).count()
}

fn title(shown: &Shown) -> Line<'static> {
    let definition = &shown.definition;
    let updates: Vec<&str> = definition.updates.iter().map(|update| update.name.as_str()).collect();
    let stage = definition.stages.get(shown.state.stage).map_or_else(String::new, |stage| format!(", {}", stage.name));
    Line::from(vec![
        Span::styled(definition.id.to_string(), Modifier::BOLD),
        Span::raw(format!("  {}  ({})  ", updates.join(" + "), definition.reason)),
        Span::styled(format!("{}{stage}", shown.word), colour_of(&shown.word)),
    ])
}

fn colour_of(word: &str) -> Style {
    match word {
        "completed" | "done" => Color::Green.into(),
        "failing" | "failed" | "aborting" | "aborted" => Color::Red.into(),
        "running" | "in work" | "announced" | "checking" => Color::Yellow.into(),
        _ => Style::new(),
    }
}

fn notes(shown: &Shown) -> Vec<Line<'static>> {
    let alarms = shown.alarms.iter().map(|text| format!("ALARM: {text}"));
    let failures = shown.state.failures.iter().map(|(host, reason)| format!("{host}: {reason}"));
    let away = shown.away.iter().cloned();
    alarms.chain(failures).chain(away).map(|text| Line::styled(text, Color::Red)).collect()
}

/// Hosts by their parts: those of one update domain stand together.
fn hosts(shown: &Shown) -> Vec<Line<'static>> {
    let mut groups: BTreeMap<String, Vec<&HostName>> = BTreeMap::new();
    for host in &shown.definition.order {
        groups.entry(parts(shown, host)).or_default().push(host);
    }
    let mut lines = Vec::new();
    for (parts, members) in groups {
        lines.push(Line::styled(parts, Modifier::UNDERLINED));
        for host in members {
            if let Some(state) = shown.state.hosts.get(host) {
                lines.push(host_line(host, state, shown.now));
                lines.extend(vms(shown, host));
            }
        }
    }
    lines
}

fn parts(shown: &Shown, host: &HostName) -> String {
    let sets = shown.definition.hosts.get(host).map(|task| &task.sets);
    let parts: Vec<String> =
        sets.into_iter().flatten().map(|(set, member)| format!("{set}: {}", member.part)).collect();
    if parts.is_empty() { "no availability set".to_owned() } else { parts.join(", ") }
}

fn host_line(host: &HostName, state: &HostState, now: Timestamp) -> Line<'static> {
    let word = state.phase.word();
    let since = since(&state.phase)
        .map_or_else(String::new, |since| format!(" for {} s", now.duration_since(since).as_secs().max(0)));
    let refused = state.refused.as_ref().map_or_else(String::new, |refused| format!("  refused: {}", refused.reason));
    let failed =
        if let HostPhase::Failed { reason, .. } = &state.phase { format!("  {reason}") } else { String::new() };
    let held = if state.held { "  held" } else { "" };
    let troubles: Vec<String> =
        state.unhealthy.iter().map(|trouble| format!("  {}: {}", trouble.vm, trouble.seen)).collect();
    Line::from(vec![
        Span::raw(format!("  {host:<24} ")),
        Span::styled(format!("{word}{since}"), colour_of(word)),
        Span::styled(format!("{held}{refused}{failed}{}", troubles.concat()), Color::Red),
    ])
}

const fn since(phase: &HostPhase) -> Option<Timestamp> {
    match phase {
        HostPhase::Preflight { asked } => Some(*asked),
        HostPhase::Ordered { since, .. }
        | HostPhase::Announced { since, .. }
        | HostPhase::InWork { since, .. }
        | HostPhase::StandingDown { since, .. }
        | HostPhase::Checking { since, .. } => Some(*since),
        HostPhase::Waiting
        | HostPhase::Soaking { .. }
        | HostPhase::Done { .. }
        | HostPhase::Failed { .. }
        | HostPhase::Skipped { .. } => None,
    }
}

fn vms(shown: &Shown, host: &HostName) -> Vec<Line<'static>> {
    let newest = shown.measured.get(host).and_then(|visits| visits.last());
    let maintenances = newest.into_iter().flat_map(|visit| &visit.maintenances);
    maintenances.flat_map(|maintenance| maintenance.vms.iter().map(|vm| vm_line(vm, &maintenance.stage))).collect()
}

fn length(us: u64) -> String {
    human(Duration::from_micros(us))
}

fn vm_line(vm: &VmProgress, stage: &str) -> Line<'static> {
    let blackout = match vm.host_blackouts_us.iter().max() {
        Some(longest) => format!("blackout {} of {} forecast", length(*longest), length(vm.forecast_us)),
        None => match vm.may_have_stood_us {
            Some(most) => format!("may have stood for up to {}", length(most)),
            None => format!("forecast {}", length(vm.forecast_us)),
        },
    };
    let guest = vm.guest_blackout_us.map_or_else(String::new, |us| format!(", {} in the guest", length(us)));
    Line::raw(format!("      {:<22} {:<6} {stage:<10} {blackout}{guest}, {}", vm.vm, vm.mechanism, vm.end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use fermata_controller::wire::MaintenanceProgress;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn shown() -> Shown {
        let definition: Definition = serde_json::from_value(serde_json::json!({
            "id": "newer", "reason": "CVE", "plan": "", "order": ["h1", "h2"],
            "updates": [{ "name": "qemu", "digest": "00", "mechanism": "swap" }],
            "hosts": {
                "h1": { "stage": 0, "sets": { "web": { "part": "0", "vms": 1, "of": 2, "recovery": { "secs": 0, "nanos": 0 } } }, "work": { "secs": 1, "nanos": 0 } },
                "h2": { "stage": 0, "sets": { "web": { "part": "1", "vms": 1, "of": 2, "recovery": { "secs": 0, "nanos": 0 } } }, "work": { "secs": 1, "nanos": 0 } }
            },
            "stages": [{ "name": "canary", "soak": { "secs": 0, "nanos": 0 }, "approval": false }],
            "rules": {}
        }))
        .unwrap();
        let mut state = fermata_controller::rollout::Rollout::new(definition.clone().into()).unwrap().state().clone();
        let at = |second| Timestamp::from_second(second).unwrap();
        state.hosts.get_mut(&"h1".parse().unwrap()).unwrap().phase = HostPhase::Done { at: at(90) };
        let generation = fermata_controller::order::Generation(1);
        state.hosts.get_mut(&"h2".parse().unwrap()).unwrap().phase = HostPhase::InWork { generation, since: at(95) };
        let vm = VmProgress {
            vm: "a2".parse().unwrap(),
            mechanism: fermata_model::Mechanism::Swap,
            forecast_us: 10_000,
            host_blackouts_us: vec![7_250],
            may_have_stood_us: None,
            guest_blackout_us: None,
            clock: None,
            end: "updated".into(),
        };
        let maintenance = MaintenanceProgress {
            id: "qemu-g1".into(),
            update: "qemu".into(),
            stage: "verify".into(),
            outcome: None,
            trouble: None,
            stages: vec![],
            vms: vec![vm],
        };
        let visit = VisitProgress { rollout: "newer".into(), generation, maintenances: vec![maintenance] };
        let measured = [("h2".parse().unwrap(), vec![visit])].into();
        Shown { definition, state, measured, word: "running".into(), alarms: vec![], away: None, now: at(100) }
    }

    fn screen(shown: &Shown) -> String {
        let mut terminal = Terminal::new(TestBackend::new(100, 16)).unwrap();
        terminal.draw(|frame| draw(frame, shown, 0)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn hosts_stand_by_update_domain_with_phases_and_measured_blackouts() {
        let screen = screen(&shown());
        let place = |text: &str| screen.find(text).unwrap_or_else(|| panic!("no `{text}` in\n{screen}"));
        assert!(place("web: 0") < place("h1") && place("h1") < place("web: 1") && place("web: 1") < place("h2"));
        place("1 of 2 hosts");
        place("running, canary");
        place("in work for 5 s");
        place("blackout 7.2 ms of 10.0 ms forecast");
    }

    #[test]
    fn alarms_and_an_absent_controller_are_told() {
        let mut shown = shown();
        shown.alarms.push("availability set web: two parts".into());
        shown.away = Some("controller at 127.0.0.1:1: refused".into());
        let screen = screen(&shown);
        assert!(screen.contains("ALARM: availability set web") && screen.contains("refused"), "{screen}");
    }
}
