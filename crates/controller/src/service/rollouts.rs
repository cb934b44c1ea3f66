//! Planning, listing, explaining and checking rollouts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fermata_model::HostName;
use fermata_planner::check::{Visit, check_log};
use fermata_planner::plan::{Effort, Plan, PlanId, PlanRequest};
use fermata_planner::rollout::{Facts, Gate, Hold, HostFact};
use fermata_store::{Compare, Op, Revision, Txn};
use jiff::Timestamp;

use super::{Controller, ServiceError};
use crate::order::RolloutId;
use crate::records::{DEFINITIONS, decode, definition_key, encode, log_prefix, plan_key};
use crate::rollout::{self, Definition, Explanation, HostPhase, HostState, Input, Phase, State};
use crate::session::Session;
use crate::watchdog::visits;
use crate::wire::{NewRollout, Planned, PlannedLine, RolloutLine};

/// What a new plan takes the place of.
struct Replaced {
    parent: PlanId,
    revision: Revision,
}

impl Controller {
    /// Sessions of rollouts that are in the store and not here yet.
    pub(super) async fn learn_of_rollouts(&self) -> Result<(), ServiceError> {
        let mut sessions = self.sessions.lock().await;
        for row in self.store.range(DEFINITIONS).await?.keys {
            let id = RolloutId::from(row.key.strip_prefix(DEFINITIONS).unwrap_or_default());
            if sessions.get(&id).is_none_or(|session| session.outdated(row.mod_revision)) {
                let definition: Definition = decode(&row)?;
                let session = Session::new(Arc::new(definition));
                let session = session.map_err(|error| ServiceError::Log(error.to_string()))?;
                sessions.insert(id, session.made_of(row.mod_revision));
            }
        }
        Ok(())
    }

    /// Plans a rollout; keeps it unless it is a dry run.
    ///
    /// # Errors
    /// [`ServiceError::Bad`] with what does not fit.
    pub async fn plan(&self, new: NewRollout) -> Result<Planned, ServiceError> {
        let bad = |text: String| ServiceError::Bad(text);
        self.check_updates(&new.updates).await?;
        let replaced = self.replaced(new.id.as_ref(), new.parent.as_deref()).await?;
        let fleet = self.fleet().await?;
        let request = PlanRequest {
            parent: replaced.as_ref().map(|replaced| replaced.parent),
            policy: new.policy,
            starts_at: Self::now(),
            effort: Effort::for_hosts(fleet.hosts().len()),
        };
        let plan = fermata_planner::make(&fleet, &request, &mut || false).map_err(|error| bad(error.to_string()))?;
        let id = new.id.unwrap_or_else(|| RolloutId(format!("r-{}", &String::from(plan.id())[..8])));
        if id.0.parse::<HostName>().is_err() {
            return Err(bad(format!("`{id}` is no name for a rollout; use lower-case letters, digits and `-`")));
        }
        let definition = Definition::of_plan(id.clone(), new.reason, new.updates, &plan, &fleet, &new.rules)
            .map_err(|error| bad(error.to_string()))?;
        definition.check().map_err(|error| bad(error.to_string()))?;
        let mut planned = lines(&plan);
        if new.dry_run {
            return Ok(planned);
        }
        let key = definition_key(&id);
        let success = vec![Op::put(&key, encode(&definition)), Op::put(plan_key(&id), encode(&plan))];
        let compares = match &replaced {
            None => vec![Compare::absent(&key)],
            Some(replaced) => {
                vec![Compare::unchanged(&key, replaced.revision), Compare::absent(crate::records::log_key(&id, 1))]
            }
        };
        if !self.store.txn(Txn { compares, success, failure: vec![] }).await?.succeeded {
            return Err(bad(match replaced {
                None => {
                    format!("rollout `{id}` exists; give the new one another name, or replace its plan (`--replace`)")
                }
                Some(_) => format!("rollout `{id}` was started, or its plan replaced, a moment ago; look at it again"),
            }));
        }
        self.learn_of_rollouts().await?;
        planned.rollout = Some(id);
        Ok(planned)
    }

    /// The plan that a new one takes the place of. Only a rollout that was never started has one, and only the newest counts.
    async fn replaced(&self, id: Option<&RolloutId>, parent: Option<&str>) -> Result<Option<Replaced>, ServiceError> {
        let Some(parent) = parent else { return Ok(None) };
        let id = id.ok_or_else(|| ServiceError::Bad("name the rollout whose plan is to be replaced".to_owned()))?;
        let row = self.store.get(&definition_key(id)).await?;
        let row = row.ok_or_else(|| ServiceError::NotFound { what: "rollout", name: id.to_string() })?;
        let definition: Definition = decode(&row)?;
        if definition.plan != parent {
            return Err(ServiceError::Bad(format!(
                "plan {parent} is not the plan of rollout `{id}` any more, {} is; look at that one first",
                definition.plan
            )));
        }
        if self.store.get(&crate::records::log_key(id, 1)).await?.is_some() {
            let text =
                format!("rollout `{id}` has been started; abort it, and plan a new one for the hosts that are left");
            return Err(ServiceError::Bad(text));
        }
        let parent = parent.to_owned().try_into();
        let parent =
            parent.map_err(|_| ServiceError::Bad("the plan to be replaced is not named by its digest".to_owned()))?;
        Ok(Some(Replaced { parent, revision: row.mod_revision }))
    }

