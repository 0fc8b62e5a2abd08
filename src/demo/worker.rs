//! The worker process: its environment, its accept loop, and its orderly end.

use std::{
    env, fs, io,
    num::NonZeroU32,
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
    DemoError, HUB_VAR, REDIS_VAR, STOP_WITHIN,
    bus::{Bus, RedisBus},
    chat::Chat,
    hash::Hasher,
    http,
    loop_delay::LoopDelay,
    notify::Notify,
    unix_socket,
};

/// Connections open at one time; further ones wait in the kernel's queue.
const CONNECTIONS_AT_MOST: usize = 4096;
const AFTER_A_FAILED_ACCEPT: Duration = Duration::from_millis(50);
/// What is left of [`STOP_WITHIN`] for the process itself to end.
const MARGIN: Duration = Duration::from_millis(200);

/// All that a worker is told: its part of a worker's contract, and where the bus is.
#[derive(Clone)]
pub struct WorkerEnv {
    /// `PORT`: where to listen.
    pub listen: Listen,
    /// `HOMESCAR_SLOT`: the slot, such as `chat/0`. Default `chat/0`.
    pub slot: String,
    /// `HOMESCAR_GENERATION`. Default 1.
    pub generation: u64,
    /// `NOTIFY_SOCKET`, if anyone wants to be notified.
    pub notify_socket: Option<String>,
    /// `WATCHDOG_USEC`: how often the supervisor must hear from the event loop, if at all.
    pub watchdog: Option<Duration>,
    /// `HOMESCAR_DEMO_HUB`: the hub's socket.
    pub hub: Option<PathBuf>,
    /// `REDIS_URL`; beats the hub.
    pub redis_url: Option<String>,
}

/// Where a worker listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A port of the IPv4 loopback address; 0 lets the kernel choose.
    Port(u16),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl WorkerEnv {
    /// Reads the environment of this process.
    ///
    /// # Errors
    /// [`DemoError::Missing`] and [`DemoError::Invalid`].
    pub fn from_env() -> Result<Self, DemoError> {
        Self::from_vars(|name| env::var(name).ok())
    }

    /// Reads the variables that `var` gives.
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env).
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self, DemoError> {
        let var = |name: &str| var(name).filter(|value| !value.is_empty());
        let port = var("PORT").ok_or(DemoError::Missing {
            name: "PORT",
            hint: "give a port, or the path of a Unix socket",
        })?;
        let listen = if port.contains('/') {
            Listen::Unix(port.into())
        } else {
            Listen::Port(number("PORT", &port, "a port or a path")?)
        };
        let generation = var("HOMESCAR_GENERATION");
        let watchdog = var("WATCHDOG_USEC");
        let watchdog = watchdog.as_deref().map(|usec| {
            number::<NonZeroU32>("WATCHDOG_USEC", usec, "a number of microseconds")
                .map(|usec| Duration::from_micros(usec.get().into()))
        });
        let (hub, redis_url) = (var(HUB_VAR).map(PathBuf::from), var(REDIS_VAR));
        if hub.is_none() && redis_url.is_none() {
            return Err(DemoError::Missing {
                name: HUB_VAR,
                hint: "give the path of the hub's socket, or a REDIS_URL; \
                       or let `homescar demo` do it all",
            });
        }
        Ok(Self {
            listen,
            slot: var("HOMESCAR_SLOT").unwrap_or_else(|| "chat/0".to_owned()),
            generation: generation.map_or(Ok(1), |text| {
                number("HOMESCAR_GENERATION", &text, "a number")
            })?,
            notify_socket: var("NOTIFY_SOCKET"),
            watchdog: watchdog.transpose()?,
            hub,
            redis_url,
        })
    }
}

impl std::fmt::Debug for WorkerEnv {
    /// Without the Redis's URL, which may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerEnv")
            .field("listen", &self.listen)
            .field("slot", &self.slot)
            .field("generation", &self.generation)
            .field("hub", &self.hub)
            .field("redis", &self.redis_url.is_some())
            .finish_non_exhaustive()
    }
}

fn number<T: std::str::FromStr>(
    name: &'static str,
    value: &str,
    expected: &'static str,
) -> Result<T, DemoError> {
    value.parse().map_err(|_not| DemoError::Invalid {
        name,
        value: value.to_owned(),
        expected,
    })
}

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
/// [`STOP_WITHIN`](super::STOP_WITHIN): no new connection, answers to the requests that are here,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<WorkerEnv, String> {
        let find = |name: &str| {
            let found = vars.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        WorkerEnv::from_vars(find).map_err(|error| error.to_string())
    }

    #[test]
    fn reads_the_contract_of_a_worker() {
        let env = read(&[
            ("PORT", "4000"),
            ("HOMESCAR_SLOT", "chat/2"),
            ("HOMESCAR_GENERATION", "7"),
            ("WATCHDOG_USEC", "500000"),
            (HUB_VAR, "/run/hub"),
            (REDIS_VAR, ""),
        ])
        .unwrap();
        assert_eq!(env.listen, Listen::Port(4000));
        assert_eq!((env.slot.as_str(), env.generation), ("chat/2", 7));
        assert_eq!(env.watchdog, Some(Duration::from_millis(500)));
        assert_eq!(env.redis_url, None, "empty is not set");
        let env = read(&[("PORT", "./w.sock"), (HUB_VAR, "h")]).unwrap();
        assert_eq!(env.listen, Listen::Unix("./w.sock".into()));
    }

    #[test]
    fn says_what_is_wrong_with_the_environment() {
        let told = |vars: &[(&str, &str)]| read(vars).unwrap_err();
        assert_eq!(
            told(&[]),
            "the environment has no PORT: give a port, or the path of a Unix socket"
        );
        assert_eq!(
            told(&[("PORT", "65536"), (HUB_VAR, "h")]),
            "PORT=\"65536\" is not a port or a path"
        );
        assert!(told(&[("PORT", "1")]).starts_with("the environment has no HOMESCAR_DEMO_HUB"));
    }

    #[test]
    fn a_password_is_not_shown() {
        let env = read(&[("PORT", "1"), (REDIS_VAR, "redis://:secret@h")]).unwrap();
        assert!(!format!("{env:?}").contains("secret"));
    }
}
