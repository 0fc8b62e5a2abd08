//! The worker process: its accept loop, and its orderly end.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, UnixListener},
    signal::unix::{Signal, SignalKind, signal},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use super::{
    DemoError, HUB_VAR, STOP_WITHIN,
    bus::{Bus, RedisBus},
    chat::Chat,
    hash::Hasher,
    http,
    loop_delay::LoopDelay,
    notify::Notify,
    unix_socket,
};

pub use super::env::{Listen, WorkerEnv};

/// Connections open at one time; further ones wait in the kernel's queue.
const CONNECTIONS_AT_MOST: usize = 4096;
const AFTER_A_FAILED_ACCEPT: Duration = Duration::from_millis(50);
/// What is left of [`STOP_WITHIN`] for the process itself to end.
const MARGIN: Duration = Duration::from_millis(200);

/// What every connection of this worker holds.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) env: WorkerEnv,
    pub(super) chat: Arc<Chat>,
    pub(super) hasher: Hasher,
    pub(super) loop_delay: LoopDelay,
    /// Cancelled by SIGTERM.
    pub(super) stopping: CancellationToken,
    /// Connections, sockets and their errands: all that the end waits for.
    pub(super) tasks: TaskTracker,
}

/// Runs a worker on an event loop of its own, until SIGTERM or SIGINT.
///
/// # Errors
/// As [`worker`], and when the system gives no event loop.
pub fn run(env: WorkerEnv) -> Result<(), DemoError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|source| DemoError::System {
        what: "the event loop",
        source,
    })?;
    let ended = runtime.block_on(worker(env));
    // A job of the pool may be in the middle of its work; the process does not wait for it.
    runtime.shutdown_background();
    ended
}

/// Runs a worker until SIGTERM or SIGINT, and then ends it within
/// [`STOP_WITHIN`]: no new connection, answers to the requests that are here,
/// Close 1001 to every WebSocket.
///
/// It belongs on a current-thread runtime ([`run`] makes one): with more threads there would be no
/// event loop whose delay could be shown.
///
/// # Errors
/// [`DemoError`], all before `READY=1`.
pub async fn worker(env: WorkerEnv) -> Result<(), DemoError> {
    let mut terminate = catch(SignalKind::terminate())?;
    let mut interrupt = catch(SignalKind::interrupt())?;
    let notify = Notify::connect(env.notify_socket.as_deref())?;
    let listener = Listener::bind(&env.listen)?;
    let bus = choose_bus(&env)?;
    let (chat_ends, bus_ends) = bus.ends();
    let (chat, events) = Chat::new(chat_ends);
    let worker = Arc::new(Worker {
        env,
        chat: Arc::new(chat),
        hasher: Hasher::start()?,
        loop_delay: LoopDelay::new(),
        stopping: CancellationToken::new(),
        tasks: TaskTracker::new(),
    });

    let address = listener.to_string();
    info!(slot = %worker.env.slot, generation = worker.env.generation, %address, "listening");
    notify.send(&format!("READY=1\nSTATUS=listening on {address}"));

    let listening = Arc::clone(&worker.chat).listen(events, worker.tasks.clone());
    let stopped = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        notify.send("STOPPING=1");
    };
    let serving = async {
        tokio::select! {
            () = stopped => {}
            () = accept(&listener, &worker) => {}
        }
        drop(listener);
        worker.stopping.cancel();
        worker.tasks.close();
        if timeout(STOP_WITHIN - MARGIN, worker.tasks.wait())
            .await
            .is_err()
        {
            warn!(left = worker.tasks.len(), "some connections are cut off");
        }
    };
    let feeding = async {
        match worker.env.watchdog {
            Some(period) => notify.watchdog(period).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = serving => {}
        () = worker.loop_delay.measure() => {}
        () = feeding => {}
        // Neither ends before the other; both end with the worker.
        ((), ()) = async { tokio::join!(bus.run(bus_ends), listening) } => {}
    }
    Ok(())
}

fn catch(kind: SignalKind) -> Result<Signal, DemoError> {
    signal(kind).map_err(|source| DemoError::System {
        what: "a signal handler",
        source,
    })
}

fn choose_bus(env: &WorkerEnv) -> Result<Bus, DemoError> {
    match (&env.redis_url, &env.hub) {
        (Some(url), _) => {
            let client = redis::Client::open(url.as_str())
                .map_err(|source| DemoError::RedisUrl { source })?;
            let bus = RedisBus::new(client, env.slot.clone(), env.generation);
            Ok(Bus::Redis(bus))
        }
        (None, Some(path)) => Ok(Bus::hub(path.clone())),
        (None, None) => Err(DemoError::Missing {
            name: HUB_VAR,
            hint: "a worker needs a hub or a Redis",
        }),
    }
}

async fn accept(listener: &Listener, worker: &Arc<Worker>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_AT_MOST));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        if let Err(error) = listener.accept(worker, permit).await {
            // Out of descriptors, mostly: others must end first.
            warn!(%error, "could not accept a connection");
            sleep(AFTER_A_FAILED_ACCEPT).await;
        }
    }
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        path: PathBuf,
    },
}

impl Listener {
    fn bind(listen: &Listen) -> Result<Self, DemoError> {
        let bound = match listen {
            Listen::Port(port) => bind_port(*port).map(Self::Tcp),
            Listen::Unix(path) => bind_path(path),
        };
        bound.map_err(|source| DemoError::Bind {
            address: match listen {
                Listen::Port(port) => format!("127.0.0.1:{port}"),
                Listen::Unix(path) => path.display().to_string(),
            },
            source,
        })
    }

    /// Accepts a connection and spawns its task, which holds `permit`.
    async fn accept(
        &self,
        worker: &Arc<Worker>,
        permit: tokio::sync::OwnedSemaphorePermit,
    ) -> io::Result<()> {
        let owner = Arc::clone(worker);
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                worker.tasks.spawn(async move {
                    http::serve(owner, stream).await;
                    drop(permit);
                });
            }
            Self::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                worker.tasks.spawn(async move {
                    http::serve(owner, stream).await;
                    drop(permit);
                });
            }
        }
        Ok(())
    }
}

impl std::fmt::Display for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => address.fmt(f),
                Err(error) => error.fmt(f),
            },
            Self::Unix { path, .. } => path.display().fmt(f),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix { path, .. } = self {
            // Gone already is as good.
            drop(fs::remove_file(path));
        }
    }
}

fn bind_port(port: u16) -> io::Result<TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind((std::net::Ipv4Addr::LOCALHOST, port).into())?;
    socket.listen(1024)
}

fn bind_path(path: &Path) -> io::Result<Listener> {
    Ok(Listener::Unix {
        listener: UnixListener::from_std(unix_socket::bind(path)?)?,
        path: path.to_owned(),
    })
}
