//! What a VM can read about itself: `/metadata/instance`.
//!
//! [`Instance`] is what the agent tells; [`render`] is the document of one api-version; [`walk`] is the path below it.
//! Every primitive is a string in the document, and a value that does not apply is `""`, not absent: clients read
//! members without asking whether they are there.

mod data;
mod schema;
mod version;
mod walk;

pub use data::{Address, DataDisk, Instance, Interface, PublicKey, Subnet};
pub use schema::render;
pub use version::InstanceVersion;
pub use walk::{Found, text, walk};
