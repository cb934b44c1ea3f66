//! The table of routes: what the router serves, what the guard asks, and what the OpenAPI document says.

use std::fmt;
use std::sync::Arc;

use axum::http::Method;
use axum::routing::{MethodRouter, get, post};
use serde_json::{Map, Value, json};

use super::{samples, schema};
use crate::identity::Role;
use crate::service::Controller;

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Without showing anything.
    Anybody,
    /// An agent, for its own host.
    Agent,
    /// An operator with at least this role.
    Operator(Role),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anybody => "nothing",
            Self::Agent => "an agent's certificate",
            Self::Operator(Role::View) => "the role view",
            Self::Operator(Role::Operate) => "the role operate",
            Self::Operator(Role::Admin) => "the role admin",
        })
    }
}

/// A path with its methods.
pub struct Route {
    /// The path, with parameters in braces.
    pub path: &'static str,
    /// Method, who, what it does, names of request and reply.
    pub methods: &'static [(Method, Who, &'static str, Option<&'static str>, &'static str)],
    pub(super) handler: fn() -> MethodRouter<Arc<Controller>>,
}

/// What the guard needs of a route.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) who: Who,
}

const VIEW: Who = Who::Operator(Role::View);
const OPERATE: Who = Who::Operator(Role::Operate);
const ADMIN: Who = Who::Operator(Role::Admin);

/// All routes.
pub const ROUTES: &[Route] = &[
    Route {
        path: "/healthz",
        methods: &[(Method::GET, Who::Anybody, "Whether the controller runs", None, "text")],
        handler: || get(super::health),
    },
    Route {
        path: "/v1/openapi.json",
        methods: &[(Method::GET, Who::Anybody, "This document", None, "OpenApi")],
        handler: || get(super::document),
    },
    Route {
        path: "/v1/join",
        methods: &[(Method::POST, Who::Anybody, "Let a host join by a token", Some("JoinRequest"), "Joined")],
        handler: || post(super::join),
    },
    Route {
        path: "/v1/joins",
        methods: &[(Method::POST, ADMIN, "Make a token with which hosts can join", Some("NewJoin"), "Secret")],
        handler: || post(super::new_join),
    },
    Route {
        path: "/v1/tokens",
        methods: &[(Method::POST, ADMIN, "Make a token for an operator", Some("NewToken"), "Secret")],
        handler: || post(super::new_token),
    },
    Route {
        path: "/v1/certificates",
        methods: &[(Method::POST, ADMIN, "Make a certificate for an operator", Some("NewCertificate"), "Joined")],
        handler: || post(super::new_certificate),
    },
    Route {
        path: "/v1/updates",
        methods: &[(Method::POST, OPERATE, "Keep an update file for hosts", Some("UpdateFile"), "KeptUpdate")],
        handler: || post(super::keep_update),
    },
    Route {
        path: "/v1/agent/updates/{digest}",
        methods: &[(Method::GET, Who::Agent, "An update file, by its digest", None, "UpdateFile")],
        handler: || get(super::update),
    },
    Route {
        path: "/v1/revoke",
        methods: &[(Method::POST, ADMIN, "Shut a host or an operator out", Some("Identity"), "Revoked")],
        handler: || post(super::revoke),
    },
    Route {
        path: "/v1/agent/poll",
        methods: &[(
            Method::POST,
            Who::Agent,
            "Say where a host stands; wait for what it shall do",
            Some("Poll"),
            "PollReply",
        )],
        handler: || post(super::poll),
    },
    Route {
        path: "/v1/agent/renew",
        methods: &[(Method::POST, Who::Agent, "Renew a host's certificate", Some("Request"), "Joined")],
        handler: || post(super::renew),
    },
    Route {
        path: "/v1/hosts",
        methods: &[(Method::GET, VIEW, "All hosts", None, "Hosts")],
        handler: || get(super::hosts),
    },
    Route {
        path: "/v1/hosts/{host}",
        methods: &[(Method::GET, VIEW, "One host", None, "HostRecord")],
        handler: || get(super::host),
    },
    Route {
        path: "/v1/hosts/{host}/cordon",
        methods: &[(Method::POST, OPERATE, "Keep a host out of maintenance", None, "Nothing")],
        handler: || post(super::cordon),
    },
    Route {
        path: "/v1/hosts/{host}/uncordon",
        methods: &[(Method::POST, OPERATE, "Let a host back into maintenance", None, "Nothing")],
        handler: || post(super::uncordon),
    },
    Route {
        path: "/v1/sets",
        methods: &[
            (Method::GET, VIEW, "All availability sets", None, "Sets"),
            (Method::POST, OPERATE, "Make an availability set", Some("SetSpec"), "Nothing"),
        ],
        handler: || get(super::sets).post(super::new_set),
    },
    Route {
        path: "/v1/fleet",
        methods: &[
            (
                Method::GET,
                VIEW,
                "How well the placement is aligned, and hosts with two parts of a set",
                None,
                "Alignment",
            ),
            (Method::POST, ADMIN, "Take a whole fleet in", Some("FleetSpec"), "Conflicts"),
        ],
        handler: || get(super::alignment).post(super::import),
    },
    Route {
        path: "/v1/rollouts",
        methods: &[
            (Method::GET, VIEW, "All rollouts", None, "Rollouts"),
            (Method::POST, OPERATE, "Plan a rollout", Some("NewRollout"), "Planned"),
        ],
        handler: || get(super::rollouts).post(super::plan),
    },
    Route {
        path: "/v1/rollouts/{rollout}",
        methods: &[(Method::GET, VIEW, "Where a rollout stands", None, "Rollout")],
        handler: || get(super::rollout),
    },
    Route {
        path: "/v1/rollouts/{rollout}/explain",
        methods: &[(Method::GET, VIEW, "Why hosts stand where they stand (query: host)", None, "Explanations")],
        handler: || get(super::explain),
    },
    Route {
        path: "/v1/rollouts/{rollout}/log",
        methods: &[(Method::GET, VIEW, "The audit log: every decision with author and reason", None, "Entries")],
        handler: || get(super::log),
    },
    Route {
        path: "/v1/rollouts/{rollout}/measured",
        methods: &[(Method::GET, VIEW, "What hosts measured: phases, blackouts, clocks, per VM", None, "Measured")],
        handler: || get(super::measured),
    },
    Route {
        path: "/v1/alarms",
        methods: &[(Method::GET, VIEW, "What the independent check found, by rollout; empty is good", None, "Alarms")],
        handler: || get(super::alarms),
    },
    Route {
        path: "/v1/rollouts/{rollout}/check",
        methods: &[(Method::GET, VIEW, "What the independent checker finds in the log", None, "Check")],
        handler: || get(super::check),
    },
    Route {
        path: "/v1/rollouts/{rollout}/do/{verb}",
        methods: &[(
            Method::POST,
            OPERATE,
            "start, pause, resume, abort, skip, retry, approve, merge, give-up (the last needs admin)",
            Some("Command"),
            "Phase",
        )],
        handler: || post(super::command),
    },
];

