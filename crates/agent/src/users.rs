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

fn parse(passwd: &str, name: &str) -> Option<User> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    Some(User { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_whole_name() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nfermata-vm:x:999:998::/:/bin/false\n";
        assert_eq!(parse(passwd, "fermata-vm"), Some(User { uid: 999, gid: 998 }));
        assert_eq!(parse(passwd, "fermata"), None);
        assert!(find("no-such-user-here").unwrap_err().to_string().contains("systemd-sysusers"));
    }
}
