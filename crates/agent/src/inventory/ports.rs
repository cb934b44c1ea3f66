//! Numbers and addresses of VMs' NICs, for as long as the VM exists.
//!
//! A port's number is who the metadata service takes a guest for, so no number is given to another NIC while anybody could
//! still use it for the former one: numbers are counted up, and begin again only after 65,535.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use fermata_model::Mac;
use rusqlite::{OptionalExtension, params};
use uuid::Uuid;

use super::{Inventory, InventoryError};
use crate::config::BridgeAddress;

/// The largest number a packet mark has room for.
const LAST: i64 = 65_535;

/// A NIC that needs a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedPort {
    /// The VM.
    pub vm: Uuid,
    /// Which of its NICs.
    pub nic: usize,
    /// The NIC's MAC address; a guest that takes its address from it by itself takes the one it is offered.
    pub mac: Mac,
    /// The network that its address is to be from, where the agent gives addresses.
    pub network: Option<BridgeAddress>,
}

/// What a NIC has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GivenPort {
    /// The number.
    pub number: u16,
    /// The address.
    pub address: Option<Ipv4Addr>,
}

impl Inventory {
    /// Gives every wanted NIC its port, the same as before where it had one, and takes back all others.
    ///
    /// # Errors
    /// [`InventoryError`].
    pub fn ports(&self, wanted: &[WantedPort]) -> Result<BTreeMap<(Uuid, usize), GivenPort>, InventoryError> {
        self.with(|db| {
            let tx = db.unchecked_transaction()?;
            let mut rows = BTreeMap::new();
            {
                let mut statement = tx.prepare("SELECT number, vm, nic, address FROM port")?;
                let mut found = statement.query([])?;
                while let Some(row) = found.next()? {
                    let (number, vm, nic): (i64, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
                    let address: Option<String> = row.get(3)?;
                    rows.insert((vm, nic), (number, address.and_then(|text| text.parse::<Ipv4Addr>().ok())));
                }
            }
            let key = |port: &WantedPort| (port.vm.to_string(), i64::try_from(port.nic).unwrap_or(i64::MAX));
            let keep: BTreeSet<(String, i64)> = wanted.iter().map(key).collect();
            rows.retain(|key, (number, _)| {
                keep.contains(key) || tx.execute("DELETE FROM port WHERE number = ?1", [*number]).is_err()
            });
            let mut taken: BTreeSet<Ipv4Addr> = rows.values().filter_map(|(_, address)| *address).collect();
            let mut given = BTreeMap::new();
            for port in wanted {
                let row = rows.get(&key(port)).copied();
                let fits = |address: &Ipv4Addr| port.network.is_some_and(|network| inside(network, *address));
                let known = row.and_then(|(_, address)| address).filter(fits);
                let address = known.or_else(|| port.network.and_then(|network| choose(network, port.mac, &taken)));
                taken.extend(address);
                let text = address.map(|address| address.to_string());
                let number = match row {
                    Some((number, before)) => {
                        if before != address {
                            tx.execute("UPDATE port SET address = ?2 WHERE number = ?1", params![number, text])?;
                        }
                        number
                    }
                    None => insert(&tx, &key(port), text.as_deref())?,
                };
                // At most 65,535 by construction; a NIC without number would be nobody.
                let Ok(number) = u16::try_from(number) else { continue };
                given.insert((port.vm, port.nic), GivenPort { number, address });
            }
            tx.commit()?;
            Ok(given)
        })
    }
}

fn insert(tx: &rusqlite::Transaction<'_>, key: &(String, i64), address: Option<&str>) -> rusqlite::Result<i64> {
    let add = "INSERT INTO port (number, vm, nic, address) VALUES (?1, ?2, ?3, ?4)";
    let last: Option<i64> =
        tx.query_row("SELECT seq FROM sqlite_sequence WHERE name = 'port'", [], |row| row.get(0)).optional()?;
    let next = last.unwrap_or(0) + 1;
    if next <= LAST {
        tx.execute(add, params![next, key.0, key.1, address])?;
        return Ok(next);
    }
    let free = "SELECT min(n) FROM (SELECT 1 AS n UNION SELECT number + 1 FROM port)
                WHERE n NOT IN (SELECT number FROM port) AND n <= ?1";
    let number: Option<i64> = tx.query_row(free, [LAST], |row| row.get(0))?;
    let number = number.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    tx.execute(add, params![number, key.0, key.1, address])?;
    Ok(number)
}

const fn bits(network: BridgeAddress) -> (u32, u32) {
    let host = u32::MAX >> network.prefix;
    (network.address.to_bits() & !host, host)
}

fn inside(network: BridgeAddress, address: Ipv4Addr) -> bool {
    let (base, host) = bits(network);
    let number = address.to_bits() & host;
    address.to_bits() & !host == base && number != 0 && number != host && address != network.address
}

/// An address of the network: by the end of the MAC address where that is free, else the next free one.
fn choose(network: BridgeAddress, mac: Mac, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let (base, host) = bits(network);
    let [.., a, b, c, d] = mac.bytes();
    let first = u32::from_be_bytes([a, b, c, d]) & host;
    let candidates = (0..=host).map(|step| Ipv4Addr::from_bits(base | (first.wrapping_add(step) & host)));
    candidates.into_iter().find(|address| inside(network, *address) && !taken.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> (tempfile::TempDir, Inventory) {
        let folder = tempfile::tempdir().unwrap();
        let inventory = Inventory::open(&folder.path().join("agent.db")).unwrap();
        (folder, inventory)
    }

    fn wanted(vm: u128, mac: &str) -> WantedPort {
        let network = Some("10.77.0.1/24".parse().unwrap());
        WantedPort { vm: Uuid::from_u128(vm), nic: 0, mac: mac.parse().unwrap(), network }
    }

    #[test]
    fn a_port_is_kept_for_life_and_its_number_is_not_given_again() {
        let (_folder, inventory) = open();
        let (a, b) = (wanted(1, "52:54:00:00:00:0b"), wanted(2, "52:54:00:00:00:0c"));
        let first = inventory.ports(&[a.clone(), b.clone()]).unwrap();
        assert_eq!(inventory.ports(&[b.clone(), a.clone()]).unwrap(), first);
        assert_eq!(first[&(a.vm, 0)].address, Some("10.77.0.11".parse().unwrap()));
        assert_eq!(inventory.ports(std::slice::from_ref(&a)).unwrap().len(), 1);
        let again = inventory.ports(&[a, b.clone()]).unwrap();
        assert_ne!(again[&(b.vm, 0)].number, first[&(b.vm, 0)].number);
    }

    #[test]
    fn numbers_begin_again_at_the_end_of_the_marks() {
        let (_folder, inventory) = open();
        let ports = |ids: &[u128]| {
            let all: Vec<_> = ids.iter().map(|id| wanted(*id, "52:54:00:00:00:01")).collect();
            inventory.ports(&all).unwrap()
        };
        ports(&[1]);
        inventory.with(|db| db.execute("UPDATE sqlite_sequence SET seq = 65534", [])).unwrap();
        let given = ports(&[1, 2, 3]);
        let number = |id: u128| given[&(Uuid::from_u128(id), 0)].number;
        assert_eq!((number(1), number(2), number(3)), (1, 65_535, 2));
    }

    #[test]
    fn an_address_is_free_and_of_the_network() {
        let network: BridgeAddress = "10.77.0.1/30".parse().unwrap();
        let mac = |text: &str| text.parse::<Mac>().unwrap();
        let two = Ipv4Addr::new(10, 77, 0, 2);
        for last in ["00", "01", "02", "03"] {
            let address = choose(network, mac(&format!("52:54:00:00:00:{last}")), &BTreeSet::new());
            assert_eq!(address, Some(two), "{last}: the host has .1, and .0 and .3 are nobody's");
        }
        assert_eq!(choose(network, mac("52:54:00:00:00:02"), &[two].into()), None);
    }
}
