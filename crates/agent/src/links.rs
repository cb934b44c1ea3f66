//! Network links of the host: bridges the agent makes, taps of VMs attached to them.
//!
//! A tap is persistent, so it outlives both the agent and a VMM; it is removed when its VM stops. Tap names carry the
//! beginning of the VM's uuid, so that every tap found can be traced to its VM: `vm6f2b9b0a-0a`.

mod handover;

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use fermata_model::{BridgeName, Mac};
use fermata_vault::tap::TapName;
use rtnetlink::{Handle, LinkBridge, LinkUnspec};
use uuid::Uuid;

use crate::config::BridgeConfig;

/// Why a link could not be made or changed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The bridge is not there.
    #[error(
        "bridge `{0}` does not exist on this host; make it, or give it an address in the agent's configuration to have it made"
    )]
    NoBridge(BridgeName),
    /// A link of that name is there but is no bridge.
    #[error("`{0}` is a network link but not a bridge; choose another")]
    NotABridge(BridgeName),
    /// The kernel refused.
    #[error("{act} `{link}`: {source}")]
    Kernel {
        /// What was tried.
        act: &'static str,
        /// On which link.
        link: String,
        /// The kernel's answer.
        source: Box<rtnetlink::Error>,
    },
    /// No netlink socket.
    #[error("netlink socket: {0}")]
    Socket(#[from] std::io::Error),
}

/// The host's links.
#[derive(Debug, Clone)]
pub struct Links {
    handle: Handle,
}

