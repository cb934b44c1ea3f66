//! Telling others: every step in an event's life as a CloudEvent (JSON, specification 1.0), signed, at least once.
//!
//! Messages are written to the outbox in the same commit as the step itself and leave it when the target has answered
//! 2xx. A target that does not answer is tried again after 1 s, 2 s, 4 s, up to 5 min; the others are not held up.
//!
//! `X-Fermata-Signature: t=SECONDS,v1=HEX`: HMAC-SHA256 of `SECONDS.BODY` under the target's secret. Receivers compare in
//! constant time and refuse old `t`; duplicates have the same CloudEvents `id`.

mod tls;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use fermata_events::{Lifecycle, Notice};
use hmac::{Hmac, Mac as _};
use http_body_util::Full;
use hyper::Request;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::service::Service;
use crate::store::{Outgoing, StoreError};

/// Longest pause between two tries.
const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// For connecting, sending and the answer.
const TRY_TIME: Duration = Duration::from_secs(10);

/// Somebody who is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Where to, `https://HOST[:PORT]/PATH` or, where nobody listens on the way, `http://`.
    pub url: String,
    /// The secret that signs.
    pub secret: String,
    /// Certificates (PEM) of who may vouch for the target; the system's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
}

/// Why a message was not delivered; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// Not `https://HOST[:PORT]/PATH`.
    #[error("webhook: `{0}` is not a URL of the form https://HOST[:PORT]/PATH; correct the configuration")]
    Url(String),
    /// Nobody could vouch for the target.
    #[error(
        "webhook: no certificate can be read from {path} ({reason}); name a file with `ca`, or install ca-certificates"
    )]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The network.
    #[error("webhook: {0} cannot be reached")]
    Unreachable(String, #[source] std::io::Error),
    /// HTTP.
    #[error("webhook: {0} broke off")]
    Broken(String, #[source] hyper::Error),
    /// Not 2xx.
    #[error("webhook: {0} answered {1}")]
    Refused(String, u16),
    /// No answer.
    #[error("webhook: {0} did not answer within 10 s")]
    Late(String),
}

/// The CloudEvent of a step.
#[must_use]
pub fn cloud_event(notice: &Notice) -> String {
    let step = match notice.step {
        Lifecycle::Scheduled => "scheduled",
        Lifecycle::Approved => "approved",
        Lifecycle::Deferred => "deferred",
        Lifecycle::Started => "started",
        Lifecycle::Removed => "removed",
        Lifecycle::Overrun => "overrun",
    };
    let mut id = format!("{}-{step}", notice.event_id);
    // Steps that can happen more than once per event.
    if let Some(vm) = &notice.vm {
        id.push_str(&format!("-{vm}-{}", notice.at_unix_ms.0));
    }
    serde_json::json!({
        "specversion": "1.0",
        "id": id,
        "source": "/fermata/events",
        "type": format!("fermata.event.{step}.v1"),
        "time": notice.at_unix_ms.rfc3339(),
        "subject": notice.scope,
        "datacontenttype": "application/json",
        "data": notice,
    })
    .to_string()
}

/// The value of `X-Fermata-Signature`.
#[must_use]
pub fn signature(secret: &str, unix_seconds: i64, body: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(format!("{unix_seconds}.{body}").as_bytes());
    let hex: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={unix_seconds},v1={hex}")
}

struct Backoff {
    failures: u32,
    until: Instant,
}

impl Service {
    /// Delivers the outbox until the task is dropped.
    pub async fn run_webhooks(&self) {
        let mut backoff: BTreeMap<String, Backoff> = BTreeMap::new();
        loop {
            let sent = self.deliver_due(&mut backoff).await;
            if sent {
                continue;
            }
            let next = backoff.values().map(|b| b.until).min().unwrap_or_else(|| Instant::now() + BACKOFF_MAX);
            tokio::select! {
                () = self.shared.outgoing.notified() => {}
                () = tokio::time::sleep_until(next.max(Instant::now() + Duration::from_millis(100))) => {}
            }
        }
    }

    /// One pass over the outbox, each target's messages in order; true when something was delivered.
    async fn deliver_due(&self, backoff: &mut BTreeMap<String, Backoff>) -> bool {
        let outbox = match self.with_store(|store| store.outbox(1_000)) {
            Ok(outbox) => outbox,
            Err(error) => {
                tracing::warn!(%error, "the outbox cannot be read");
                return false;
            }
        };
        let mut delivered = false;
        for message in outbox {
            let waits = backoff.get(&message.target).is_some_and(|b| b.failures > 0 && b.until > Instant::now());
            if waits {
                continue;
            }
            let Some(target) = self.shared.settings.webhooks.iter().find(|t| t.url == message.target) else {
                // The operator took the target out of the configuration.
                let _ = self.with_store(|store| store.delivered(message.id));
                continue;
            };
            match self.deliver(target, &message).await {
                Ok(()) => {
                    backoff.remove(&message.target);
                    delivered = true;
                    if let Err(error) = self.with_store(|store| store.delivered(message.id)) {
                        tracing::warn!(%error, "a delivered message stays in the outbox and will be sent again");
                    }
                }
                Err(error) => {
                    let entry =
                        backoff.entry(message.target.clone()).or_insert(Backoff { failures: 0, until: Instant::now() });
                    let delay = Duration::from_secs(1 << entry.failures.min(9)).min(BACKOFF_MAX);
                    entry.failures += 1;
                    entry.until = Instant::now() + delay;
                    tracing::warn!(%error, retry_in_s = delay.as_secs(), "a webhook was not delivered");
                }
            }
        }
        delivered
    }

    fn with_store<T>(
        &self,
        work: impl FnOnce(&mut dyn crate::store::Store) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut store = self.shared.store.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        work(store.as_mut())
    }

    async fn deliver(&self, target: &Target, message: &Outgoing) -> Result<(), DeliveryError> {
        let url = &target.url;
        let signed = signature(&target.secret, self.now().wall.0.div_euclid(1000), &message.body);
        let send = post(target, message.body.clone(), &signed);
        let status = timeout(TRY_TIME, send).await.map_err(|_| DeliveryError::Late(url.clone()))??;
        if (200..300).contains(&status) { Ok(()) } else { Err(DeliveryError::Refused(url.clone(), status)) }
    }
}

async fn post(target: &Target, body: String, signature: &str) -> Result<u16, DeliveryError> {
    let url = &target.url;
    let bad = || DeliveryError::Url(url.clone());
    let uri: hyper::Uri = url.parse().map_err(|_| bad())?;
    let (scheme, host) = (uri.scheme_str().unwrap_or_default(), uri.host().ok_or_else(bad)?.trim_matches(['[', ']']));
    let (secure, port) = match scheme {
        "https" => (true, uri.port_u16().unwrap_or(443)),
        "http" => (false, uri.port_u16().unwrap_or(80)),
        _ => return Err(bad()),
    };
    let request = Request::post(uri.path_and_query().map_or("/", |p| p.as_str()))
        .header("Host", uri.authority().map_or("", |a| a.as_str()))
        .header("Content-Type", "application/cloudevents+json; charset=utf-8")
        .header("X-Fermata-Signature", signature)
        .header("Connection", "close")
        .body(Full::new(Bytes::from(body)))
        .map_err(|_| bad())?;
    let unreachable = |source| DeliveryError::Unreachable(url.clone(), source);
    let stream = TcpStream::connect((host, port)).await.map_err(unreachable)?;
    if !secure {
        return exchange(url, stream, request).await;
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|_| bad())?;
    let stream = tls::connector(target.ca.as_deref())?.connect(name, stream).await.map_err(unreachable)?;
    exchange(url, stream, request).await
}

async fn exchange(
    url: &str,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    request: Request<Full<Bytes>>,
) -> Result<u16, DeliveryError> {
    let broken = |source| DeliveryError::Broken(url.to_owned(), source);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // The connection is driven beside the exchange: the peer may close before the answer was looked at.
    let driver = tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(broken);
    driver.abort();
    Ok(answer?.status().as_u16())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_hmac_sha256_of_time_and_body() {
        // Computed with: printf '1700000000.{}' | openssl dgst -sha256 -hmac key
        assert_eq!(
            signature("key", 1_700_000_000, "{}"),
            "t=1700000000,v1=9d713ed406bb7076d4123f0dc2c39d2df5c654ed4b0cd56b52c8b4c940bd63ae"
        );
    }
}
