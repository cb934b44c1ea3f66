//! The tokio shell: listeners and connections. It moves bytes and keeps time; every decision is elsewhere.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fermata_events::{Approver, Input, Refusal};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout, timeout_at};

use crate::caller_of::CallerOf;
use crate::http::{Method, Parser, Request, Response, Status, Step};
use crate::route::{Context, Verdict, category, handle, unknown_event};
use crate::service::{ApplyError, Service};
use crate::slot::Slot;

/// From the first byte of a request to its last.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// Between requests of one connection.
const IDLE_TIME: Duration = Duration::from_secs(75);
/// For an answer to leave.
const WRITE_TIME: Duration = Duration::from_secs(10);
/// How long a connection is not read after a 429, so that a flood costs the flooder and not the host.
const PENALTY: Duration = Duration::from_millis(25);

/// Serves guests on `listener` until the task is dropped.
///
/// # Errors
/// When the listener itself fails; trouble with one connection ends that connection.
pub async fn serve(listener: TcpListener, service: Service, callers: Arc<dyn CallerOf>) -> io::Result<()> {
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if is_passing(&error) => {
                // Out of descriptors or memory: leave time for connections to end.
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        admit(stream, peer, &service, callers.as_ref());
    }
}

/// Whether accepting can work again: everything but a listener that is none.
pub(crate) fn is_passing(error: &io::Error) -> bool {
    let codes = [rustix::io::Errno::INVAL, rustix::io::Errno::BADF, rustix::io::Errno::NOTSOCK];
    !codes.iter().any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}

fn admit(stream: TcpStream, peer: SocketAddr, service: &Service, callers: &dyn CallerOf) {
    let metrics = &service.shared.metrics;
    let Some(vm) = callers.caller(&stream, peer) else {
        metrics.unknown_callers.fetch_add(1, Ordering::Relaxed);
        return abort(&stream);
    };
    let slot = service.slot(&vm);
    let place = match &slot {
        Some(slot) => match slot.open_connection(service.now().mono.0) {
            Some(place) => Some(place),
            None => {
                metrics.refused_connections.fetch_add(1, Ordering::Relaxed);
                return abort(&stream);
            }
        },
        None => None,
    };
    metrics.connections.fetch_add(1, Ordering::Relaxed);
    let service = service.clone();
    tokio::spawn(async move {
        let _place = place;
        // The answer to one request is one segment; waiting for more to send would only delay it.
        let _ = stream.set_nodelay(true);
        Connection { stream, peer, service, slot, parser: Parser::new(), out: Vec::new(), date: Date::default() }
            .run()
            .await;
    });
}

/// Closes without leaving a connection in TIME-WAIT on the host, which a flooding guest could pile up.
fn abort(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// The date of the last answer; rendered once a second.
#[derive(Default)]
struct Date {
    second: i64,
    text: String,
}

struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    service: Service,
    slot: Option<Arc<Slot>>,
    parser: Parser,
    out: Vec<u8>,
    date: Date,
}

