//! Fuzzing of everything a guest can say: requests, queries, bodies.
//!
//! Each target takes bytes, runs them through the same parser, handler and events core as a connection does, and checks
//! what must hold for any input ([`request`], [`query`], [`body`]). A panic is a finding. [`run`] is a driver that mutates
//! a corpus on stable Rust; the folder `fuzz/` has the same targets for `cargo fuzz`.

mod mutate;

use std::cell::RefCell;

use fermata_events::{
    Affected, Announce, Approver, Config, EventKind, Input, JobId, MonoMs, Now, PauseBound, State, UnixMs,
};
use fermata_model::VmName;

use crate::caller::{Caller, Documents};
use crate::http::{BODY_MAX, HEAD_MAX, Method, Parser, Request, Response, Status, Step};
use crate::instance::{Address, Instance, Interface, Subnet};
use crate::route::{Context, Verdict, handle};

pub use mutate::{Random, mutated};

/// What a run did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Inputs run.
    pub inputs: u64,
    /// Requests that were whole.
    pub requests: u64,
    /// Requests that were answered with 200 or 304.
    pub served: u64,
    /// Approvals that reached the events core.
    pub approvals: u64,
}

/// A host with two scopes and an open event in each, as inputs find it.
struct World {
    state: State,
    caller: Caller,
    documents: Documents,
    foreign: String,
    hosts: Vec<String>,
    tally: Tally,
}

const NOW: Now = Now { wall: UnixMs(1_700_000_000_000), mono: MonoMs(1_000_000) };

/// The id of the event in the caller's scope; it stands in the corpus.
const MINE: &str = "A5B1A26C-66B5-5E11-8F0D-CA6F2E8F6D4B";

fn name(text: &str) -> VmName {
    text.parse().expect("a name of letters is a name")
}

impl World {
    fn new() -> Self {
        let mut state = State::new(Config::default(), 1);
        let vm = name("mine");
        for vm in ["mine", "other"] {
            let upsert =
                Input::UpsertVm { vm: name(vm), set: None, update_domain: None, min_notice_s: 0, incarnation_floor: 0 };
            let announce = Announce {
                job: JobId(vm.to_owned()),
                seed: uuid::Uuid::nil(),
                kind: EventKind::Freeze,
                source: fermata_events::EventSource::Platform,
                description: String::new(),
                reason: String::new(),
                affected: vec![Affected::new(name(vm), PauseBound::AtMostMs(6_000))],
                notice_s: 900,
                lead_ms: None,
                defer: fermata_events::event::DeferLimits { max_s: 600, max_count: 3 },
                simulate_pause_ms: None,
            };
            for input in [upsert, Input::Polled { vm: name(vm) }, Input::Announce(announce)] {
                let _ = state.apply(input, NOW).expect("the world of the fuzzer is sound");
            }
        }
        let mut interface = Interface::new("52:54:00:00:00:01".parse().expect("a MAC address"));
        interface.ipv4.push(Address { private: [10, 0, 0, 4].into(), public: None });
        interface.subnets.push(Subnet { address: [10, 0, 0, 0].into(), prefix: 24 });
        let instance = Instance { interfaces: vec![interface], ..Instance::default() };
        let documents = Documents::render(&state, &vm).expect("the VM is there");
        let other = state.events().find(|event| event.resources.contains_key(&name("other")));
        let foreign = other.map(|event| event.id.to_string()).unwrap_or_default();
        let hosts = vec!["169.254.169.254".to_owned()];
        Self { state, caller: Caller::new(vm, instance), documents, foreign, hosts, tally: Tally::default() }
    }

    fn mine(&self) -> String {
        let mine = self.state.events().find(|event| event.resources.contains_key(&self.caller.name));
        mine.map(|event| event.id.to_string()).unwrap_or_default()
    }

    /// Runs one connection's bytes; `cut` is how many arrive at a time.
    fn connection(&mut self, bytes: &[u8], cut: usize) {
        let mut parser = Parser::new();
        let mut pieces = bytes.chunks(cut.max(1));
        loop {
            match parser.step() {
                Step::More { .. } => match pieces.next() {
                    Some(piece) => parser.feed(piece),
                    None => break,
                },
                Step::Continue => {}
                Step::Reject(response) => {
                    check(&response, false);
                    break;
                }
                Step::Request(request) => {
                    self.one(&request);
                    if !request.keep_alive() {
                        break;
                    }
                }
            }
            assert!(parser.held() <= 2 * (HEAD_MAX + BODY_MAX) + 2 * cut, "the parser holds {} bytes", parser.held());
        }
    }

