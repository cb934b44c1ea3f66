//! Where Debian packages come from: the machine's own apt configuration, for another suite.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, bail};

use crate::command;

/// The Debian release inside virtual hosts and guests.
pub const SUITE: &str = "trixie";

/// Lines for a `sources.list` of [`SUITE`], its updates, its backports and its security updates.
///
/// # Errors
/// apt knows no Debian package source, or none of security updates: the lab's older QEMU is from there (`docs/adr/0015`).
pub fn sources() -> Result<Vec<String>> {
    let format = "$(SITE)\t$(REPO_URI)\t$(ORIGIN)\t$(LABEL)\t$(COMPONENT)\t$(RELEASE)\t$(SOURCESENTRY)";
    let targets = |()| {
        let mut apt = Command::new("apt-get");
        command::succeed(
            apt.args(["indextargets", "--format", format, "Created-By: Packages"]),
            Duration::from_secs(60),
        )
    };
    let mut found = parse(&targets(())?);
    if found.main.is_none() && rustix::process::geteuid().is_root() {
        // A fresh machine has no package lists yet, so apt cannot tell which sources are Debian's.
        command::succeed(Command::new("apt-get").args(["-q", "update"]), Duration::from_secs(300))?;
        found = parse(&targets(())?);
    }
    let Some((uri, entry)) = found.main else {
        bail!("apt knows no Debian package source; add one to /etc/apt/sources.list.d and run `apt-get update`");
    };
    let options = |entry: &str| keyring(entry).map_or_else(String::new, |path| format!("[signed-by={path}] "));
    let mut lines: Vec<String> = [SUITE.to_owned(), format!("{SUITE}-updates"), format!("{SUITE}-backports")]
        .iter()
        .map(|suite| format!("deb {}{uri} {suite} main", options(&entry)))
        .collect();
    let Some((uri, entry)) = found.security else {
        bail!(
            "apt knows no source of Debian's security updates, and the QEMU 10.0 outside of it cannot hand a VM to another version; add \
             your release's security suite to /etc/apt/sources.list.d and run `apt-get update`"
        );
    };
    lines.push(format!("deb {}{uri} {SUITE}-security main", options(&entry)));
    Ok(lines)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    main: Option<(String, String)>,
    security: Option<(String, String)>,
}

fn parse(targets: &str) -> Found {
    let mut found = Found::default();
    for line in targets.lines() {
        let [_, uri, origin, label, component, _, entry] = line.split('\t').collect::<Vec<_>>()[..] else { continue };
        if origin != "Debian" || component != "main" {
            continue;
        }
        let slot = match label {
            "Debian" => &mut found.main,
            "Debian-Security" => &mut found.security,
            _ => continue,
        };
        let file = entry.rsplit_once(':').map_or(entry, |(file, _)| file);
        slot.get_or_insert_with(|| (uri.to_owned(), file.to_owned()));
    }
    found
}

/// The keyring that a sources file names, or Debian's usual one. mmdebstrap needs it by path.
fn keyring(entry: &str) -> Option<String> {
    let text = fs::read_to_string(entry).with_context(|| format!("read {entry}")).unwrap_or_default();
    let named = text.lines().find_map(|line| line.trim().strip_prefix("Signed-By:")).map(str::trim).map(str::to_owned);
    let inline = || text.split("signed-by=").nth(1)?.split([']', ' ']).next().map(str::to_owned);
    let usual = || Some("/usr/share/keyrings/debian-archive-keyring.gpg".to_owned());
    named.or_else(inline).or_else(usual).filter(|path| Path::new(path).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_debian_main_counts() {
        let text = "s\turi://a/\tGoogle\tx\tmain\tr\t/e:1\ns\turi://b/\tDebian\tDebian\tcontrib\tbookworm\t/e:2\n\
                    s\turi://c/\tDebian\tDebian\tmain\tbookworm\t/e:3\ns\turi://d/\tDebian\tDebian-Security\tmain\tx\t/f:1\n";
        let found = parse(text);
        assert_eq!(found.main, Some(("uri://c/".to_owned(), "/e".to_owned())));
        assert_eq!(found.security, Some(("uri://d/".to_owned(), "/f".to_owned())));
    }
}
