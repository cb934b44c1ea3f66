//! What a kernel that is not started by EFI firmware must be told of it: where its tables are, and at which addresses it runs.
//!
//! Firmware is moved to other addresses once in the life of a machine, so the next kernel has to know those of this one. This is what
//! `kexec_file_load` passes on (`arch/x86/kernel/kexec-bzimage64.c`, `setup_efi_state`), from what the running kernel shows below `/sys/firmware/efi`.

use std::fs;
use std::path::Path;

/// Where boot parameters have it (`struct efi_info`).
pub(super) const INFO: std::ops::Range<usize> = 0x1c0..0x1e0;
const DESCRIPTOR_SIZE: usize = 8;
const MAP_LOW: usize = 16;
const MAP_SIZE: usize = 20;
const MAP_HIGH: usize = 28;
/// `efi_memory_desc_t`
const DESCRIPTOR: usize = 40;

/// What is passed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Efi {
    info: [u8; 32],
    /// The firmware's own memory, as the firmware describes it.
    pub(super) map: Vec<u8>,
    vendor: u64,
    tables: u64,
    smbios: u64,
}

impl Efi {
    /// Of the host that runs, `folder` being `/sys/firmware/efi`.
    pub(super) fn of(folder: &Path, parameters: &[u8]) -> Result<Self, String> {
        let info = parameters.get(INFO).and_then(|info| info.try_into().ok());
        let info: [u8; 32] = info.ok_or("the running kernel's boot parameters are cut off")?;
        if info[MAP_SIZE..MAP_SIZE + 4] == [0; 4] {
            return Err("the running kernel knows no memory of its EFI firmware".to_owned());
        }
        let text = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
        };
        let number = |name: &str| number(&text(name)?).ok_or_else(|| format!("/sys/firmware/efi/{name} is no number"));
        let mut map = Vec::new();
        let mut index = 0;
        while folder.join(format!("runtime-map/{index}")).is_dir() {
            let field = |name: &str| number(&format!("runtime-map/{index}/{name}"));
            let kind = u32::try_from(field("type")?).map_err(|e| e.to_string())?;
            map.extend(kind.to_le_bytes());
            map.extend([0; 4]);
            for name in ["phys_addr", "virt_addr", "num_pages", "attribute"] {
                map.extend(field(name)?.to_le_bytes());
            }
            index += 1;
        }
        if map.is_empty() {
            return Err("the running kernel does not use its EFI firmware".to_owned());
        }
        let smbios = text("systab")?.lines().find_map(|line| self::number(line.strip_prefix("SMBIOS=")?));
        // `EFI_INVALID_TABLE_ADDR`
        let smbios = smbios.unwrap_or(u64::MAX);
        Ok(Self { info, map, vendor: number("fw_vendor")?, tables: number("config_table")?, smbios })
    }

    #[cfg(test)]
    pub(super) fn like(map: Vec<u8>) -> Self {
        Self { info: [0; 32], map, vendor: 0, tables: 0, smbios: 0 }
    }

    /// `struct efi_info` for the next kernel, with the map at an address.
    pub(super) fn info(&self, map_at: u64) -> [u8; 32] {
        let mut info = self.info;
        let mut put = |to: usize, number: u64| info[to..to + 4].copy_from_slice(&number.to_le_bytes()[..4]);
        put(DESCRIPTOR_SIZE, DESCRIPTOR as u64);
        put(MAP_LOW, map_at);
        put(MAP_SIZE, self.map.len() as u64);
        put(MAP_HIGH, map_at >> 32);
        info
    }

    /// `struct efi_setup_data`
    pub(super) fn setup(&self) -> [u8; 96] {
        let mut setup = [0; 96];
        for (index, number) in [self.vendor, 0, self.tables, self.smbios].into_iter().enumerate() {
            setup[index * 8..index * 8 + 8].copy_from_slice(&number.to_le_bytes());
        }
        setup
    }
}

fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_running_kernel_shows_is_told_to_the_next_one() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let mut parameters = vec![0; 4096];
        parameters[0x1c0..0x1c4].copy_from_slice(b"EL64");
        assert!(Efi::of(folder.path(), &parameters).is_err(), "no map at boot");
        parameters[0x1d4] = 48;
        assert!(Efi::of(folder.path(), &parameters).unwrap_err().contains("does not use"));
        for (name, text) in [
            ("type", "0x5\n"),
            ("phys_addr", "0x7f000000\n"),
            ("virt_addr", "0xfffffffeff000000\n"),
            ("num_pages", "0x10\n"),
            ("attribute", "0x800000000000000f\n"),
        ] {
            put(&format!("runtime-map/0/{name}"), text);
        }
        put("fw_vendor", "0x7f100000\n");
        put("config_table", "0x7f200000\n");
        put("systab", "ACPI20=0x7f77e014\nSMBIOS=0x7f300000\n");
        let efi = Efi::of(folder.path(), &parameters).unwrap();
        let long = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!((efi.map.len(), efi.map[0], long(&efi.map, 8), long(&efi.map, 24)), (40, 5, 0x7f00_0000, 16));
        let info = efi.info(0x1_7000_0000);
        assert_eq!(
            (&info[..4], info[8], long(&info, 16), info[28]),
            (b"EL64".as_slice(), 40, 40 << 32 | 0x7000_0000, 1)
        );
        let setup = efi.setup();
        assert_eq!((long(&setup, 0), long(&setup, 16), long(&setup, 24)), (0x7f10_0000, 0x7f20_0000, 0x7f30_0000));
    }
}
