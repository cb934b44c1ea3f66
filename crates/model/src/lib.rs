//! The nouns of Fermata and their rules.
//!
//! Everything here is plain data: no clock, no randomness, no I/O. A value of one of these types has been checked:
//! a [`VmName`] is a valid host name, an [`UpdateDomain`] is below 20, a [`Size`] is not absurd. Text enters through
//! `FromStr` or serde, both of which run the same checks and name the reason and the way out on refusal.
//!
//! | module | nouns |
//! |---|---|
//! | [`name`] | host, VM, availability set, bridge and VMM names |
//! | [`domain`] | update domain, fault domain, availability-set membership |
//! | [`size`] | sizes of memory and disks with their units |
//! | [`mac`] | MAC addresses of virtual NICs |
//! | [`budget`] | pause budgets |
//! | [`mechanism`] | how an update reaches a host, what a VM feels |
//! | [`definition`] | a VM as it will be for life |
//! | [`spec`] | the VM specification an operator writes in TOML |
//! | [`vmm`] | VMM versions and machine types |

pub mod budget;
pub mod definition;
pub mod domain;
pub mod mac;
pub mod mechanism;
pub mod name;
pub mod size;
pub mod spec;
pub mod vmm;

pub use budget::PauseBudget;
pub use definition::{HostDefaults, NicDefinition, VmDefinition};
pub use domain::{FaultDomain, Membership, UpdateDomain};
pub use mac::Mac;
pub use mechanism::{Impact, Mechanism};
pub use name::{BridgeName, HostName, NameError, SetName, VmName};
pub use size::Size;
pub use spec::VmSpec;
pub use vmm::{MachineType, VmmVersion};
