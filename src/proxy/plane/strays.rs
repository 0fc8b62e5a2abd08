//! WebSockets of all threads that are in another slot than their own.

use std::sync::Arc;

use super::DataPlane;
use crate::{
    cluster::{Snapshot, Stay},
    proxy::registry,
};

/// The way to a WebSocket: its thread, and its place there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stray {
    thread: usize,
    place: usize,
}

impl DataPlane {
    /// Those that their own slot would take now, and whether there are others that it may take later.
    pub async fn strays(&self, snapshot: &Arc<Snapshot>) -> (Vec<(Stray, Arc<Stay>)>, bool) {
        let found = self.on_each(|| registry::strays(Arc::clone(snapshot)));
        let (mut all, mut any_later) = (Vec::new(), false);
        for (thread, (away, later)) in found.await.into_iter().enumerate() {
            let away = away.into_iter();
            all.extend(away.map(|(place, stay)| (Stray { thread, place }, stay)));
            any_later |= later;
        }
        (all, any_later)
    }

    /// Asks one to go home. False when it is gone, or goes anyway.
    pub async fn send_home(&self, stray: Stray, stay: &Arc<Stay>) -> bool {
        let Some(thread) = self.threads.get(stray.thread) else {
            return false;
        };
        let stay = Arc::clone(stay);
        let ask = async move { registry::send_home(stray.place, &stay) };
        thread.runtime.spawn(ask).await.unwrap_or(false)
    }
}
