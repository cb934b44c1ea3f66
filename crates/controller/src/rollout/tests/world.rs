//! A store and agents in a few maps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fermata_model::{HostName, Mechanism, SetName};
use fermata_planner::policy::Limits;
use jiff::Timestamp;

use crate::lock::SetLock;
use crate::order::{Generation, Outcome, Report, Slot, Standing, Task, UpdateRef};
use crate::rollout::*;

pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

pub(super) fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

pub(super) fn update(name: &str) -> UpdateRef {
    UpdateRef { name: name.into(), digest: "00".into(), mechanism: Mechanism::Swap }
}

/// Hosts as `name:set=part,set=part`; two VMs per set and host, sets of 40.
pub(super) fn definition(hosts: &[&str]) -> Definition {
    let mut order = Vec::new();
    let tasks = hosts.iter().map(|text| {
        let (name, sets) = text.split_once(':').unwrap();
        order.push(host(name));
        let sets = sets.split(',').filter(|text| !text.is_empty()).map(|text| {
            let (set, part) = text.split_once('=').unwrap();
            let member = Member { part: part.into(), vms: 2, of: 40, recovery: Duration::from_secs(300) };
            (set.parse::<SetName>().unwrap(), member)
        });
        let task = HostTask {
            stage: 0,
            rack: None,
            sets: sets.collect(),
            alone: std::collections::BTreeSet::new(),
            work: Duration::from_secs(60),
            windows: Vec::new(),
        };
        (host(name), task)
    });
    let hosts = tasks.collect();
    Definition {
        id: "r".into(),
        reason: "test".into(),
        plan: "p".into(),
        updates: vec![update("qemu")],
        order,
        hosts,
        stages: vec![StageRule { name: "all".into(), soak: Duration::ZERO, approval: false }],
        rules: Rules { limits: Limits::default(), notice: Duration::from_secs(900), ..Rules::default() },
    }
}

pub(super) struct World {
    pub(super) rollout: Rollout,
    pub(super) locks: BTreeMap<SetName, SetLock>,
    pub(super) slots: BTreeMap<HostName, Slot>,
    pub(super) log: Vec<Entry>,
    pub(super) now: i64,
}

impl World {
    pub(super) fn new(definition: Definition) -> Self {
        let rollout = Rollout::new(Arc::new(definition)).unwrap();
        Self { rollout, locks: BTreeMap::new(), slots: BTreeMap::new(), log: Vec::new(), now: 0 }
    }

    pub(super) fn started(definition: Definition) -> Self {
        let mut world = Self::new(definition);
        world.give(Input::Start).unwrap();
        world
    }

    pub(super) fn view(&self, host: Option<&HostName>) -> View {
        let Some(host) = host else { return View::default() };
        let Some(task) = self.rollout.definition().hosts.get(host) else { return View::default() };
        let locks = task.sets.keys().filter_map(|set| Some((set.clone(), self.locks.get(set)?.clone()))).collect();
        View { locks, slot: self.slots.get(host).cloned().unwrap_or_default(), cordoned: false }
    }

    pub(super) fn give(&mut self, input: Input) -> Result<Vec<Action>, Refusal> {
        let view = self.view(input.host());
        let actions = self.rollout.step(&input, &view, at(self.now))?;
        for action in &actions {
            match action.clone() {
                Action::Lock { set, lock } => drop(self.locks.insert(set, lock)),
                Action::Slot { host, slot } => drop(self.slots.insert(host, slot)),
                Action::Alarm { .. } => {}
            }
        }
        self.log.push(Entry {
            number: self.log.len() as u64 + 1,
            at: at(self.now),
            author: Author::Controller("c".into()),
            reason: String::new(),
            input,
            view,
            actions: actions.clone(),
        });
        Ok(actions)
    }

    pub(super) fn phase(&self, name: &str) -> &HostPhase {
        &self.rollout.state().hosts[&host(name)].phase
    }

    pub(super) fn word(&self, name: &str) -> &'static str {
        self.phase(name).word()
    }

    pub(super) fn wait(&self, name: &str) -> Option<Wait> {
        self.rollout.explain(&host(name), &self.view(Some(&host(name))), at(self.now)).unwrap().wait
    }

    pub(super) fn generation(&self, name: &str) -> Generation {
        self.slots[&host(name)].generation
    }

    pub(super) fn order(&mut self, name: &str) -> Result<(), Refusal> {
        self.give(Input::AskPreflight(host(name)))?;
        let asked = at(self.now);
        self.give(Input::Preflight { host: host(name), asked, refusal: None }).map(drop)
    }

    pub(super) fn report(&mut self, name: &str, standing: Standing) -> Result<Vec<Action>, Refusal> {
        let generation = self.generation(name);
        self.give(Input::Report(Report { host: host(name), generation, standing, last: None }))
    }

    pub(super) fn announce(&mut self, name: &str) {
        self.order(name).unwrap();
        let not_before = match &self.slots[&host(name)].order.as_ref().unwrap().task {
            Task::Maintain(visit) => visit.not_before,
            Task::StandDown => panic!("no visit was ordered"),
        };
        self.report(name, Standing::Announced { not_before }).unwrap();
    }

    pub(super) fn visit(&mut self, name: &str, outcome: Outcome) {
        self.announce(name);
        self.report(name, Standing::InWork).unwrap();
        self.report(name, Standing::Finished(outcome)).unwrap();
    }

    pub(super) fn healthy(&mut self, name: &str) -> Result<Vec<Action>, Refusal> {
        self.give(Input::Health { host: host(name), unhealthy: Vec::new() })
    }

    pub(super) fn unhealthy(&mut self, name: &str, vms: &[&str]) -> Result<Vec<Action>, Refusal> {
        let trouble = |vm: &&str| VmTrouble { vm: vm.parse().unwrap(), seen: "tcp 80: refused".into() };
        self.give(Input::Health { host: host(name), unhealthy: vms.iter().map(trouble).collect() })
    }

    pub(super) fn through(&mut self, name: &str) {
        self.visit(name, Outcome::Updated);
        self.healthy(name).unwrap();
    }
}
