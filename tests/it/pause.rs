//! homescar itself is stopped for a while, as on a machine that was suspended or had no time.

use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::sleep;

use crate::support::homescar::{Homescar, WORKER, is_alive, message};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_workers_said_meanwhile_counts() {
    let homescar = Homescar::serve(&format!(
        r#"
        [listener.web]
        bind = "127.0.0.1:0"
        cluster = "app"
        [cluster.app.workers]
        command = ["{WORKER}", "--ready-notify", "--watchdog"]
        count = 8
        watchdog = "600ms"
        "#
    ));
    let pids = homescar.all_ready("app", 8).await;
    homescar.signal(Signal::SIGSTOP);
    sleep(Duration::from_millis(1500)).await;
    homescar.signal(Signal::SIGCONT);
    // Longer than the watchdog: whoever is going to be missed has been.
    sleep(Duration::from_millis(700)).await;
    let missed = {
        let log = homescar.log();
        log.iter()
            .filter(|line| message(line).contains("WATCHDOG"))
            .count()
    };
    assert_eq!(missed, 0, "{}", homescar.tail());
    for pid in pids {
        assert!(is_alive(pid));
    }
}