    fn one(&mut self, request: &Request) {
        self.tally.requests += 1;
        assert!(request.body().len() <= BODY_MAX);
        let context = Context { caller: Some((&self.caller, &self.documents)), hosts: &self.hosts, extensions: true };
        let verdict = handle(request, &context);
        assert_eq!(verdict, handle(request, &context), "the handler is a function");
        if request.forwarded || !request.has_metadata_header() {
            assert!(
                matches!(&verdict, Verdict::Answer(r) if r.status().code() >= 400),
                "served without its header: {request:?}"
            );
        }
        match verdict {
            Verdict::Answer(response) | Verdict::Polled(response) => {
                self.tally.served += u64::from(matches!(response.status(), Status::Ok | Status::NotModified));
                if self.foreign.len() == 36 {
                    let text = String::from_utf8_lossy(response.body());
                    assert!(!text.contains(&self.foreign), "another VM's event was shown");
                }
                check(&response, request.method() == Method::Head);
            }
            Verdict::Approve(events) => {
                self.tally.approvals += 1;
                assert_eq!(request.method(), Method::Post, "only a POST changes anything");
                let by =
                    Approver::Vm { vm: self.caller.name.clone(), from: None, agent: request.user_agent().to_owned() };
                // A copy: each input finds the same world.
                let mut state = self.state.clone();
                if state.apply(Input::Approve { events: events.clone(), by }, NOW).is_ok() {
                    assert!(events.iter().all(|id| id.to_string() != self.foreign), "another VM's event was approved");
                }
            }
            Verdict::Defer(event, until) => {
                assert_eq!(request.method(), Method::Post);
                let mut state = self.state.clone();
                let _ = state.apply(Input::Defer { event, vm: self.caller.name.clone(), until }, NOW);
            }
            Verdict::Wait(longest) => assert!(longest <= crate::route::WAIT_MAX),
            Verdict::NativeEvents | Verdict::History(_) | Verdict::Time => {}
        }
    }
}

/// What holds for every answer: it parses, has its length, and its error is the protocol's object.
fn check(response: &Response, head_only: bool) {
    let mut bytes = Vec::new();
    response.write(&mut bytes, "Thu, 01 Jan 1970 00:00:00 GMT", true, false, head_only);
    let mut fields = [httparse::EMPTY_HEADER; 16];
    let mut parsed = httparse::Response::new(&mut fields);
    let Ok(httparse::Status::Complete(head)) = parsed.parse(&bytes) else { panic!("not an answer: {bytes:?}") };
    let body = &bytes[head..];
    assert!(head_only || response.status() == Status::NotModified || body == response.body());
    assert!(!parsed.headers.iter().any(|f| f.name.to_ascii_lowercase().starts_with("access-control")));
    if response.status().code() >= 400 {
        let error: serde_json::Value = serde_json::from_slice(response.body()).expect("an error is JSON");
        assert!(error["error"].is_string());
    }
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::new(World::new());
}

/// Bytes as a whole connection.
pub fn request(bytes: &[u8]) {
    let cut = bytes.first().map_or(1, |b| usize::from(*b) + 1);
    WORLD.with_borrow_mut(|world| world.connection(bytes, cut));
}

/// Bytes as path and query.
pub fn query(bytes: &[u8]) {
    let mut whole = b"GET /metadata/".to_vec();
    whole.extend(bytes.iter().map(|b| if b.is_ascii_graphic() { *b } else { b'%' }));
    whole.extend_from_slice(b" HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n");
    WORLD.with_borrow_mut(|world| world.connection(&whole, 4096));
}

/// Bytes as the body of an approval.
pub fn body(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(BODY_MAX)];
    let mut whole = b"POST /metadata/scheduledevents?api-version=2020-07-01 HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n".to_vec();
    whole.extend_from_slice(format!("Content-Length: {}\r\n\r\n", bytes.len()).as_bytes());
    whole.extend_from_slice(bytes);
    WORLD.with_borrow_mut(|world| world.connection(&whole, 4096));
}

/// The corpus the driver begins with, per target.
fn corpus() -> [Vec<Vec<u8>>; 3] {
    let mine = WORLD.with_borrow(World::mine);
    let split = |text: &str| -> Vec<Vec<u8>> {
        let text = text.replace("\r\n", "\n").replace(MINE, &mine);
        text.split("\n====\n").map(|part| part.trim_end_matches('\n').as_bytes().to_vec()).collect()
    };
    let mut requests = split(include_str!("fuzz/requests.txt"));
    for request in &mut requests {
        // The file has plain line ends so that people can read it.
        let text = String::from_utf8_lossy(request).replace('\n', "\r\n");
        let text = if text.contains("\r\n\r\n") { text } else { text + "\r\n\r\n" };
        *request = text.into_bytes();
    }
    [requests, split(include_str!("fuzz/queries.txt")), split(include_str!("fuzz/bodies.txt"))]
}

/// Runs `inputs` mutated inputs, a third for each target, from `seed`. Each input depends on the seed and its number only.
///
/// # Panics
/// On a finding; the input is printed before, so that it can be stored in the corpus.
#[must_use]
pub fn run(seed: u64, inputs: u64, mut progress: impl FnMut(u64)) -> Tally {
    let corpus = corpus();
    let targets: [fn(&[u8]); 3] = [request, query, body];
    WORLD.with_borrow_mut(|world| world.tally = Tally::default());
    for number in 0..inputs {
        let which = usize::try_from(number % 3).unwrap_or(0);
        let mut random = Random::new(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let input = mutated(&corpus[which], &mut random);
        let outcome = std::panic::catch_unwind(|| targets[which](&input));
        if let Err(panic) = outcome {
            eprintln!("finding: seed {seed}, input {number}, target {which}: {}", input.escape_ascii());
            std::panic::resume_unwind(panic);
        }
        if number % 100_000 == 0 {
            progress(number);
        }
    }
    WORLD.with_borrow(|world| Tally { inputs, ..world.tally })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_thousand_inputs_find_nothing() {
        let seed = std::env::var("FERMATA_FUZZ_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
        println!("seed {seed}; choose another with FERMATA_FUZZ_SEED");
        let tally = run(seed, 100_000, |_| ());
        println!("{tally:?}");
        // The driver is worth something only when many inputs get through.
        assert!(tally.requests > 30_000 && tally.served > 3_000 && tally.approvals > 1_000, "{tally:?}");
    }
}
