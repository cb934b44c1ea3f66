//! The hostile world.

mod agents;
mod controllers;
mod end;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;

use fermata_controller::gate::OrderGate;
use fermata_controller::order::{Generation, Order, Outcome, Report, RolloutId};
use fermata_controller::rollout::{Input, VmTrouble};
use fermata_controller::session::{Commit, Session};
use fermata_model::HostName;
use fermata_planner::{Fleet, Plan};
use fermata_store::memory::MemoryTables;
use jiff::{SignedDuration, Timestamp};

use crate::judge::{Judge, Violation};
use crate::random::Random;
use crate::{Failure, Summary, fleet};

/// Milliseconds of true time since the campaign began.
type Millis = u64;

/// Faults stop then; afterwards everything has to come to its end.
const CALM_AT: Millis = 12 * 60_000;
/// A rollout that has not ended by then is stuck.
const END_AT: Millis = CALM_AT + 2 * 3_600_000;

/// A safeguard taken away, to see that the judge notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// Commits do not compare what was read.
    NoCompare,
    /// Gates forget everything when the agent crashes.
    ForgetfulGate,
    /// Agents obey orders of any generation.
    AnyGeneration,
    /// Agents start work without waiting for the notice.
    NoNotice,
}

/// Where messages come from and go to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Node {
    Controller(usize),
    Agent(HostName),
}

#[derive(Debug, Clone)]
enum Message {
    Offer(Order),
    AskPreflight { controller: usize, rollout: usize, asked: Timestamp },
    Preflight { rollout: usize, host: HostName, asked: Timestamp, refusal: Option<String> },
    AskHealth { controller: usize, rollout: usize },
    Health { rollout: usize, host: HostName, unhealthy: Vec<VmTrouble> },
    Report(Report),
}

#[derive(Debug)]
enum Event {
    Controller(usize),
    Commit { controller: usize, life: u64, rollout: usize, commit: Box<Commit> },
    Agent(HostName),
    WorkEnds { host: HostName, generation: Generation, outcome: Outcome },
    Arrives { at: Node, message: Message },
    Crash(Node),
    Restart(Node),
    Part,
    Operator,
}

struct Controller {
    up: bool,
    /// Commits of an earlier life still reach the store; their answers reach nobody.
    life: u64,
    /// Milliseconds its clock is ahead.
    skew: i64,
    sessions: Vec<Session>,
    inbox: VecDeque<(usize, Input)>,
    busy: bool,
}

struct Agent {
    up: bool,
    skew: i64,
    gate: OrderGate,
    /// VMs are not healthy before.
    healthy_at: Millis,
    touched: bool,
}

/// A campaign.
pub struct World {
    seed: u64,
    random: Random,
    sabotage: Option<Sabotage>,
    begin: Timestamp,
    now: Millis,
    order: u64,
    queue: BinaryHeap<Reverse<(Millis, u64)>>,
    events: BTreeMap<u64, Event>,
    fleet: Fleet,
    rollouts: Vec<(RolloutId, Plan)>,
    store: MemoryTables,
    controllers: Vec<Controller>,
    agents: BTreeMap<HostName, Agent>,
    /// A controller's partition mask: hosts whose bit is set cannot talk to it.
    parted: Vec<u64>,
    loss: u64,
    slowness: u64,
    judge: Judge,
    summary: Summary,
    story: VecDeque<String>,
}

