//! How much a run of `cargo xtask bench swap` measures: all, a look, or what somebody wants of it (pure).

use std::time::Duration;

use anyhow::{Result, bail};

/// How much is measured.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Memory in MiB and processors of each VM, measured one after the other.
    pub sizes: Vec<(u64, u32)>,
    /// Swaps of each size but the first.
    pub swaps: usize,
    /// Swaps of the first size, in a row.
    pub in_a_row: usize,
    /// How long nothing is done, for comparison.
    pub quiet: Duration,
    /// How many VMs for the comparison of one and many; 0 for none.
    pub many: usize,
    /// No swap begins after this long.
    pub limit: Duration,
}

impl Plan {
    /// Everything: about an hour and a half on two emulated processors.
    #[must_use]
    pub fn full() -> Self {
        Self {
            sizes: [256, 1024, 2048].into_iter().flat_map(|mib| [(mib, 1), (mib, 2)]).collect(),
            swaps: 40,
            in_a_row: 100,
            quiet: Duration::from_secs(60),
            many: 8,
            limit: Duration::from_secs(100 * 60),
        }
    }

    /// A look: about ten minutes on two emulated processors.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            sizes: vec![(256, 1), (2048, 1)],
            swaps: 6,
            in_a_row: 10,
            quiet: Duration::from_secs(15),
            many: 3,
            limit: Duration::from_secs(20 * 60),
        }
    }

    /// With this many swaps of every size.
    #[must_use]
    pub fn with_swaps(self, swaps: usize) -> Self {
        Self { swaps, in_a_row: swaps, ..self }
    }
}

/// What of a plan somebody wants otherwise.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// Swaps of each size.
    pub swaps: Option<usize>,
    /// Swaps of the first size, in a row.
    pub in_a_row: Option<usize>,
    /// How many VMs for the comparison of one and many; 0 for none.
    pub many: Option<usize>,
    /// Sizes such as `256x1`: memory in MiB and processors.
    pub sizes: Vec<String>,
}

/// A plan from the words of a command.
///
/// # Errors
/// Too few swaps to count leaks; a size that is none.
pub fn plan(quick: bool, wishes: &Wishes) -> Result<Plan> {
    let plan = if quick { Plan::quick() } else { Plan::full() };
    for (option, count) in [("--swaps", wishes.swaps), ("--in-a-row", wishes.in_a_row)] {
        if let Some(count) = count.filter(|count| *count < 4) {
            bail!("{option} {count}: use 4 or more; two warm up and the rest is measured");
        }
    }
    let plan = wishes.swaps.map_or(plan.clone(), |swaps| plan.with_swaps(swaps));
    let sizes = wishes.sizes.iter().map(|text| size(text)).collect::<Result<Vec<_>>>()?;
    Ok(Plan {
        sizes: if sizes.is_empty() { plan.sizes } else { sizes },
        in_a_row: wishes.in_a_row.unwrap_or(plan.in_a_row),
        many: wishes.many.unwrap_or(plan.many),
        ..plan
    })
}

fn size(text: &str) -> Result<(u64, u32)> {
    let parsed = text.split_once('x').and_then(|(mib, cpus)| Some((mib.parse().ok()?, cpus.parse().ok()?)));
    match parsed {
        Some((mib, cpus)) if mib >= 128 && cpus >= 1 => Ok((mib, cpus)),
        _ => bail!("--sizes {text}: write memory in MiB (128 or more), an x, and processors, such as 256x1"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_change_what_they_name_only() {
        let wishes = Wishes { in_a_row: Some(100), sizes: vec!["512x2".to_owned()], ..Wishes::default() };
        let plan = super::plan(true, &wishes).unwrap();
        assert_eq!((plan.sizes, plan.in_a_row, plan.many, plan.swaps), (vec![(512, 2)], 100, 3, 6));
        for size in ["512", "x1", "64x1", "512x0"] {
            let wishes = Wishes { sizes: vec![size.to_owned()], ..Wishes::default() };
            assert!(super::plan(true, &wishes).is_err(), "{size}");
        }
    }

    #[test]
    fn too_few_swaps_are_refused() {
        let swaps = |count| Wishes { swaps: Some(count), ..Wishes::default() };
        assert!(plan(true, &swaps(3)).is_err());
        assert_eq!(plan(true, &swaps(4)).unwrap().in_a_row, 4);
        assert_eq!(plan(false, &Wishes::default()).unwrap().in_a_row, 100);
    }
}
