//! VMs, scopes, and who asked for events lately.

use fermata_model::{SetName, UpdateDomain, VmName};

use super::durable::Key;
use super::{ENABLED_FOR, INCARNATION_MAX, POLL_GRAIN, State, Txn, Vm};
use crate::event::Phase;
use crate::input::{Action, Refusal};
use crate::scope::{ApprovalPolicy, ScopeId};
use crate::time::UnixMs;

impl State {
    pub(super) fn upsert_vm(
        &mut self,
        txn: &mut Txn,
        vm: VmName,
        set: Option<SetName>,
        update_domain: Option<UpdateDomain>,
        min_notice_s: u32,
        incarnation_floor: u32,
    ) -> Result<(), Refusal> {
        let scope = set.map_or_else(|| ScopeId::Vm(vm.clone()), ScopeId::Set);
        let Some(known) = self.vms.get(&vm) else {
            let incarnation = incarnation_floor.saturating_add(1).min(INCARNATION_MAX);
            txn.dirty.insert(Key::Vm(vm.clone()));
            txn.changed.insert(vm.clone());
            self.vms.insert(vm, Vm { scope, update_domain, min_notice_s, incarnation, last_poll: None });
            return Ok(());
        };
        let moves = known.scope != scope || known.update_domain != update_domain;
        if moves {
            for busy in [&known.scope, &scope] {
                if self.shown.contains_key(busy) {
                    return Err(Refusal::ScopeBusy { vm, scope: busy.clone() });
                }
            }
        }
        let last_poll = known.last_poll;
        let incarnation = known.incarnation.max(incarnation_floor.min(INCARNATION_MAX));
        let wanted = Vm { scope, update_domain, min_notice_s, incarnation, last_poll };
        if *known != wanted {
            if known.incarnation != wanted.incarnation {
                txn.changed.insert(vm.clone());
            }
            txn.dirty.insert(Key::Vm(vm.clone()));
            self.vms.insert(vm, wanted);
        }
        Ok(())
    }

    pub(super) fn remove_vm(&mut self, txn: &mut Txn, vm: &VmName) -> Result<(), Refusal> {
        if self.vms.remove(vm).is_none() {
            return Err(Refusal::UnknownVm(vm.clone()));
        }
        txn.dirty.insert(Key::Vm(vm.clone()));
        txn.changed.insert(vm.clone());
        for event in self.events.values_mut().filter(|event| event.job().is_some()) {
            if let Some(part) = event.resources.get_mut(vm) {
                part.phase = Phase::Gone;
                txn.dirty.insert(Key::Event(event.id));
            }
        }
        Ok(())
    }

    pub(super) fn set_policy(&mut self, txn: &mut Txn, scope: ScopeId, policy: ApprovalPolicy) {
        txn.dirty.insert(Key::Scope(scope.clone()));
        self.scopes.entry(scope).or_default().policy = policy;
    }

    pub(super) fn peer_polled(&mut self, txn: &mut Txn, set: SetName, at: UnixMs) {
        let scope = ScopeId::Set(set);
        let default = self.config.policy.clone();
        let record =
            self.scopes.entry(scope.clone()).or_insert_with(|| crate::Scope { policy: default, peer_polled: None });
        record.peer_polled = record.peer_polled.max(Some(at.min(txn.now.wall)));
        txn.dirty.insert(Key::Scope(scope.clone()));
        self.enable(txn, scope);
    }

    pub(super) fn polled(&mut self, txn: &mut Txn, vm: &VmName) -> Result<(), Refusal> {
        let wall = txn.now.wall;
        let record = self.vms.get_mut(vm).ok_or_else(|| Refusal::UnknownVm(vm.clone()))?;
        // A wall clock that was set back must not leave a request in the future.
        let fresh = record.last_poll.is_some_and(|last| last <= wall && wall.since(last) < POLL_GRAIN);
        let scope = record.scope.clone();
        if !fresh {
            record.last_poll = Some(wall);
            txn.dirty.insert(Key::Vm(vm.clone()));
        }
        self.enable(txn, scope);
        Ok(())
    }

    fn enable(&mut self, txn: &mut Txn, scope: ScopeId) {
        if self.enabled_at(&scope, txn.now.wall) && self.enabled.insert(scope.clone()) {
            txn.actions.push(Action::Enabled { scope });
        }
    }

    /// Whether notices are owed to `scope`: one of its VMs asked within 24 hours.
    #[must_use]
    pub fn enabled_at(&self, scope: &ScopeId, wall: UnixMs) -> bool {
        self.last_asked(scope).is_some_and(|last| wall.since(last) <= ENABLED_FOR)
    }

    /// The last request of any VM of `scope`.
    #[must_use]
    pub fn last_asked(&self, scope: &ScopeId) -> Option<UnixMs> {
        let here = self.members(scope).filter_map(|(_, vm)| vm.last_poll).max();
        here.max(self.scopes.get(scope).and_then(|s| s.peer_polled))
    }

    pub(super) fn policy_of(&self, scope: &ScopeId) -> ApprovalPolicy {
        self.scopes.get(scope).map_or_else(|| self.config.policy.clone(), |s| s.policy.clone())
    }
}
