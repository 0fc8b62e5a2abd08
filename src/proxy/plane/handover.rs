//! The data plane in an upgrade: nobody is let in for a moment, who can be carried over stands still,
//! and in the next image goes on.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::DataPlane;
use crate::{
    handover::Incoming,
    proxy::{
        carried::Carried,
        door::{self, Door},
        listener::Listener,
        registry::{self, Asked, Cut},
    },
};

/// Between two looks whether the threads have done what they were told.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

impl DataPlane {
    /// Lets nobody in from now on: clients wait in the sockets.
    pub fn shut(&self) {
        self.shut.send_replace(true);
    }

    /// Lets no request begin on a connection that comes along between two, until the next
    /// [`reopen`](Self::reopen).
    pub async fn rest(&self) {
        self.on_each(|| async { registry::rest() }).await;
    }

    /// Lets everybody in again, and connections go on.
    pub async fn reopen(&self) {
        self.on_each(|| async { registry::thaw() }).await;
        self.shut.send_replace(false);
    }

    /// Copies of a door's sockets, in the order of the threads, once it is [`shut`](Self::shut).
    /// `None` when that takes too long.
    pub async fn sockets_of(&self, door: &Door, within: Duration) -> Option<Vec<OwnedFd>> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(sockets) = door.offered() {
                return Some(sockets);
            }
            if Instant::now() > deadline {
                return None;
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Notes which connections there are.
    pub async fn note(&self) {
        self.on_each(|| async { registry::note() }).await;
    }

    /// Connections that cannot be carried over: those of the last [`note`](Self::note), or all.
    pub async fn others(&self, only_noted: bool) -> usize {
        let counts = self.on_each(move || async move { registry::others(only_noted) });
        counts.await.into_iter().sum()
    }

    /// Asks those to go that can say goodbye, as [`ask_to_leave`](Self::ask_to_leave) does.
    pub async fn ask_others_to_leave(&self, which: &Cut, spread: Duration, only_noted: bool) {
        let asked = match only_noted {
            true => Asked::Noted,
            false => Asked::Others,
        };
        self.ask(which, spread, asked).await;
    }

    /// Cuts those; how many.
    pub async fn cut_others(&self) -> usize {
        let counts = self.on_each(|| async { registry::cut_others() });
        counts.await.into_iter().sum()
    }

    /// Lets connections that can be carried over stand still, until the next
    /// [`reopen`](Self::reopen), and gives what is to be known of them.
    ///
    /// # Errors
    /// When one of them cannot.
    pub async fn freeze(&self) -> io::Result<Vec<Carried>> {
        let frozen = self.on_each(registry::freeze).await;
        let frozen: io::Result<Vec<_>> = frozen.into_iter().collect();
        Ok(frozen?.into_iter().flatten().collect())
    }

    /// Goes on to serve a client that an earlier image of the program has served.
    pub fn resume(&self, listener: &Arc<Listener>, carried: Carried, incoming: &mut Incoming) {
        let arrived = match carried.arrive(incoming) {
            Ok(arrived) => arrived,
            Err(error) => return warn!(%error, "a connection is lost"),
        };
        let next = self.next.fetch_add(1, Relaxed) % self.threads.len();
        let (listener, admission) = (Arc::clone(listener), Arc::clone(&self.admission));
        let _detached = self.threads[next]
            .runtime
            .spawn(async move { door::resume(&listener, &admission, arrived) });
    }

    /// Does something on each thread; gives what each has come to, in their order.
    pub(super) async fn on_each<F, T>(&self, task: impl Fn() -> F) -> Vec<T>
    where
        F: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        let tasks = TaskTracker::new();
        let spawn = |thread: &super::Thread| tasks.spawn_on(task(), &thread.runtime);
        let handles: Vec<_> = self.threads.iter().map(spawn).collect();
        let mut results = Vec::new();
        for handle in handles {
            results.extend(handle.await.ok());
        }
        results
    }
}
