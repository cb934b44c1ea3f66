//! The dead-man: a process of its own that frees paused VMs when the agent does not.
//!
//! It is started before the pause and does nothing but wait. The agent arms it with a deadline shortly before VMs stop
//! and disarms it when they run. If a deadline passes, the agent is dead or stuck:
//!
//! ```text
//!  idle ──arm──> armed ──disarm──> idle
//!                  │ deadline
//!                  v
//!        VMs with one VMM: cont             (nothing can go wrong: nobody else could run them)
//!                  v
//!        kill the agent, take the authority (nobody else can command VMMs any more)
//!                  v
//!        read the journal: who owns the VM?             (the new one, if it may have run there: [`crate::witness`])
//!            old ──> kill the new VMM, be certain, cont the old one
//!            new ──> note that it may run there ([`crate::witness`]), cont the new one
//!                  v
//!        give the authority back; the next agent recovers from the journal, and finds what it would have done itself
//! ```
//!
//! The rule is that of [`crate::machine`]'s rescue, so it does not matter who comes first. The decision is [`decide`],
//! pure; [`serve`] is the process, [`Client`] the agent's side.
//!
//! The process must not die with the agent: run it in a unit of its own (`systemd-run`, or a transient unit).

mod client;
mod process;
mod wire;

use std::collections::BTreeMap;
use std::path::PathBuf;

use fermata_model::VmName;
use fermata_vault::process::Identity;
use serde::{Deserialize, Serialize};

pub use client::Client;
pub use process::{DeadManError, Settings, mono_now, serve};

use crate::machine::Owner;
use crate::time::Mono;

/// A VMM and how to reach it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vmm {
    /// Its process.
    pub process: Identity,
    /// A monitor socket that is kept for the dead-man: a monitor serves one client at a time.
    pub rescue: PathBuf,
}

/// A VM to free.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guarded {
    /// The VM.
    pub vm: VmName,
    /// The VMM that runs it now.
    pub old: Vmm,
    /// The VMM that is about to take it over (swap).
    pub new: Option<Vmm>,
    /// Somebody else could run it, or destroy what it does: a new VMM (swap), or a jump into another kernel (kexec). Then
    /// it is freed only when the agent is dead for certain.
    pub contested: bool,
}

/// A VM that had to be freed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freed {
    /// In words.
    pub how: String,
    /// When it ran again for certain.
    pub at: Mono,
}

/// What to do with one VM whose deadline passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// `cont` the old VMM.
    LetOldRun,
    /// Kill the new VMM, be certain of its death, then `cont` the old one.
    KillNewThenLetOldRun,
    /// `cont` the new VMM.
    LetNewRun,
    /// Nothing is safe yet.
    Wait,
}

/// Decides. `authority`: the agent is dead for certain. `owner`: what the journal says; `None` when it cannot be read.
///
/// Without a readable journal the old VMM is preferred: whether or not the agent had decided for the new one, its vCPUs
/// have not run when it is found stopped, so both hold the same state; a new VMM that does run is left alone by
/// [`serve`].
#[must_use]
pub const fn decide(guarded: &Guarded, authority: bool, owner: Option<Owner>) -> Decision {
    match (guarded.contested, authority) {
        (true, false) => Decision::Wait,
        (false, _) => Decision::LetOldRun,
        (true, true) => match (owner, &guarded.new) {
            (Some(Owner::New), Some(_)) => Decision::LetNewRun,
            (_, Some(_)) => Decision::KillNewThenLetOldRun,
            (_, None) => Decision::LetOldRun,
        },
    }
}

/// Which VMs are guarded until when. Pure.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    armed: BTreeMap<VmName, (Mono, Guarded)>,
    fired: BTreeMap<VmName, Freed>,
}

impl Watch {
    /// Guards VMs until `deadline`; a VM that is guarded already gets the new deadline.
    pub fn arm(&mut self, deadline: Mono, guarded: impl IntoIterator<Item = Guarded>) {
        for guarded in guarded {
            self.fired.remove(&guarded.vm);
            self.armed.insert(guarded.vm.clone(), (deadline, guarded));
        }
    }

    /// Stops guarding VMs and tells which of them had to be freed, how and when.
    pub fn disarm(&mut self, vms: &[VmName]) -> BTreeMap<VmName, Freed> {
        let mut fired = BTreeMap::new();
        for vm in vms {
            self.armed.remove(vm);
            fired.extend(self.fired.remove(vm).map(|how| (vm.clone(), how)));
        }
        fired
    }

    /// The next deadline.
    #[must_use]
    pub fn next(&self) -> Option<Mono> {
        self.armed.values().map(|(deadline, _)| *deadline).min()
    }

    /// The VMs whose deadline has passed.
    #[must_use]
    pub fn due(&self, now: Mono) -> Vec<Guarded> {
        self.armed.values().filter(|(deadline, _)| *deadline <= now).map(|(_, guarded)| guarded.clone()).collect()
    }

    /// A VM was freed.
    pub fn freed(&mut self, vm: &VmName, freed: Freed) {
        self.armed.remove(vm);
        self.fired.insert(vm.clone(), freed);
    }

    /// Nothing is guarded.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.armed.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guarded(name: &str, with_new: bool) -> Guarded {
        let process = Identity {
            pid: 1,
            started: 1,
            boot: serde_json::from_str("\"00000000-0000-0000-0000-000000000000\"").unwrap(),
        };
        let vmm = Vmm { process, rescue: PathBuf::from("/run/q") };
        Guarded { vm: name.parse().unwrap(), old: vmm.clone(), new: with_new.then_some(vmm), contested: with_new }
    }

    #[test]
    fn a_held_vm_is_freed_whatever_is_known() {
        for authority in [false, true] {
            for owner in [None, Some(Owner::Old), Some(Owner::New)] {
                assert_eq!(decide(&guarded("a", false), authority, owner), Decision::LetOldRun);
            }
        }
    }

    #[test]
    fn a_contested_vm_waits_for_the_agents_death_and_follows_the_journal() {
        let vm = guarded("a", true);
        assert_eq!(decide(&vm, false, Some(Owner::Old)), Decision::Wait);
        assert_eq!(decide(&vm, false, Some(Owner::New)), Decision::Wait);
        assert_eq!(decide(&vm, true, Some(Owner::Old)), Decision::KillNewThenLetOldRun);
        assert_eq!(decide(&vm, true, Some(Owner::New)), Decision::LetNewRun);
        assert_eq!(decide(&vm, true, None), Decision::KillNewThenLetOldRun);
    }

    #[test]
    fn each_vm_has_its_own_deadline() {
        let mut watch = Watch::default();
        watch.arm(Mono(20), [guarded("a", false)]);
        watch.arm(Mono(10), [guarded("b", true)]);
        assert_eq!(watch.next(), Some(Mono(10)));
        assert_eq!(watch.due(Mono(15)).len(), 1);
        watch.freed(&"b".parse().unwrap(), Freed { how: "by cont".to_owned(), at: Mono(15) });
        let fired = watch.disarm(&["a".parse().unwrap(), "b".parse().unwrap()]);
        assert_eq!(fired.iter().map(|(vm, freed)| (vm.as_str(), freed.at)).collect::<Vec<_>>(), [("b", Mono(15))]);
        assert!(watch.is_idle());
    }
}
