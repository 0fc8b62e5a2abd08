//! Sends WebSockets home that are in another slot than their own: the hands of
//! [`Rebalance`](crate::cluster::Rebalance), which decides.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until};
use tracing::info;

use super::cluster::RunningCluster;
use crate::{
    cluster::{Cluster, Rebalance, Step},
    proxy::{DataPlane, Stray},
};

/// When so long nobody can be sent, it is said how many were.
const LULL: Duration = Duration::from_secs(5);

/// Watches over a cluster for as long as it is at work.
pub(super) fn watch(running: &RunningCluster, plane: &Arc<DataPlane>) {
    running.keep_running(run(running.cluster().clone(), Arc::clone(plane)));
}

async fn run(cluster: Cluster, plane: Arc<DataPlane>) {
    let mut numbers = cluster.subscribe();
    let mut rebalance = Rebalance::<Stray>::new(cluster.asked().clone());
    let mut random = fastrand::Rng::new();
    let mut sent = 0;
    loop {
        let snapshot = cluster.load();
        let next_at = match rebalance.step(&snapshot, &snapshot.live()) {
            Step::Look => {
                let (away, later) = plane.strays(&snapshot).await;
                rebalance.found(away, later, Instant::now(), &mut random);
                continue;
            }
            Step::Ask(stray, stay, home) => {
                if plane.send_home(stray, &stay).await {
                    rebalance.was_asked(&snapshot, &stay, home, Instant::now());
                    sent += 1;
                }
                continue;
            }
            Step::Wait(at) => Some(at),
            Step::Rest => None,
        };
        if sent > 0 && next_at.is_none_or(|at| at > Instant::now() + LULL) {
            info!(cluster = %cluster.name(), "sent {sent} WebSockets home");
            sent = 0;
        }
        tokio::select! {
            changed = numbers.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = cluster.strayed() => rebalance.strayed(Instant::now()),
            () = sleep_until(next_at.unwrap_or_else(Instant::now)), if next_at.is_some() => {}
        }
    }
}
