//! A fleet and a policy reduced to what decides the order: jobs, and what they touch.

use std::collections::{BTreeMap, HashMap};

use fermata_model::{HostName, SetName};
use jiff::Timestamp;

use super::Seconds;
use super::calendar::Calendar;
use crate::fleet::{Fleet, SelfConflict, Sequencing};
use crate::id::{HostId, SetId};
use crate::plan::Exclusion;
use crate::policy::{Policy, Window};

/// A part of a set that must not be in work together with another part: an update domain, a fault domain, a zone ...
pub(crate) type Group = u32;

/// Groups from here on hold one host only: one without the label its set is separated by, or one that carries two
/// update domains and was allowed to by name.
const LONE: Group = 1 << 31;

/// What a job touches of one set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Touch {
    pub(crate) set: u32,
    pub(crate) group: Group,
    pub(crate) vms: u32,
}

/// One host to be maintained.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    pub(crate) host: HostId,
    pub(crate) work: Seconds,
    /// Position in `Problem::calendars`.
    pub(crate) calendar: u32,
    /// Position among the racks; `u32::MAX`: none.
    pub(crate) rack: u32,
    pub(crate) stage: u32,
}

/// A set that at least one job touches.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Touched {
    pub(crate) id: SetId,
    pub(crate) recovery: Seconds,
    /// How many of its VMs may be in work at once.
    pub(crate) quota: u32,
    /// Whether one of its groups has more VMs than that among the jobs.
    pub(crate) can_exceed_quota: bool,
}

/// The scheduling problem. Never holds an edge between two hosts: at 100,000 hosts there are 50 million.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) jobs: Vec<Job>,
    first_touch: Vec<u32>,
    touches: Vec<Touch>,
    pub(crate) sets: Vec<Touched>,
    first_member: Vec<u32>,
    /// Per set: jobs with their group and VMs.
    members: Vec<(u32, Group, u32)>,
    pub(crate) calendars: Vec<Calendar>,
    pub(crate) racks: usize,
    pub(crate) host_limit: Option<u32>,
    pub(crate) rack_limit: Option<u32>,
    /// What is left out, and why.
    pub(crate) excluded: Vec<(HostId, Exclusion)>,
}

impl Problem {
    /// The problem of maintaining `hosts` from `origin` on. Stages are all 0.
    pub(crate) fn new(fleet: &Fleet, policy: &Policy, hosts: impl Iterator<Item = HostId>, origin: Timestamp) -> Self {
        let mut build = Build {
            fleet,
            policy,
            origin,
            calendars: vec![],
            calendar_by_windows: HashMap::new(),
            dense_set: vec![u32::MAX; fleet.sets().len()],
            rack_numbers: BTreeMap::new(),
        };
        let mut problem = Self {
            jobs: Vec::new(),
            first_touch: vec![0],
            touches: Vec::new(),
            sets: Vec::new(),
            first_member: Vec::new(),
            members: Vec::new(),
            calendars: Vec::new(),
            racks: 0,
            host_limit: policy.limits.hosts.map(Into::into),
            rack_limit: policy.limits.hosts_per_rack.map(Into::into),
            excluded: Vec::new(),
        };
        for host in hosts {
            match build.job(host, &mut problem) {
                Ok(job) => {
                    problem.jobs.push(job);
                    problem.first_touch.push(problem.touches.len() as u32);
                }
                Err(exclusion) => {
                    problem.touches.truncate(problem.first_touch[problem.jobs.len()] as usize);
                    problem.excluded.push((host, exclusion));
                }
            }
        }
        problem.calendars = build.calendars;
        problem.racks = build.rack_numbers.len();
        problem.index_members();
        problem
    }

    /// Whether time looks the same in both directions: no windows, one stage.
    pub(crate) fn is_reversible(&self) -> bool {
        self.is_always_open() && self.jobs.windows(2).all(|j| j[0].stage == j[1].stage)
    }

    /// Whether no job has a window.
    pub(crate) fn is_always_open(&self) -> bool {
        self.calendars.iter().all(|c| *c == Calendar::ALWAYS)
    }

