//! The HTTP/JSON API: one table of routes, one check of who may use them.

mod routes;
mod samples;
mod schema;
mod serve;

use std::sync::Arc;

use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json, Router};
use fermata_model::HostName;
use serde::Deserialize;

pub use routes::{ROUTES, Route, Who, openapi};
pub use serve::{ServeError, serve};

use crate::identity::{Identity, Role, certificate_key, token_key};
use crate::order::RolloutId;
use crate::records::decode;
use crate::rollout::{Author, Input};
use crate::service::{Controller, ServiceError};
use crate::wire::{AlignmentView, CheckView, Conflicts, Revoked, RolloutView};
use crate::wire::{Command, JoinRequest, NewCertificate, NewJoin, NewRollout, NewToken, Poll, Problem};

/// The fingerprint of the certificate that a connection showed, if any.
#[derive(Debug, Clone, Default)]
pub struct Shown(pub Option<String>);

impl IntoResponse for ServiceError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::NotFound { .. } => StatusCode::NOT_FOUND,
            Self::Bad(_) => StatusCode::BAD_REQUEST,
            Self::Refused(_) => StatusCode::CONFLICT,
            Self::Busy | Self::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Record(_) | Self::Log(_) | Self::Pki(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        problem(status, self.to_string())
    }
}

fn problem(status: StatusCode, error: String) -> Response {
    (status, Json(Problem { error })).into_response()
}

type Answer<T> = Result<Json<T>, ServiceError>;
type Service = State<Arc<Controller>>;

/// The API over a controller.
pub fn router(controller: Arc<Controller>) -> Router {
    let mut router = Router::new();
    for route in ROUTES {
        router = router.route(route.path, (route.handler)());
    }
    router.layer(middleware::from_fn_with_state(Arc::clone(&controller), guard)).with_state(controller)
}

/// Lets a request through if who sends it may, and tells the handler who it is.
async fn guard(State(controller): Service, mut request: Request, next: Next) -> Response {
    let Some(route) = routes::find(request.method(), request.uri().path()) else {
        return problem(StatusCode::NOT_FOUND, "there is no such path; see docs/api/openapi.json".to_owned());
    };
    if route.who == Who::Anybody {
        return next.run(request).await;
    }
    let identity = match identify(&controller, shown(&request)).await {
        Ok(Some(identity)) => identity,
        Ok(None) => {
            let text = "who are you? show a token (`Authorization: Bearer`) or a certificate that has not been revoked";
            return problem(StatusCode::UNAUTHORIZED, text.to_owned());
        }
        Err(error) => return error.into_response(),
    };
    let may = match (&identity, route.who) {
        (Identity::Operator { role, .. }, Who::Operator(needed)) => *role >= needed,
        (Identity::Agent(_), Who::Agent) => true,
        _ => false,
    };
    if !may {
        return problem(StatusCode::FORBIDDEN, format!("this needs {}; ask somebody who may", route.who));
    }
    request.extensions_mut().insert(identity);
    next.run(request).await
}

/// The key of the record that says who sends a request.
fn shown(request: &Request) -> Option<String> {
    let bearer = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    match bearer.and_then(|value| value.strip_prefix("Bearer ")) {
        Some(token) => Some(token_key(token.trim())),
        None => request.extensions().get::<Shown>()?.0.as_deref().map(certificate_key),
    }
}

async fn identify(controller: &Controller, shown: Option<String>) -> Result<Option<Identity>, ServiceError> {
    let Some(key) = shown else { return Ok(None) };
    Ok(controller.store().get(&key).await?.as_ref().map(decode).transpose()?)
}

fn author(identity: &Identity) -> Author {
    match identity {
        Identity::Operator { name, .. } => Author::Operator(name.clone()),
        Identity::Agent(host) => Author::Agent(host.clone()),
    }
}

async fn health() -> &'static str {
    "ok\n"
}

async fn document() -> Json<serde_json::Value> {
    Json(openapi())
}

async fn join(State(controller): Service, Json(request): Json<JoinRequest>) -> Result<Response, ServiceError> {
    Ok(Json(controller.join(&request).await?).into_response())
}

fn agent(identity: Identity) -> Result<HostName, ServiceError> {
    match identity {
        Identity::Agent(host) => Ok(host),
        Identity::Operator { .. } => Err(ServiceError::Bad("only an agent can say this".to_owned())),
    }
}

async fn renew(
    State(controller): Service,
    Extension(who): Extension<Identity>,
    body: String,
) -> Result<Response, ServiceError> {
    Ok(Json(controller.renew(&agent(who)?, &body).await?).into_response())
}

async fn poll(
    State(controller): Service,
    Extension(who): Extension<Identity>,
    Json(poll): Json<Poll>,
) -> Result<Response, ServiceError> {
    Ok(Json(controller.poll(&agent(who)?, poll).await?).into_response())
}

async fn new_join(State(controller): Service, Json(new): Json<NewJoin>) -> Answer<crate::wire::Secret> {
    Ok(Json(controller.new_join(&new).await?))
}

async fn new_token(State(controller): Service, Json(new): Json<NewToken>) -> Answer<crate::wire::Secret> {
    Ok(Json(controller.new_token(&new).await?))
}

async fn new_certificate(State(controller): Service, Json(new): Json<NewCertificate>) -> Answer<crate::wire::Joined> {
    Ok(Json(controller.new_certificate(&new).await?))
}

async fn keep_update(State(controller): Service, text: String) -> Answer<crate::wire::KeptUpdate> {
    Ok(Json(controller.keep_update(&text).await?))
}

async fn update(State(controller): Service, Path(digest): Path<String>) -> Answer<String> {
    Ok(Json(controller.update(&digest).await?))
}