    /// All rollouts.
    ///
    /// # Errors
    /// The store's.
    pub async fn rollouts(&self) -> Result<Vec<RolloutLine>, ServiceError> {
        let mut alarms = self.alarms().await?;
        let sessions = self.sessions.lock().await;
        let mut line = |(id, session): (&RolloutId, &Session)| {
            let rollout = session.rollout();
            let mut hosts = BTreeMap::new();
            for host in rollout.state().hosts.values() {
                *hosts.entry(host.phase.word().to_owned()).or_insert(0) += 1;
            }
            let reason = rollout.definition().reason.clone();
            let alarms = alarms.remove(id).map_or_else(Vec::new, |alarm| alarm.found);
            RolloutLine { id: id.clone(), phase: rollout.phase_word().to_owned(), reason, hosts, alarms }
        };
        Ok(sessions.iter().map(&mut line).collect())
    }

    /// Where a rollout stands.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`].
    pub async fn state(&self, id: &RolloutId) -> Result<(Arc<Definition>, State), ServiceError> {
        let sessions = self.sessions.lock().await;
        let session =
            sessions.get(id).ok_or_else(|| ServiceError::NotFound { what: "rollout", name: id.to_string() })?;
        Ok((Arc::clone(session.rollout().definition()), session.rollout().state().clone()))
    }

    /// Why each host stands where it stands; the planner's forecast fills in starts that the rules alone do not know.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`].
    pub async fn explain(&self, id: &RolloutId, only: Option<&HostName>) -> Result<Vec<Explanation>, ServiceError> {
        let (definition, state) = self.state(id).await?;
        let forecast = self.forecast(id, &state).await?;
        let mut explanations = Vec::new();
        for host in definition.order.iter().filter(|host| only.is_none_or(|only| only == *host)) {
            let sessions = self.sessions.lock().await;
            let Some(session) = sessions.get(id) else { break };
            let reply = self.store.txn(session.read(Some(host))).await?;
            let view = session.view_of(host, reply)?;
            let Some(mut explanation) = session.rollout().explain(host, &view, Self::now()) else { continue };
            drop(sessions);
            if explanation.phase == HostPhase::Waiting && explanation.earliest.is_none() {
                explanation.earliest = forecast.as_ref().and_then(|decision| match decision.of(host) {
                    Some(fermata_planner::Verdict::Wait { earliest, .. }) => *earliest,
                    _ => None,
                });
            }
            explanations.push(explanation);
        }
        if let (Some(host), true) = (only, explanations.is_empty()) {
            return Err(ServiceError::NotFound { what: "host", name: host.to_string() });
        }
        Ok(explanations)
    }

    /// Hosts the planner would begin now; `None` when there is no plan to ask.
    pub(super) async fn advised(&self, id: &RolloutId) -> Result<Option<BTreeSet<HostName>>, ServiceError> {
        let Ok((_, state)) = self.state(id).await else { return Ok(None) };
        if state.phase != Phase::Running {
            return Ok(None);
        }
        let decision = self.forecast(id, &state).await?;
        let begin: Option<BTreeSet<HostName>> = decision.map(|decision| decision.starts().cloned().collect());
        // Advice orders hosts, it does not stop a rollout: with nothing begun and nothing advised the rules alone decide.
        Ok(begin.filter(|begin| !begin.is_empty() || !state.in_flight.is_empty()))
    }

    async fn forecast(&self, id: &RolloutId, state: &State) -> Result<Option<fermata_planner::Decision>, ServiceError> {
        let Some(row) = self.store.get(&plan_key(id)).await? else { return Ok(None) };
        let plan: Plan = decode(&row)?;
        let Ok(fleet) = self.fleet().await else { return Ok(None) };
        let visits = self.visits(id).await?;
        let (definition, _) = self.state(id).await?;
        let (approvals, now) = (definition.rules.approve_each_host, Self::now());
        Ok(Some(fermata_planner::decide(&plan, &fleet, &facts(state, &visits, approvals, now), now)))
    }

