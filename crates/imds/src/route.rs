//! From a request to an answer, without I/O: [`handle`].
//!
//! The order of the checks is part of the contract: verb, host, `X-Forwarded-For`, `Metadata`, query, loading, then the
//! category's own (api-version, path below, body).

use std::time::Duration;

use fermata_events::{ApiVersion, EventId, IfNoneMatch, UnixMs};

use crate::caller::{Caller, Documents};
use crate::http::{Method, QueryError, Request, Response, Status};
use crate::instance::{Found, InstanceVersion, render, text, walk};
use crate::limits::Category;

/// The longest long poll.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

/// What the handler knows.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Who asks; `None` while the inventory is loading.
    pub caller: Option<(&'a Caller, &'a Documents)>,
    /// Hosts that may stand in `Host`, in lower case, without a port.
    pub hosts: &'a [String],
    /// Whether the native extensions are served.
    pub extensions: bool,
}

/// What is to be done with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// Send this.
    Answer(Response),
    /// Note that the VM asked for its events, then send this.
    Polled(Response),
    /// Note that the VM asked; wait until its document is another one, a pause begins or the time is over; then handle the
    /// request again, without waiting.
    Wait(Duration),
    /// Approve, make it durable, then answer 200 with an empty body.
    Approve(Vec<EventId>),
    /// Defer, make it durable, then answer 200.
    Defer(EventId, UnixMs),
    /// Answer from the state: the native events.
    NativeEvents,
    /// Answer from the state: what is over, ended after this time.
    History(UnixMs),
    /// Answer with the host's time.
    Time,
}

/// The part of the tree that a path is in. Segments are compared without case; one trailing slash is tolerated.
enum Place<'a> {
    Versions,
    Instance(Vec<&'a str>),
    Events,
    Token,
    Native(Vec<&'a str>),
    Nowhere,
}

impl<'a> Place<'a> {
    fn of(path: &'a str) -> Self {
        let Some(rest) = path.strip_prefix('/') else { return Self::Nowhere };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let segments: Vec<&str> = rest.split('/').collect();
        let is = |at: usize, name: &str| segments.get(at).is_some_and(|s| s.eq_ignore_ascii_case(name));
        if !is(0, "metadata") || segments.iter().any(|s| s.is_empty()) {
            return Self::Nowhere;
        }
        match segments.len() {
            2 if is(1, "versions") => Self::Versions,
            2 if is(1, "scheduledevents") => Self::Events,
            2.. if is(1, "instance") => Self::Instance(segments[2..].to_vec()),
            3.. if is(1, "x-maintenance") && is(2, "v1") => Self::Native(segments[3..].to_vec()),
            2.. if is(1, "identity") => Self::Token,
            _ => Self::Nowhere,
        }
    }

    fn allow(&self) -> &'static str {
        match self {
            Self::Events => "GET, HEAD, POST",
            Self::Native(rest) if is_defer(rest).is_some() => "POST",
            Self::Versions | Self::Instance(_) | Self::Token | Self::Native(_) | Self::Nowhere => "GET, HEAD",
        }
    }
}

fn is_defer<'a>(rest: &[&'a str]) -> Option<&'a str> {
    match rest {
        [events, id, defer] if events.eq_ignore_ascii_case("events") && defer.eq_ignore_ascii_case("defer") => Some(id),
        _ => None,
    }
}

/// What a request is counted as, for the limits.
#[must_use]
pub fn category(request: &Request) -> Category {
    match Place::of(request.path()) {
        Place::Events | Place::Native(_) => Category::Events,
        Place::Token => Category::Identity,
        Place::Versions | Place::Instance(_) | Place::Nowhere => Category::Instance,
    }
}

fn bad(what: &str) -> Response {
    Response::error(Status::BadRequest, &format!("Bad request. {what}"))
}

fn not_found() -> Response {
    Response::error(Status::NotFound, "Not found")
}

