//! The documents guests read: the protocol's, per api-version, and the native one.

use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};

use crate::event::{Event, EventStatus, Job};
use crate::input::GateWait;
use crate::time::UnixMs;
use crate::version::ApiVersion;

struct Events<'a> {
    version: ApiVersion,
    events: &'a [&'a Event],
}

struct Document<'a> {
    incarnation: u32,
    events: Events<'a>,
}

struct Versioned<'a>(ApiVersion, &'a Event);

impl Serialize for Document<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(2))?;
        map.serialize_entry("DocumentIncarnation", &self.incarnation)?;
        map.serialize_entry("Events", &self.events)?;
        map.end()
    }
}

impl Serialize for Events<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut seq = to.serialize_seq(Some(self.events.len()))?;
        for event in self.events {
            seq.serialize_element(&Versioned(self.version, event))?;
        }
        seq.end()
    }
}

impl Serialize for Versioned<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self(version, event) = *self;
        let prefix = if version.underscores_resources() { "_" } else { "" };
        let resources: Vec<String> = event.resources.keys().map(|vm| format!("{prefix}{vm}")).collect();
        let not_before = match event.status {
            EventStatus::Scheduled => event.not_before.http_date(),
            EventStatus::Started => String::new(),
        };
        // The order is Azure's; a member too many, or one missing, breaks clients in the field.
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("EventId", &event.id)?;
        map.serialize_entry("EventStatus", event.status.as_str())?;
        map.serialize_entry("EventType", event.kind.as_str())?;
        map.serialize_entry("ResourceType", "VirtualMachine")?;
        map.serialize_entry("Resources", &resources)?;
        map.serialize_entry("NotBefore", &not_before)?;
        if version.has_description() {
            map.serialize_entry("Description", &event.description)?;
        }
        if version.has_source() {
            map.serialize_entry("EventSource", event.source.as_str())?;
        }
        if version.has_duration() {
            map.serialize_entry("DurationInSeconds", &event.duration_in_seconds())?;
        }
        map.end()
    }
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("documents have string keys and no fallible members")
}

/// The `Events` array of `version`, without the incarnation.
#[must_use]
pub fn render_events(version: ApiVersion, events: &[&Event]) -> String {
    to_json(&Events { version, events })
}

/// The document of `version`: exactly two members.
#[must_use]
pub fn render(version: ApiVersion, incarnation: u32, events: &[&Event]) -> String {
    to_json(&Document { incarnation, events: Events { version, events } })
}

/// The entity tag of a caller's document: strong, quoted, of the store's epoch, the incarnation and the representation.
#[must_use]
pub fn etag(epoch: u32, incarnation: u32, representation: &str) -> String {
    format!("\"{epoch:08x}-{incarnation}-{representation}\"")
}

/// An `If-None-Match` header as clients really send it: a list, `*`, weak tags, tags without quotes.
#[derive(Debug, Clone, Copy)]
pub struct IfNoneMatch<'a>(pub &'a str);

impl IfNoneMatch<'_> {
    /// Whether the header names `etag`. Anything unknown (`0`, `null`) simply does not.
    #[must_use]
    pub fn matches(self, etag: &str) -> bool {
        let bare = |tag: &str| tag.trim().trim_start_matches("W/").trim_matches('"').to_owned();
        let wanted = bare(etag);
        self.0.split(',').any(|tag| tag.trim() == "*" || bare(tag) == wanted)
    }
}

/// What the native document says of an event beyond the protocol.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NativeEvent {
    event_id: String,
    status: &'static str,
    event_type: &'static str,
    source: &'static str,
    description: String,
    resources: Vec<NativeResource>,
    scope: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    update_domain: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_job: Option<String>,
    reason: String,
    simulated: bool,
    announced_unix_ms: i64,
    not_before_unix_ms: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    started_unix_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deferred_until_unix_ms: Option<i64>,
    duration_in_seconds: i32,
    approved: bool,
    approvals: Vec<NativeApproval>,
    gate: NativeGate,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct NativeResource {
    vm: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_pause_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    paused_ms: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct NativeApproval {
    by: String,
    time_unix_ms: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct NativeGate {
    state: &'static str,
    waits: Vec<&'static str>,
}

impl NativeEvent {
    /// The native view of `event`, of `job` where it is decided here, with what the event's own gate waits for. Waits of
    /// other scopes are not told: a guest learns nothing of its neighbours.
    pub(crate) fn new(event: &Event, job: Option<&Job>, waits: &[GateWait], at: UnixMs) -> Self {
        use crate::event::PauseBound;
        let waits: Vec<&'static str> = waits
            .iter()
            .map(|wait| match wait {
                GateWait::Notice { .. } => "notice",
                GateWait::Deferral { .. } => "deferral",
                GateWait::OtherDomain { .. } => "other-update-domain",
            })
            .collect();
        let mut approvals: Vec<NativeApproval> = event
            .approvals
            .iter()
            .map(|(vm, approval)| NativeApproval { by: vm.to_string(), time_unix_ms: approval.at.0 })
            .collect();
        approvals.extend(
            event.operator.iter().map(|(_, a)| NativeApproval { by: "operator".to_owned(), time_unix_ms: a.at.0 }),
        );
        Self {
            event_id: event.id.to_string(),
            status: event.status.as_str(),
            event_type: event.kind.as_str(),
            source: event.source.as_str(),
            description: event.description.clone(),
            resources: event
                .resources
                .iter()
                .map(|(vm, part)| NativeResource {
                    vm: vm.to_string(),
                    expected_pause_ms: match part.bound {
                        PauseBound::None => Some(0),
                        PauseBound::AtMostMs(ms) => Some(ms),
                        PauseBound::Unknown => None,
                    },
                    paused_ms: part.phase.paused_ms(),
                })
                .collect(),
            scope: event.scope.to_string(),
            update_domain: event.update_domain.map(u32::from),
            host_job: job.map(|job| job.id.to_string()),
            reason: job.map(|job| job.reason.clone()).unwrap_or_default(),
            simulated: job.is_some_and(|job| job.simulation.is_some()),
            announced_unix_ms: event.announced.0,
            not_before_unix_ms: event.not_before.0,
            started_unix_ms: event.started.map(|at| at.0),
            deferred_until_unix_ms: event.held_until(at).map(|at| at.0),
            duration_in_seconds: event.duration_in_seconds(),
            approved: event.approved(),
            approvals,
            gate: NativeGate {
                state: match (event.status, waits.is_empty()) {
                    (EventStatus::Started, _) => "started",
                    (EventStatus::Scheduled, true) => "open",
                    (EventStatus::Scheduled, false) => "waiting",
                },
                waits,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_19_if_none_match_is_read_as_clients_send_it() {
        let tag = etag(7, 3, "2020-07-01");
        assert_eq!(tag, "\"00000007-3-2020-07-01\"");
        for hit in [
            tag.as_str(),
            "*",
            "W/\"00000007-3-2020-07-01\"",
            "00000007-3-2020-07-01",
            "\"x\", \"00000007-3-2020-07-01\"",
        ] {
            assert!(IfNoneMatch(hit).matches(&tag), "{hit}");
        }
        for miss in ["", "0", "null", "\"00000007-4-2020-07-01\"", "\"00000007-3-2019-08-01\""] {
            assert!(!IfNoneMatch(miss).matches(&tag), "{miss}");
        }
    }
}
