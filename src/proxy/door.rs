//! One address of a listener, and the loop that accepts there.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    io, mem,
    net::{SocketAddr, TcpListener as StdListener, TcpStream as StdTcpStream},
    os::fd::{AsFd as _, OwnedFd},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::unconstrained,
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use super::{admit::Admission, bind, carried::Arrived, connection, listener::Listener, registry};
use crate::cluster::key_of_address;

/// The first pause after the system refused to accept; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Between two tellings of such a time, which may be one of many short ones.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// For handshakes that have begun when a door closes; more than a round trip of most clients.
const LAST_HANDSHAKES: Duration = Duration::from_millis(250);

/// One address of a listener, with its sockets. A reload may give it to another listener without
/// closing it.
#[derive(Debug)]
pub struct Door {
    address: SocketAddr,
    listener: ArcSwap<Listener>,
    closing: CancellationToken,
    accepting: TaskTracker,
    /// Copies of the sockets by the number of their thread, of those that pause.
    offered: Mutex<BTreeMap<usize, OwnedFd>>,
}

impl Door {
    pub(super) fn new(address: SocketAddr, listener: Arc<Listener>) -> Arc<Self> {
        Arc::new(Self {
            address,
            listener: ArcSwap::new(listener),
            closing: CancellationToken::new(),
            accepting: TaskTracker::new(),
            offered: Mutex::default(),
        })
    }

    /// The real address, also where port 0 was asked for.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Leads to this listener from now on.
    pub fn lead_to(&self, listener: Arc<Listener>) {
        self.listener.store(listener);
    }

    /// Stops accepting: who waits to be accepted is still served, then the sockets are closed.
    pub async fn close(&self) {
        self.closing.cancel();
        self.accepting.close();
        self.accepting.wait().await;
    }

    /// Copies of its sockets, in the order of the threads, once all of these pause.
    pub(super) fn offered(&self) -> Option<Vec<OwnedFd>> {
        let mut offered = self.copies();
        let all = offered.len() == self.accepting.len();
        all.then(|| mem::take(&mut *offered).into_values().collect())
    }

    fn copies(&self) -> MutexGuard<'_, BTreeMap<usize, OwnedFd>> {
        self.offered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) const fn accepting(&self) -> &TaskTracker {
        &self.accepting
    }
}

/// Accepts on one socket, that of a thread by its number, until its door closes; while the gate is
/// shut, clients wait in the socket.
pub(super) async fn accept(
    door: Arc<Door>,
    (thread, socket): (usize, StdListener),
    admission: Arc<Admission>,
    mut shut: watch::Receiver<bool>,
) {
    let socket = match TcpListener::from_std(socket) {
        Ok(socket) => socket,
        Err(error) => return warn!(address = %door.address, %error, "cannot accept"),
    };
    let mut closing = pin!(door.closing.cancelled());
    loop {
        let end = async {
            tokio::select! {
                () = &mut closing => false,
                // Also where there is always somebody to accept, who takes all of the task's turn.
                () = unconstrained(is_set(&mut shut, true)) => true,
            }
        };
        if !accept_until(end, &door, &socket, &admission).await {
            break;
        }
        // Without a copy there is no upgrade, and after a while the gate opens again.
        if let Ok(copy) = socket.as_fd().try_clone_to_owned() {
            door.copies().insert(thread, copy);
        }
        tokio::select! {
            () = &mut closing => break,
            () = is_set(&mut shut, false) => drop(door.copies().remove(&thread)),
        }
    }
    // Who is on the way in when the sockets close would be reset. So no more handshakes begin,
    // those that have begun are finished, and then nobody is left to be reset.
    if bind::refuse_handshakes(&socket).is_ok() {
        accept_until(sleep(LAST_HANDSHAKES), &door, &socket, &admission).await;
    }
    // All of them, so not as many only as one turn of a task is granted.
    while let Some(Ok(accepted)) = unconstrained(socket.accept()).now_or_never() {
        start(&door, &admission, accepted);
    }
}

/// Waits for the gate to be shut, or open.
async fn is_set(shut: &mut watch::Receiver<bool>, wanted: bool) {
    if shut.wait_for(|shut| *shut == wanted).await.is_err() {
        // Whoever could do it is gone, and this is going to end.
        std::future::pending().await
    }
}

