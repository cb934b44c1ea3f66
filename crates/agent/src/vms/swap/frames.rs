//! Frames while a VM changes its VMM: steered to the new one's taps just before it stands, and never left with a dead one.

use fermata_model::{BridgeName, Mac};
use fermata_vault::tap::TapName;

use super::super::live::Live;
use super::super::{VmError, Vms};
use super::{Beside, Gate};
use crate::inventory::{Runtime, VmRecord};

impl Vms {
    /// Steers frames from the taps of the VMM that runs the VM to the one beside, unless its gate was shut.
    pub(super) async fn steer_through(
        &self,
        beside: &Beside,
        from: &[TapName],
        ways: &[(String, BridgeName, Mac)],
    ) -> Result<(), VmError> {
        let gate = beside.gate.lock().await;
        if *gate == Gate::Open { self.steer(from, ways).await } else { Ok(()) }
    }

    /// Which tap each address of a VM is reached through, with a VMM's taps.
    pub(super) fn ways(&self, record: &VmRecord, runtime: &Runtime) -> Vec<(String, BridgeName, Mac)> {
        let nics = record.definition.nics.iter();
        nics.zip(&runtime.taps).map(|(nic, tap)| (tap.to_string(), nic.bridge.clone(), nic.mac)).collect()
    }

    /// Away from some taps, which the guest may still send through.
    pub(super) async fn steer(&self, from: &[TapName], ways: &[(String, BridgeName, Mac)]) -> Result<(), VmError> {
        for (nic, tap) in from.iter().enumerate() {
            self.links.forget(tap.as_str()).map_err(|source| VmError::Nic { nic, source })?;
        }
        for (nic, (tap, bridge, mac)) in ways.iter().enumerate() {
            self.links.steer(tap, bridge, *mac).await.map_err(|source| VmError::Nic { nic, source })?;
        }
        Ok(())
    }

    /// Frames that the VMM before did not read any more go to the one that has the VM. A failure costs these frames, not the VM.
    pub(super) fn hand_frames_on(&self, old: &Live) {
        for (tap, queue) in old.runtime().taps.iter().zip(&old.lent().queues) {
            match self.links.hand_on(tap.as_str(), queue) {
                Ok(0) => {}
                Ok(frames) => tracing::info!(%tap, frames, "handed on"),
                Err(error) => tracing::warn!(%tap, error = crate::chain(&error), "frames that were not read are lost"),
            }
        }
    }

    /// Frames that waited for a VMM that is dead now go to the one that has the VM. A failure costs these frames, not the VM.
    pub(super) async fn give_frames_back(&self, dead: &Beside) {
        for (tap, queue) in dead.runtime.taps.iter().zip(&dead.queues) {
            match self.links.give_back(tap.as_str(), queue).await {
                Ok(0) => {}
                Ok(frames) => tracing::info!(%tap, frames, "given back"),
                Err(error) => tracing::warn!(%tap, error = crate::chain(&error), "frames that waited are lost"),
            }
        }
    }
}
