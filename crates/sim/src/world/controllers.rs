//! What controllers and operators do.

use fermata_controller::order::Slot;
use fermata_controller::records::{decode, slot_key};
use fermata_controller::rollout::{Author, HostPhase, Input, Need, Phase, StageGate};
use fermata_controller::session::{Commit, Decided};
use fermata_store::{Compare, Txn};

use super::{Event, Message, Sabotage, World};

impl World {
    /// One turn of a controller: an input, a need, and the offers that are due.
    pub(super) fn controller(&mut self, number: usize) {
        if !self.controllers[number].up {
            return;
        }
        self.offer(number);
        while !self.controllers[number].busy {
            let Some((rollout, input)) = self.controllers[number].inbox.pop_front() else { break };
            self.decide(number, rollout, &input);
        }
        if self.controllers[number].busy {
            return;
        }
        let rollout = usize::try_from(self.random.below(self.rollouts.len() as u64)).unwrap_or(0);
        let now = self.local(self.controllers[number].skew);
        let session = &self.controllers[number].sessions[rollout];
        if session.rollout().ended() {
            return;
        }
        let mut needs = session.rollout().agenda(now, usize::MAX);
        // Nothing may depend on the order in which needs are met.
        let needs = std::iter::from_fn(|| {
            let at = usize::try_from(self.random.below(needs.len() as u64)).unwrap_or(0);
            (!needs.is_empty()).then(|| needs.swap_remove(at))
        });
        let needs: Vec<Need> = needs.take(4).collect();
        if needs.is_empty() {
            // Follows what the other one does; also how it learns that a rollout was started.
            self.decide(number, rollout, &Input::Tick);
        }
        for need in needs {
            match need {
                Need::Give(input) => self.decide(number, rollout, &input),
                Need::Preflight { host, asked } => {
                    let message = Message::AskPreflight { controller: number, rollout, asked };
                    self.send(number, &host, true, &message);
                    // The session may be behind; a look at the log finds out.
                    self.decide(number, rollout, &Input::Tick);
                }
                Need::Health(host) => {
                    self.send(number, &host, true, &Message::AskHealth { controller: number, rollout });
                    self.decide(number, rollout, &Input::Tick);
                }
            }
        }
    }

    /// Offers the newest order of every host, as the store has it now.
    fn offer(&mut self, number: usize) {
        for host in self.agents.keys().cloned().collect::<Vec<_>>() {
            if !self.random.percent(20) {
                continue;
            }
            let slot = self.store.range(&slot_key(&host)).into_iter().find(|row| row.key == slot_key(&host));
            let order = slot.and_then(|row| decode::<Slot>(row).ok()).and_then(|slot| slot.order);
            if let Some(order) = order {
                self.send(number, &host, true, &Message::Offer(order));
            }
        }
    }

    fn decide(&mut self, number: usize, rollout: usize, input: &Input) {
        if self.controllers[number].busy {
            return;
        }
        let now = self.local(self.controllers[number].skew);
        loop {
            let session = &mut self.controllers[number].sessions[rollout];
            let Ok(reply) = self.store.txn(&session.read(input.host())) else { return };
            let author = Author::Controller(number.to_string());
            match session.decide(input.clone(), author, String::new(), now, reply) {
                Ok(Decided::Behind) => {}
                Ok(Decided::Commit(commit)) => {
                    let mut pause = 1 + self.random.below(20);
                    if !self.calm() && self.random.percent(10) {
                        pause += self.random.below(60_000);
                    }
                    self.controllers[number].busy = true;
                    let life = self.controllers[number].life;
                    self.after(pause, Event::Commit { controller: number, life, rollout, commit });
                    return;
                }
                Err(_) => return,
            }
        }
    }

    pub(super) fn commit(&mut self, number: usize, life: u64, rollout: usize, commit: Commit) {
        let mut txn: Txn = commit.txn.clone();
        if self.sabotage == Some(Sabotage::NoCompare) {
            // The log still has one writer per line; what was read of locks and slots is not compared.
            let last = txn.compares.pop();
            txn.compares = last.into_iter().collect::<Vec<Compare>>();
        }
        let taken = self.store.txn(&txn).is_ok_and(|reply| reply.succeeded);
        self.summary.refused_commits += u64::from(!taken);
        if taken {
            let id = self.rollouts[rollout].0.clone();
            let entry = &commit.entry;
            let line = format!("controller {number}, {id} line {}: {:?}", entry.number, entry.input);
            self.tell(|| line);
            if let Input::ApproveVisit { host, scopes, .. } = &entry.input {
                let generation = entry.view.slot.generation;
                for scope in scopes {
                    self.judge.approves(host, generation, scope.clone());
                }
            }
        }
        let controller = &mut self.controllers[number];
        if controller.life == life {
            controller.busy = false;
            controller.sessions[rollout].committed(commit, taken);
        }
    }

    pub(super) fn operator(&mut self) {
        let number = usize::from(self.random.percent(50));
        let rollout = usize::try_from(self.random.below(self.rollouts.len() as u64)).unwrap_or(0);
        let hosts: Vec<_> = self.agents.keys().cloned().collect();
        let Some(host) = self.random.pick(&hosts).cloned() else { return };
        let scopes = self.controllers[number].sessions[rollout]
            .rollout()
            .definition()
            .hosts
            .get(&host)
            .map(fermata_controller::rollout::HostTask::scopes);
        let input = match self.random.below(8) {
            0 => Input::Pause,
            1 => Input::Resume,
            2 => Input::Skip(host),
            3 => Input::Hold(host),
            4 => Input::Retry(host),
            5 if self.random.percent(30) => Input::Abort,
            _ => {
                Input::ApproveVisit { host, scopes: scopes.unwrap_or_default(), by: std::collections::BTreeMap::new() }
            }
        };
        self.controllers[number].inbox.push_back((rollout, input));
    }

    /// When all is calm, somebody lets everything go on that waits for a person.
    pub(super) fn let_go_on(&mut self, number: usize) {
        for rollout in 0..self.rollouts.len() {
            if self.controllers[number].sessions[rollout].rollout().ended() {
                continue;
            }
            let state = self.controllers[number].sessions[rollout].rollout().state();
            let mut inputs = Vec::new();
            if state.phase == Phase::Paused {
                inputs.push(Input::Resume);
            }
            if state.phase == Phase::Planned {
                inputs.push(Input::Start);
            }
            if state.gate == StageGate::Approval {
                inputs.push(Input::ApproveStage);
            }
            let held = state.hosts.iter().filter(|(_, host)| host.held && host.phase == HostPhase::Waiting);
            inputs.extend(held.map(|(name, _)| Input::Unhold(name.clone())));
            let inbox = &mut self.controllers[number].inbox;
            if inbox.is_empty() {
                inbox.extend(inputs.into_iter().map(|input| (rollout, input)));
            }
        }
    }
}
