//! The threads of the data plane: one current-thread runtime each, nothing shared but what a
//! connection loads once.

mod handover;
mod strays;

pub use self::strays::Stray;

use std::{
    io,
    net::{SocketAddr, TcpStream},
    num::NonZeroUsize,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Handle},
    sync::{oneshot, watch},
    time::interval,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    admit::Admission,
    bind::BoundGroup,
    door::{self, Door, accept},
    http::pool,
    listener::Listener,
    registry::{self, Asked, Cut, Whereabouts},
};
use crate::metrics::{Histogram, Seen, Waits};

/// The threads that carry connections.
#[derive(Debug)]
pub struct DataPlane {
    threads: Vec<Thread>,
    stop: CancellationToken,
    admission: Arc<Admission>,
    /// Whose turn it is to take a client.
    next: AtomicUsize,
    /// No client is let in.
    shut: watch::Sender<bool>,
}

#[derive(Debug)]
struct Thread {
    runtime: Handle,
    lag: Arc<Histogram<Waits>>,
    thread: JoinHandle<()>,
}

impl DataPlane {
    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// When a thread or its runtime cannot be made.
    pub fn start(threads: NonZeroUsize, max_connections: u64) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let threads = (0..threads.get())
            .map(|index| Thread::start(index, stop.clone()))
            .collect::<io::Result<_>>()?;
        let admission = Admission::new(max_connections);
        Ok(Self {
            threads,
            stop,
            admission: Arc::new(admission),
            next: AtomicUsize::new(0),
            shut: watch::Sender::new(false),
        })
    }

    /// How many threads there are.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads.len()
    }

    /// Changes the limit over all listeners.
    pub fn set_max_connections(&self, limit: u64) {
        self.admission.set_limit(limit);
    }

    /// How late each thread comes to what is due.
    #[must_use]
    pub fn lags(&self) -> Vec<Seen> {
        let threads = self.threads.iter();
        threads.map(|thread| thread.lag.seen()).collect()
    }

    /// Connections open now.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.admission.open()
    }

    /// Begins to accept: each thread gets one socket of the group.
    #[must_use]
    pub fn listen(&self, listener: Arc<Listener>, group: BoundGroup) -> Arc<Door> {
        let door = Door::new(group.address(), listener);
        let sockets = group.into_sockets().into_iter().enumerate();
        for (thread, socket) in self.threads.iter().zip(sockets) {
            let (door, admission) = (Arc::clone(&door), Arc::clone(&self.admission));
            let shut = self.shut.subscribe();
            let tasks = door.accepting().clone();
            let accept = accept(door, socket, admission, shut);
            tasks.spawn_on(accept, &thread.runtime);
        }
        door
    }

    /// Serves a client that was accepted elsewhere.
    pub fn take(&self, listener: &Arc<Listener>, stream: TcpStream, peer: SocketAddr) {
        let next = self.next.fetch_add(1, Relaxed) % self.threads.len();
        let (listener, admission) = (Arc::clone(listener), Arc::clone(&self.admission));
        let _detached = self.threads[next]
            .runtime
            .spawn(async move { door::take(&listener, &admission, stream, peer) });
    }

    /// Asks connections to go that can say goodbye, WebSockets one after the other over `spread`.
    pub async fn ask_to_leave(&self, which: &Cut, spread: Duration) {
        self.ask(which, spread, Asked::All).await;
    }

    pub(super) async fn ask(&self, which: &Cut, spread: Duration, asked: Asked) {
        let asking = TaskTracker::new();
        for thread in &self.threads {
            let which = which.clone();
            let ask = async move { registry::ask_to_leave(&which, spread, asked) };
            asking.spawn_on(ask, &thread.runtime);
        }
        asking.close();
        asking.wait().await;
    }

    /// Where the connections go that go anywhere now.
    pub async fn whereabouts(&self) -> Vec<Whereabouts> {
        let mut all = Vec::new();
        for thread in &self.threads {
            let (found, awaited) = oneshot::channel();
            let _detached = thread.runtime.spawn(async move {
                let _gone = found.send(registry::whereabouts());
            });
            all.extend(awaited.await.unwrap_or_default());
        }
        all
    }

    /// Cuts connections, and waits until each thread has done so and they are gone.
    pub async fn cut(&self, which: Cut) {
        let cuts = TaskTracker::new();
        for thread in &self.threads {
            let which = which.clone();
            let cut = async move {
                registry::cut(&which);
                if let Cut::Generation(load) = which {
                    pool::forget(&load);
                }
                // For them to be gone, and counted.
                tokio::task::yield_now().await;
            };
            cuts.spawn_on(cut, &thread.runtime);
        }
        cuts.close();
        cuts.wait().await;
    }

    /// Waits until no connection is open.
    pub async fn wait_until_idle(&self) {
        self.admission.wait_until_none().await;
    }
}

/// Ends the threads, cutting what is still open.
impl Drop for DataPlane {
    fn drop(&mut self) {
        self.stop.cancel();
        for thread in self.threads.drain(..) {
            // A thread that panicked has been reported by its panic.
            let _panicked = thread.thread.join();
        }
    }
}

impl Thread {
    fn start(index: usize, stop: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let lag = Arc::<Histogram<Waits>>::default();
        let noted = Arc::clone(&lag);
        let thread = std::thread::Builder::new()
            .name(format!("data-{index}"))
            .spawn(move || runtime.block_on(beat_until(stop, &noted)))?;
        Ok(Self {
            runtime: handle,
            lag,
            thread,
        })
    }
}

/// How often each thread wakes by itself.
const BEAT: Duration = Duration::from_millis(500);

/// Closes what is no longer needed, notes how late it comes to that, and waits for the end, with a timer that is always due sooner than any of a connection: setting a
/// timer that is the next one to be due makes tokio wake its own event loop, which is a system
/// call for every connection.
async fn beat_until(stop: CancellationToken, lag: &Histogram<Waits>) {
    let mut beat = interval(BEAT);
    let (mut stop, mut idle) = (pin!(stop.cancelled()), pin!(registry::wake_the_idle()));
    loop {
        tokio::select! {
            due = beat.tick() => {
                // Beats that were missed are made up for, so a long stall counts as all that it kept
                // waiting.
                lag.observe(due.elapsed());
                pool::sweep();
            }
            never = &mut idle => match never {},
            () = &mut stop => return,
        }
    }
}