/// The verdict on a request.
pub fn handle(request: &Request, context: &Context<'_>) -> Verdict {
    match judge(request, context) {
        Ok(verdict) => verdict,
        Err(response) => Verdict::Answer(response),
    }
}

fn judge(request: &Request, context: &Context<'_>) -> Result<Verdict, Response> {
    let place = Place::of(request.path());
    let allowed = match request.method() {
        Method::Get | Method::Head => place.allow() != "POST",
        Method::Post => place.allow().contains("POST"),
        Method::Other => false,
    };
    if !allowed {
        let mut response = Response::error(Status::MethodNotAllowed, "Method not allowed");
        response.allow = Some(place.allow());
        return Err(response);
    }
    if !host_allowed(request, context.hosts) {
        return Err(bad("The Host header does not name the metadata service"));
    }
    if request.forwarded {
        return Err(bad("X-Forwarded-For must not be present"));
    }
    if !request.has_metadata_header() {
        return Err(bad("Required metadata header not specified"));
    }
    let query = Query(request.query().map_err(|error| {
        bad(match error {
            QueryError::Duplicate => "A query parameter stands twice",
            QueryError::Encoding => "The query is malformed",
        })
    })?);
    let Some((caller, documents)) = context.caller else {
        return Err(Response::error(Status::Gone, "Gone"));
    };
    match place {
        Place::Versions => Ok(Verdict::Answer(versions())),
        Place::Instance(path) => instance(caller, &query, &path).map(Verdict::Answer),
        Place::Events if request.method() == Method::Post => approve(request, &query),
        Place::Events => events(request, documents, &query),
        Place::Token => Ok(Verdict::Answer(identity())),
        Place::Native(path) if context.extensions => native(request, &query, &path),
        Place::Native(_) | Place::Nowhere => Err(not_found()),
    }
}

struct Query(Vec<(String, String)>);

impl Query {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

fn host_allowed(request: &Request, hosts: &[String]) -> bool {
    let Some(host) = request.host.as_deref() else { return true };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// The 400 that clients use to find out which versions there are: newest first, three of them.
fn bad_version<'a>(newest: impl Iterator<Item = &'a str>) -> Response {
    let newest: Vec<&str> = newest.take(3).collect();
    let body = serde_json::json!({
        "error": "Bad request. api-version is invalid or was not specified in the request. For more information refer to aka.ms/azureimds",
        "newest-versions": newest,
    });
    Response::new(Status::BadRequest, crate::http::ContentType::Json, body.to_string())
}

fn versions() -> Response {
    let all: Vec<&str> = InstanceVersion::all().map(InstanceVersion::as_str).collect();
    Response::json(serde_json::json!({ "apiVersions": all }).to_string())
}

fn identity() -> Response {
    // A quick 400 is what credential probes understand as "no identity here"; a 404 makes them retry for half a minute.
    let body = serde_json::json!({ "error": "invalid_request", "error_description": "Identity not found" });
    Response::new(Status::BadRequest, crate::http::ContentType::Json, body.to_string())
}

fn instance(caller: &Caller, query: &Query, path: &[&str]) -> Result<Response, Response> {
    let version = query
        .get("api-version")
        .and_then(InstanceVersion::parse)
        .ok_or_else(|| bad_version(InstanceVersion::all().rev().map(InstanceVersion::as_str)))?;
    let extended = query.get("extended").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let as_text = match query.get("format") {
        None => false,
        Some(format) if format.eq_ignore_ascii_case("json") => false,
        Some(format) if format.eq_ignore_ascii_case("text") => true,
        Some(_) => return Err(bad("format is json or text")),
    };
    if path.is_empty() && !as_text {
        return Ok(Response::json(caller.instance_document(version, extended)));
    }
    let document = render(caller.name.as_str(), &caller.instance, version, extended);
    let found = walk(&document, path).ok_or_else(not_found)?;
    match found {
        _ if as_text => Ok(Response::text(text(&found))),
        Found::Node(value) => Ok(Response::json(value.to_string())),
        Found::Leaf(_) => Err(bad("A leaf is served as text; add format=text")),
    }
}

fn events_version(query: &Query) -> Result<ApiVersion, Response> {
    query
        .get("api-version")
        .and_then(ApiVersion::parse)
        .ok_or_else(|| bad_version(ApiVersion::ALL.into_iter().rev().map(ApiVersion::as_str)))
}

fn events(request: &Request, documents: &Documents, query: &Query) -> Result<Verdict, Response> {
    let document = documents.of(events_version(query)?);
    let tag = std::str::from_utf8(&document.etag).unwrap_or_default();
    let same = request.if_none_match.as_deref().is_some_and(|header| IfNoneMatch(header).matches(tag));
    let mut response = Response::json(document.body.clone());
    if same {
        // Unknown to the original protocol, where an unknown key is ignored and the 304 comes at once.
        if let Some(seconds) = query.get("wait").and_then(|wait| wait.parse::<u64>().ok()).filter(|s| *s > 0) {
            return Ok(Verdict::Wait(Duration::from_secs(seconds).min(WAIT_MAX)));
        }
        response = Response::new(Status::NotModified, crate::http::ContentType::Json, "");
    }
    response.etag = Some(document.etag.clone());
    Ok(Verdict::Polled(response))
}

fn json_body(request: &Request) -> Result<serde_json::Value, Response> {
    let body = request.body().strip_prefix(b"\xef\xbb\xbf").unwrap_or(request.body());
    serde_json::from_slice(body).map_err(|_| bad("The body is not JSON"))
}

fn member<'a>(object: &'a serde_json::Value, name: &str) -> Option<&'a serde_json::Value> {
    let members = object.as_object()?;
    members.get(name).or_else(|| members.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value))
}

