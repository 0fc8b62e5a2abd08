//! The workers' configuration changes while they run.

use std::{num::NonZeroUsize, sync::atomic::Ordering, time::Duration};

use homescar::config::Workers;
use tokio::time::Instant;

use crate::support::{Log, Rig, cluster_of, is_alive, pid_of, until_dead, whoami, workers};

#[tokio::test]
async fn slots_beyond_the_count_are_drained_and_others_are_left_alone() {
    let log = Log::capture();
    let mut config = workers(&[]);
    config.count = NonZeroUsize::new(3).unwrap();
    let mut rig = Rig::start(&cluster_of(config.clone()));
    let mut before = Vec::new();
    for slot in ["app/0", "app/1", "app/2"] {
        before.push(rig.ready(slot, 1).await);
    }
    // A connection of the third slot is open, as the data plane counts it.
    before[2].slot.stats.active.store(1, Ordering::Relaxed);
    let count = |count| Workers {
        count: NonZeroUsize::new(count).unwrap(),
        ..config.clone()
    };
    rig.configure(cluster_of(count(1))).await;
    until_dead(pid_of(&before[1]), Duration::from_secs(5)).await;
    log.wait_for("app/1 stopped: signal TERM").await;
    assert!(is_alive(pid_of(&before[2])), "it still serves");

    // Wanted again before it was ended: the same process.
    rig.configure(cluster_of(count(3))).await;
    let kept = rig.ready("app/2", 1).await;
    assert_eq!(pid_of(&kept), pid_of(&before[2]));
    let anew = rig.ready("app/1", 2).await;
    assert_ne!(pid_of(&anew), pid_of(&before[1]));

    rig.configure(cluster_of(count(2))).await;
    until_dead(pid_of(&kept), Duration::from_secs(5)).await;
    assert!(is_alive(pid_of(&before[0])));
    assert_eq!(pid_of(&rig.ready("app/0", 1).await), pid_of(&before[0]));
    rig.stop().await;
}

#[tokio::test]
async fn a_drain_ends_at_its_deadline() {
    let mut config = workers(&[]);
    config.count = NonZeroUsize::new(2).unwrap();
    let mut rig = Rig::start(&cluster_of(config.clone()));
    let entry = rig.ready("app/1", 1).await;
    entry.slot.stats.active.store(1, Ordering::Relaxed);
    config.count = NonZeroUsize::MIN;
    let mut fewer = cluster_of(config);
    fewer.drain.timeout = Duration::from_millis(300);
    let began = Instant::now();
    rig.configure(fewer).await;
    until_dead(pid_of(&entry), Duration::from_secs(5)).await;
    assert!(began.elapsed() >= Duration::from_millis(300));
    rig.stop().await;
}

#[tokio::test]
async fn a_changed_command_replaces_the_worker_once() {
    let log = Log::capture();
    let config = workers(&[]);
    let mut rig = Rig::start(&cluster_of(config));
    let first = rig.ready("app/0", 1).await;
    let changed = cluster_of(workers(&["--stderr", "the new one"]));
    rig.configure(changed.clone()).await;
    rig.configure(changed).await;
    let second = rig.ready("app/0", 2).await;
    assert_eq!(whoami(&second).await["generation"], 2);
    until_dead(pid_of(&first), Duration::from_secs(20)).await;
    log.wait_for("worker: the new one").await;
    assert_eq!(log.with("starts beside").len(), 1);
    rig.stop().await;
}
