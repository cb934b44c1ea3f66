//! What makes a specification sound in itself.

use std::path::PathBuf;

use super::{Firmware, VmSpec};
use crate::mac::Mac;
use crate::size::Size;

/// Why a specification is refused.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Not TOML, an unknown field, or a value that its type refuses; the message carries line and column.
    #[error("VM specification: {0}")]
    Syntax(#[from] toml::de::Error),
    /// Memory out of range.
    #[error("memory: {given} is out of range; give 64MiB to 16TiB")]
    MemoryRange {
        /// The refused size.
        given: Size,
    },
    /// Memory that the vault cannot map with large pages.
    #[error("memory: {given} is not a multiple of 2MiB; round it")]
    MemoryAlignment {
        /// The refused size.
        given: Size,
    },
    /// Too few or too many CPUs.
    #[error("vcpus: {given} is out of range; give 1 to 255")]
    Vcpus {
        /// The refused number.
        given: u16,
    },
    /// A path that depends on the agent's working directory.
    #[error("{field}: `{path}` is not absolute; give the whole path")]
    RelativePath {
        /// Where in the specification.
        field: String,
        /// The refused path.
        path: PathBuf,
    },
    /// A character that the VMM would read as a separator.
    #[error("{field}: `{value}` contains `{found}`; use letters, digits, `-`, `_`, `.`, `+` and `=`{extra}")]
    BadCharacter {
        /// Where in the specification.
        field: String,
        /// The refused value.
        value: String,
        /// The first offending character.
        found: char,
        /// What else the field allows.
        extra: &'static str,
    },
    /// One image twice.
    #[error("disk {second}: `{path}` is also disk {first}; give each disk its own image")]
    SameDisk {
        /// Index of the first use.
        first: usize,
        /// Index of the second use.
        second: usize,
        /// The image.
        path: PathBuf,
    },
    /// One MAC twice.
    #[error("nic {second}: MAC {mac} is also that of nic {first}; leave it out to have one derived")]
    SameMac {
        /// Index of the first use.
        first: usize,
        /// Index of the second use.
        second: usize,
        /// The address.
        mac: Mac,
    },
    /// More devices than the machine has slots for.
    #[error("{field}: {given} are too many; a VM has at most {max}")]
    TooMany {
        /// Where in the specification.
        field: &'static str,
        /// How many were given.
        given: usize,
        /// The limit.
        max: usize,
    },
    /// A label that could not be selected by.
    #[error("labels: `{0}` is not a label key; use 1 to 63 letters, digits, `-`, `_`, `.` or `/`")]
    Label(String),
}

const MAX_DEVICES: usize = 16;

impl VmSpec {
    /// Checks what the types alone cannot.
    ///
    /// # Errors
    /// The first thing that is wrong, with field, reason and way out.
    pub fn check(&self) -> Result<(), SpecError> {
        if self.memory < Size::from_mib(64) || self.memory > Size::from_bytes(16 << 40) {
            return Err(SpecError::MemoryRange { given: self.memory });
        }
        if !self.memory.is_multiple_of(Size::from_mib(2)) {
            return Err(SpecError::MemoryAlignment { given: self.memory });
        }
        if !(1..=255).contains(&self.vcpus) {
            return Err(SpecError::Vcpus { given: self.vcpus });
        }
        if let Some(cpu) = &self.cpu {
            check_text("cpu", cpu, ",", "; features follow after `,`")?;
        }
        if let Firmware::Kernel(kernel) = self.firmware() {
            check_path("firmware.kernel.image".to_owned(), &kernel.image)?;
            if let Some(initrd) = &kernel.initrd {
                check_path("firmware.kernel.initrd".to_owned(), initrd)?;
            }
        }
        self.check_disks()?;
        self.check_nics()?;
        let key_char = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        match self.labels.keys().find(|key| key.is_empty() || key.len() > 63 || !key.chars().all(key_char)) {
            Some(key) => Err(SpecError::Label(key.clone())),
            None => Ok(()),
        }
    }

    fn check_disks(&self) -> Result<(), SpecError> {
        check_count("disk", self.disks.len())?;
        for (second, disk) in self.disks.iter().enumerate() {
            check_path(format!("disk {second}"), &disk.path)?;
            if let Some(first) = self.disks[..second].iter().position(|other| other.path == disk.path) {
                return Err(SpecError::SameDisk { first, second, path: disk.path.clone() });
            }
        }
        Ok(())
    }