    /// What an operator's approval of a host means now: of its visit if that is announced, else of the host.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`].
    pub async fn approval(&self, id: &RolloutId, host: &HostName) -> Result<Input, ServiceError> {
        let (definition, state) = self.state(id).await?;
        let not_found = || ServiceError::NotFound { what: "host", name: host.to_string() };
        let task = definition.hosts.get(host).ok_or_else(not_found)?;
        Ok(match state.hosts.get(host).map(|host| &host.phase) {
            Some(HostPhase::Ordered { .. } | HostPhase::Announced { .. }) => {
                Input::ApproveVisit { host: host.clone(), scopes: task.scopes(), by: BTreeMap::new() }
            }
            _ => Input::ApproveHost(host.clone()),
        })
    }

    /// A rollout's log: the audit trail.
    ///
    /// # Errors
    /// The store's.
    pub async fn log(&self, id: &RolloutId) -> Result<Vec<rollout::Entry>, ServiceError> {
        let rows = self.store.range(&log_prefix(id)).await?.keys;
        Ok(rows.iter().map(decode).collect::<Result<_, _>>()?)
    }

    /// The visits that a log tells of, with the times between which VMs may have been touched.
    async fn visits(&self, id: &RolloutId) -> Result<Vec<Visit>, ServiceError> {
        Ok(visits(&self.log(id).await?))
    }

    /// Has an independent eye look at what really happened, and derives the log again. Gives what it found.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`].
    pub async fn check(&self, id: &RolloutId) -> Result<Vec<String>, ServiceError> {
        let (definition, _) = self.state(id).await?;
        let log = self.log(id).await?;
        let mut found = Vec::new();
        if let Err(error) = crate::rollout::replay(definition, &log) {
            found.push(error.to_string());
        }
        if let Some(row) = self.store.get(&plan_key(id)).await? {
            let plan: Plan = decode(&row)?;
            let report = check_log(&visits(&log), &self.fleet().await?, plan.policy(), plan.starts_at());
            found.extend(report.violations.iter().map(ToString::to_string));
        }
        for text in &found {
            tracing::error!(rollout = %id, text, "the independent check found a broken promise");
        }
        Ok(found)
    }
}

fn facts(state: &State, visits: &[Visit], approvals: bool, now: Timestamp) -> Facts {
    let visit = |host: &HostName| visits.iter().rev().find(|visit| visit.host == *host);
    let fact = |host: &HostName, state: &HostState| -> Option<HostFact> {
        let started = visit(host).map_or(Timestamp::UNIX_EPOCH, |visit| visit.started);
        match &state.phase {
            HostPhase::Waiting if state.held => {
                Some(HostFact::Held(Hold::Paused { by: String::new(), reason: String::new() }))
            }
            HostPhase::Waiting if state.refused.as_ref().is_some_and(|refused| now < refused.again_at) => {
                let reason = state.refused.as_ref().map_or_else(String::new, |refused| refused.reason.clone());
                Some(HostFact::Held(Hold::Preflight { reason }))
            }
            HostPhase::Waiting if approvals && !state.approved => Some(HostFact::Held(Hold::NeedsApproval)),
            HostPhase::Waiting | HostPhase::Preflight { .. } => None,
            HostPhase::Skipped { .. } => Some(HostFact::Skipped),
            HostPhase::Soaking { .. } | HostPhase::Done { .. } | HostPhase::Failed { .. } => {
                let healthy = visit(host).and_then(|visit| visit.healthy).unwrap_or(started);
                Some(HostFact::Whole { started, healthy })
            }
            HostPhase::Ordered { since, .. }
            | HostPhase::Announced { since, .. }
            | HostPhase::InWork { since, .. }
            | HostPhase::StandingDown { since, .. }
            | HostPhase::Checking { since, .. } => Some(HostFact::InWork { started: *since }),
        }
    };
    let hosts = state.hosts.iter().filter_map(|(name, host)| Some((name.clone(), fact(name, host)?)));
    let stages = 0..u32::try_from(state.stage).unwrap_or(u32::MAX);
    Facts { hosts: hosts.collect(), sets: BTreeMap::new(), gate: Gate::Open, approved_stages: stages.collect() }
}

fn lines(plan: &Plan) -> Planned {
    let stage = |number: u32| plan.stages().get(number as usize).map_or_else(String::new, |stage| stage.name.clone());
    let hosts = plan.hosts().iter().map(|host| PlannedLine {
        host: host.host.clone(),
        stage: stage(host.stage),
        start: plan.at(host.start_s),
        end: plan.at(host.end_s),
    });
    Planned {
        rollout: None,
        plan: String::from(plan.id()),
        hosts: hosts.collect(),
        excluded: plan.excluded().iter().map(|host| (host.host.clone(), host.why.to_string())).collect(),
        eta: plan.eta(),
        lower_bound_s: plan.bounds().best_s(),
        lower_bound_by: plan.bounds().best_kind().to_owned(),
        makespan_s: plan.makespan_s(),
    }
}
