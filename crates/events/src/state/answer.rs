//! What guests, peers and operators answer.

use std::time::Duration;

use fermata_model::VmName;

use super::durable::Key;
use super::{State, TERMINAL_FOR, Txn};
use crate::event::{Approval, Deferral, EventId, EventStatus, JobStage};
use crate::input::{Action, Approver, Lifecycle, Refusal};
use crate::scope::ScopeId;
use crate::time::UnixMs;

const AGENT_MAX: usize = 128;

impl State {
    pub(super) fn approve(&mut self, txn: &mut Txn, ids: &[EventId], by: &Approver) -> Result<(), Refusal> {
        let scope = match by {
            Approver::Vm { vm, .. } => {
                Some(self.vms.get(vm).ok_or_else(|| Refusal::UnknownVm(vm.clone()))?.scope.clone())
            }
            Approver::Peer { set, .. } => Some(ScopeId::Set(set.clone())),
            Approver::Operator { .. } => None,
        };
        // All or nothing: every id is looked at before any is approved.
        for id in ids {
            self.in_scope(*id, scope.as_ref(), txn.now.wall)?;
        }
        for id in ids {
            self.approve_one(txn, *id, by);
        }
        Ok(())
    }

    /// Whether `id` is an event of `scope`, open or lately over. A foreign id is refused like an unknown one.
    fn in_scope(&self, id: EventId, scope: Option<&ScopeId>, wall: UnixMs) -> Result<(), Refusal> {
        let open = self.events.get(&id).map(|event| &event.scope);
        let over = self.over.get(&id).filter(|over| wall.since(over.at) <= TERMINAL_FOR).map(|over| &over.scope);
        match (open.or(over), scope) {
            (Some(theirs), Some(scope)) if theirs == scope => Ok(()),
            (Some(_), None) => Ok(()),
            _ => Err(Refusal::UnknownEvent(id)),
        }
    }

    fn approve_one(&mut self, txn: &mut Txn, id: EventId, by: &Approver) {
        let Some(event) = self.events.get_mut(&id) else { return };
        if event.status == EventStatus::Started {
            return;
        }
        let was_approved = event.approved();
        let (from, agent) = match by {
            Approver::Vm { from, agent, .. } => {
                (from.map(|address| address.to_string()).unwrap_or_default(), shorten(agent))
            }
            Approver::Peer { .. } | Approver::Operator { .. } => (String::new(), String::new()),
        };
        let approval = Approval { at: txn.now.wall, from, agent };
        match by {
            Approver::Vm { vm, .. } | Approver::Peer { vm, .. } => {
                if event.approvals.contains_key(vm) {
                    return;
                }
                event.approvals.insert(vm.clone(), approval);
                if event.job().is_none() && matches!(by, Approver::Vm { .. }) {
                    txn.actions.push(Action::ForwardApproval { event: id, vm: vm.clone() });
                }
            }
            Approver::Operator { name } => {
                if event.operator.is_some() {
                    return;
                }
                event.operator = Some((name.clone(), approval));
            }
        }
        let now_approved = event.approved();
        txn.dirty.insert(Key::Event(id));
        if now_approved && !was_approved {
            self.notify(txn, Lifecycle::Approved, id, None, None);
        }
    }

    pub(super) fn defer(&mut self, txn: &mut Txn, id: EventId, vm: &VmName, until: UnixMs) -> Result<(), Refusal> {
        let scope = self.vms.get(vm).ok_or_else(|| Refusal::UnknownVm(vm.clone()))?.scope.clone();
        self.in_scope(id, Some(&scope), txn.now.wall)?;
        let no = |why| Err(Refusal::NotDeferrable { event: id, why });
        let Some(event) = self.events.get_mut(&id) else { return no("it is over") };
        let Some(job) = event.job().and_then(|job| self.jobs.get_mut(job)) else {
            return no("it is decided on another host");
        };
        if event.status == EventStatus::Started {
            return no("it has started");
        }
        if !event.resources.contains_key(vm) {
            return no("only a VM that the event lists can ask");
        }
        if job.defer.max_count == 0 || job.defer.max_s == 0 {
            return no("the operator allows no deferral");
        }
        if event.deferrals >= job.defer.max_count {
            return no("the operator's number of deferrals is used up");
        }
        if until > event.not_before + Duration::from_secs(u64::from(job.defer.max_s)) {
            return no("it reaches beyond the operator's limit");
        }
        if until <= txn.now.wall {
            return no("the time is past");
        }
        // NotBefore is constant for the event's life; a deferral only keeps the gate shut for longer.
        event.deferral = Some(Deferral { by: vm.clone(), until });
        event.deferrals += 1;
        event.approvals.remove(vm);
        if let JobStage::Waiting { told } = &mut job.stage {
            *told = false;
        }
        txn.dirty.insert(Key::Event(id));
        self.notify(txn, Lifecycle::Deferred, id, Some(vm), None);
        Ok(())
    }
}

fn shorten(agent: &str) -> String {
    let mut end = agent.len().min(AGENT_MAX);
    while !agent.is_char_boundary(end) {
        end -= 1;
    }
    agent[..end].chars().filter(|c| !c.is_control()).collect()
}
