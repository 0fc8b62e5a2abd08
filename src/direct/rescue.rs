//! Empties the backlog of a slot whose worker does not accept.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tracing::{debug, warn};

/// How often the thread looks whether it shall end.
const LOOK_EVERY: u16 = 100;
/// After the system refused to accept.
const PAUSE: Duration = Duration::from_millis(100);

/// Takes a client that was accepted in a worker's place.
pub(super) type Take = Arc<dyn Fn(TcpStream, SocketAddr) + Send + Sync>;

/// A thread that accepts from one slot's sockets. It ends soon after this is dropped.
///
/// It is a thread, and it polls before it accepts: the sockets are shared with a worker, which
/// may want them to block. When a worker takes the client first, the thread is stuck until the
/// next client comes, and holds up nobody.
#[derive(Debug)]
pub(super) struct Rescue {
    over: Arc<AtomicBool>,
}

/// Holds up all threads that rescue, so that no client is accepted and lost in an upgrade.
#[derive(Debug, Default)]
pub(super) struct Pause {
    wanted: AtomicBool,
    /// Threads that are about to accept, or have just done so.
    accepting: AtomicUsize,
}

impl Pause {
    /// Lets nobody be accepted any more. Whether nobody is being accepted is for
    /// [`holds`](Self::holds) to say.
    pub(super) fn begin(&self) {
        self.wanted.store(true, Ordering::SeqCst);
    }

    pub(super) fn end(&self) {
        self.wanted.store(false, Ordering::SeqCst);
    }

    pub(super) fn holds(&self) -> bool {
        self.accepting.load(Ordering::SeqCst) == 0
    }

    /// Runs this unless there is a pause.
    fn unless<T>(&self, accept: impl FnOnce() -> T) -> Option<T> {
        self.accepting.fetch_add(1, Ordering::SeqCst);
        let result = (!self.wanted.load(Ordering::SeqCst)).then(accept);
        self.accepting.fetch_sub(1, Ordering::SeqCst);
        result
    }
}

impl Rescue {
    pub(super) fn begin(
        slot: &str,
        sockets: Vec<Arc<TcpListener>>,
        take: Take,
        pause: Arc<Pause>,
    ) -> io::Result<Self> {
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let name: Arc<str> = slot.into();
        let _detached = thread::Builder::new()
            .name(format!("rescue {slot}"))
            .spawn(move || accept_until(&told, &name, &sockets, &take, &pause))?;
        Ok(Self { over })
    }
}

impl Drop for Rescue {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn accept_until(
    over: &AtomicBool,
    slot: &str,
    sockets: &[Arc<TcpListener>],
    take: &Take,
    pause: &Pause,
) {
    let mut rescued = 0_u64;
    while !over.load(Ordering::Relaxed) {
        match readable(sockets) {
            Ok(readable) => {
                for socket in readable {
                    // A worker may have been started meanwhile: then this is its client.
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let accepted: Option<io::Result<()>> = pause.unless(|| {
                        let (stream, peer) = socket.accept()?;
                        take(stream, peer);
                        Ok(())
                    });
                    let Some(accepted) = accepted else {
                        thread::park_timeout(PAUSE);
                        continue;
                    };
                    match accepted {
                        Ok(()) => rescued += 1,
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => {
                            debug!(slot, %error, "cannot accept in its place");
                            thread::park_timeout(PAUSE);
                        }
                    }
                }
            }
            Err(error) => {
                warn!(slot, %error, "its backlog cannot be watched");
                thread::park_timeout(PAUSE);
            }
        }
    }
    debug!(slot, rescued, "no longer accepting in its place");
}

/// The sockets at which somebody waits.
fn readable(sockets: &[Arc<TcpListener>]) -> nix::Result<Vec<&TcpListener>> {
    use std::os::fd::AsFd as _;
    let mut fds: Vec<_> = sockets
        .iter()
        .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
        .collect();
    match poll(&mut fds, PollTimeout::from(LOOK_EVERY)) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error),
    }
    let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
    let both = sockets.iter().zip(&fds);
    Ok(both
        .filter(|(_, fd)| ready(fd))
        .map(|(socket, _)| &**socket)
        .collect())
}
