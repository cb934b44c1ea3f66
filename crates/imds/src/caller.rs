//! What is prepared for a caller: its documents, ready to send.

use std::sync::Mutex;

use bytes::Bytes;
use fermata_events::{ApiVersion, State, etag};
use fermata_model::VmName;

use crate::instance::{Instance, InstanceVersion, render};

/// An event document with its entity tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The JSON.
    pub body: Bytes,
    /// The quoted tag.
    pub etag: Bytes,
}

/// The event documents of one VM, one per api-version, rendered when they change and shared by all connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Documents {
    /// The number in all of them.
    pub incarnation: u32,
    /// The epoch in the tags.
    pub epoch: u32,
    versions: [Document; ApiVersion::ALL.len()],
}

impl Documents {
    /// Renders the documents of `vm`; `None` when the state has no such VM.
    #[must_use]
    pub fn render(state: &State, vm: &VmName) -> Option<Self> {
        let incarnation = state.vm(vm)?.incarnation;
        let epoch = state.epoch();
        let document = |version: ApiVersion| {
            Some(Document {
                body: state.document(vm, version)?.into(),
                etag: etag(epoch, incarnation, version.as_str()).into(),
            })
        };
        let [a, b, c, d, e, f, g] = ApiVersion::ALL.map(document);
        Some(Self { incarnation, epoch, versions: [a?, b?, c?, d?, e?, f?, g?] })
    }

    /// The document of `version`.
    #[must_use]
    pub const fn of(&self, version: ApiVersion) -> &Document {
        &self.versions[version.index()]
    }
}

/// A VM as a caller.
#[derive(Debug)]
pub struct Caller {
    /// Its name.
    pub name: VmName,
    /// What it can read about itself.
    pub instance: Instance,
    rendered: Mutex<Vec<(InstanceVersion, bool, Bytes)>>,
}

/// How many whole instance documents are kept per VM. A guest's agents settle on one or two versions.
const RENDERED_MAX: usize = 3;

impl Caller {
    /// A caller with nothing rendered yet.
    #[must_use]
    pub const fn new(name: VmName, instance: Instance) -> Self {
        Self { name, instance, rendered: Mutex::new(Vec::new()) }
    }

    /// The whole instance document of a version.
    #[must_use]
    pub fn instance_document(&self, version: InstanceVersion, extended: bool) -> Bytes {
        let mut rendered = self.rendered.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, _, bytes)) = rendered.iter().find(|(v, e, _)| (*v, *e) == (version, extended)) {
            return bytes.clone();
        }
        let bytes = Bytes::from(render(self.name.as_str(), &self.instance, version, extended).to_string());
        if rendered.len() == RENDERED_MAX {
            rendered.remove(0);
        }
        rendered.push((version, extended, bytes.clone()));
        bytes
    }
}
