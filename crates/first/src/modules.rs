//! Modules that VMs need: as was found out before the jump, or by `modprobe`. By processes of their own: a module that hangs must not hang
//! the first program.

use std::io;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use crate::children::{await_all, ends_well, quiet};
use crate::note::{self, Note};
use crate::ram::{self, Plan};
use crate::{say, urgently};

/// How long they may take.
const LIMIT: Duration = Duration::from_secs(20);
/// Tells a process that it is to load modules and nothing else.
pub(crate) const LOAD: &str = "load-modules-as-noted";
/// The vault's on a device: memory that the firmware or `memmap=` set aside, as a device, as pages.
pub const VAULT: [&str; 4] = ["nd_e820", "nd_pmem", "dax_pmem", "device_dax"];
/// What VMs need of the kernel for their networks.
const NETWORK: [&str; 3] = ["tun", "vhost_net", "bridge"];

/// All modules that VMs need, by name.
pub fn names() -> impl Iterator<Item = &'static str> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let svm = cpu.split_whitespace().any(|word| word == "svm");
    std::iter::once(if svm { "kvm_amd" } else { "kvm_intel" }).chain(NETWORK).chain(VAULT)
}

/// A process that loads them as noted, when it is told to begin.
#[derive(Debug)]
pub(crate) struct Loading(Option<Child>);

impl Loading {
    /// Another process of `this` program, which sees the files that are here now.
    pub(crate) fn prepared(this: &str) -> Self {
        let mut noted = quiet(Command::new(this));
        let child = urgently(|| noted.arg(LOAD).stdin(Stdio::piped()).spawn());
        Self(child.inspect_err(|error| say(&format!("modules are not loaded as noted: {error}"))).ok())
    }

    /// Begins.
    pub(crate) fn begin(&mut self) {
        // It reads until there is nobody who could write.
        drop(self.0.as_mut().and_then(|child| child.stdin.take()));
    }

    /// Waits for the end; whether that went well.
    pub(crate) fn ended_well(mut self) -> bool {
        self.begin();
        self.0.is_some_and(|child| ends_well(child, LIMIT))
    }
}

/// What [`Loading`] asks of a process of its own.
pub(crate) fn load_as_noted() -> ExitCode {
    // Whatever it says, whoever started this is ready or gone.
    io::copy(&mut io::stdin(), &mut io::sink()).unwrap_or_default();
    let plan = Plan::read();
    let loaded = match (&plan, Note::read()) {
        (Some(plan), _) => note::load(&plan.modules),
        (None, Some(note)) => note::load(&note.modules),
        (None, None) => Err("nothing is noted of modules for this kernel".to_owned()),
    };
    if plan.is_some() {
        ram::clear();
    }
    match loaded {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            say(&reason);
            ExitCode::FAILURE
        }
    }
}

/// Loads them by `modprobe`. What is missing shows where it is needed, with a reason of its own.
pub(crate) fn load_by_modprobe() {
    say("modprobe looks for modules");
    let mut modprobe = quiet(Command::new("modprobe"));
    match modprobe.args(["--quiet", "--all"]).args(names()).spawn() {
        Ok(child) => await_all(&mut [child], LIMIT),
        Err(error) => say(&format!("modprobe: {error}")),
    }
}
