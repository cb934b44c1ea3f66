//! How VMMs are confined by their units: one table for the bus and for unit files.

use zbus::Variant as Value;

/// The groups that a VMM's user is in besides its own.
pub(super) const VMM_GROUPS: &[&str] = &["kvm"];
/// The most descriptors that a VMM may have.
pub const VMM_FILES: u64 = 65_536;

/// How a VMM's control group is limited, and in which order it starts and ends: of a scope's unit as of a service's.
pub(super) const GROUPED: [(&str, Setting); 5] = [
    ("DevicePolicy", Setting::Word("closed")),
    ("TimeoutStopSec", Setting::StopSeconds(10)),
    // Else it would pull up the host and wait for it, and after a change of the kernel VMs come before that.
    ("DefaultDependencies", Setting::No),
    ("Conflicts", Setting::Names(&["shutdown.target"])),
    // The guests' own service stops before a VM's unit at shutdown, so guests are asked before VMMs are ended.
    ("Before", Setting::Names(&["fermata-guests.service", "shutdown.target"])),
];
/// How a VMM is confined besides, by the names that unit files use.
pub(super) const CONFINED: [(&str, Setting); 11] = [
    ("SupplementaryGroups", Setting::Names(VMM_GROUPS)),
    ("StandardOutput", Setting::Word("null")),
    ("NoNewPrivileges", Setting::Yes),
    ("RestrictNamespaces", Setting::All),
    ("ProtectKernelModules", Setting::Yes),
    ("ProtectKernelTunables", Setting::Yes),
    ("ProtectControlGroups", Setting::Yes),
    ("RestrictSUIDSGID", Setting::Yes),
    ("LockPersonality", Setting::Yes),
    ("LimitNOFILE", Setting::Number(VMM_FILES)),
    ("LimitCORE", Setting::Number(0)),
];
/// What every VMM may open besides.
pub(super) const DEVICES: [(&str, &str); 2] = [("/dev/kvm", "rw"), ("block-*", "rw")];

/// What a property of a unit is set to; unit files and the bus write it in ways of their own.
#[derive(Debug, Clone, Copy)]
pub(super) enum Setting {
    Yes,
    No,
    /// Of the kinds of namespaces: each is restricted, so none is allowed.
    All,
    Word(&'static str),
    Names(&'static [&'static str]),
    Number(u64),
    /// Of the time limit for stopping, whose name on the bus tells its unit.
    StopSeconds(u64),
}

impl Setting {
    /// As a unit file has it.
    pub(super) fn in_unit_files(self) -> String {
        match self {
            Self::Yes | Self::All => "yes".to_owned(),
            Self::No => "no".to_owned(),
            Self::Word(word) => word.to_owned(),
            Self::Names(names) => names.join(" "),
            Self::Number(number) | Self::StopSeconds(number) => number.to_string(),
        }
    }

    /// As the bus takes it, with the name it has there.
    pub(super) fn on_the_bus(self, name: &'static str) -> (&'static str, Value<'static>) {
        match self {
            Self::Yes => (name, true.into()),
            Self::No => (name, false.into()),
            Self::All => (name, Value::from(0_u64)),
            Self::Word(word) => (name, word.into()),
            Self::Names(names) => (name, Value::from(names.to_vec())),
            Self::Number(number) => (name, Value::from(number)),
            Self::StopSeconds(seconds) => ("TimeoutStopUSec", Value::from(seconds * 1_000_000)),
        }
    }
}

/// What a VMM may open.
pub(super) fn devices(vault: Option<&str>) -> Vec<(&str, &str)> {
    DEVICES.into_iter().chain(vault.map(|device| (device, "rw"))).collect()
}