impl Connection {
    /// Runs to the end of the connection, whatever ends it.
    async fn run(mut self) {
        let mut deadline = None;
        loop {
            match self.parser.step() {
                Step::More { started } => {
                    let until = match (started, deadline) {
                        (true, Some(deadline)) => deadline,
                        (true, None) => *deadline.insert(Instant::now() + REQUEST_TIME),
                        (false, _) => Instant::now() + IDLE_TIME,
                    };
                    let mut buffer = [0; 2048];
                    match timeout_at(until, self.stream.read(&mut buffer)).await {
                        Ok(Ok(count @ 1..)) => self.parser.feed(&buffer[..count]),
                        Ok(_) => return,
                        Err(_) if started => {
                            let late = Response::error(Status::RequestTimeout, "The request took longer than 10 s");
                            self.last_words(&late).await;
                            return;
                        }
                        Err(_) => return,
                    }
                }
                Step::Continue => {
                    if !self.write(b"HTTP/1.1 100 Continue\r\n\r\n").await {
                        return;
                    }
                }
                Step::Request(request) => {
                    deadline = None;
                    if !self.answer(&request).await {
                        return;
                    }
                }
                Step::Reject(response) => {
                    self.last_words(&response).await;
                    return;
                }
            }
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> bool {
        matches!(timeout(WRITE_TIME, self.stream.write_all(bytes)).await, Ok(Ok(())))
    }

    /// Sends an answer and closes, reading away what the client still sends: closing with unread bytes would reset the
    /// connection and could destroy the answer on its way.
    async fn last_words(&mut self, response: &Response) {
        self.service.shared.metrics.answer(response.status());
        let date = self.date();
        self.out.clear();
        response.write(&mut self.out, &date, false, false, false);
        let out = std::mem::take(&mut self.out);
        if !self.write(&out).await || self.stream.shutdown().await.is_err() {
            return;
        }
        let mut sink = [0; 1024];
        let drain = async { while matches!(self.stream.read(&mut sink).await, Ok(1..)) {} };
        let _ = timeout(Duration::from_secs(1), drain).await;
    }

    fn date(&mut self) -> String {
        let now = self.service.now().wall;
        let second = now.0.div_euclid(1000);
        if self.date.second != second || self.date.text.is_empty() {
            self.date = Date { second, text: now.http_date() };
        }
        self.date.text.clone()
    }

    /// Answers one request; false when the connection is over.
    async fn answer(&mut self, request: &Request) -> bool {
        let response = self.respond(request).await;
        self.service.shared.metrics.answer(response.status());
        let date = self.date();
        self.out.clear();
        let head_only = request.method() == Method::Head;
        response.write(&mut self.out, &date, request.keep_alive(), request.http10, head_only);
        let out = std::mem::take(&mut self.out);
        let written = self.write(&out).await;
        self.out = out;
        if self.out.capacity() > 8192 {
            self.out = Vec::new();
        }
        if response.status() == Status::TooManyRequests {
            tokio::time::sleep(PENALTY).await;
        }
        if written && !request.keep_alive() {
            let _ = self.stream.shutdown().await;
        }
        written && request.keep_alive()
    }

    async fn respond(&mut self, request: &Request) -> Response {
        let now_ms = self.service.now().mono.0;
        if let Some(slot) = &self.slot
            && !slot.admits_request(category(request), now_ms)
        {
            return Response::error(Status::TooManyRequests, "Too many requests");
        }
        match self.verdict(request) {
            Verdict::Answer(response) => response,
            Verdict::Polled(response) => self.polled(response).await,
            Verdict::Wait(longest) => self.wait(request, longest).await,
            Verdict::Approve(events) => {
                let Some(vm) = self.vm() else { return gone() };
                let by = Approver::Vm { vm, from: Some(self.peer.ip()), agent: request.user_agent().to_owned() };
                self.apply(Input::Approve { events, by }).await
            }
            Verdict::Defer(event, until) => {
                let Some(vm) = self.vm() else { return gone() };
                self.apply(Input::Defer { event, vm, until }).await
            }
            Verdict::NativeEvents => self.native(|state, vm, now| {
                let events = state.native_events(vm, now)?;
                Some(serde_json::json!({ "serverTimeUnixMs": now.wall.0, "events": events }))
            }),
            Verdict::History(since) => {
                self.native(|state, vm, _| Some(serde_json::json!({ "events": state.history(vm, since)? })))
            }
            Verdict::Time => {
                self.native(|state, vm, now| {
                    let last = state.history(vm, fermata_events::UnixMs(0))?;
                    let felt = last.iter().rev().find_map(|record| record.vms.get(vm).filter(|f| f.pause_ms.is_some()).map(|f| (record, f)));
                    Some(serde_json::json!({
                        "hostUnixMs": now.wall.0,
                        "lastResync": felt.map(|(record, felt)| serde_json::json!({
                            "endedUnixMs": record.ended_unix_ms, "pauseMs": felt.pause_ms, "clockStepMs": felt.clock_step_ms,
                        })),
                    }))
                })
            }
        }
    }

    fn vm(&self) -> Option<fermata_model::VmName> {
        self.slot.as_ref().map(|slot| slot.caller().name.clone())
    }

    fn verdict(&self, request: &Request) -> Verdict {
        let held = self.slot.as_ref().map(|slot| (slot.caller(), slot.documents()));
        let caller = held.as_ref().map(|(caller, documents)| (caller.as_ref(), documents.as_ref()));
        let settings = &self.service.shared.settings;
        handle(
            request,
            &Context {
                caller: caller.filter(|_| !self.service.loading()),
                hosts: &settings.hosts,
                extensions: settings.extensions,
            },
        )
    }

    /// The first request enables the feature, and that is durable before it is answered.
    async fn polled(&mut self, response: Response) -> Response {
        let (Some(slot), Some(vm)) = (self.slot.clone(), self.vm()) else { return gone() };
        let now_ms = self.service.now().mono.0;
        if slot.report_due(now_ms) {
            match self.service.apply(Input::Polled { vm }).await {
                Ok(_) => slot.reported(now_ms),
                Err(error) => return trouble(&error),
            }
        }
        response
    }

    async fn wait(&mut self, request: &Request, longest: Duration) -> Response {
        let Some(slot) = self.slot.clone() else { return gone() };
        let Some(_place) = slot.wait_place() else {
            return Response::error(Status::TooManyRequests, "Too many long polls");
        };
        let mut changes = slot.subscribe();
        self.service.shared.metrics.long_polls.fetch_add(1, Ordering::Relaxed);
        // Looked at again after subscribing: a change in between must not be slept through.
        if matches!(self.verdict(request), Verdict::Wait(_)) {
            let enabled = self.polled(Response::empty()).await;
            if enabled.status() != Status::Ok {
                return enabled;
            }
            let _ = timeout(longest, changes.changed()).await;
        }
        let mut answer = Request::clone(request);
        answer.query = answer.query.split('&').filter(|part| !is_wait(part)).collect::<Vec<_>>().join("&");
        match self.verdict(&answer) {
            Verdict::Answer(response) | Verdict::Polled(response) => response,
            _ => Response::error(Status::Unavailable, "Try again"),
        }
    }

    async fn apply(&self, input: Input) -> Response {
        match self.service.apply(input).await {
            Ok(_) => Response::empty(),
            Err(error) => trouble(&error),
        }
    }

    fn native(
        &self,
        look: impl FnOnce(&fermata_events::State, &fermata_model::VmName, fermata_events::Now) -> Option<serde_json::Value>,
    ) -> Response {
        let Some(vm) = self.vm() else { return gone() };
        self.service
            .read(|state, now| look(state, &vm, now))
            .map_or_else(gone, |value| Response::json(value.to_string()))
    }
}

fn is_wait(part: &str) -> bool {
    part.split_once('=').map_or(part, |(key, _)| key).eq_ignore_ascii_case("wait")
}

fn gone() -> Response {
    Response::error(Status::Gone, "Gone")
}

fn trouble(error: &ApplyError) -> Response {
    match error {
        ApplyError::Refused(Refusal::UnknownEvent(_)) => unknown_event(),
        ApplyError::Refused(Refusal::NotDeferrable { why, .. }) => {
            Response::error(Status::Conflict, &format!("The event cannot be deferred: {why}"))
        }
        ApplyError::Refused(Refusal::UnknownVm(_)) => gone(),
        ApplyError::Refused(refusal) => {
            tracing::warn!(%refusal, "a guest's request was refused by the core");
            Response::error(Status::BadRequest, "Bad request.")
        }
        ApplyError::NotDurable(_) | ApplyError::Stopping => {
            Response::error(Status::Unavailable, "The state cannot be written; try again")
        }
    }
}
