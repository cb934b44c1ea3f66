//! Events of VMs on other hosts, for the controller.
//!
//! A set's VMs see every event of the set, wherever its VMs are. The host that does the work decides; the controller tells
//! the others what it announced ([`Events::elsewhere`]), collects what their guests answered ([`Events::approvals`]) and
//! brings it to the host that decides ([`Events::approved_elsewhere`]). All three can be repeated.

use std::collections::{BTreeMap, BTreeSet};

use fermata_imds::fermata_events::event::{Origin, Part, Phase};
use fermata_imds::fermata_events::{
    ApprovalPolicy, Approver, Event, EventId, EventKind, EventSource, EventStatus, Input, JobId, PauseBound, ScopeId,
    UnixMs,
};
use fermata_imds::link;
use fermata_model::{SetName, UpdateDomain, VmName};

use super::{Events, EventsError};

/// One set's part of a job on another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visit {
    /// The host that decides, by its own name.
    pub host: String,
    /// Its job: the id of the maintenance there.
    pub job: JobId,
    /// The set.
    pub set: SetName,
    /// The update domain.
    pub update_domain: Option<UpdateDomain>,
    /// What happens.
    pub kind: EventKind,
    /// A sentence for people.
    pub description: String,
    /// The set's VMs there, each with the longest pause promised.
    pub vms: BTreeMap<VmName, PauseBound>,
    /// When it was announced.
    pub announced: UnixMs,
    /// The promise; whole seconds, constant.
    pub not_before: UnixMs,
    /// When it started, once it has.
    pub started: Option<UnixMs>,
}

impl Visit {
    /// The id of the event, the same one that the guests of the host itself see.
    #[must_use]
    pub fn event_id(&self) -> EventId {
        EventId::derived(link::seed(&self.host, &self.job), &ScopeId::Set(self.set.clone()))
    }

    fn event(&self) -> Event {
        let part = |bound: &PauseBound| Part { bound: *bound, phase: Phase::Waiting };
        Event {
            id: self.event_id(),
            scope: ScopeId::Set(self.set.clone()),
            origin: Origin::Elsewhere,
            status: if self.started.is_some() { EventStatus::Started } else { EventStatus::Scheduled },
            kind: self.kind,
            source: EventSource::Platform,
            description: self.description.clone(),
            resources: self.vms.iter().map(|(vm, bound)| (vm.clone(), part(bound))).collect(),
            update_domain: self.update_domain,
            not_before: self.not_before,
            deadline: fermata_imds::fermata_events::MonoMs(0),
            announced: self.announced,
            started: self.started,
            policy: ApprovalPolicy::AnyInScope,
            approvals: BTreeMap::new(),
            operator: None,
            deferral: None,
            deferrals: 0,
        }
    }
}

impl Events {
    /// Shows the guests of this host what happens to their sets on other hosts: the whole list; what is not in it any more
    /// is over.
    ///
    /// # Errors
    /// The service's absence.
    pub async fn elsewhere(&self, visits: &[Visit]) -> Result<(), EventsError> {
        for visit in visits {
            self.say(Input::Mirror { event: Box::new(visit.event()) }).await?;
        }
        let wanted: BTreeSet<String> = visits.iter().map(|visit| visit.event_id().to_string()).collect();
        for event in self.link.events().await? {
            let id = event["eventId"].as_str().unwrap_or_default();
            if event["hostJob"].is_null()
                && !wanted.contains(id)
                && let Some(event) = EventId::parse(id)
            {
                self.say(Input::Unmirror { event }).await?;
            }
        }
        Ok(())
    }

    /// The VMs that approved the event of a set, here or, for a job of this host, anywhere.
    ///
    /// # Errors
    /// The service's absence.
    pub async fn approvals(&self, host: &str, job: &JobId, set: &SetName) -> Result<BTreeSet<VmName>, EventsError> {
        let wanted = EventId::derived(link::seed(host, job), &ScopeId::Set(set.clone())).to_string();
        let events = self.link.events().await?;
        let found = events.iter().filter(|event| event["eventId"] == wanted.as_str());
        let approvals = found.flat_map(|event| event["approvals"].as_array().into_iter().flatten());
        Ok(approvals.filter_map(|approval| approval["by"].as_str()?.parse().ok()).collect())
    }

    /// A scope of a job of this host was approved elsewhere: by VMs of a set on other hosts, or, where none is named, by an operator
    /// of the fleet. What is approved, over or not there needs nobody any more.
    ///
    /// # Errors
    /// The service's absence.
    pub async fn approved_elsewhere(
        &self,
        job: &JobId,
        scope: &ScopeId,
        by: BTreeSet<VmName>,
    ) -> Result<(), EventsError> {
        let event = EventId::derived(link::seed(&self.host, job), scope);
        let id = event.to_string();
        let open = self.link.events().await?.into_iter().find(|known| known["eventId"] == id.as_str());
        if open.is_none_or(|known| known["approved"] == true) {
            return Ok(());
        }
        let approvers: Vec<Approver> = match scope {
            ScopeId::Set(set) if !by.is_empty() => {
                by.into_iter().map(|vm| Approver::Peer { vm, set: set.clone() }).collect()
            }
            _ => vec![Approver::Operator { name: "an operator of the fleet".to_owned() }],
        };
        for by in approvers {
            self.say(Input::Approve { events: vec![event], by }).await?;
        }
        Ok(())
    }
}
