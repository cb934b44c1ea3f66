//! The system under check.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use fermata_controller::gate::{OrderGate, missing_approvals};
use fermata_controller::lock::SetLock;
use fermata_controller::order::{Generation, Order, Outcome, Report, Slot, Standing, Task, UpdateRef};
use fermata_controller::rollout::{
    Action, Definition, HostPhase, HostTask, Input, Member, Need, Rollout, Rules, StageRule, View,
};
use fermata_model::{HostName, Mechanism, SetName};
use jiff::Timestamp;
use stateright::{Model, Path, Property};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

/// Hosts with their parts of sets, and how many rollouts go over all of them.
pub(crate) struct Fleet {
    definitions: Vec<Arc<Definition>>,
    hosts: Vec<HostName>,
}

impl Fleet {
    pub(crate) fn new(hosts: &[&str], rollouts: usize) -> Self {
        let tasks: BTreeMap<HostName, HostTask> = hosts.iter().map(|text| task(text)).collect();
        let order: Vec<HostName> = tasks.keys().cloned().collect();
        let definition = |number: usize| Definition {
            id: format!("r{number}").as_str().into(),
            reason: String::new(),
            plan: String::new(),
            updates: vec![UpdateRef { name: "u".into(), digest: String::new(), mechanism: Mechanism::Swap }],
            order: order.clone(),
            hosts: tasks.clone(),
            stages: vec![StageRule { name: "all".into(), soak: Duration::ZERO, approval: false }],
            rules: Rules { max_failed_hosts: 9, preflight_retry: Duration::ZERO, ..Rules::default() },
        };
        Self { definitions: (0..rollouts).map(|number| Arc::new(definition(number))).collect(), hosts: order }
    }

    fn sets(&self, host: &HostName) -> &BTreeMap<SetName, Member> {
        &self.definitions[0].hosts[host].sets
    }
}

fn task(text: &str) -> (HostName, HostTask) {
    let (name, sets) = text.split_once(':').unwrap();
    let sets = sets.split(',').map(|text| {
        let (set, part) = text.split_once('=').unwrap();
        (set.parse().unwrap(), Member { part: part.into(), vms: 1, of: 40, recovery: Duration::ZERO })
    });
    let task = HostTask {
        stage: 0,
        rack: None,
        sets: sets.collect(),
        alone: BTreeSet::new(),
        work: Duration::ZERO,
        windows: Vec::new(),
    };
    (name.parse().unwrap(), task)
}

/// A safeguard that is taken away, to see that the check notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Broken {
    CompareAndSwap,
    Generation,
    Journal,
    StandDown,
    Notice,
}

pub(crate) struct System {
    pub(crate) fleet: Fleet,
    /// How often an agent may crash.
    pub(crate) crashes: u8,
    /// How often an operator may interfere.
    pub(crate) operations: u8,
    /// Whether a second controller may sleep between reading and committing.
    pub(crate) sleeper: bool,
    pub(crate) broken: Option<Broken>,
}