impl World {
    /// The world of a seed.
    ///
    /// # Panics
    /// When the scene's definitions are not sound, which the planner sees to.
    #[must_use]
    pub fn new(seed: u64, sabotage: Option<Sabotage>) -> Self {
        let mut random = Random::new(seed);
        let begin = Timestamp::from_second(1_800_000_000).expect("a time in this century");
        let scene = fleet::scene(&mut random, begin);
        let mut judge = Judge::default();
        let sessions: Vec<Session> = scene
            .rollouts
            .iter()
            .map(|(_, definition)| {
                judge.learn(definition);
                Session::new(Arc::clone(definition)).expect("a plan gives a sound definition")
            })
            .collect();
        // Most clocks are right within a second; some are wrong by minutes.
        let skew = |random: &mut Random| {
            let range = if random.percent(20) { 600_000 } else { 1_000 };
            random.below(2 * range).cast_signed() - range.cast_signed()
        };
        let controllers: Vec<Controller> = (0..2)
            .map(|_| Controller {
                up: true,
                life: 0,
                skew: skew(&mut random),
                sessions: sessions.clone(),
                inbox: VecDeque::new(),
                busy: false,
            })
            .collect();
        let agents = scene.fleet.hosts().iter().map(|host| {
            let gate = OrderGate::new(host.name.clone());
            let agent = Agent { up: true, skew: skew(&mut random), gate, healthy_at: 0, touched: false };
            (host.name.clone(), agent)
        });
        let agents = agents.collect();
        let rollouts = scene.rollouts.iter().map(|(plan, definition)| (definition.id.clone(), plan.clone()));
        Self {
            seed,
            sabotage,
            begin,
            now: 0,
            order: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            rollouts: rollouts.collect(),
            fleet: scene.fleet,
            store: MemoryTables::default(),
            parted: vec![0; controllers.len()],
            controllers,
            agents,
            loss: random.below(30),
            slowness: 1 << random.below(16),
            judge,
            summary: Summary::default(),
            story: VecDeque::new(),
            random,
        }
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// [`Failure`] at the first broken promise.
    pub fn run(mut self) -> Result<Summary, Box<Failure>> {
        let result = self.play();
        result.map_err(|violation| {
            Box::new(Failure { seed: self.seed, violation, story: self.story.iter().cloned().collect() })
        })?;
        Ok(self.summary)
    }

    fn play(&mut self) -> Result<(), Violation> {
        for rollout in 0..self.rollouts.len() {
            let starter = usize::from(self.random.percent(50));
            self.controllers[starter].inbox.push_back((rollout, Input::Start));
        }
        for controller in 0..self.controllers.len() {
            self.after(0, Event::Controller(controller));
            self.plan_faults(&Node::Controller(controller));
        }
        for host in self.agents.keys().cloned().collect::<Vec<_>>() {
            let first = self.random.below(1_000);
            self.after(first, Event::Agent(host.clone()));
            self.plan_faults(&Node::Agent(host));
        }
        for _ in 0..self.random.below(4) {
            let at = self.random.below(CALM_AT);
            self.after(at, Event::Part);
        }
        for _ in 0..self.random.below(5) {
            let at = self.random.below(CALM_AT);
            self.after(at, Event::Operator);
        }
        while let Some(Reverse((at, number))) = self.queue.pop() {
            self.now = at;
            let event = self.events.remove(&number).expect("every number in the queue has its event");
            self.summary.events += 1;
            self.handle(event)?;
            if self.over() {
                return self.judge_the_end();
            }
            if self.now > END_AT {
                return Err(self.stuck());
            }
        }
        Err(self.stuck())
    }

    fn handle(&mut self, event: Event) -> Result<(), Violation> {
        match event {
            Event::Controller(controller) => {
                self.controller(controller);
                let pause = 200 + self.random.below(3_000);
                self.after(pause, Event::Controller(controller));
            }
            Event::Commit { controller, life, rollout, commit } => self.commit(controller, life, rollout, *commit),
            Event::Agent(host) => {
                self.agent(&host)?;
                let pause = 500 + self.random.below(12_000);
                self.after(pause, Event::Agent(host));
            }
            Event::WorkEnds { host, generation, outcome } => self.work_ends(host, generation, outcome),
            Event::Arrives { at, message } => self.arrives(at, message),
            Event::Crash(node) => self.crash(&node),
            Event::Restart(node) => self.restart(&node),
            Event::Part => self.part(),
            Event::Operator => self.operator(),
        }
        Ok(())
    }

    fn calm(&self) -> bool {
        self.now >= CALM_AT
    }

    fn after(&mut self, pause: Millis, event: Event) {
        self.order += 1;
        self.queue.push(Reverse((self.now + pause, self.order)));
        self.events.insert(self.order, event);
    }

    fn plan_faults(&mut self, node: &Node) {
        for _ in 0..self.random.below(3) {
            let at = self.random.below(CALM_AT);
            self.after(at, Event::Crash(node.clone()));
        }
    }

    fn true_time(&self) -> Timestamp {
        self.moment(self.now.cast_signed())
    }

    fn moment(&self, millis: i64) -> Timestamp {
        self.begin.saturating_add(SignedDuration::from_millis(millis)).unwrap_or(Timestamp::MAX)
    }

    fn local(&self, skew: i64) -> Timestamp {
        self.moment(self.now.cast_signed() + skew)
    }

    fn tell(&mut self, line: impl FnOnce() -> String) {
        if self.story.len() >= 60 {
            self.story.pop_front();
        }
        let at = self.now;
        self.story.push_back(format!("{:>8}.{:03} {}", at / 1_000, at % 1_000, line()));
    }

    /// Sends a message through the network: perhaps lost, perhaps twice, whenever.
    fn send(&mut self, controller: usize, host: &HostName, to_agent: bool, message: &Message) {
        let bit = self.agents.keys().position(|name| name == host).unwrap_or(0);
        let parted = self.parted[controller] >> (bit % 64) & 1 == 1;
        if !self.calm() && (parted || self.random.percent(self.loss)) {
            self.summary.lost += 1;
            return;
        }
        let at = if to_agent { Node::Agent(host.clone()) } else { Node::Controller(controller) };
        let copies = if self.calm() { 1 } else { 1 + u64::from(self.random.percent(10)) };
        for _ in 0..copies {
            let mut delay = 1 + self.random.below(50);
            if !self.calm() && self.random.percent(15) {
                delay += self.random.below(self.slowness * 20);
            }
            self.after(delay, Event::Arrives { at: at.clone(), message: message.clone() });
        }
    }

    fn crash(&mut self, node: &Node) {
        self.summary.crashes += 1;
        let down = 1_000 + self.random.below(2 * 60_000);
        self.after(down, Event::Restart(node.clone()));
        match node {
            Node::Controller(controller) => {
                let node = &mut self.controllers[*controller];
                node.up = false;
                node.life += 1;
                node.inbox.clear();
                node.busy = false;
            }
            Node::Agent(host) => self.agents.get_mut(host).expect("agents stay").up = false,
        }
        self.tell(|| format!("{node:?} crashes"));
    }

    fn restart(&mut self, node: &Node) {
        match node {
            Node::Controller(controller) => {
                let definitions: Vec<_> = self.controllers[*controller]
                    .sessions
                    .iter()
                    .map(|session| Arc::clone(session.rollout().definition()))
                    .collect();
                let fresh = definitions
                    .into_iter()
                    .map(|definition| Session::new(definition).expect("it was sound when the campaign began"));
                let fresh = fresh.collect();
                let node = &mut self.controllers[*controller];
                (node.up, node.sessions) = (true, fresh);
            }
            Node::Agent(host) => {
                let agent = self.agents.get_mut(host).expect("agents stay");
                agent.up = true;
                if self.sabotage == Some(Sabotage::ForgetfulGate) {
                    agent.gate = OrderGate::new(host.clone());
                }
            }
        }
        self.tell(|| format!("{node:?} is back"));
    }

    fn part(&mut self) {
        for controller in 0..self.controllers.len() {
            self.parted[controller] = if self.random.percent(50) { self.random.next() } else { 0 };
        }
        self.tell(|| "the network parts otherwise".to_owned());
        if !self.calm() {
            let lasts = 10_000 + self.random.below(2 * 60_000);
            self.after(lasts, Event::Part);
        }
    }
}
