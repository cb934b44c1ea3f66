//! When a job can start, given what has been placed before: per set, per rack and for the fleet, without edges.

use std::cmp::Reverse;

use super::problem::{Group, Problem, Touch};
use super::{NEVER, Seconds, Span};

/// Which rule decided a start time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binding {
    /// None: the job starts as early as it was asked for.
    Free,
    /// The host's windows.
    Window,
    /// Another part of this set, held by this occupant.
    OtherGroup { set: u32, by: u32 },
    /// As many of this set's VMs as allowed are in work, one of them by this occupant.
    Quota { set: u32, by: u32 },
    /// The limit of the job's rack.
    Rack { by: u32 },
    /// The limit of the fleet.
    Fleet,
}

/// Time that an occupant (a job, or something outside the plan) holds.
#[derive(Debug, Clone, Copy)]
struct Slot {
    start: Seconds,
    end: Seconds,
    group: Group,
    vms: u32,
    by: u32,
}

/// Slots of one group of one set that lie so close together that no other group fits between them, as one piece: all their
/// VMs (at no moment are more in work), and the occupant that ends last.
/// Whether another group may start is asked far more often than how full a group is, and a set has few such stretches
/// however many slots it has.
type Stretch = Slot;

/// What a question about one set needs, side by side in memory.
#[derive(Debug, Clone, Copy)]
struct SetLine {
    recovery: Seconds,
    quota: u32,
    first_stretch: u32,
    stretches: u32,
    first_slot: u32,
    slots: u32,
    /// When the last of its stretches ends.
    end: Seconds,
    /// Whether a group can exceed the quota, so that slots are needed one by one.
    counted: bool,
}

/// What has been placed so far.
#[derive(Debug)]
pub(crate) struct Timeline<'p> {
    problem: &'p Problem,
    sets: Vec<SetLine>,
    /// All sets' stretches in one piece, those of one set sorted by start.
    stretches: Vec<Stretch>,
    /// All counted sets' slots in one piece, those of one set sorted by start.
    slots: Vec<Slot>,
    /// The longest slot of any set: what began longer ago than that is over.
    longest: Seconds,
    /// The same of stretches.
    longest_stretch: Seconds,
    /// Per rack; empty when racks have no limit.
    racks: Vec<Vec<Slot>>,
    fleet: Option<Capacity>,
}

impl<'p> Timeline<'p> {
    /// An empty timeline. `outside` names the sets that [`Self::hold_set`] will be called for, once per call.
    pub(crate) fn new(problem: &'p Problem, outside: impl Iterator<Item = u32>) -> Self {
        let mut from_outside = vec![0u32; problem.sets.len()];
        outside.for_each(|set| from_outside[set as usize] += 1);
        let (mut stretches, mut slots) = (0, 0);
        let sets = (0u32..)
            .zip(problem.sets.iter().zip(from_outside))
            .map(|(number, (set, outside))| {
                let room = problem.members_of(number).len() as u32 + outside;
                let line = SetLine {
                    recovery: set.recovery,
                    quota: set.quota,
                    first_stretch: stretches,
                    stretches: 0,
                    first_slot: slots,
                    slots: 0,
                    end: 0,
                    counted: set.can_exceed_quota || outside > 0,
                };
                stretches += room;
                slots += if line.counted { room } else { 0 };
                line
            })
            .collect();
        let empty = Slot { start: 0, end: 0, group: 0, vms: 0, by: 0 };
        Self {
            problem,
            sets,
            stretches: vec![empty; stretches as usize],
            slots: vec![empty; slots as usize],
            longest: 0,
            longest_stretch: 0,
            racks: if problem.rack_limit.is_some() { vec![Vec::new(); problem.racks] } else { Vec::new() },
            fleet: problem.host_limit.map(Capacity::new),
        }
    }

    /// Forgets everything placed, keeping the memory.
    pub(crate) fn clear(&mut self) {
        (self.longest, self.longest_stretch) = (0, 0);
        for line in &mut self.sets {
            (line.stretches, line.slots, line.end) = (0, 0, 0);
        }
        self.racks.iter_mut().for_each(Vec::clear);
        if let Some(fleet) = &mut self.fleet {
            fleet.clear();
        }
    }