impl System {
    pub(crate) fn new(fleet: Fleet) -> Self {
        Self { fleet, crashes: 0, operations: 0, sleeper: false, broken: None }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Agent {
    gate: OrderGate,
    up: bool,
    /// VMs were touched and nobody has seen them healthy yet.
    touched: bool,
}

/// Orders and reports by their place in a history, so that sets of them are ordered.
type OrderKey = (Generation, bool, usize);
type ReportKey = (Generation, u8, Option<Generation>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Pending {
    rollout: usize,
    input: Input,
    base: Rollout,
    view: View,
    after: Rollout,
    actions: Vec<Action>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    rollouts: Vec<Rollout>,
    locks: BTreeMap<SetName, SetLock>,
    slots: BTreeMap<HostName, Slot>,
    agents: BTreeMap<HostName, Agent>,
    sleeping: Option<Box<Pending>>,
    /// Everything the controllers ever offered; any of it may arrive at any time, or never.
    sent: BTreeMap<(HostName, OrderKey), Arc<Order>>,
    /// Everything the agents ever said.
    said: BTreeMap<(HostName, ReportKey), Arc<Report>>,
    crashes: u8,
    operations: u8,
    touched_early: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Happens {
    Decide(usize, Input),
    Read(usize, Input),
    Commit,
    Deliver(HostName, Arc<Order>),
    Begin { host: HostName, late: bool },
    End(HostName, Outcome),
    Crash(HostName),
    Restart(HostName),
}

fn rank(standing: &Standing) -> u8 {
    match standing {
        Standing::Idle => 0,
        Standing::Announced { .. } => 1,
        Standing::InWork => 2,
        Standing::Finished(Outcome::Updated) => 3,
        Standing::Finished(_) => 4,
        Standing::StoodDown => 5,
    }
}

impl World {
    fn view(&self, rollout: usize, input: &Input) -> View {
        let Some(host) = input.host() else { return View::default() };
        let sets = self.rollouts[rollout].definition().hosts[host].sets.keys();
        View {
            locks: sets.map(|set| (set.clone(), self.locks[set].clone())).collect(),
            slot: self.slots[host].clone(),
            cordoned: false,
        }
    }

    fn write(&mut self, rollout: usize, after: Rollout, actions: &[Action], input: &Input, broken: Option<Broken>) {
        self.rollouts[rollout] = after;
        for action in actions {
            match action.clone() {
                Action::Lock { set, lock } => drop(self.locks.insert(set, lock)),
                Action::Slot { host, slot } => {
                    if let Some(order) = &slot.order {
                        self.send(order);
                    }
                    self.slots.insert(host, slot);
                }
                Action::Alarm { .. } => {}
            }
        }
        if let Input::Health { host, unhealthy } = input
            && unhealthy.is_empty()
        {
            self.agents.get_mut(host).unwrap().touched = false;
        }
        if let (Input::Recall(host), Some(Broken::StandDown)) = (input, broken) {
            // The lock is given back as soon as the order is recalled, without the agent's word.
            for lock in self.locks.values_mut() {
                lock.leave(host, self.slots[host].generation, None);
            }
        }
    }

    fn send(&mut self, order: &Order) {
        let key = match &order.task {
            Task::Maintain(visit) => (order.generation, true, visit.approved.len()),
            Task::StandDown => (order.generation, false, 0),
        };
        self.sent.insert((order.host.clone(), key), Arc::new(order.clone()));
    }

    fn say(&mut self, host: &HostName) {
        let report = self.agents[host].gate.report();
        let key = (report.generation, rank(&report.standing), report.last.as_ref().map(|last| last.0));
        self.said.insert((host.clone(), key), Arc::new(report));
    }

    fn inputs(&self, system: &System, number: usize) -> Vec<Input> {
        let rollout = &self.rollouts[number];
        if rollout.ended() {
            return Vec::new();
        }
        let mut inputs: Vec<Input> = rollout
            .agenda(NOW, usize::MAX)
            .into_iter()
            .filter_map(|need| match need {
                Need::Give(input) => Some(input),
                Need::Preflight { host, asked } => {
                    self.agents[&host].up.then_some(Input::Preflight { host, asked, refusal: None })
                }
                Need::Health(host) => (self.agents[&host].up && self.agents[&host].gate.at_work().is_none())
                    .then_some(Input::Health { host, unhealthy: Vec::new() }),
            })
            .collect();
        for ((host, _), report) in &self.said {
            let listening = matches!(
                rollout.state().hosts[host].phase,
                HostPhase::Ordered { .. }
                    | HostPhase::Announced { .. }
                    | HostPhase::InWork { .. }
                    | HostPhase::StandingDown { .. }
            );
            if listening {
                inputs.push(Input::Report(Report::clone(report)));
            }
        }
        if self.operations < system.operations {
            inputs.extend([Input::Pause, Input::Abort]);
            for host in &system.fleet.hosts {
                inputs.extend([Input::Skip(host.clone()), Input::Hold(host.clone())]);
                if let HostPhase::Ordered { .. } | HostPhase::Announced { .. } = rollout.state().hosts[host].phase {
                    let scopes = rollout.definition().hosts[host].scopes();
                    inputs.push(Input::ApproveVisit {
                        host: host.clone(),
                        scopes,
                        by: std::collections::BTreeMap::new(),
                    });
                }
            }
        }
        // What was stopped goes on, sooner or later, so that every story has an end.
        inputs.push(Input::Resume);
        inputs.extend(system.fleet.hosts.iter().cloned().map(Input::Unhold));
        inputs
    }
}

impl System {
    /// A commit whose reads have changed is refused whenever it comes, because revisions only grow: it need not be kept.
    fn wake_the_refused(&self, world: &mut World) {
        if self.broken != Some(Broken::CompareAndSwap)
            && let Some(pending) = &world.sleeping
            && (world.rollouts[pending.rollout] != pending.base
                || world.view(pending.rollout, &pending.input) != pending.view)
        {
            world.sleeping = None;
        }
    }
}

impl System {
    /// Messages that the core provably ignores from now on only multiply equal worlds: orders below the gate's generation (which never
    /// falls, unless that is what is broken), and reports below the slot's generation or after its visit was closed.
    fn forget_the_powerless(&self, world: &mut World) {
        let World { sent, said, agents, slots, .. } = world;
        if !matches!(self.broken, Some(Broken::Generation | Broken::Journal)) {
            sent.retain(|(host, key), _| key.0 >= agents[host].gate.generation());
        }
        said.retain(|(host, key), _| slots[host].open.is_some() && key.0 >= slots[host].generation);
    }
}

fn is_operation(input: &Input) -> bool {
    matches!(input, Input::Pause | Input::Abort | Input::Skip(_) | Input::Hold(_) | Input::ApproveVisit { .. })
}

impl Model for System {
    type State = World;
    type Action = Happens;

    fn init_states(&self) -> Vec<World> {
        let rollouts = self.fleet.definitions.iter().map(|definition| {
            let mut rollout = Rollout::new(Arc::clone(definition)).unwrap();
            rollout.step(&Input::Start, &View::default(), NOW).unwrap();
            rollout
        });
        let agent = |host: &HostName| Agent { gate: OrderGate::new(host.clone()), up: true, touched: false };
        let sets = self.fleet.hosts.iter().flat_map(|host| self.fleet.sets(host).keys().cloned());
        vec![World {
            rollouts: rollouts.collect(),
            locks: sets.map(|set| (set, SetLock::default())).collect(),
            slots: self.fleet.hosts.iter().map(|host| (host.clone(), Slot::default())).collect(),
            agents: self.fleet.hosts.iter().map(|host| (host.clone(), agent(host))).collect(),
            sleeping: None,
            sent: BTreeMap::new(),
            said: BTreeMap::new(),
            crashes: 0,
            operations: 0,
            touched_early: false,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Happens>) {
        for number in 0..world.rollouts.len() {
            for input in world.inputs(self, number) {
                // The sleeper matters where locks or orders are written; the rest is the same for both.
                let writes = matches!(input, Input::Preflight { .. } | Input::Health { .. } | Input::Recall(_));
                if self.sleeper && world.sleeping.is_none() && writes {
                    actions.push(Happens::Read(number, input.clone()));
                }
                actions.push(Happens::Decide(number, input));
            }
        }
        if world.sleeping.is_some() {
            actions.push(Happens::Commit);
        }
        for (host, agent) in &world.agents {
            if !agent.up {
                actions.push(Happens::Restart(host.clone()));
                continue;
            }
            let offered = world.sent.iter().filter(|((to, _), _)| to == host);
            actions.extend(offered.map(|(_, order)| Happens::Deliver(host.clone(), Arc::clone(order))));
            if agent.gate.announced().is_some() {
                actions.extend([true, false].map(|late| Happens::Begin { host: host.clone(), late }));
            }
            if agent.gate.at_work().is_some() {
                actions.push(Happens::End(host.clone(), Outcome::Updated));
            }
            if world.crashes < self.crashes {
                actions.push(Happens::Crash(host.clone()));
            }
        }
    }

    fn next_state(&self, before: &World, action: Happens) -> Option<World> {
        let mut world = before.clone();
        match action {
            Happens::Decide(number, input) => {
                let view = world.view(number, &input);
                let mut after = world.rollouts[number].clone();
                let actions = after.step(&input, &view, NOW).ok()?;
                world.operations += u8::from(is_operation(&input));
                world.write(number, after, &actions, &input, self.broken);
            }
            Happens::Read(rollout, input) => {
                let view = world.view(rollout, &input);
                let base = world.rollouts[rollout].clone();
                let mut after = base.clone();
                let actions = after.step(&input, &view, NOW).ok()?;
                world.sleeping = Some(Box::new(Pending { rollout, input, base, view, after, actions }));
            }
            Happens::Commit => {
                let pending = world.sleeping.take()?;
                let unchanged = world.rollouts[pending.rollout] == pending.base
                    && world.view(pending.rollout, &pending.input) == pending.view;
                if unchanged || self.broken == Some(Broken::CompareAndSwap) {
                    world.write(pending.rollout, pending.after, &pending.actions, &pending.input, self.broken);
                }
            }
            Happens::Deliver(host, order) => {
                let agent = world.agents.get_mut(&host).unwrap();
                if self.broken == Some(Broken::Generation) && order.generation < agent.gate.generation() {
                    agent.gate = OrderGate::new(host.clone());
                }
                agent.gate.order(&order, NOW).ok()?;
                world.say(&host);
            }
            Happens::Begin { host, late } => {
                let agent = world.agents.get_mut(&host).unwrap();
                let (order, not_before) = agent.gate.announced()?;
                let approved = missing_approvals(order).is_empty();
                let early = !late;
                let now = if late || self.broken == Some(Broken::Notice) { not_before } else { NOW };
                agent.gate.tick(now)?;
                agent.touched = true;
                world.touched_early |= early && !approved;
                world.say(&host);
            }
            Happens::End(host, outcome) => {
                let agent = world.agents.get_mut(&host).unwrap();
                let generation = agent.gate.at_work()?.generation;
                agent.gate.finished(generation, outcome);
                world.say(&host);
            }
            Happens::Crash(host) => {
                let agent = world.agents.get_mut(&host).unwrap();
                agent.up = false;
                world.crashes += 1;
            }
            Happens::Restart(host) => {
                let agent = world.agents.get_mut(&host).unwrap();
                agent.up = true;
                if self.broken == Some(Broken::Journal) {
                    agent.gate = OrderGate::new(host.clone());
                }
            }
        }
        self.wake_the_refused(&mut world);
        self.forget_the_powerless(&mut world);
        (world != *before).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("P4: one part of a set at a time", |system: &Self, world: &World| {
                let mut parts = BTreeMap::new();
                let under = |agent: &Agent| agent.touched || agent.gate.at_work().is_some();
                world.agents.iter().filter(|(_, agent)| under(agent)).all(|(host, _)| {
                    let mut sets = system.fleet.sets(host).iter();
                    sets.all(|(set, member)| *parts.entry(set).or_insert(&member.part) == &member.part)
                })
            }),
            Property::always("agents at work hold their locks", |system: &Self, world: &World| {
                world.agents.iter().filter(|(_, agent)| agent.gate.at_work().is_some()).all(|(host, _)| {
                    let mut sets = system.fleet.sets(host).keys();
                    sets.all(|set| world.locks[set].open.as_ref().is_some_and(|open| open.holders.contains_key(host)))
                })
            }),
            Property::always("P5: no VM before NotBefore unless approved", |_, world: &World| !world.touched_early),
            Property::always("nothing stays locked when all has ended", |_, world: &World| {
                !world.rollouts.iter().all(Rollout::ended)
                    || (world.locks.values().all(|lock| lock.open.is_none())
                        && world.slots.values().all(|slot| slot.open.is_none()))
            }),
            Property::eventually("P6: every rollout comes to its end", |_, world: &World| {
                world.rollouts.iter().all(Rollout::ended)
            }),
        ]
    }
}

/// How a promise was broken, for people.
pub(crate) fn story(path: &Path<World, Happens>) -> String {
    let mut text = String::new();
    for action in path.clone().into_actions() {
        let _ = match action {
            Happens::Deliver(host, order) => writeln!(
                text,
                "  {host} gets generation {}: {}",
                order.generation,
                if order.task == Task::StandDown { "stand down" } else { "maintain" }
            ),
            other => writeln!(text, "  {other:?}"),
        };
    }
    text
}
