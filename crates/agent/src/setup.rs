//! A host is set up so that its kernel can be changed under VMs, and is looked at for what is missing.
//!
//! | module | does |
//! |---|---|
//! | [`place`] | where in the host's memory the vault goes: pure |
//! | [`prepare`] | the kernel's command line, modules, the agent's configuration |
//! | [`check`] | what is there and what is missing |
//!
//! Neither needs the agent: a host is prepared before it has VMs.

pub mod check;
pub mod place;
pub mod prepare;