async fn accept_until<T>(
    end: impl Future<Output = T>,
    door: &Door,
    socket: &TcpListener,
    admission: &Admission,
) -> T {
    let mut end = pin!(end);
    let mut troubles = Troubles::default();
    loop {
        tokio::select! {
            biased;
            // Nobody else waits for this socket in this task's place.
            accepted = poll_fn(|cx| socket.poll_accept(cx)) => match accepted {
                Ok(accepted) => {
                    troubles.over(door.address);
                    start(door, admission, accepted);
                }
                Err(error) if concerns_one_connection(&error) => {}
                Err(error) => {
                    let pause = troubles.next(door.address, &error);
                    tokio::select! {
                        () = sleep(pause) => {}
                        how = &mut end => return how,
                    }
                }
            },
            how = &mut end => return how,
        }
    }
}

fn start(door: &Door, admission: &Admission, (stream, peer): (TcpStream, SocketAddr)) {
    serve(door.listener.load_full(), admission, stream, peer);
}

/// Serves a client that was accepted elsewhere, on this thread.
pub(super) fn take(
    listener: &Arc<Listener>,
    admission: &Admission,
    stream: StdTcpStream,
    peer: SocketAddr,
) {
    let stream = stream
        .set_nonblocking(true)
        .and_then(|()| TcpStream::from_std(stream));
    match stream {
        Ok(stream) => serve(Arc::clone(listener), admission, stream, peer),
        Err(error) => warn!(client = %peer, %error, "cannot be served"),
    }
}

/// Goes on to serve a client of an earlier image of the program, on this thread.
pub(super) fn resume(listener: &Arc<Listener>, admission: &Admission, arrived: Arrived) {
    let settings = listener.settings();
    let snapshot = settings.cluster.load();
    let resumed = match arrived.resume(listener, &settings) {
        Ok(resumed) => resumed,
        Err(error) => return warn!(%error, "a connection cannot be carried on"),
    };
    let key = key_of_address(resumed.record.client().ip(), &snapshot.config.affinity);
    let permit = admission.enter_anyhow();
    registry::spawn(Arc::clone(listener), permit, |ticket| {
        connection::resume(resumed, key, settings, ticket)
    });
}

fn serve(listener: Arc<Listener>, admission: &Admission, stream: TcpStream, peer: SocketAddr) {
    let permit = admission.enter();
    let is_admitted = permit.is_some();
    registry::spawn(Arc::clone(&listener), permit, |ticket| {
        connection::serve(&listener, stream, peer, is_admitted, ticket)
    });
}

/// Errors that accept(2) passes on from the connection that it was about to return; the next
/// one may be well.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::EINTR
                | libc::EPERM
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::ENETDOWN
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::EHOSTUNREACH
                | libc::ENONET
                | libc::EOPNOTSUPP
        )
    )
}

/// The system refuses to accept (no descriptors, no memory): one line when it begins, one when
/// it is over, no more of them than one can read where that is ten times a second, and pauses
/// between that do not spin.
#[derive(Debug, Default)]
struct Troubles {
    refused: u32,
    /// These were told …
    told: bool,
    /// … or earlier ones, then.
    last_told: Option<Instant>,
}

impl Troubles {
    fn next(&mut self, address: SocketAddr, error: &io::Error) -> Duration {
        let is_due = |last: Instant| last.elapsed() >= SAY_EVERY;
        if !self.told && self.last_told.is_none_or(is_due) {
            self.told = true;
            self.last_told = Some(Instant::now());
            warn!(
                %address,
                "cannot accept: {error}; clients wait in the queue, trying again (raise `ulimit \
                 -n` or lower limits.connections if descriptors ran out)"
            );
        }
        let pause = FIRST_PAUSE
            .saturating_mul(1 << self.refused.min(16))
            .min(LONGEST_PAUSE);
        self.refused = self.refused.saturating_add(1);
        pause
    }

    fn over(&mut self, address: SocketAddr) {
        if self.told {
            info!(%address, "accepting again after {} refusals", self.refused);
        }
        self.told = false;
        self.refused = 0;
    }
}
