//! What the state machine is told next: acts that ended, orders, VMs that are gone, or that time passed.
//!
//! Invariant: what an act saw of a VM while it ran is told before its end. An act that looks whether a VM lives says so to all who
//! hear of ends and then ends well; its end may close the maintenance, and nothing said after that would be in the report.

use fermata_maintenance::machine::{ActId, ActResult, Input};
use fermata_maintenance::time::Mono;
use fermata_model::VmName;
use tokio::sync::broadcast::{self, error::TryRecvError};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::time;

/// Waits for what comes next, until `wake` at the latest; in the order in which it is to be told.
pub(super) async fn next(
    running: &mut JoinSet<(ActId, ActResult)>,
    told: &mut mpsc::UnboundedReceiver<Input>,
    ends: &mut broadcast::Receiver<(VmName, String)>,
    wake: Option<Mono>,
) -> Vec<Input> {
    let input = tokio::select! {
        Some(ended) = running.join_next() => match ended {
            Ok((act, result)) => Input::Ended { act, result },
            // Cancelled by a take-back, or a panic in the log: the deadline speaks for the act.
            Err(_) => Input::Tick,
        },
        Some(told) = told.recv() => told,
        Ok((vm, reason)) = ends.recv() => Input::VmGone { vm, reason },
        () = time::until(wake) => Input::Tick,
    };
    let mut inputs = gone(ends);
    inputs.push(input);
    inputs
}

/// The VMs that are gone by now.
fn gone(ends: &mut broadcast::Receiver<(VmName, String)>) -> Vec<Input> {
    let mut inputs = Vec::new();
    loop {
        match ends.try_recv() {
            Ok((vm, reason)) => inputs.push(Input::VmGone { vm, reason }),
            Err(TryRecvError::Lagged(missed)) => tracing::warn!(missed, "ends of VMs were missed"),
            Err(TryRecvError::Empty | TryRecvError::Closed) => return inputs,
        }
    }
}

#[cfg(test)]
mod tests {
    use fermata_maintenance::machine::{Evidence, Op};

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_an_act_saw_is_told_before_its_end() {
        let vm: VmName = "web".parse().unwrap();
        let (_orders, mut told) = mpsc::unbounded_channel();
        for round in 0..500 {
            let (gone, mut ends) = broadcast::channel(4);
            let mut running = JoinSet::new();
            let saw = vm.clone();
            running.spawn(async move {
                if round % 2 == 0 {
                    tokio::task::yield_now().await;
                }
                gone.send((saw.clone(), "restarted".to_owned())).unwrap();
                (ActId { vm: Some(saw), op: Op::SetClock, attempt: 1 }, Ok(Evidence::Done))
            });
            let mut heard = Vec::new();
            while heard.len() < 2 {
                heard.extend(next(&mut running, &mut told, &mut ends, None).await);
            }
            assert!(matches!(&heard[..], [Input::VmGone { .. }, Input::Ended { .. }]), "round {round}: {heard:?}");
        }
    }
}