    /// The same, for a rollout on its way: times count from `origin`, the windows' deadline from `begun`.
    pub(crate) fn for_rollout(
        fleet: &Fleet,
        policy: &Policy,
        hosts: impl Iterator<Item = HostId>,
        origin: Timestamp,
        begun: Timestamp,
    ) -> Self {
        let ago = u32::try_from((begun.as_second() - origin.as_second()).max(0)).unwrap_or(0);
        let mut policy = policy.clone();
        policy.windows_end_after_s = policy.windows_end_after_s.map(|after| after.saturating_add(ago));
        Self::new(fleet, &policy, hosts, origin)
    }

    /// Whether update domains separate the parts of a set.
    pub(crate) fn is_by_domain(&self, fleet: &Fleet, policy: &Policy, set: u32) -> bool {
        let of_set = &fleet.set(self.sets[set as usize].id).spec.sequencing;
        *policy.sequencing.as_ref().unwrap_or(of_set) == Sequencing::UpdateDomain
    }

    /// What the part of a set that a job touches is called.
    pub(crate) fn part_name(&self, fleet: &Fleet, policy: &Policy, job: usize, set: u32) -> String {
        let host = self.jobs[job].host;
        let separated_by = policy.sequencing.as_ref().unwrap_or(&fleet.set(self.sets[set as usize].id).spec.sequencing);
        let group = self.touches_of(job).iter().find(|t| t.set == set).map_or(0, |t| t.group);
        let kind = match separated_by {
            Sequencing::UpdateDomain => "update domain",
            Sequencing::FaultDomain => "fault domain",
            Sequencing::Zone => "zone",
            Sequencing::HostLabel(key) => key,
        };
        match separated_by {
            Sequencing::UpdateDomain if group >= LONE => "two update domains".to_owned(),
            _ if group >= LONE => format!("a host without {kind}"),
            Sequencing::UpdateDomain | Sequencing::FaultDomain => format!("{kind} {group}"),
            Sequencing::Zone => format!("{kind} {}", fleet.host(host).zone.map_or("", |z| fleet.text(z))),
            Sequencing::HostLabel(key) => format!("{kind} {}", fleet.label(host, key).unwrap_or("")),
        }
    }

    fn index_members(&mut self) {
        let mut first = vec![0u32; self.sets.len() + 1];
        for touch in &self.touches {
            first[touch.set as usize + 1] += 1;
        }
        for i in 1..first.len() {
            first[i] += first[i - 1];
        }
        let mut next = first.clone();
        self.members = vec![(0, 0, 0); self.touches.len()];
        for job in 0..self.jobs.len() {
            for touch in self.touches_of(job).to_vec() {
                let at = &mut next[touch.set as usize];
                self.members[*at as usize] = (job as u32, touch.group, touch.vms);
                *at += 1;
            }
        }
        self.first_member = first;
        let mut by_group: Vec<(Group, u32)> = Vec::new();
        for set in 0..self.sets.len() {
            by_group.clear();
            by_group.extend(self.members_of(set as u32).iter().map(|&(_, group, vms)| (group, vms)));
            by_group.sort_unstable();
            let quota = self.sets[set].quota;
            let mut groups = by_group.chunk_by(|a, b| a.0 == b.0);
            self.sets[set].can_exceed_quota = groups.any(|group| group.iter().map(|(_, vms)| vms).sum::<u32>() > quota);
        }
    }

    pub(crate) fn touches_of(&self, job: usize) -> &[Touch] {
        &self.touches[self.first_touch[job] as usize..self.first_touch[job + 1] as usize]
    }

    /// The jobs that touch a set, with their group and VMs.
    pub(crate) fn members_of(&self, set: u32) -> &[(u32, Group, u32)] {
        &self.members[self.first_member[set as usize] as usize..self.first_member[set as usize + 1] as usize]
    }
}

struct Build<'a> {
    fleet: &'a Fleet,
    policy: &'a Policy,
    origin: Timestamp,
    calendars: Vec<Calendar>,
    calendar_by_windows: HashMap<Vec<&'a [Window]>, u32>,
    dense_set: Vec<u32>,
    rack_numbers: BTreeMap<crate::id::TextId, u32>,
}