async fn alarms(State(controller): Service) -> Result<Response, ServiceError> {
    Ok(Json(controller.alarms().await?).into_response())
}

async fn measured(State(controller): Service, Path(id): Path<RolloutId>) -> Result<Response, ServiceError> {
    Ok(Json(controller.measured(&id).await?).into_response())
}

async fn revoke(State(controller): Service, Json(who): Json<Identity>) -> Answer<Revoked> {
    Ok(Json(Revoked { revoked: controller.revoke(&who).await? }))
}

async fn hosts(State(controller): Service) -> Result<Response, ServiceError> {
    Ok(Json(controller.hosts().await?).into_response())
}

async fn host(State(controller): Service, Path(name): Path<HostName>) -> Result<Response, ServiceError> {
    let mut hosts = controller.hosts().await?;
    let found = hosts.remove(&name);
    found.map(|host| Json(host).into_response()).ok_or(ServiceError::NotFound { what: "host", name: name.to_string() })
}

async fn cordon(State(controller): Service, Path(name): Path<HostName>) -> Answer<()> {
    Ok(Json(controller.cordon(&name, true).await?))
}

async fn uncordon(State(controller): Service, Path(name): Path<HostName>) -> Answer<()> {
    Ok(Json(controller.cordon(&name, false).await?))
}

async fn sets(State(controller): Service) -> Result<Response, ServiceError> {
    Ok(Json(controller.sets().await?).into_response())
}

async fn new_set(State(controller): Service, Json(set): Json<fermata_planner::SetSpec>) -> Answer<()> {
    Ok(Json(controller.new_set(&set).await?))
}

async fn import(State(controller): Service, Json(fleet): Json<fermata_planner::FleetSpec>) -> Answer<Conflicts> {
    Ok(Json(Conflicts { self_conflicts: controller.import(fleet).await? }))
}

async fn alignment(State(controller): Service) -> Answer<AlignmentView> {
    let fleet = controller.fleet().await?;
    let self_conflicts = fleet.self_conflicts().iter().map(ToString::to_string).collect();
    Ok(Json(AlignmentView { alignment: fleet.alignment().score(), self_conflicts }))
}

async fn rollouts(State(controller): Service) -> Result<Response, ServiceError> {
    Ok(Json(controller.rollouts().await?).into_response())
}

async fn plan(
    State(controller): Service,
    Extension(who): Extension<Identity>,
    Json(new): Json<NewRollout>,
) -> Result<Response, ServiceError> {
    let overrides = !new.policy.allow_self_conflict.is_empty();
    if overrides && !matches!(who, Identity::Operator { role: Role::Admin, .. }) {
        let text = "maintaining a host that carries two update domains of a set needs the role admin".to_owned();
        return Ok(problem(StatusCode::FORBIDDEN, text));
    }
    Ok(Json(controller.plan(new).await?).into_response())
}

async fn rollout(State(controller): Service, Path(id): Path<RolloutId>) -> Result<Response, ServiceError> {
    let (definition, state) = controller.state(&id).await?;
    Ok(Json(RolloutView { definition: &definition, state: &state }).into_response())
}

#[derive(Deserialize)]
struct Only {
    host: Option<HostName>,
}

async fn explain(
    State(controller): Service,
    Path(id): Path<RolloutId>,
    Query(only): Query<Only>,
) -> Result<Response, ServiceError> {
    Ok(Json(controller.explain(&id, only.host.as_ref()).await?).into_response())
}

async fn log(State(controller): Service, Path(id): Path<RolloutId>) -> Result<Response, ServiceError> {
    Ok(Json(controller.log(&id).await?).into_response())
}

async fn check(State(controller): Service, Path(id): Path<RolloutId>) -> Answer<CheckView> {
    let violations = controller.check(&id).await?;
    Ok(Json(CheckView { clean: violations.is_empty(), violations }))
}

async fn command(
    State(controller): Service,
    Path((id, verb)): Path<(RolloutId, String)>,
    Extension(who): Extension<Identity>,
    Json(command): Json<Command>,
) -> Result<Response, ServiceError> {
    let host = || {
        let text = format!("`{verb}` is about one host; name it");
        command.host.clone().ok_or(ServiceError::Bad(text))
    };
    let input = match verb.as_str() {
        "start" => {
            controller.check_plan(&id).await?;
            Input::Start
        }
        "pause" => command.host.clone().map_or(Input::Pause, Input::Hold),
        "resume" => command.host.clone().map_or(Input::Resume, Input::Unhold),
        "abort" => Input::Abort,
        "skip" => Input::Skip(host()?),
        "retry" => Input::Retry(host()?),
        "approve" => match &command.host {
            None => Input::ApproveStage,
            Some(host) => controller.approval(&id, host).await?,
        },
        "merge" => controller.merge(&id, &command).await?,
        "give-up" => {
            if !matches!(who, Identity::Operator { role: Role::Admin, .. }) {
                return Ok(problem(StatusCode::FORBIDDEN, "giving a host up needs the role admin".to_owned()));
            }
            if command.reason.is_empty() {
                return Err(ServiceError::Bad("giving a host up needs a reason for the audit log".to_owned()));
            }
            Input::GiveUp(host()?)
        }
        _ => {
            let text = format!(
                "`{verb}` is no order; use start, pause, resume, abort, skip, retry, approve, merge or give-up"
            );
            return Err(ServiceError::Bad(text));
        }
    };
    controller.give(&id, input, author(&who), command.reason.clone()).await?;
    let (_, state) = controller.state(&id).await?;
    Ok(Json(state.phase).into_response())
}