    /// The earliest start of a job from `from` on, and the rule that decided it.
    pub(crate) fn earliest(&self, job: usize, from: Seconds) -> (Seconds, Binding) {
        let problem = self.problem;
        let of = &problem.jobs[job];
        let calendar = &problem.calendars[of.calendar as usize];
        let touches = problem.touches_of(job);
        let mut t = from;
        let mut binding = Binding::Free;
        // Each rule only ever moves the start later, so the first time all agree on is the earliest. Sets are asked in
        // turn until a whole round of them has agreed.
        let mut agreed = 0;
        // The set that is held longest moves the start furthest, and spares the others most of their history.
        let held_until = |turn: usize| self.sets[touches[turn].set as usize].end;
        let mut turn = (0..touches.len()).max_by_key(|&turn| (held_until(turn), Reverse(turn))).unwrap_or(0);
        loop {
            let before = t;
            let open = calendar.fit(t, of.work);
            if open > t {
                (t, binding) = (open, Binding::Window);
            }
            if t > before {
                agreed = 0;
            }
            while agreed < touches.len() {
                if t >= NEVER {
                    return (NEVER, binding);
                }
                let asked = t;
                self.fit_set(&touches[turn], of.work, &mut t, &mut binding);
                agreed = if t > asked { 1 } else { agreed + 1 };
                turn = if turn + 1 == touches.len() { 0 } else { turn + 1 };
            }
            let sets_agree_on = t;
            if let (Some(limit), Some(slots)) = (problem.rack_limit, self.racks.get(of.rack as usize))
                && let Some((later, by)) = fit_load(slots.iter(), limit, 1, of.work, t)
            {
                (t, binding) = (later, Binding::Rack { by });
            }
            if let Some(fleet) = &self.fleet {
                let later = fleet.fit(t, of.work);
                if later > t {
                    (t, binding) = (later, Binding::Fleet);
                }
            }
            if t >= NEVER {
                return (NEVER, binding);
            }
            if t == before {
                return (t, binding);
            }
            if t > sets_agree_on {
                agreed = 0;
            }
        }
    }

    /// Places a job at its earliest start from `from` on. A job that cannot start holds nothing.
    pub(crate) fn place(&mut self, job: usize, from: Seconds) -> (Span, Binding) {
        let (start, binding) = self.earliest(job, from);
        if start >= NEVER {
            return (Span { start: NEVER, end: NEVER }, binding);
        }
        let span = Span { start, end: start + self.problem.jobs[job].work };
        self.occupy(job, span);
        (span, binding)
    }

    /// Records that a job holds its sets, its rack and its share of the fleet's limit for a span, whatever the rules
    /// say: it is a fact. Once per job.
    pub(crate) fn occupy(&mut self, job: usize, span: Span) {
        let problem = self.problem;
        for touch in problem.touches_of(job) {
            self.hold_set(touch.set, touch.group, touch.vms, job as u32, span);
        }
        if let Some(slots) = self.racks.get_mut(problem.jobs[job].rack as usize) {
            let at = slots.partition_point(|s| s.start <= span.start);
            slots.insert(at, Slot { start: span.start, end: span.end, group: 0, vms: 1, by: job as u32 });
        }
        if let Some(fleet) = &mut self.fleet {
            fleet.add(span);
        }
    }

    /// Records that something holds a group of a set: a job, or an occupant outside the problem.
    pub(crate) fn hold_set(&mut self, set: u32, group: Group, vms: u32, by: u32, span: Span) {
        let slot = Slot { start: span.start, end: span.end, group, vms, by };
        let line = &mut self.sets[set as usize];
        self.longest = self.longest.max(span.end - span.start);
        if line.counted {
            let first = line.first_slot as usize;
            let last = first + line.slots as usize;
            line.slots += 1;
            // Jobs come nearly in the order of time.
            let at = first + ends_before(&self.slots[first..last], |s| s.start <= span.start);
            self.slots.copy_within(at..last, at + 1);
            self.slots[at] = slot;
        }
        let first = line.first_stretch as usize;
        let room = &mut self.stretches[first..=first + line.stretches as usize];
        let (stretches, length) = join(room, line.stretches as usize, slot, line.recovery, self.longest_stretch);
        line.stretches = stretches as u32;
        line.end = line.end.max(span.end);
        self.longest_stretch = self.longest_stretch.max(length);
    }

    fn fit_set(&self, touch: &Touch, work: Seconds, t: &mut Seconds, binding: &mut Binding) {
        let line = &self.sets[touch.set as usize];
        if line.end.saturating_add(line.recovery) <= *t {
            return;
        }
        let first = line.first_stretch as usize;
        let stretches = &self.stretches[first..first + line.stretches as usize];
        let over = ends_before(stretches, |s| s.start + self.longest_stretch + line.recovery <= *t);
        let stretches = &stretches[over..];
        loop {
            let mut together = 0u32;
            for stretch in stretches {
                if stretch.start >= t.saturating_add(work + line.recovery) {
                    break;
                }
                if stretch.group == touch.group {
                    // At most so many: VMs of slots that are over are counted too.
                    together += if stretch.end > *t { stretch.vms } else { 0 };
                } else if stretch.end + line.recovery > *t {
                    *t = (stretch.end + line.recovery).min(NEVER);
                    *binding = Binding::OtherGroup { set: touch.set, by: stretch.by };
                }
            }
            if *t >= NEVER || together == 0 || together + touch.vms <= line.quota {
                return;
            }
            let first = line.first_slot as usize;
            let slots = &self.slots[first..first + line.slots as usize];
            let over = ends_before(slots, |s| s.start + self.longest <= *t);
            let same = slots[over..].iter().take_while(|s| s.start < *t + work).filter(|s| s.group == touch.group);
            match fit_load(same, line.quota, touch.vms, work, *t) {
                None => return,
                Some((later, by)) => (*t, *binding) = (later.min(NEVER), Binding::Quota { set: touch.set, by }),
            }
        }
    }
}

