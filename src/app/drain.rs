//! The orderly end: doors closed, connections finished or cut by a deadline, workers ended.
//!
//! Connections that workers have directly are finished too, as far as the kernel tells of them;
//! they are cut by the end of their worker.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{App, close_all, demands::Inbox};
use crate::proxy::Cut;

/// For cut connections to be gone and recorded.
const CUT_TIMEOUT: Duration = Duration::from_secs(2);

impl App {
    /// Ends everything. The first signal that comes in meanwhile cuts the connections, the next
    /// one kills the workers.
    pub(super) async fn drain(self, inbox: Inbox) {
        let mut inbox = inbox;
        self.office.board.drains();
        let longest = self
            .config
            .clusters
            .iter()
            .map(|cluster| cluster.drain.timeout)
            .max();
        let deadline = longest.unwrap_or_default();
        self.manager.stopping("draining");
        info!(
            connections = self.open().await,
            "draining for up to {}; again to end now",
            humantime::format_duration(deadline)
        );
        tokio::join!(close_all(self.doors.values()), self.directs.close());
        for listener in self.listeners.values() {
            let which = Cut::Listener(Arc::clone(listener));
            self.plane
                .ask_to_leave(&which, listener.drain().spread)
                .await;
        }
        self.finish_connections(deadline, &mut inbox).await;
        self.shutdown.cancel();
        self.stop_workers(inbox).await;
        info!("stopped");
    }

    async fn finish_connections(&self, deadline: Duration, inbox: &mut Inbox) {
        tokio::select! {
            () = self.wait_until_idle() => return,
            () = tokio::time::sleep(deadline) => {
                let open = self.open().await;
                warn!("drain.timeout has passed: cutting {open} connections");
            }
            () = inbox.next_shutdown() => {
                let open = self.open().await;
                warn!("told again to end: cutting {open} connections");
            }
        }
        self.plane.cut(Cut::All).await;
        if timeout(CUT_TIMEOUT, self.plane.wait_until_idle())
            .await
            .is_err()
        {
            warn!("{} connections are still there", self.plane.open());
        }
    }

    /// Connections, relayed and direct.
    async fn open(&self) -> u64 {
        self.plane.open() + self.directs.connections().await
    }

    /// In this order: who waits for a worker that is gone becomes a relayed connection.
    async fn wait_until_idle(&self) {
        self.directs.wait_until_idle().await;
        self.plane.wait_until_idle().await;
    }

    async fn stop_workers(self, mut inbox: Inbox) {
        let now = CancellationToken::new();
        let stops = tokio_util::task::TaskTracker::new();
        for running in self.clusters.into_values() {
            let now = now.clone();
            stops.spawn(async move { running.stop(&now).await });
        }
        stops.close();
        self.leaving.close();
        let all = async {
            stops.wait().await;
            self.leaving.wait().await;
        };
        tokio::pin!(all);
        tokio::select! {
            () = &mut all => return,
            () = inbox.next_shutdown() => warn!("told again to end: killing workers"),
        }
        now.cancel();
        all.await;
    }
}