impl Links {
    /// Opens a netlink socket and serves it on the current runtime.
    ///
    /// # Errors
    /// [`LinkError::Socket`].
    pub fn open() -> Result<Self, LinkError> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Makes the bridge if the agent owns it and it is missing, gives it its address, brings it up. Idempotent.
    ///
    /// Its MAC address is noted in the folder `notes` and is the same in every later kernel: guests that run on know no other, and until
    /// their neighbour entries expire they would send into the void.
    ///
    /// # Errors
    /// [`LinkError::Kernel`], [`LinkError::NotABridge`].
    pub async fn ensure_bridge(&self, bridge: &BridgeConfig, notes: &Path) -> Result<(), LinkError> {
        let Some(address) = bridge.address else { return Ok(()) };
        let name = bridge.name.as_str();
        let note = notes.join(format!("bridge-{name}.mac"));
        let noted: Option<Mac> = fs::read_to_string(&note).ok().and_then(|text| text.trim().parse().ok());
        let failed = |act| move |source| LinkError::Kernel { act, link: name.to_owned(), source: Box::new(source) };
        if index_of(name).is_none() {
            let mac = noted.unwrap_or_else(|| Mac::derived(Uuid::new_v4().into_bytes(), 0));
            let made = LinkBridge::new(name).address(mac.bytes().to_vec()).build();
            self.handle.link().add(made).execute().await.map_err(failed("make bridge"))?;
        }
        check_bridge(&bridge.name)?;
        let index = index_of(name).ok_or_else(|| LinkError::NoBridge(bridge.name.clone()))?;
        self.handle
            .address()
            .add(index, IpAddr::V4(address.address), address.prefix)
            .replace()
            .execute()
            .await
            .map_err(failed("give an address to"))?;
        let up = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().set(up).execute().await.map_err(failed("bring up"))?;
        match self.pin_address(&bridge.name).await? {
            Some(mac) if noted != Some(mac) => {
                if let Err(error) = fs::write(&note, format!("{mac}\n")) {
                    tracing::warn!(%error, file = %note.display(), "another kernel will give this bridge another address");
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The MAC address of a bridge, which it keeps from now on: a bridge whose address nobody chose takes that of one of its
    /// ports, and another one when that port leaves. `None` when there is no such bridge.
    ///
    /// # Errors
    /// [`LinkError::Kernel`].
    pub async fn pin_address(&self, bridge: &BridgeName) -> Result<Option<Mac>, LinkError> {
        /// `linux/netdevice.h`: NET_ADDR_SET.
        const CHOSEN: &str = "3";
        let folder = Path::new("/sys/class/net").join(bridge.as_str());
        let read = |name: &str| fs::read_to_string(folder.join(name)).ok();
        let (Some(index), Some(text)) = (index_of(bridge.as_str()), read("address")) else { return Ok(None) };
        let Ok(mac) = text.trim().parse::<Mac>() else { return Ok(None) };
        if read("addr_assign_type").is_none_or(|kind| kind.trim() != CHOSEN) {
            let keep = LinkUnspec::new_with_index(index).address(mac.bytes().to_vec()).build();
            self.handle
                .link()
                .set(keep)
                .execute()
                .await
                .map_err(Self::failed("keep the address of", bridge.as_str()))?;
        }
        Ok(Some(mac))
    }

    /// Attaches a tap to a bridge and brings it up.
    ///
    /// # Errors
    /// [`LinkError`] when the bridge is gone or the kernel refuses.
    pub async fn attach(&self, tap: &str, bridge: &BridgeName) -> Result<(), LinkError> {
        check_bridge(bridge)?;
        let controller = self.index(bridge.as_str())?;
        let message = LinkUnspec::new_with_index(self.index(tap)?).controller(controller).up().build();
        self.handle.link().set(message).execute().await.map_err(Self::failed("attach", tap))
    }

    fn index(&self, link: &str) -> Result<u32, LinkError> {
        index_of(link).ok_or_else(|| {
            LinkError::Socket(std::io::Error::new(std::io::ErrorKind::NotFound, format!("link `{link}` vanished")))
        })
    }

    fn failed(act: &'static str, link: &str) -> impl FnOnce(rtnetlink::Error) -> LinkError {
        let link = link.to_owned();
        move |source| LinkError::Kernel { act, link, source: Box::new(source) }
    }

    /// Removes a link if it is there.
    ///
    /// # Errors
    /// [`LinkError::Kernel`].
    pub async fn remove(&self, link: &str) -> Result<(), LinkError> {
        let Some(index) = index_of(link) else { return Ok(()) };
        self.handle.link().del(index).execute().await.map_err(Self::failed("remove", link))
    }
}

/// Which of a VM's two sets of taps: that of the VMM that runs it, or that of the VMM beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The one.
    A,
    /// The other.
    B,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    /// The side that is free beside a VMM with these taps. Which one a VMM has does not follow from how many there were before: one
    /// that never took over has had its turn.
    #[must_use]
    pub fn beside(taps: &[TapName]) -> Self {
        if taps.iter().any(|tap| tap.as_str().ends_with(Self::A.letter())) { Self::B } else { Self::A }
    }

    const fn letter(self) -> char {
        match self {
            Self::A => 'a',
            Self::B => 'b',
        }
    }
}

/// The name of a VM's tap: at most 15 characters, unique as long as the first 32 bits of the uuid are. The letter tells
/// the taps of a VMM from those of the VMM that takes over from it.
#[must_use]
pub fn tap_name(vm: Uuid, nic: usize, side: Side) -> TapName {
    let (head, ..) = vm.as_fields();
    format!("vm{head:08x}-{nic}{}", side.letter())
        .parse()
        .expect("`vm`, 8 digits, `-`, a number below 100 and a letter are a device name")
}

/// Checks that a bridge is there and is one.
///
/// # Errors
/// [`LinkError::NoBridge`], [`LinkError::NotABridge`].
pub fn check_bridge(name: &BridgeName) -> Result<(), LinkError> {
    let link = Path::new("/sys/class/net").join(name.as_str());
    if !link.exists() {
        return Err(LinkError::NoBridge(name.clone()));
    }
    if !link.join("bridge").is_dir() {
        return Err(LinkError::NotABridge(name.clone()));
    }
    Ok(())
}

fn index_of(link: &str) -> Option<u32> {
    let path = Path::new("/sys/class/net").join(link).join("ifindex");
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tap_names_fit_the_kernels_limit(id: u128, nic in 0usize..16) {
            for side in Side::BOTH {
                prop_assert!(tap_name(Uuid::from_u128(id), nic, side).as_str().len() <= 15);
            }
        }

        /// Whatever came of the VMMs before: a successor that fails leaves the taps of the one that runs alone.
        #[test]
        fn no_vmm_has_a_tap_of_the_one_beside_it(took_over: Vec<bool>) {
            let taps = |side| vec![tap_name(Uuid::from_u128(1), 0, side)];
            let mut runs = taps(Side::beside(&[]));
            for took_over in took_over {
                let new = taps(Side::beside(&runs));
                prop_assert_ne!(&new, &runs);
                if took_over {
                    runs = new;
                }
            }
        }
    }

    #[test]
    fn a_missing_bridge_is_named() {
        let name: BridgeName = "no-such-bridge".parse().unwrap();
        assert!(check_bridge(&name).unwrap_err().to_string().contains("no-such-bridge"));
        assert!(matches!(check_bridge(&"lo".parse().unwrap()), Err(LinkError::NotABridge(_))));
    }
}
