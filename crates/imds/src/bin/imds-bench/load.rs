//! The load generator: connections that ask, and the times they were answered in.

use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

/// How a group of connections asks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// As fast as answers come.
    Closed,
    /// This many requests per second over the whole group; latency counts from the time a request was due, so that a
    /// stall is not hidden by the requests it held back.
    Open { per_second: f64 },
}

/// Connections of one kind.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    /// Where each connection comes from.
    pub(crate) sources: Vec<Ipv4Addr>,
    pub(crate) target: SocketAddr,
    pub(crate) request: Rc<Vec<u8>>,
    pub(crate) pace: Pace,
    /// Connect again when the server closes, without counting it as a failure: what a flooding guest does.
    pub(crate) persistent: bool,
}

#[derive(Debug, Default, Clone)]
pub(crate) struct Tally {
    pub(crate) micros: Vec<u32>,
    pub(crate) ok: u64,
    pub(crate) refused: u64,
    pub(crate) broken: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.micros.extend(other.micros);
        self.ok += other.ok;
        self.refused += other.refused;
        self.broken += other.broken;
    }

    /// The latency that `share` of the answers stayed below, in milliseconds.
    pub(crate) fn percentile_ms(&mut self, share: f64) -> f64 {
        if self.micros.is_empty() {
            return 0.0;
        }
        self.micros.sort_unstable();
        let count = self.micros.len();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "an index"
        )]
        let index = ((count as f64 * share) as usize).min(count - 1);
        f64::from(self.micros[index]) / 1000.0
    }
}

pub(crate) fn request(path: &str) -> Rc<Vec<u8>> {
    Rc::new(format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n").into_bytes())
}

async fn connect(source: Ipv4Addr, target: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    let stream = socket.connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Reads one answer; its status, or `None` when the connection ended.
async fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<u16> {
    buffer.clear();
    let mut wanted = usize::MAX;
    while buffer.len() < wanted {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
        if wanted == usize::MAX {
            let mut fields = [httparse::EMPTY_HEADER; 16];
            let mut parsed = httparse::Response::new(&mut fields);
            if let Ok(httparse::Status::Complete(head)) = parsed.parse(buffer) {
                let length = parsed.headers.iter().find(|f| f.name.eq_ignore_ascii_case("content-length"))?;
                wanted = head + std::str::from_utf8(length.value).ok()?.trim().parse::<usize>().ok()?;
            }
        }
    }
    std::str::from_utf8(buffer.get(9..12)?).ok()?.parse().ok()
}

/// Runs one connection until `end`.
async fn connection(group: Group, number: usize, end: Instant) -> Tally {
    let mut tally = Tally::default();
    let mut buffer = Vec::with_capacity(1024);
    let source = group.sources[number];
    let interval = match group.pace {
        Pace::Closed => None,
        #[expect(clippy::cast_precision_loss, reason = "a count of connections")]
        Pace::Open { per_second } => Some(Duration::from_secs_f64(group.sources.len() as f64 / per_second)),
    };
    #[expect(clippy::cast_precision_loss, reason = "a count of connections")]
    let phase = number as f64 / group.sources.len() as f64;
    let mut due = Instant::now() + interval.unwrap_or_default().mul_f64(phase);
    'connect: while Instant::now() < end {
        let Ok(mut stream) = connect(source, group.target).await else {
            tally.broken += 1;
            tokio::task::yield_now().await;
            continue;
        };
        while Instant::now() < end {
            let begun = match interval {
                None => Instant::now(),
                Some(interval) => {
                    if due >= end {
                        return tally;
                    }
                    tokio::time::sleep_until(due).await;
                    due += interval;
                    due - interval
                }
            };
            let status = match stream.write_all(&group.request).await {
                Ok(()) => tokio::time::timeout_at(end + Duration::from_secs(1), answer(&mut stream, &mut buffer)).await,
                Err(_) => Ok(None),
            };
            match status {
                Ok(Some(status)) => {
                    tally.micros.push(u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX));
                    *(if status < 400 { &mut tally.ok } else { &mut tally.refused }) += 1;
                }
                Ok(None) | Err(_) => {
                    tally.broken += 1;
                    if group.persistent {
                        continue 'connect;
                    }
                    return tally;
                }
            }
        }
    }
    tally
}

/// Runs all groups at once, on one thread.
pub(crate) fn run(groups: Vec<Group>, time: Duration) -> std::io::Result<Vec<Tally>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    Ok(local.block_on(&runtime, async {
        let end = Instant::now() + time;
        let running: Vec<Vec<_>> = groups
            .into_iter()
            .map(|group| {
                (0..group.sources.len())
                    .map(|number| tokio::task::spawn_local(connection(group.clone(), number, end)))
                    .collect()
            })
            .collect();
        let mut tallies = Vec::new();
        for group in running {
            let mut whole = Tally::default();
            for connection in group {
                whole.add(connection.await.unwrap_or_default());
            }
            tallies.push(whole);
        }
        tallies
    }))
}
