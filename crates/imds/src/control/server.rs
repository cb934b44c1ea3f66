//! The service's end of the control socket.

use std::io;
use std::time::Duration;

use fermata_events::{Affected, Announce, EventSource, Input, JobId, PauseBound};
use fermata_model::VmName;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast;

use super::{Call, Hello, JobView, LINE_MAX, Line, Numbered, Simulated, VmView, Vms};
use crate::service::{ApplyError, Service};

/// How long a pause waits for long polls to be answered.
const WAITERS_TIME: Duration = Duration::from_millis(500);

/// Serves the agent until the task is dropped.
///
/// # Errors
/// When the socket itself fails.
pub async fn serve(listener: UnixListener, service: Service) -> io::Result<()> {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) if crate::serve::is_passing(&error) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        let service = service.clone();
        tokio::spawn(async move {
            if let Err(error) = converse(stream, service).await {
                tracing::info!(%error, "a control connection ended");
            }
        });
    }
}

async fn converse(stream: UnixStream, service: Service) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read);
    let mut news: Option<broadcast::Receiver<fermata_events::Action>> = None;
    let mut line = Vec::new();
    loop {
        // A read that is cut off by news keeps what it has read so far in `line`.
        let mut limited = (&mut lines).take(u64::try_from(LINE_MAX - line.len()).unwrap_or(0));
        tokio::select! {
            count = limited.read_until(b'\n', &mut line) => {
                if count? == 0 || line.last() != Some(&b'\n') {
                    return Ok(());
                }
                let answer = match serde_json::from_slice::<Numbered>(&line) {
                    Ok(Numbered { id, call: Call::Subscribe }) => {
                        news = Some(service.feed());
                        Line::Ok { id, ok: Value::Null }
                    }
                    Ok(Numbered { id, call }) => match answer(&service, call).await {
                        Ok(ok) => Line::Ok { id, ok },
                        Err(error) => Line::Error { id, error: error.to_string() },
                    },
                    Err(error) => Line::Error { id: 0, error: format!("control: the line is no call ({error}); see the protocol") },
                };
                line.clear();
                say(&mut write, &answer).await?;
            }
            heard = hear(&mut news) => {
                let told = match heard {
                    Ok(news) => Line::News { news },
                    Err(broadcast::error::RecvError::Lagged(lost)) => Line::Lost { lost },
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                };
                say(&mut write, &told).await?;
            }
        }
    }
}

async fn hear(
    news: &mut Option<broadcast::Receiver<fermata_events::Action>>,
) -> Result<fermata_events::Action, broadcast::error::RecvError> {
    match news {
        Some(news) => news.recv().await,
        None => std::future::pending().await,
    }
}

async fn say(write: &mut (impl AsyncWriteExt + Unpin), line: &Line) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(line)?;
    bytes.push(b'\n');
    write.write_all(&bytes).await
}

async fn answer(service: &Service, call: Call) -> Result<Value, ApplyError> {
    let value = |value: &dyn erased::Json| value.json();
    Ok(match call {
        Call::Hello => value(&Hello {
            protocol: 1,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            epoch: service.read(|state, _| state.epoch()),
        }),
        Call::Upsert { record } => value(&service.upsert(*record).await?),
        Call::Remove { vm } => value(&service.remove(vm).await?),
        Call::Apply { input } => {
            let pausing = match &input {
                Input::Pausing { job, .. } => Some(job.clone()),
                _ => None,
            };
            let actions = service.apply(input).await?;
            if let Some(job) = pausing {
                service.waiters_gone(&paused_vms(service, &job), WAITERS_TIME).await;
            }
            value(&actions)
        }
        Call::Jobs => value(&service.read(|state, now| {
            state.jobs().map(|job| JobView { job: job.clone(), waits: state.gate(&job.id, now) }).collect::<Vec<_>>()
        })),
        Call::Events => value(&service.read(fermata_events::State::all_native_events)),
        Call::History { since } => value(&service.history(since)),
        Call::Vms => value(&service.read(|state, now| {
            let view = |vm: &fermata_events::Vm| VmView {
                scope: vm.scope.clone(),
                incarnation: vm.incarnation,
                last_poll_unix_ms: vm.last_poll,
                enabled: state.enabled_at(&vm.scope, now.wall),
            };
            state.vms().map(|(name, vm)| (name.clone(), view(vm))).collect::<Vms>()
        })),
        Call::Simulate { vms, kind, notice_s, pause_ms } => {
            let seed = uuid::Uuid::new_v4();
            let job = JobId(format!("simulation-{seed}"));
            let affected = vms.into_iter().map(|vm| Affected::new(vm, PauseBound::AtMostMs(pause_ms))).collect();
            let announce = Announce {
                job: job.clone(),
                seed,
                kind,
                source: EventSource::Platform,
                description: String::new(),
                reason: "simulation".to_owned(),
                affected,
                notice_s,
                lead_ms: None,
                defer: fermata_events::event::DeferLimits::default(),
                simulate_pause_ms: Some(pause_ms),
            };
            service.apply(Input::Announce(announce)).await?;
            let events = service.read(|state, _| state.job(&job).map(|job| job.events.clone()).unwrap_or_default());
            value(&Simulated { job, events })
        }
        Call::CancelEvent { event } => {
            let job = service.read(|state, _| state.event(event).and_then(|event| event.job().cloned()));
            let job = job.ok_or(ApplyError::Refused(fermata_events::Refusal::UnknownEvent(event)))?;
            value(&service.apply(Input::Cancel { job }).await?)
        }
        Call::Loading { on } => {
            service.set_loading(on);
            Value::Null
        }
        Call::Metrics => json!(service.metrics_text()),
        Call::Subscribe => Value::Null,
    })
}

fn paused_vms(service: &Service, job: &JobId) -> Vec<VmName> {
    service.read(|state, _| {
        let events = state.job(job).map(|job| job.events.clone()).unwrap_or_default();
        events.into_iter().filter_map(|id| state.event(id)).flat_map(|event| event.resources.keys().cloned()).collect()
    })
}

/// Serialisation that cannot fail, in one place.
mod erased {
    use serde::Serialize;
    use serde_json::Value;

    pub(super) trait Json {
        fn json(&self) -> Value;
    }

    impl<T: Serialize> Json for T {
        fn json(&self) -> Value {
            serde_json::to_value(self).expect("answers have string keys and no fallible members")
        }
    }
}
