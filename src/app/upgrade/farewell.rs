//! Connections that cannot come along: they are asked to go, finish what they are about, and are cut
//! when that takes too long. Those that will, once they have done what they are about, are only waited for.

use std::{os::fd::OwnedFd, time::Duration};

use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::LOOK_AGAIN;
use crate::{
    app::{App, Place},
    proxy::Cut,
};

/// For requests to end that have come in since, while new clients wait to be let in.
const LAST_REQUESTS: Duration = Duration::from_secs(3);
/// For cut connections to be gone and recorded.
const CUT_WITHIN: Duration = Duration::from_secs(2);
/// For the sockets of a door to be there, once nobody is let in.
const DOORS_WITHIN: Duration = Duration::from_secs(2);

impl App {
    /// Asks those to go that cannot come along, as a drain does, and waits for those that are there
    /// now. New clients are served meanwhile.
    pub(super) async fn say_goodbye(&self) {
        let others = self.plane.others(false).await;
        if others == 0 {
            return;
        }
        self.plane.note().await;
        let longest = self.longest_drain();
        info!(
            connections = others,
            "connections that cannot come along get up to {}",
            humantime::format_duration(longest)
        );
        let deadline = Instant::now() + longest;
        while self.plane.others(true).await > 0 && Instant::now() < deadline {
            // Again, as one may have been about its handshake. Who was asked before notices nothing.
            for listener in self.listeners.values() {
                let which = Cut::Listener(listener.clone());
                let spread = listener.drain().spread;
                self.plane.ask_others_to_leave(&which, spread, true).await;
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    fn longest_drain(&self) -> Duration {
        let drains = self.config.clusters.iter().map(|cluster| &cluster.drain);
        drains.map(|drain| drain.timeout).max().unwrap_or_default()
    }

    /// Lets nobody in any more: who comes waits in the sockets, which this gives. Ends what cannot
    /// come along; the number of connections that had to be cut.
    pub(super) async fn let_nobody_in(
        &self,
    ) -> Result<(Vec<(Place, Vec<OwnedFd>)>, usize), String> {
        self.plane.shut();
        self.directs.pause().await;
        let mut doors = Vec::new();
        for (place, door) in &self.doors {
            let sockets = self.plane.sockets_of(door, DOORS_WITHIN).await;
            let address = door.address();
            let sockets = sockets.ok_or_else(|| format!("{address} does not cease to accept"))?;
            doors.push((place.clone(), sockets));
        }
        self.plane.rest().await;
        let last = LAST_REQUESTS.min(self.longest_drain());
        let last = timeout(last, self.no_others()).await;
        if last.is_ok() {
            return Ok((doors, 0));
        }
        let cut = self.plane.cut_others().await;
        warn!("cutting {cut} connections that cannot come along and have not ended");
        if timeout(CUT_WITHIN, self.no_others()).await.is_err() {
            return Err("connections do not end".to_owned());
        }
        Ok((doors, cut))
    }

    async fn no_others(&self) {
        while self.plane.others(false).await > 0 {
            self.plane
                .ask_others_to_leave(&Cut::All, Duration::ZERO, false)
                .await;
            sleep(LOOK_AGAIN / 4).await;
        }
    }
}
