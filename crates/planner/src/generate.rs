//! Fleets from a seed, for benchmarks and tests: no public trace carries update domains or set ids.
//!
//! Shapes after Azure's packing trace: 10 to 14 VMs per host, 60 % of VMs in sets; set sizes 2-5 (60 %), 6-20 (30 %),
//! 21-100 (9 %), 101-400 (1 %); update domains 5 (85 %), else 20, 10 or 3.

use fermata_model::{FaultDomain, UpdateDomain};

use crate::fleet::{Fleet, FleetBuilder, HostSpec, PieceError, PlacedVm, SetSpec};

/// How VMs of sets are placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Anywhere.
    Random,
    /// Hosts fall into 20 classes and update domain `u` of a set with `k` stands in the classes `u`, `u + k`, ...;
    /// but so many VMs in ten thousand stand anywhere.
    Aligned {
        /// Misplaced VMs in ten thousand.
        misplaced: u16,
    },
}

/// What fleet to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Number of hosts.
    pub hosts: u32,
    /// Number of VMs.
    pub vms: u32,
    /// Number of availability sets.
    pub sets: u32,
    /// Where VMs of sets stand.
    pub placement: Placement,
    /// Recovery time of every set, in seconds.
    pub recovery_s: u32,
    /// Decides everything else.
    pub seed: u64,
}

/// Classes of hosts in an aligned fleet, and their label's key.
const CLASSES: u32 = 20;

/// The label that carries a host's class.
pub const CLASS_LABEL: &str = "maintenance-class";

/// Makes a fleet. Equal shapes give equal fleets. No host carries two update domains of one set.
///
/// # Errors
/// [`PieceError`] only for shapes beyond what names and numbers can count.
pub fn fleet(shape: &Shape) -> Result<Fleet, PieceError> {
    let mut random = SplitMix(shape.seed);
    let mut builder = FleetBuilder::new(1);
    for number in 0..shape.hosts {
        let mut host = HostSpec::new(name(&format!("h{number:06}")));
        let rack = number / 40;
        host.rack = Some(format!("r{rack:04}"));
        host.zone = Some(format!("z{}", u64::from(number) * 3 / u64::from(shape.hosts)));
        host.fault_domain = FaultDomain::try_from(rack % 3).ok();
        host.labels.insert(CLASS_LABEL.to_owned(), (number % CLASSES).to_string());
        host.work_s = 180 + random.below(301);
        builder.add_host(host)?;
    }
    let mut placed = Vec::with_capacity(shape.vms as usize);
    // What each host carries, to keep two update domains of one set apart.
    let mut carries: Vec<Vec<(u32, u8)>> = vec![Vec::new(); shape.hosts as usize];
    for number in 0..shape.sets {
        let mut set = SetSpec::new(name(&format!("s{number:05}")));
        set.update_domains = match random.below(100) {
            0..85 => 5,
            85..90 => 20,
            90..95 => 10,
            _ => 3,
        };
        set.recovery_s = shape.recovery_s;
        let size = match random.below(100) {
            0..60 => 2 + random.below(4),
            60..90 => 6 + random.below(15),
            90..99 => 21 + random.below(80),
            _ => 101 + random.below(300),
        };
        let room = shape.vms - placed.len() as u32;
        for index in 0..size.min(room) {
            let domain = (index % u32::from(set.update_domains)) as u8;
            if let Some(host) = place(shape, &mut random, &carries, number, domain, set.update_domains) {
                carries[host as usize].push((number, domain));
                placed.push((host, Some((number, domain))));
            }
        }
        builder.add_set(set)?;
    }
    // VMs without a set fill the emptiest of a few hosts, so that hosts end up about equally full.
    let mut load: Vec<u32> = carries.iter().map(|c| c.len() as u32).collect();
    while shape.hosts > 0 && placed.len() < shape.vms as usize {
        let host = (0..3).map(|_| random.below(shape.hosts)).min_by_key(|h| load[*h as usize]).unwrap_or(0);
        load[host as usize] += 1;
        placed.push((host, None));
    }
    for (number, (host, member)) in placed.into_iter().enumerate() {
        builder.add_vm(PlacedVm {
            name: name(&format!("v{number:07}")),
            host: name(&format!("h{host:06}")),
            set: member.map(|(set, _)| name(&format!("s{set:05}"))),
            update_domain: member.and_then(|(_, domain)| UpdateDomain::try_from(u32::from(domain)).ok()),
        })?;
    }
    Ok(builder.build())
}

fn place(
    shape: &Shape,
    random: &mut SplitMix,
    carries: &[Vec<(u32, u8)>],
    set: u32,
    domain: u8,
    domains: u8,
) -> Option<u32> {
    let aligned = match shape.placement {
        Placement::Random => false,
        Placement::Aligned { misplaced } => random.below(10_000) >= u32::from(misplaced),
    };
    // A fleet of a few hosts may have no place: then the VM is left out.
    for _ in 0..200 {
        let mut host = random.below(shape.hosts);
        if aligned {
            let steps = CLASSES.div_ceil(u32::from(domains));
            let class = u32::from(domain) + u32::from(domains) * random.below(steps);
            host = host / CLASSES * CLASSES + class;
            if class >= CLASSES || host >= shape.hosts {
                continue;
            }
        }
        if carries[host as usize].len() < 14 && carries[host as usize].iter().all(|(s, _)| *s != set) {
            return Some(host);
        }
    }
    None
}

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("generated names are letters and digits")
}

/// The generator of Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
#[derive(Debug, Clone)]
pub(crate) struct SplitMix(pub(crate) u64);

impl SplitMix {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, or 0 when `bound` is 0.
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u32
    }
}
