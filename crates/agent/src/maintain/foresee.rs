//! How an update would be made on this host, told before anything is done: what the file cannot know.
//!
//! ```text
//!  update ─► a kernel? ─► there, with its modules? which initial RAM disk? ─► told; refused where no prepare step could mend it
//!         └► a VMM ────► fewer VMs at once than the file says? ────────────► told
//! ```

use fermata_maintenance::mechanism::Choice;
use fermata_maintenance::update::{Change, KernelChange, Section, Update};
use fermata_model::Mechanism;

use super::target::Needs;
use super::{Maintain, MaintainError, initrd, kernel};
use crate::vms::Vms;

/// How many processors this host has.
pub(super) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// How many VMs of an update change at once here. More would only stand longer each, and their rehearsals keep the host from answering.
pub(super) fn at_once(update: &Update) -> u16 {
    update.parallelism.min(u16::try_from(processors()).unwrap_or(u16::MAX))
}

/// That fewer VMs change their VMM at once than the file says, where so many do.
fn fewer(update: &Update, choice: &Choice) -> Option<String> {
    let (at_once, wanted) = (at_once(update), update.parallelism);
    (at_once < wanted && choice.plans.len() > usize::from(at_once))
        .then(|| format!("VMs at once: {at_once}, as many as there are processors (`parallelism = {wanted}`)"))
}

impl Maintain {
    /// How the change would be made here, in words, beyond what is chosen per VM.
    ///
    /// # Errors
    /// [`MaintainError::Kernel`] when a kernel could not be entered, and the update has no step that could change that.
    pub async fn foresee(&self, update: &Update, choice: &Choice) -> Result<Vec<String>, MaintainError> {
        let kernel = match &update.change {
            Change::Kernel(kernel) => kernel,
            Change::Vmm { .. } => return Ok(fewer(update, choice).into_iter().collect()),
            Change::Package { .. } | Change::Service { .. } => return Ok(Vec::new()),
        };
        if !choice.plans.is_empty() && choice.plans.iter().all(|plan| plan.mechanism != Mechanism::Kexec) {
            return Ok(Vec::new());
        }
        match entered(&self.vms, kernel).await {
            Ok(told) => Ok(told),
            Err(reason) if update.steps(Section::Prepare).is_empty() => {
                Err(MaintainError::Kernel { image: kernel.image.clone(), reason })
            }
            Err(reason) => Ok(vec![format!("not yet: {reason}; its prepare steps have to see to that")]),
        }
    }
}

/// How a kernel would be entered, in words, as far as that can be told before anything is prepared.
///
/// # Errors
/// Why it cannot be entered as things are now.
async fn entered(vms: &Vms, change: &KernelChange) -> Result<Vec<String>, String> {
    let change = change.clone();
    let needs = Needs::of(vms).await.map_err(|error| crate::chain(&error))?;
    let told = kernel::blocking(move || {
        let (target, _) = needs.target(&change)?;
        let mut told = vec![format!("kernel {} has what VMs need", target.release)];
        if change.as_is {
            told.push("the kernel is entered as it is (`as_is`), and unpacks itself while VMs stand".to_owned());
        }
        told.push(initrd::foreseen(&change, &target, &needs.files)?);
        Ok(told)
    });
    told.await.map_err(|failure| failure.text)
}
