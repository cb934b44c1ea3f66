//! Colour classes by DSATUR (Brélaz 1979), without edges: per set and colour only how many VMs are in it.
//!
//! Two jobs conflict when they touch different groups of one set, or more of one group than its quota. A colour is a
//! wave; the classes give an order, and the timeline decides the times, so nothing here has to be exact.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::problem::Problem;

/// Words of a colour mask. 512 colours are several times what 100,000 randomly placed hosts need; a job that finds all
/// of them forbidden joins the last, which costs time and breaks nothing.
const WORDS: usize = 8;

const UNCOLOURED: u16 = u16::MAX;

/// The colour of jobs that were not to be coloured.
const LEFT_OUT: u16 = u16::MAX - 1;

/// The colour of every job that is wanted; the others are passed over.
pub(crate) fn colours(problem: &Problem, wanted: impl Fn(u32) -> bool) -> Vec<u16> {
    let count = problem.jobs.len();
    let mut state = State {
        problem,
        colour: (0..count as u32).map(|job| if wanted(job) { UNCOLOURED } else { LEFT_OUT }).collect(),
        forbidden: vec![[0; WORDS]; count],
        saturation: vec![0; count],
        degree: (0..count).map(|job| degree(problem, job)).collect(),
        in_colour: vec![Vec::new(); problem.sets.len()],
        queue: vec![BinaryHeap::new()],
    };
    state.queue[0] =
        (0..count as u32).filter(|j| wanted(*j)).map(|job| (state.degree[job as usize], Reverse(job))).collect();
    while let Some(job) = state.next() {
        state.paint(job);
    }
    state.colour
}

/// How long the classes take as strict waves: each as long as its longest job, each followed by the longest recovery.
pub(crate) fn waves_s(problem: &Problem, colours: &[u16]) -> u32 {
    let mut longest: Vec<u32> = Vec::new();
    for (job, colour) in problem.jobs.iter().zip(colours) {
        let colour = usize::from(*colour);
        if longest.len() <= colour {
            longest.resize(colour + 1, 0);
        }
        longest[colour] = longest[colour].max(job.work);
    }
    let recovery = problem.sets.iter().map(|s| s.recovery).max().unwrap_or(0);
    longest.iter().sum::<u32>() + recovery * (longest.len() as u32).saturating_sub(1)
}

fn degree(problem: &Problem, job: usize) -> u32 {
    problem.touches_of(job).iter().map(|t| problem.members_of(t.set).len() as u32).sum()
}

struct State<'p> {
    problem: &'p Problem,
    colour: Vec<u16>,
    forbidden: Vec<[u64; WORDS]>,
    saturation: Vec<u16>,
    degree: Vec<u32>,
    /// Per set: colours in use with their VMs.
    in_colour: Vec<Vec<(u16, u32)>>,
    /// By saturation; entries of jobs that have moved on are passed over.
    queue: Vec<BinaryHeap<(u32, Reverse<u32>)>>,
}

impl State<'_> {
    /// The uncoloured job with the most forbidden colours, the one with the most neighbours first.
    fn next(&mut self) -> Option<usize> {
        while let Some(bucket) = self.queue.last_mut() {
            let level = bucket.len();
            if level == 0 {
                self.queue.pop();
                continue;
            }
            let (_, Reverse(job)) = bucket.pop()?;
            let job = job as usize;
            let current = usize::from(self.saturation[job]) + 1 == self.queue.len();
            if current && self.colour[job] == UNCOLOURED {
                return Some(job);
            }
        }
        None
    }

    fn paint(&mut self, job: usize) {
        let colour = first_clear(&self.forbidden[job]);
        self.colour[job] = colour;
        let (word, bit) = (usize::from(colour / 64), 1u64 << (colour % 64));
        for touch in self.problem.touches_of(job) {
            let set = touch.set as usize;
            let used = &mut self.in_colour[set];
            let vms = match used.iter_mut().find(|(c, _)| *c == colour) {
                Some((_, vms)) => {
                    *vms += touch.vms;
                    *vms
                }
                None => {
                    used.push((colour, touch.vms));
                    touch.vms
                }
            };
            let quota = self.problem.sets[set].quota;
            for &(other, group, extra) in self.problem.members_of(touch.set) {
                let other = other as usize;
                if self.colour[other] != UNCOLOURED || (group == touch.group && vms + extra <= quota) {
                    continue;
                }
                let mask = &mut self.forbidden[other][word];
                if *mask & bit == 0 {
                    *mask |= bit;
                    self.saturation[other] += 1;
                    let level = usize::from(self.saturation[other]);
                    if self.queue.len() <= level {
                        self.queue.resize_with(level + 1, BinaryHeap::new);
                    }
                    self.queue[level].push((self.degree[other], Reverse(other as u32)));
                }
            }
        }
    }
}

fn first_clear(mask: &[u64; WORDS]) -> u16 {
    let last = (WORDS * 64 - 1) as u16;
    (0u16..)
        .zip(mask)
        .find(|(_, word)| **word != u64::MAX)
        .map_or(last, |(index, word)| index * 64 + word.trailing_ones() as u16)
}