/// Preconditions are not looked at: a client in the field sends its current tag with the approval.
fn approve(request: &Request, query: &Query) -> Result<Verdict, Response> {
    events_version(query)?;
    let body = json_body(request)?;
    let list = member(&body, "StartRequests").and_then(|list| list.as_array());
    let list = list.ok_or_else(|| bad("The body has no list StartRequests"))?;
    let mut ids = Vec::with_capacity(list.len());
    for element in list {
        let id = member(element, "EventId").and_then(|id| id.as_str());
        let id = id.ok_or_else(|| bad("An element of StartRequests has no EventId"))?;
        let id = EventId::parse(id.trim()).ok_or_else(unknown_event)?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    if ids.is_empty() {
        return Ok(Verdict::Answer(Response::empty()));
    }
    Ok(Verdict::Approve(ids))
}

/// The answer to an id that is not an event of the caller's scope, whether it is one of another scope or of none.
pub(crate) fn unknown_event() -> Response {
    bad("The EventId is unknown")
}

fn native(request: &Request, query: &Query, path: &[&str]) -> Result<Verdict, Response> {
    if let Some(id) = is_defer(path) {
        let id = EventId::parse(id).ok_or_else(unknown_event)?;
        let body = json_body(request)?;
        let until = member(&body, "until").and_then(serde_json::Value::as_i64);
        return until
            .map(|until| Verdict::Defer(id, UnixMs(until)))
            .ok_or_else(|| bad("The body has no number `until` (milliseconds since 1970)"));
    }
    match path {
        [one] if one.eq_ignore_ascii_case("events") => Ok(Verdict::NativeEvents),
        [one] if one.eq_ignore_ascii_case("time") => Ok(Verdict::Time),
        [one] if one.eq_ignore_ascii_case("history") => {
            let since = match query.get("since") {
                None => Ok(0),
                Some(text) => text.parse().map_err(|_| bad("since is a number of milliseconds since 1970")),
            };
            since.map(|since| Verdict::History(UnixMs(since)))
        }
        _ => Err(not_found()),
    }
}
