//! Hosts whose work is played; everything they do goes into one journal.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fermata_controller::agent_link::{HostWork, Work};
use fermata_controller::health::HealthGate;
use fermata_controller::order::{Approved, Generation, Order, Outcome, Scope, Task, UpdateRef};
use fermata_controller::rollout::VmTrouble;
use fermata_controller::wire::{Elsewhere, HostReport, MaintenanceProgress, VisitProgress, VmProgress, VmReport};
use jiff::Timestamp;
use tokio::sync::watch;

pub(crate) struct Played {
    journal: watch::Sender<Vec<String>>,
    lasts: Mutex<Duration>,
    refusals: Mutex<BTreeMap<String, String>>,
    undone: Mutex<BTreeMap<String, String>>,
    guests_approve: Mutex<bool>,
}

impl Default for Played {
    fn default() -> Self {
        Self {
            journal: watch::Sender::new(Vec::new()),
            lasts: Mutex::new(Duration::from_millis(50)),
            refusals: Mutex::default(),
            undone: Mutex::default(),
            guests_approve: Mutex::default(),
        }
    }
}

impl Played {
    pub(crate) fn journal(&self) -> Vec<String> {
        self.journal.borrow().clone()
    }

    pub(crate) async fn until(&self, wanted: impl Fn(&[String]) -> bool) {
        let mut watch = self.journal.subscribe();
        let found = tokio::time::timeout(Duration::from_secs(60), watch.wait_for(|journal| wanted(journal)));
        found.await.unwrap_or_else(|_| panic!("it did not happen: {:?}", self.journal())).unwrap();
    }

    pub(crate) fn work_lasts(&self, time: Duration) {
        *self.lasts.lock().unwrap() = time;
    }

    pub(crate) fn refuses(&self, host: &str, reason: &str) {
        self.refusals.lock().unwrap().insert(host.to_owned(), reason.to_owned());
    }

    pub(crate) fn undoes(&self, host: &str, reason: &str) {
        self.undone.lock().unwrap().insert(host.to_owned(), reason.to_owned());
    }

    /// From now on VMs approve what comes over their sets on other hosts.
    pub(crate) fn guests_approve(&self) {
        *self.guests_approve.lock().unwrap() = true;
    }

    fn note(&self, line: String) {
        self.journal.send_modify(|journal| journal.push(line));
    }
}

pub(crate) struct Host {
    name: String,
    vms: Vec<VmReport>,
    world: Arc<Played>,
    begun: Mutex<BTreeMap<Generation, Instant>>,
    progress: Mutex<Option<VisitProgress>>,
}

impl Host {
    pub(crate) fn new(name: &str, sets: &[(&str, u8)], world: Arc<Played>) -> Self {
        let vm = |(set, domain): &(&str, u8)| VmReport {
            name: if *domain == 0 { format!("{set}-{name}") } else { format!("{set}-{name}-{domain}") }
                .parse()
                .unwrap(),
            set: Some(set.parse().unwrap()),
            // The largest number stands for none.
            update_domain: (*domain != u8::MAX).then(|| u32::from(*domain).try_into().unwrap()),
            vmm: None,
        };
        let vms = sets.iter().map(vm).collect();
        Self { name: name.to_owned(), vms, world, begun: Mutex::default(), progress: Mutex::default() }
    }
}

impl Host {
    /// What a visit of 7 ms would report.
    fn measured(&self, generation: Generation) -> VisitProgress {
        let vm = |vm: &VmReport| VmProgress {
            vm: vm.name.clone(),
            mechanism: fermata_model::Mechanism::Swap,
            forecast_us: 10_000,
            host_blackouts_us: vec![7_000],
            may_have_stood_us: None,
            guest_blackout_us: None,
            clock: None,
            end: "updated".into(),
        };
        let maintenance = MaintenanceProgress {
            id: format!("played-{generation}"),
            update: "qemu".into(),
            stage: "closing".into(),
            outcome: Some("done".into()),
            trouble: None,
            stages: vec![],
            vms: self.vms.iter().map(vm).collect(),
        };
        VisitProgress { rollout: "patch".into(), generation, maintenances: vec![maintenance] }
    }
}

