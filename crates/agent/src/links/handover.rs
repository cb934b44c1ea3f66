//! Frames while a VM changes its VMM.
//!
//! Two VMMs must not share a tap: the new one resets the tap's header length as it starts, and reads frames that its guest
//! cannot take yet. So each has a tap of its own, and the bridge is told when to change over:
//!
//! ```text
//!  new VMM starts      hold(new tap)     frames for the new tap wait in a `plug` queue; it is not on the bridge yet
//!  just before STOP    forget(old tap)   what the guest still sends through it does not turn the bridge back
//!                      steer(new tap)    on the bridge, and the guest's address points to it: frames wait for the guest
//!  after RESUME        hand_on(old tap)  what came before the steering and was not read any more goes to the new tap
//!                      release(new tap)  what waited goes in, in order
//!  taken back          forget(new tap), steer(old tap), give_back(new tap): what waited goes to the VMM that has the VM
//! ```
//!
//! Nothing is lost either way: until STOP the old VMM still empties its own tap, what it leaves there is handed on, and what the guest
//! sends leaves through the tap of the VMM that runs it.

use std::path::Path;

use fermata_model::{BridgeName, Mac};
use fermata_vault::tap::Queue;
use futures_util::StreamExt;
use rtnetlink::LinkUnspec;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_core::{DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use super::{LinkError, Links, check_bridge};

/// `linux/pkt_sched.h`: what a `plug` queue is told.
#[derive(Clone, Copy)]
#[repr(i32)]
enum Plug {
    Buffer = 0,
    ReleaseIndefinite = 2,
}

/// How many bytes of frames may wait: 1 s of 1 Gbit/s. More than a pause of seconds at that rate is lost, as on a switch.
const MOST_BYTES: u32 = 125_000_000;
/// `linux/rtnetlink.h`: TCA_OPTIONS.
const TCA_OPTIONS: u16 = 2;

impl Links {
    /// Brings a tap up with a queue that lets nothing through until [`Self::release`]. It is on no bridge.
    ///
    /// # Errors
    /// [`LinkError::Kernel`]; the kernel needs `sch_plug`.
    pub async fn hold(&self, tap: &str) -> Result<(), LinkError> {
        let index = self.index(tap)?;
        self.plug(tap, Plug::Buffer, NLM_F_CREATE | NLM_F_REPLACE).await?;
        let up = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().set(up).execute().await.map_err(Self::failed("bring up", tap))
    }

    /// The bridge does not look for the senders of what comes through this tap behind it any more: frames for them would go where nobody
    /// takes them. Whether the tap is on a bridge at all; where it is not, nothing was ever steered to it.
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn forget(&self, tap: &str) -> Result<bool, LinkError> {
        Self::learn(tap, false)
    }

    /// Puts a tap on the bridge and makes it the way to `mac`. Idempotent.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn steer(&self, tap: &str, bridge: &BridgeName, mac: Mac) -> Result<(), LinkError> {
        check_bridge(bridge)?;
        let controller = self.index(bridge.as_str())?;
        let index = self.index(tap)?;
        let join = LinkUnspec::new_with_index(index).controller(controller).build();
        self.handle.link().set(join).execute().await.map_err(Self::failed("attach", tap))?;
        Self::learn(tap, true)?;
        self.handle
            .neighbours()
            .add_bridge(index, &mac.bytes())
            .flags(NeighbourFlags::Controller)
            .state(NeighbourState::Reachable)
            .replace()
            .execute()
            .await
            .map_err(Self::failed("point the guest's address to", tap))
    }

    /// Lets through what waited, in order, and everything after it.
    ///
    /// # Errors
    /// [`LinkError::Kernel`].
    pub async fn release(&self, tap: &str) -> Result<(), LinkError> {
        self.plug(tap, Plug::ReleaseIndefinite, 0).await
    }

    /// Gives frames that waited for a VMM which is dead now back to the bridge; the way to the guest is another tap already. How
    /// many there were.
    ///
    /// # Errors
    /// [`LinkError`]; frames not given back are lost with the tap.
    pub async fn give_back(&self, tap: &str, queue: &Queue) -> Result<usize, LinkError> {
        if !self.forget(tap)? {
            return Ok(0);
        }
        self.release(tap).await?;
        Ok(queue.send_back()?)
    }

    /// Hands frames that a stopped VMM did not read any more on to the bridge; the way to the guest is another tap already. How many
    /// there were.
    ///
    /// # Errors
    /// [`LinkError`]; frames not handed on are lost with the tap.
    pub fn hand_on(&self, tap: &str, queue: &Queue) -> Result<usize, LinkError> {
        if self.forget(tap)? { Ok(queue.send_back()?) } else { Ok(0) }
    }

    fn learn(tap: &str, learns: bool) -> Result<bool, LinkError> {
        let learning = Path::new("/sys/class/net").join(tap).join("brport/learning");
        match std::fs::write(&learning, if learns { "1" } else { "0" }) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn plug(&self, tap: &str, action: Plug, flags: u16) -> Result<(), LinkError> {
        let mut message = TcMessage::default();
        message.header.index = self.index(tap)?.cast_signed();
        message.header.handle = TcHandle { major: 1, minor: 0 };
        message.header.parent = TcHandle::ROOT;
        message.attributes.push(TcAttribute::Kind("plug".to_owned()));
        // `struct tc_plug_qopt`: the action, then the limit in bytes.
        let options = [(action as i32).to_ne_bytes(), MOST_BYTES.to_ne_bytes()].concat();
        message.attributes.push(TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, options)));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut handle = self.handle.clone();
        let mut answers = handle.request(request).map_err(Self::failed("queue frames of", tap))?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload {
                return Err(Self::failed("queue frames of", tap)(rtnetlink::Error::NetlinkError(error)));
            }
        }
        Ok(())
    }
}