/// The number of leading elements for which `leads` holds, looked for from the end.
fn ends_before<T>(sorted: &[T], leads: impl Fn(&T) -> bool) -> usize {
    sorted.iter().rposition(leads).map_or(0, |last| last + 1)
}

/// Adds a stretch to the first `len` of `room`, which has space for one more; gives their new number and how long the
/// stretch is. Stretches of its group with less than two recovery times and a second between are made one: nothing else
/// fits in there. No stretch in `room` is longer than `longest`.
fn join(room: &mut [Stretch], len: usize, mut added: Stretch, recovery: Seconds, longest: Seconds) -> (usize, Seconds) {
    let near = recovery.saturating_mul(2);
    let (start, end) = (added.start, added.end.saturating_add(near));
    let is_near =
        |other: &Stretch| other.group == added.group && other.start <= end && start <= other.end.saturating_add(near);
    let far = ends_before(&room[..len], |s| s.start.saturating_add(longest).saturating_add(near) < start);
    let mut kept = len;
    if let Some(found) = room[far..len].iter().position(is_near) {
        let from = far + found;
        kept = from;
        for at in from..len {
            let other = room[at];
            if is_near(&other) {
                if other.end >= added.end {
                    (added.end, added.by) = (other.end, other.by);
                }
                added.start = added.start.min(other.start);
                added.vms += other.vms;
            } else {
                room[kept] = other;
                kept += 1;
            }
        }
    }
    let at = ends_before(&room[..kept], |s| s.start <= added.start);
    room.copy_within(at..kept, at + 1);
    room[at] = added;
    (kept + 1, added.end - added.start)
}

/// One step towards a time at which `extra` fits under `limit` beside the given slots for `work`; `None` when it does
/// at `t` already. An occupant above the limit fits only alone. Names one of those in the way.
fn fit_load<'s>(
    slots: impl Iterator<Item = &'s Slot> + Clone,
    limit: u32,
    extra: u32,
    work: Seconds,
    t: Seconds,
) -> Option<(Seconds, u32)> {
    let near = slots.filter(|s| s.start < t + work && s.end > t);
    if near.clone().map(|s| s.vms).sum::<u32>().saturating_add(extra) <= limit {
        return None;
    }
    // The load is highest where something begins, so those points are enough.
    for point in near.clone().map(|s| s.start.max(t)) {
        let at_point = near.clone().filter(|s| s.start <= point && point < s.end);
        let load: u32 = at_point.clone().map(|s| s.vms).sum();
        if load > 0 && load.saturating_add(extra) > limit {
            // Until the first of them ends, any start would still meet this point or the same crowd.
            return at_point.min_by_key(|s| s.end).map(|s| (s.end, s.by));
        }
    }
    None
}

/// The fleet's limit: hosts in work at every second, with jumps over full stretches.
#[derive(Debug)]
struct Capacity {
    limit: u32,
    /// Occupants that never end.
    forever: u32,
    load: Vec<u32>,
    /// The next second, from this one on, that was not full when last looked at.
    next: Vec<u32>,
}

impl Capacity {
    const fn new(limit: u32) -> Self {
        Self { limit, forever: 0, load: Vec::new(), next: Vec::new() }
    }

    fn clear(&mut self) {
        self.load.clear();
        self.next.clear();
        self.forever = 0;
    }

    fn free_from(&self, mut second: Seconds) -> Seconds {
        while let Some(&next) = self.next.get(second as usize)
            && next != second
        {
            second = next;
        }
        second
    }

    fn fit(&self, mut t: Seconds, work: Seconds) -> Seconds {
        if self.forever >= self.limit {
            return NEVER;
        }
        loop {
            t = self.free_from(t);
            let end = (t as usize + work as usize).min(self.load.len());
            let full = self.limit - self.forever;
            let range = (t as usize).min(end)..end;
            match self.load[range].iter().rposition(|load| *load >= full) {
                None => return t,
                Some(last) => t += last as u32 + 1,
            }
        }
    }

    fn add(&mut self, span: Span) {
        if span.end >= NEVER {
            self.forever += 1;
            return;
        }
        let (start, end) = (span.start as usize, span.end as usize);
        if self.load.len() < end {
            let from = self.next.len() as u32;
            self.load.resize(end, 0);
            self.next.extend(from..end as u32);
        }
        for load in &mut self.load[start..end] {
            *load += 1;
        }
        // Full seconds point past their stretch, so that a full morning is skipped in one jump.
        let mut target = self.free_from(span.end);
        for second in (start..end).rev() {
            if self.load[second] >= self.limit {
                self.next[second] = target;
            } else {
                target = second as u32;
            }
        }
    }
}
