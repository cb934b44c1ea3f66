//! The agent's API: HTTP/JSON on a unix socket that only root may open.
//!
//! | method, path | does |
//! |---|---|
//! | `GET /v1/host` | what this host is |
//! | `POST /v1/host/stop-guests?timeout_s=` | shuts every VM down |
//! | `GET /v1/vms`, `GET /v1/vms/{name}` | VMs |
//! | `POST /v1/vms` | makes a VM from a specification in TOML |
//! | `POST /v1/vms/{name}/start` `stop` `restart` `pause` `resume` `restore` | acts on a VM |
//! | `DELETE /v1/vms/{name}` | forgets a stopped VM |
//! | `POST /v1/updates/check` `apply` | says what an update file would do; does it |
//! | `GET /v1/maintenances`, `GET /v1/maintenances/{id}` | what was done, as a report, also while it is under way |
//! | `POST /v1/maintenances/{id}/abort` | takes back what can be taken back |
//!
//! A refusal is `{"error": "...", "code": "..."}` with a 4xx status and has changed nothing; a 5xx status says that
//! something failed on the way and was undone.

pub mod types;

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use fermata_model::{VmName, VmSpec};
use serde::Deserialize;

use crate::events::{self, restart::RestartError};
use crate::maintain::{Maintain, MaintainError};
use crate::vms::{VmError, Vms};
use fermata_maintenance::report::Report;
use types::{AbortRequest, CheckView, ErrorView, HostView, MaintenanceView, StopRequest, VmView};

type Shared = State<Arc<Vms>>;
type Maintaining = State<Arc<Maintain>>;

/// The routes of the API.
pub fn router(vms: Arc<Vms>, maintain: Arc<Maintain>) -> Router {
    let maintenance = Router::new()
        .route("/v1/updates/check", post(check_update))
        .route("/v1/updates/apply", post(apply_update))
        .route("/v1/maintenances", get(maintenances))
        .route("/v1/maintenances/{id}", get(report))
        .route("/v1/maintenances/{id}/abort", post(abort))
        .with_state(maintain);
    Router::new()
        .merge(maintenance)
        .route("/v1/host", get(host))
        .route("/v1/host/stop-guests", post(stop_guests))
        .route("/v1/vms", get(list).post(create))
        .route("/v1/vms/{name}", get(show).delete(delete))
        .route("/v1/vms/{name}/start", post(start))
        .route("/v1/vms/{name}/stop", post(stop))
        .route("/v1/vms/{name}/restart", post(restart))
        .route("/v1/vms/{name}/pause", post(pause))
        .route("/v1/vms/{name}/resume", post(resume))
        .route("/v1/vms/{name}/restore", post(restore))
        .fallback(async || {
            refusal(StatusCode::NOT_FOUND, "no-such-path", "no such path; see the agent's API under /v1".to_owned())
        })
        .with_state(vms)
}

/// A failed operation as an HTTP answer.
pub struct Failure(VmError);

impl From<VmError> for Failure {
    fn from(error: VmError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = if self.0.is_refusal() { StatusCode::CONFLICT } else { StatusCode::INTERNAL_SERVER_ERROR };
        let status = if matches!(self.0, VmError::NoSuchVm(_)) { StatusCode::NOT_FOUND } else { status };
        refusal(status, self.0.code(), crate::chain(&self.0))
    }
}

fn refusal(status: StatusCode, code: &str, error: String) -> Response {
    (status, Json(ErrorView { error, code: code.to_owned() })).into_response()
}

async fn host(State(vms): Shared) -> Result<Json<HostView>, Failure> {
    Ok(Json(vms.host().await?))
}

#[derive(Deserialize)]
struct StopGuests {
    timeout_s: u64,
}

async fn stop_guests(State(vms): Shared, Query(query): Query<StopGuests>) -> Result<Json<Vec<VmView>>, Failure> {
    Ok(Json(vms.stop_all(std::time::Duration::from_secs(query.timeout_s)).await?))
}

async fn list(State(vms): Shared) -> Result<Json<Vec<VmView>>, Failure> {
    Ok(Json(vms.list().await?))
}

async fn create(State(vms): Shared, body: Bytes) -> Result<Json<VmView>, Response> {
    let bad = |error: String| refusal(StatusCode::BAD_REQUEST, "bad-specification", error);
    let text = std::str::from_utf8(&body).map_err(|e| bad(format!("VM specification: not UTF-8: {e}")))?;
    let spec = VmSpec::from_toml(text).map_err(|e| bad(e.to_string()))?;
    let view = vms.create(spec).await.map_err(|e| Failure(e).into_response())?;
    Ok(Json(view))
}

async fn show(State(vms): Shared, Path(name): Path<VmName>) -> Result<Json<VmView>, Failure> {
    Ok(Json(vms.show(&name).await?))
}

async fn delete(State(vms): Shared, Path(name): Path<VmName>) -> Result<Json<VmView>, Failure> {
    Ok(Json(vms.delete(&name).await?))
}

