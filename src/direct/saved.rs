//! A direct listener in an upgrade. Its workers have its sockets, and serve all the while.

use std::{
    io,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::{Direct, Group, group::SavedGroup};
use crate::{
    config,
    handover::{Incoming, Outgoing},
};

/// For threads that accept in place of a worker. One whose client the worker has taken first is stuck
/// until the next one comes, and is not waited for.
const PAUSE_WITHIN: Duration = Duration::from_millis(300);

/// A [`Direct`], for the next image of the program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SavedDirect {
    /// The listener.
    pub listener: Arc<str>,
    /// The sockets of each of its addresses.
    groups: Vec<SavedGroup>,
    has_relayed: bool,
}

impl Direct {
    /// Accepts nobody in place of a worker, until [`go_on`](Self::go_on).
    pub async fn pause(&self) {
        self.pause.begin();
        let deadline = Instant::now() + PAUSE_WITHIN;
        while !self.pause.holds() && Instant::now() < deadline {
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Accepts again.
    pub fn go_on(&self) {
        self.pause.end();
    }

    /// What the next image has to know of it.
    ///
    /// # Errors
    /// When there is no room for copies of its sockets.
    pub fn saved(&self, outgoing: &mut Outgoing) -> io::Result<SavedDirect> {
        let groups = self.groups();
        let groups = groups.iter().map(|group| group.saved(outgoing));
        Ok(SavedDirect {
            listener: Arc::clone(&self.listener),
            groups: groups.collect::<io::Result<_>>()?,
            has_relayed: self.has_relayed.load(std::sync::atomic::Ordering::Relaxed),
        })
    }

    /// The same again. The program in the kernel is the one that was attached last.
    ///
    /// # Errors
    /// When a socket was not passed on, or there is not one for each address.
    pub fn resumed(
        config: &config::Listener,
        saved: &SavedDirect,
        incoming: &Incoming,
    ) -> io::Result<Self> {
        if config.bind.len() != saved.groups.len() {
            return Err(io::Error::other("it has other addresses than before"));
        }
        let groups = config
            .bind
            .iter()
            .zip(&saved.groups)
            .map(|(bind, group)| Group::resumed(*bind, config.backlog, group, incoming));
        Ok(Self {
            listener: Arc::clone(&config.name),
            probes: config.probes,
            backlog: config.backlog,
            groups: Mutex::new(groups.collect::<io::Result<_>>()?),
            has_relayed: AtomicBool::new(saved.has_relayed),
            pause: Arc::default(),
        })
    }
}