impl HostWork for Host {
    fn host(&self) -> Work<'_, HostReport> {
        Box::pin(async move {
            HostReport {
                kernel: "6.12".into(),
                vmms: vec!["10.0".into()],
                vault: "memfd".into(),
                vms: self.vms.clone(),
                ..HostReport::default()
            }
        })
    }

    fn preflight<'a>(&'a self, _updates: &'a [UpdateRef], _gates: &'a [HealthGate]) -> Work<'a, Result<(), String>> {
        Box::pin(async move { self.world.refusals.lock().unwrap().get(&self.name).cloned().map_or(Ok(()), Err) })
    }

    fn announce<'a>(&'a self, _order: &'a Order, _not_before: Timestamp) -> Work<'a, ()> {
        Box::pin(async move { self.world.note(format!("{} announces", self.name)) })
    }

    fn cancel<'a>(&'a self, _order: &'a Order) -> Work<'a, ()> {
        Box::pin(async move { self.world.note(format!("{} cancels", self.name)) })
    }

    fn elsewhere<'a>(&'a self, visits: &'a [Elsewhere]) -> Work<'a, ()> {
        Box::pin(async move {
            for visit in visits {
                self.world.note(format!("{} tells of {}", self.name, visit.order.host));
            }
        })
    }

    fn approved<'a>(&'a self, order: &'a Order, scopes: &'a BTreeSet<Scope>) -> Work<'a, Approved> {
        Box::pin(async move {
            if order.host.as_str() == self.name || !*self.world.guests_approve.lock().unwrap() {
                return Approved::default();
            }
            let ours = self.vms.iter().filter_map(|vm| Some((vm.name.clone(), vm.set.clone()?)));
            let by: BTreeMap<_, _> = ours.filter(|(_, set)| scopes.contains(&Scope::Set(set.clone()))).collect();
            Approved { scopes: by.values().cloned().map(Scope::Set).collect(), by }
        })
    }

    fn tell_approved<'a>(&'a self, order: &'a Order) -> Work<'a, bool> {
        Box::pin(async move {
            if let Task::Maintain(visit) = &order.task
                && !visit.approved.is_empty()
            {
                let by: Vec<String> = visit.approvers.keys().map(ToString::to_string).collect();
                self.world.note(format!("{} hears of {} by {}", self.name, visit.approved.len(), by.join(", ")));
            }
            true
        })
    }

    fn begin<'a>(&'a self, order: &'a Order) -> Work<'a, ()> {
        Box::pin(async move {
            self.begun.lock().unwrap().entry(order.generation).or_insert_with(|| {
                self.world.note(format!("{} begins", self.name));
                Instant::now()
            });
        })
    }

    fn outcome(&self, generation: Generation) -> Work<'_, Option<Outcome>> {
        Box::pin(async move {
            let begun = self.begun.lock().unwrap().get(&generation).copied()?;
            if begun.elapsed() < *self.world.lasts.lock().unwrap() {
                return None;
            }
            self.world.note(format!("{} ends", self.name));
            let undone = self.world.undone.lock().unwrap().get(&self.name).cloned();
            *self.progress.lock().unwrap() = Some(self.measured(generation));
            Some(undone.map_or(Outcome::Updated, Outcome::Undone))
        })
    }

    fn health<'a>(&'a self, _gates: &'a [HealthGate]) -> Work<'a, Vec<VmTrouble>> {
        Box::pin(async { Vec::new() })
    }

    fn progress(&self) -> Work<'_, Option<VisitProgress>> {
        Box::pin(async { self.progress.lock().unwrap().clone() })
    }
}