    fn check_nics(&self) -> Result<(), SpecError> {
        check_count("nic", self.nics.len())?;
        for (second, nic) in self.nics.iter().enumerate() {
            let Some(mac) = nic.mac else { continue };
            if let Some(first) = self.nics[..second].iter().position(|other| other.mac == Some(mac)) {
                return Err(SpecError::SameMac { first, second, mac });
            }
        }
        Ok(())
    }
}

fn check_count(field: &'static str, given: usize) -> Result<(), SpecError> {
    if given > MAX_DEVICES {
        return Err(SpecError::TooMany { field, given, max: MAX_DEVICES });
    }
    Ok(())
}

fn check_path(field: String, path: &std::path::Path) -> Result<(), SpecError> {
    if !path.is_absolute() {
        return Err(SpecError::RelativePath { field, path: path.to_owned() });
    }
    Ok(())
}

fn check_text(field: &str, value: &str, also: &str, extra: &'static str) -> Result<(), SpecError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.+=".contains(c) || also.contains(c);
    match value.chars().find(|c| !allowed(*c)) {
        Some(found) => Err(SpecError::BadCharacter { field: field.to_owned(), value: value.to_owned(), found, extra }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::GuestOs;

    const SMALL: &str = "name = \"web-1\"\nvcpus = 1\nmemory = \"256MiB\"\n";

    fn refusal(extra: &str) -> String {
        VmSpec::from_toml(&format!("{SMALL}{extra}")).unwrap_err().to_string()
    }

    #[test]
    fn three_lines_make_a_vm() {
        let spec = VmSpec::from_toml(SMALL).unwrap();
        assert_eq!(spec.firmware(), Firmware::Bios);
        assert!(spec.guest_agent && spec.vmclock && !spec.autostart);
        let windows = VmSpec::from_toml(&format!("{SMALL}os = \"windows\"\n")).unwrap();
        assert_eq!((windows.os, windows.firmware()), (GuestOs::Windows, Firmware::Uefi));
    }

    #[test]
    fn a_whole_specification_round_trips() {
        let text = r#"
            name = "db-1"
            uuid = "6f2b9b0a-6a51-4f7e-8f5e-0b3c8a3a1d11"
            vcpus = 2
            memory = "1GiB"
            cpu = "EPYC-v4,-x2apic"
            machine = "pc-q35-10.0"
            vmm = "10.0"
            pause_budget_ms = 5000
            min_notice_s = 600
            autostart = true
            firmware = { kernel = { image = "/boot/vmlinuz", initrd = "/boot/initrd", cmdline = "console=ttyS0" } }
            availability_set = { name = "db", update_domain = 3 }
            labels = { tier = "data" }
            [[disk]]
            path = "/srv/db-1.qcow2"
            format = "qcow2"
            [[nic]]
            bridge = "br0"
            mac = "52:54:00:00:00:01"
        "#;
        let spec = VmSpec::from_toml(text).unwrap();
        assert_eq!(VmSpec::from_toml(&toml::to_string(&spec).unwrap()).unwrap(), spec);
    }

    #[test]
    fn refusals_name_the_field_and_the_way_out() {
        assert!(refusal("memroy = \"1GiB\"\n").contains("memroy"));
        assert!(refusal("[[disk]]\npath = \"a.img\"\nformat = \"raw\"\n").contains("not absolute"));
        assert!(refusal("[[disk]]\npath = \"/a\"\nformat = \"vmdk\"\n").contains("vmdk"));
        let twice = "[[disk]]\npath = \"/a\"\nformat = \"raw\"\n".repeat(2);
        assert!(refusal(&twice).contains("also disk 0"));
        let twice = "[[nic]]\nbridge = \"br0\"\nmac = \"52:54:00:00:00:01\"\n".repeat(2);
        assert!(refusal(&twice).contains("also that of nic 0"));
        assert!(refusal("cpu = \"EPYC;rm\"\n").contains('`'));
        assert!(refusal("pause_budget_ms = 0\n").contains("1 to 30000 ms"));
        assert!(refusal("availability_set = { name = \"db\", update_domain = 20 }\n").contains("0 to 19"));
        assert!(refusal("labels = { \"a b\" = \"x\" }\n").contains("a b"));
    }

    #[test]
    fn zero_and_absurd_sizes_are_refused() {
        for (vcpus, memory) in [
            ("0", "256MiB"),
            ("256", "256MiB"),
            ("70000", "256MiB"),
            ("1", "0MiB"),
            ("1", "32MiB"),
            ("1", "99TiB"),
            ("1", "65MiB"),
        ] {
            let text = format!("name = \"a\"\nvcpus = {vcpus}\nmemory = \"{memory}\"\n");
            assert!(VmSpec::from_toml(&text).is_err(), "{text}");
        }
    }
}