/// The route of a request.
pub(super) fn find(method: &Method, path: &str) -> Option<Found> {
    let matches = |pattern: &str| {
        let mut given = path.split('/');
        let fits = pattern
            .split('/')
            .all(|part| given.next().is_some_and(|text| part == text || (part.starts_with('{') && !text.is_empty())));
        fits && given.next().is_none()
    };
    let route = ROUTES.iter().find(|route| matches(route.path))?;
    route.methods.iter().find(|(known, ..)| known == method).map(|(_, who, ..)| Found { who: *who })
}

/// The OpenAPI document, made from the table.
#[must_use]
pub fn openapi() -> Value {
    let mut paths = Map::new();
    let mut schemas = schema::Components::new();
    let shape = |name: &str, schemas: &mut schema::Components| {
        samples::schema(name, schemas).unwrap_or_else(|| json!({ "title": name }))
    };
    for route in ROUTES {
        let mut methods = Map::new();
        for (method, who, summary, request, reply) in route.methods {
            let mut operation = json!({
                "summary": summary,
                "x-needs": who.to_string(),
                "responses": {
                    "200": { "description": reply, "content": { "application/json": { "schema": shape(reply, &mut schemas) } } },
                    "default": {
                        "description": "A refusal: place, reason, way out",
                        "content": { "application/json": { "schema": {
                            "type": "object", "required": ["error"], "properties": { "error": { "type": "string" } }
                        } } }
                    }
                }
            });
            let parameters: Vec<Value> = route
                .path
                .split('/')
                .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
                .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
                .collect();
            if !parameters.is_empty() {
                operation["parameters"] = Value::Array(parameters);
            }
            if let Some(request) = request {
                operation["requestBody"] = json!({
                    "required": true,
                    "content": { "application/json": { "schema": shape(request, &mut schemas) } }
                });
            }
            methods.insert(method.as_str().to_ascii_lowercase(), operation);
        }
        paths.insert(route.path.to_owned(), Value::Object(methods));
    }
    json!({
        "openapi": "3.1.0",
        "info": { "title": "Fermata controller", "version": "1", "license": { "name": "Apache-2.0" } },
        "paths": paths,
        "components": { "schemas": schemas },
    })
}
