//! Devices that VMMs open: theirs to use from the agent's first moment on.
//!
//! Udev gives `/dev/kvm` to its group, but after a jump into another kernel VMs may come before udev does.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

const KVM: &str = "/dev/kvm";

/// Gives `/dev/kvm` to the group `kvm`, where it is not yet.
pub(crate) fn give_kvm_to_its_group() -> io::Result<()> {
    let path = Path::new(KVM);
    let group = group_id(&fs::read_to_string("/etc/group")?, "kvm");
    let group = group.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "/etc/group has no group kvm"))?;
    let meta = fs::metadata(path)?;
    if meta.gid() != group {
        chown(path, None, Some(group))?;
    }
    if meta.permissions().mode() & 0o060 != 0o060 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    }
    Ok(())
}

fn group_id(table: &str, name: &str) -> Option<u32> {
    let mut found = table.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields[0] == name);
    found.next()?.get(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_their_whole_name() {
        let table = "root:x:0:\nkvmx:x:7:\nkvm:x:993:fermata-vm\n";
        assert_eq!(group_id(table, "kvm"), Some(993));
        assert_eq!(group_id(table, "vm"), None);
    }
}