impl<'a> Build<'a> {
    fn job(&mut self, id: HostId, problem: &mut Problem) -> Result<Job, Exclusion> {
        let fleet = self.fleet;
        let host = fleet.host(id);
        if host.cordoned {
            return Err(Exclusion::Cordoned);
        }
        let start = problem.touches.len();
        self.touch(id, problem)?;
        let work = self.policy.work_s.unwrap_or(host.work_s);
        let mut windows: Vec<&'a [Window]> = problem.touches[start..]
            .iter()
            .map(|t| &*fleet.set(problem.sets[t.set as usize].id).spec.windows)
            .chain([&*host.windows, &*self.policy.windows])
            .filter(|w| !w.is_empty())
            .collect();
        windows.sort_by_key(|w| w.as_ptr() as usize);
        windows.dedup();
        let calendar = self.calendar(windows);
        if self.calendars[calendar as usize].fit(0, work) >= super::NEVER {
            return Err(Exclusion::NoWindow { work_s: work });
        }
        let next = self.rack_numbers.len() as u32;
        let rack = host.rack.map_or(u32::MAX, |rack| *self.rack_numbers.entry(rack).or_insert(next));
        Ok(Job { host: id, work, calendar, rack, stage: 0 })
    }

    fn calendar(&mut self, windows: Vec<&'a [Window]>) -> u32 {
        if let Some(known) = self.calendar_by_windows.get(&windows) {
            return *known;
        }
        let mut calendar =
            windows.iter().map(|w| Calendar::of(w, self.origin)).fold(Calendar::ALWAYS, |all, next| all.and(&next));
        if let Some(after) = self.policy.windows_end_after_s {
            calendar = calendar.open_from(after);
        }
        let number = self.calendars.len() as u32;
        self.calendars.push(calendar);
        self.calendar_by_windows.insert(windows, number);
        number
    }

    /// Appends what the host touches, merged by set.
    fn touch(&mut self, id: HostId, problem: &mut Problem) -> Result<(), Exclusion> {
        let mut members: Vec<_> = self.fleet.vms_on(id).iter().filter_map(|vm| vm.member).collect();
        members.sort_unstable();
        for chunk in members.chunk_by(|a, b| a.set == b.set) {
            let set = chunk[0].set;
            let separated_by = self.sequencing(set);
            let mut group = match separated_by {
                Sequencing::UpdateDomain => u32::from(chunk[0].domain.index()),
                Sequencing::FaultDomain => {
                    self.fleet.host(id).fault_domain.map_or(LONE | id.0, |d| u32::from(d.index()))
                }
                Sequencing::Zone => self.fleet.host(id).zone.map_or(LONE | id.0, |z| z.0),
                Sequencing::HostLabel(key) => self.fleet.label_id(id, key).map_or(LONE | id.0, |v| v.0),
            };
            let divided = chunk.iter().any(|m| m.domain != chunk[0].domain);
            if divided && *separated_by == Sequencing::UpdateDomain {
                if !self.policy.allow_self_conflict.contains(&self.fleet.host(id).name) {
                    return Err(Exclusion::SelfConflict(self.conflict(id, set)));
                }
                group = LONE | id.0;
            }
            let dense = &mut self.dense_set[set.index()];
            if *dense == u32::MAX {
                *dense = problem.sets.len() as u32;
                let members = self.fleet.set(set);
                problem.sets.push(Touched {
                    id: set,
                    recovery: self.policy.recovery_s.unwrap_or(members.spec.recovery_s),
                    quota: self.policy.limits.set_quota(members.vm_count),
                    can_exceed_quota: false,
                });
            }
            problem.touches.push(Touch { set: *dense, group, vms: chunk.len() as u32 });
        }
        Ok(())
    }

    fn sequencing(&self, set: SetId) -> &'a Sequencing {
        self.policy.sequencing.as_ref().unwrap_or(&self.fleet.set(set).spec.sequencing)
    }

    fn conflict(&self, host: HostId, set: SetId) -> SelfConflict {
        let name: &SetName = &self.fleet.set(set).spec.name;
        let host_name: &HostName = &self.fleet.host(host).name;
        let known = self.fleet.self_conflicts_of(host).into_iter().find(|c| c.set == *name);
        known.unwrap_or_else(|| SelfConflict {
            host: host_name.clone(),
            set: name.clone(),
            domains: BTreeMap::new(),
            to_move: Vec::new(),
        })
    }
}
