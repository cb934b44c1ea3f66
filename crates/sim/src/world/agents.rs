//! What agents do, and what happens on their hosts.

use fermata_controller::gate::{Do, OrderGate};
use fermata_controller::order::{Generation, Order, Outcome, Task};
use fermata_controller::rollout::{Input, VmTrouble};
use fermata_model::HostName;
use jiff::{SignedDuration, Timestamp};

use super::{Event, Message, Millis, Node, Sabotage, World};
use crate::judge::Violation;

impl World {
    /// One turn of an agent: time passes for its gate, and it says where it stands.
    pub(super) fn agent(&mut self, host: &HostName) -> Result<(), Violation> {
        let agent = &self.agents[host];
        if !agent.up {
            return Ok(());
        }
        let mut now = self.local(agent.skew);
        if self.sabotage == Some(Sabotage::NoNotice) {
            now = Timestamp::MAX;
        }
        if self.random.percent(5) {
            self.guest_approves(host);
        }
        let agent = self.agents.get_mut(host).expect("agents stay");
        if let Some(Do::Begin(order)) = agent.gate.tick(now) {
            self.begin(host, &order)?;
        }
        self.report(host);
        Ok(())
    }

    fn guest_approves(&mut self, host: &HostName) {
        let agent = self.agents.get_mut(host).expect("agents stay");
        let Some((order, _)) = agent.gate.announced() else { return };
        let Task::Maintain(visit) = &order.task else { return };
        let (generation, scopes) = (order.generation, visit.scopes.clone());
        for scope in scopes {
            agent.gate.approve(&scope);
            self.judge.approves(host, generation, scope);
        }
    }

    fn begin(&mut self, host: &HostName, order: &Order) -> Result<(), Violation> {
        self.judge.begins(order, self.true_time())?;
        self.summary.visits += 1;
        let work = 500 + self.random.below(60_000);
        let outcome = match self.random.below(100) {
            0..3 => Outcome::Undone("simulated".into()),
            3..6 => Outcome::Refused("simulated".into()),
            _ => Outcome::Updated,
        };
        let touched = !matches!(outcome, Outcome::Refused(_));
        let agent = self.agents.get_mut(host).expect("agents stay");
        agent.touched = touched;
        agent.healthy_at = Millis::MAX;
        self.tell(|| format!("{host} begins generation {}", order.generation));
        self.after(work, Event::WorkEnds { host: host.clone(), generation: order.generation, outcome });
        Ok(())
    }

    /// The work goes on without the agent; it hears of the end when it is back.
    pub(super) fn work_ends(&mut self, host: HostName, generation: Generation, outcome: Outcome) {
        let agent = &self.agents[&host];
        if !agent.up {
            self.after(1_000, Event::WorkEnds { host, generation, outcome });
            return;
        }
        let sick = if self.random.percent(5) { self.random.below(4 * 60_000) } else { self.random.below(5_000) };
        let at = self.now;
        let agent = self.agents.get_mut(&host).expect("agents stay");
        if agent.touched {
            agent.healthy_at = at + sick;
        } else {
            agent.healthy_at = 0;
            self.judge.healthy(
                &host,
                self.begin.saturating_add(SignedDuration::from_millis(at.cast_signed())).unwrap_or(Timestamp::MAX),
            );
        }
        self.tell(|| format!("{host} ends generation {generation}: {outcome:?}"));
        self.agents.get_mut(&host).expect("agents stay").gate.finished(generation, outcome);
        self.report(&host);
    }

    fn report(&mut self, host: &HostName) {
        let report = self.agents[host].gate.report();
        let to = usize::from(self.random.percent(50));
        self.send(to, host, false, &Message::Report(report));
    }

    pub(super) fn arrives(&mut self, at: Node, message: Message) {
        match (at, message) {
            (Node::Agent(host), message) => {
                if self.agents[&host].up {
                    self.agent_hears(&host, message);
                }
            }
            (Node::Controller(number), message) => {
                if self.controllers[number].up {
                    self.controller_hears(number, message);
                }
            }
        }
    }

    fn controller_hears(&mut self, number: usize, message: Message) {
        let inputs = match message {
            Message::Report(report) => {
                // Mostly those rollouts that have begun the host; the others now and then.
                let sessions = (0..).zip(&self.controllers[number].sessions);
                let begun = sessions.filter(|(_, session)| session.rollout().state().in_flight.contains(&report.host));
                let begun: Vec<usize> = begun.map(|(rollout, _)| rollout).collect();
                let other = usize::try_from(self.random.below(20)).unwrap_or(0);
                let more = (other < self.rollouts.len() && !begun.contains(&other)).then_some(other);
                begun.into_iter().chain(more).map(|rollout| (rollout, Input::Report(report.clone()))).collect()
            }
            Message::Preflight { rollout, host, asked, refusal } => {
                vec![(rollout, Input::Preflight { host, asked, refusal })]
            }
            Message::Health { rollout, host, unhealthy } => vec![(rollout, Input::Health { host, unhealthy })],
            Message::Offer(_) | Message::AskPreflight { .. } | Message::AskHealth { .. } => Vec::new(),
        };
        let inbox = &mut self.controllers[number].inbox;
        // A controller that cannot keep up forgets; levels are said again.
        if inbox.len() < 64 {
            inbox.extend(inputs);
        }
    }

    fn agent_hears(&mut self, host: &HostName, message: Message) {
        match message {
            Message::Offer(order) => self.offered(host, &order),
            Message::AskPreflight { controller, rollout, asked } => {
                let refusal = (!self.calm() && self.random.percent(10)).then(|| "simulated".to_owned());
                let answer = Message::Preflight { rollout, host: host.clone(), asked, refusal };
                self.send(controller, host, false, &answer);
            }
            Message::AskHealth { controller, rollout } => {
                let agent = &self.agents[host];
                let healthy = self.now >= agent.healthy_at;
                let trouble = || VmTrouble { vm: "v1".parse().expect("a name"), seen: "simulated".into() };
                let unhealthy = if healthy { Vec::new() } else { vec![trouble()] };
                if healthy {
                    self.judge.healthy(host, self.true_time());
                }
                self.send(controller, host, false, &Message::Health { rollout, host: host.clone(), unhealthy });
            }
            Message::Preflight { .. } | Message::Health { .. } | Message::Report(_) => {}
        }
    }

    fn offered(&mut self, host: &HostName, order: &Order) {
        let now = self.local(self.agents[host].skew);
        let agent = self.agents.get_mut(host).expect("agents stay");
        if self.sabotage == Some(Sabotage::AnyGeneration)
            && order.generation < agent.gate.generation()
            && agent.gate.at_work().is_none()
        {
            agent.gate = OrderGate::new(host.clone());
        }
        match agent.gate.order(order, now) {
            Ok(actions) => {
                for action in actions {
                    let Do::Announce { order, not_before } = action else { continue };
                    // The promise is the later of what guests were told, by the host's clock, and nothing else.
                    let until = not_before.saturating_sub(SignedDuration::from_millis(self.agents[host].skew));
                    let until = until.unwrap_or(Timestamp::MAX);
                    self.judge.announced(&order, until);
                    self.tell(|| format!("{host} announces generation {}", order.generation));
                }
            }
            Err(_) => self.summary.old_orders += 1,
        }
    }
}
