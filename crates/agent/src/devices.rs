//! Devices that VMMs open: theirs to use from the agent's first moment on.
//!
//! Udev gives `/dev/kvm` to its group, but after a jump into another kernel VMs may come before udev does.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use crate::users;

const KVM: &str = "/dev/kvm";

/// Gives `/dev/kvm` to the group `kvm`, where it is not yet.
pub(crate) fn give_kvm_to_its_group() -> io::Result<()> {
    let path = Path::new(KVM);
    let group = users::groups_of(&["kvm"])?.first().copied();
    let meta = fs::metadata(path)?;
    if Some(meta.gid()) != group {
        chown(path, None, group)?;
    }
    if meta.permissions().mode() & 0o060 != 0o060 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    }
    Ok(())
}
