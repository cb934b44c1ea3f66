//! The unprivileged user that VMMs run as.

use std::fs;
use std::io;

/// Where local users are listed.
pub const PASSWD: &str = "/etc/passwd";

/// A user of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Id of the primary group.
    pub gid: u32,
}

/// Finds a local user by name.
///
/// # Errors
/// `NotFound` with the way out when there is none.
pub fn find(name: &str) -> io::Result<User> {
    parse(&fs::read_to_string(PASSWD)?, name).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("no user `{name}`; run `systemd-sysusers`, or set vm_user"))
    })
}

/// Where local groups are listed.
const GROUP: &str = "/etc/group";

/// The ids of local groups.
///
/// # Errors
/// `NotFound` with the name of the one that is not there.
pub fn groups_of(names: &[&str]) -> io::Result<Vec<u32>> {
    let table = fs::read_to_string(GROUP)?;
    let id = |name: &&str| {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("{GROUP} has no group {name}"));
        group_id(&table, name).ok_or_else(missing)
    };
    names.iter().map(id).collect()
}

fn group_id(table: &str, name: &str) -> Option<u32> {
    let mut found = table.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields[0] == name);
    found.next()?.get(2)?.parse().ok()
}

fn parse(passwd: &str, name: &str) -> Option<User> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    Some(User { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_their_whole_name() {
        let table = "root:x:0:\nkvmx:x:7:\nkvm:x:993:fermata-vm\n";
        assert_eq!(group_id(table, "kvm"), Some(993));
        assert_eq!(group_id(table, "vm"), None);
        assert!(groups_of(&["no-such-group-here"]).unwrap_err().to_string().contains("no-such-group-here"));
    }

    #[test]
    fn a_user_is_found_by_whole_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nfermata-vm:x:999:998::/:/bin/false\n";
        assert_eq!(parse(passwd, "fermata-vm"), Some(User { uid: 999, gid: 998 }));
        assert_eq!(parse(passwd, "fermata"), None);
        assert!(find("no-such-user-here").unwrap_err().to_string().contains("systemd-sysusers"));
    }
}