async fn start(State(vms): Shared, Path(name): Path<VmName>) -> Result<Json<VmView>, Failure> {
    Ok(Json(vms.start(&name).await?))
}

async fn stop(State(vms): Shared, Path(name): Path<VmName>, body: Bytes) -> Result<Json<VmView>, Response> {
    let request = if body.is_empty() {
        StopRequest::default()
    } else {
        let bad = |e: serde_json::Error| refusal(StatusCode::BAD_REQUEST, "bad-request", format!("stop: {e}"));
        serde_json::from_slice(&body).map_err(bad)?
    };
    let view = vms.stop(&name, request).await.map_err(|e| Failure(e).into_response())?;
    Ok(Json(view))
}

async fn restart(State(vms): Shared, Path(name): Path<VmName>, body: Bytes) -> Result<Json<VmView>, Response> {
    let bad = |e: serde_json::Error| refusal(StatusCode::BAD_REQUEST, "bad-request", format!("restart: {e}"));
    let request = serde_json::from_slice(if body.is_empty() { b"{}" } else { &body }).map_err(bad)?;
    // A client that goes away does not leave a VM half-way.
    let work = tokio::spawn(async move { events::restart::restart(&vms, &name, request).await });
    match work.await {
        Ok(Ok(view)) => Ok(Json(view)),
        Ok(Err(RestartError::Vm(error))) => Err(Failure(error).into_response()),
        Ok(Err(error @ RestartError::Cancelled(_))) => {
            Err(refusal(StatusCode::CONFLICT, "cancelled", crate::chain(&error)))
        }
        Ok(Err(error @ RestartError::Events(_))) => {
            Err(refusal(StatusCode::CONFLICT, "guests-not-told", crate::chain(&error)))
        }
        Err(_) => Err(Failure(VmError::Inside).into_response()),
    }
}

async fn pause(State(vms): Shared, Path(name): Path<VmName>) -> Result<Json<VmView>, Failure> {
    Ok(Json(vms.pause(&name).await?))
}

async fn restore(State(vms): Shared, Path(name): Path<VmName>) -> Result<Json<VmView>, Failure> {
    Ok(Json(vms.restore_kept(&name).await?))
}

async fn resume(State(vms): Shared, Path(name): Path<VmName>) -> Result<Json<VmView>, Failure> {
    Ok(Json(vms.resume(&name).await?))
}

fn maintain_failure(error: &MaintainError) -> Response {
    let status = match error {
        MaintainError::NoSuch(_) => StatusCode::NOT_FOUND,
        MaintainError::Update(_)
        | MaintainError::Id(_)
        | MaintainError::Binary { .. }
        | MaintainError::Kernel { .. } => StatusCode::BAD_REQUEST,
        MaintainError::Order(_) | MaintainError::Busy(_) | MaintainError::Over(_) => StatusCode::CONFLICT,
        MaintainError::Journal(_) | MaintainError::Start(_) | MaintainError::Vm(_) | MaintainError::Bring { .. } => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    refusal(status, error.code(), crate::chain(error))
}

#[expect(clippy::result_large_err, reason = "an answer on its way out, made once per refused request")]
fn text(body: &Bytes) -> Result<&str, Response> {
    let bad = |e| refusal(StatusCode::BAD_REQUEST, "bad-update", format!("update file: not UTF-8: {e}"));
    std::str::from_utf8(body).map_err(bad)
}

async fn check_update(State(maintain): Maintaining, body: Bytes) -> Result<Json<CheckView>, Response> {
    let (update, choice) = maintain.check(text(&body)?).await.map_err(|e| maintain_failure(&e))?;
    let told = maintain.foresee(&update, &choice).await.map_err(|e| maintain_failure(&e))?;
    Ok(Json(CheckView::new(&update, choice, told)))
}

async fn apply_update(State(maintain): Maintaining, body: Bytes) -> Result<Json<Report>, Response> {
    let id = maintain.apply(text(&body)?).await.map_err(|e| maintain_failure(&e))?;
    maintain.report(id.as_str()).map(Json).map_err(|e| maintain_failure(&e))
}

async fn maintenances(State(maintain): Maintaining) -> Result<Json<Vec<MaintenanceView>>, Response> {
    let listed = maintain.list().map_err(|e| maintain_failure(&e))?;
    Ok(Json(listed.into_iter().map(MaintenanceView::from).collect()))
}

async fn report(State(maintain): Maintaining, Path(id): Path<String>) -> Result<Json<Report>, Response> {
    maintain.report(&id).map(Json).map_err(|e| maintain_failure(&e))
}

async fn abort(
    State(maintain): Maintaining,
    Path(id): Path<String>,
    Json(request): Json<AbortRequest>,
) -> Result<Json<Report>, Response> {
    maintain.abort(&id, request.by, request.reason).map_err(|e| maintain_failure(&e))?;
    maintain.report(&id).map(Json).map_err(|e| maintain_failure(&e))
}
