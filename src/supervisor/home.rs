//! What one running homescar has for all its workers: a private directory for their sockets, an
//! id that marks them, and the guard that takes them down should homescar die.

mod dir;
mod saved;

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr},
    ops::Range,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use nix::{
    sys::resource::{Resource, getrlimit},
    unistd::{User, chown},
};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::warn;

use self::dir::RuntimeDir;
pub use self::saved::SavedHome;
use super::{
    guard,
    halt::Halt,
    process::{self, Offspring},
};

/// For the guard to say that it is there.
const GUARD_TIMEOUT: Duration = Duration::from_secs(10);
/// For the guard to end; then it is killed, as it may have been stopped.
const GUARD_FAREWELL: Duration = Duration::from_secs(3);
/// Tries to find a port that was not given to another slot.
const PORT_TRIES: usize = 64;

/// Per process. Keep it until every supervisor has stopped: when it is dropped earlier, as when
/// homescar dies, the guard kills what is left.
#[derive(Debug)]
pub struct Home {
    exe: PathBuf,
    id: String,
    dir: RuntimeDir,
    halt: Arc<Halt>,
    nofile: u64,
    rooms: AtomicU32,
    shared: Mutex<Shared>,
}

#[derive(Debug)]
struct Shared {
    guard: Offspring,
    /// To the guard; `None` once that has proved to be gone.
    socket: Option<UnixStream>,
    groups: BTreeSet<i32>,
    ports: BTreeSet<u16>,
    /// By the name of the slot.
    generations: HashMap<Arc<str>, Arc<AtomicU32>>,
}

impl Home {
    /// Makes the directory and starts the guard. `exe` is this program, in which `main` hands
    /// `__guard` and `__exec-worker` to [`guard_main`](super::guard_main) and
    /// [`exec_worker_main`](super::exec_worker_main); `/proc/self/exe` stays right when the file
    /// is replaced by a newer version.
    ///
    /// Call it before raising the soft limit of open files: workers get the limit of now, as
    /// many programs misbehave under a large one.
    ///
    /// # Errors
    /// When the directory cannot be made, or the guard cannot be started.
    pub fn new(exe: PathBuf) -> io::Result<Self> {
        let dir = RuntimeDir::make()?;
        let id: String = (0..4)
            .map(|_| format!("{:08x}", fastrand::u32(..)))
            .collect();
        let (mut socket, theirs) = UnixStream::pair()?;
        let guard = process::spawn_guard(&exe, &id, dir.path(), theirs.into())?;
        let mut ready = [0; guard::READY.len()];
        socket.set_read_timeout(Some(GUARD_TIMEOUT))?;
        let mut shared = Shared {
            guard,
            socket: None,
            groups: BTreeSet::new(),
            ports: BTreeSet::new(),
            generations: HashMap::new(),
        };
        if let Err(error) = socket.read_exact(&mut ready) {
            shared.guard.kill();
            let _reaped = shared.guard.wait();
            let text = format!("the guard process ({exe:?} __guard) did not start: {error}");
            return Err(io::Error::new(error.kind(), text));
        }
        socket.set_nonblocking(true)?;
        shared.socket = Some(socket);
        let (nofile, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
        Ok(Self {
            exe,
            id,
            dir,
            halt: Arc::default(),
            nofile,
            rooms: AtomicU32::new(0),
            shared: Mutex::new(shared),
        })
    }

    /// What marks the workers of this process: the value of `HOMESCAR_INSTANCE`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The runtime directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// How many workers there are.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.shared().groups.len()
    }

    /// Calls everything that belongs to workers to stand still.
    pub(super) const fn halt(&self) -> &Arc<Halt> {
        &self.halt
    }

    /// This program.
    pub(super) fn exe(&self) -> &Path {
        &self.exe
    }

    /// The soft limit of open files that workers get.
    pub(super) const fn nofile(&self) -> u64 {
        self.nofile
    }

    /// The number of the last generation of the slots of this name. One that leaves and comes back
    /// goes on counting: what is said of, or done to, the generations before must not concern it.
    pub(super) fn last_generation(&self, slot: Arc<str>) -> Arc<AtomicU32> {
        Arc::clone(self.shared().generations.entry(slot).or_default())
    }

    /// A directory of its own for a slot, which only `user` (default: we) may enter.
    pub(super) fn make_room(&self, user: Option<&User>) -> io::Result<PathBuf> {
        let number = self.rooms.fetch_add(1, Ordering::Relaxed);
        let room = self.dir.path().join(number.to_string());
        fs::create_dir(&room)?;
        fs::set_permissions(&room, fs::Permissions::from_mode(0o700))?;
        if let Some(user) = user {
            chown(&room, Some(user.uid), Some(user.gid))?;
            // It may pass through to its own room, and see no other.
            fs::set_permissions(self.dir.path(), fs::Permissions::from_mode(0o711))?;
        }
        Ok(room)
    }

    /// Keeps a loopback port for one slot: `wanted` when that is still free, else any. It is
    /// held for as long as the socket lives, which is bound and does not listen.
    pub(super) fn hold_port(&self, wanted: Option<u16>) -> io::Result<(Socket, SocketAddr)> {
        if let Some(port) = wanted
            && let Ok(held) = hold(port)
        {
            return Ok(held);
        }
        let range = outside_the_ephemeral_range();
        let mut shared = self.shared();
        for _ in 0..PORT_TRIES {
            let port = if range.is_empty() {
                0
            } else {
                fastrand::u16(range.clone())
            };
            // Taken by somebody else: the next one.
            let Ok((socket, addr)) = hold(port) else {
                continue;
            };
            // Between release and the worker's own bind, it may seem free.
            if shared.ports.insert(addr.port()) {
                return Ok((socket, addr));
            }
        }
        Err(io::ErrorKind::AddrInUse.into())
    }

    pub(super) fn release_port(&self, port: u16) {
        self.shared().ports.remove(&port);
    }

    /// A process group lives.
    pub(super) fn register(&self, group: i32) {
        let mut shared = self.shared();
        shared.groups.insert(group);
        shared.tell(&format!("+{group}\n"));
    }

    /// A process group has ended.
    pub(super) fn forget(&self, group: i32) {
        let mut shared = self.shared();
        shared.groups.remove(&group);
        shared.tell(&format!("-{group}\n"));
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn tell(&mut self, line: &str) {
        let Some(socket) = &mut self.socket else {
            return;
        };
        if let Err(error) = socket.write_all(line.as_bytes()) {
            self.socket = None;
            warn!(
                %error,
                "the guard process is gone: should homescar be killed with -9, children of its \
                 workers may survive; restart homescar to have a guard again"
            );
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let mut shared = self.shared();
        if shared.groups.is_empty() {
            shared.tell("end\n");
        }
        if let Some(mut socket) = shared.socket.take() {
            let mut farewell = || -> io::Result<usize> {
                socket.set_nonblocking(false)?;
                socket.set_read_timeout(Some(GUARD_FAREWELL))?;
                socket.shutdown(Shutdown::Write)?;
                // Its end of the socket closes with it.
                socket.read(&mut [0])
            };
            let _overdue = farewell();
        }
        shared.guard.kill();
        let _status = shared.guard.wait();
    }
}

/// Binds without `SO_REUSEADDR`, so that a port with old connections in TIME_WAIT, which a worker
/// that does not set it could not bind, does not count as free.
fn hold(port: u16) -> io::Result<(Socket, SocketAddr)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
    let addr = socket.local_addr()?.as_socket();
    let addr = addr.ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok((socket, addr))
}

/// The ports for workers. From those that the kernel gives to outgoing connections, one of ours or
/// of anybody could take a worker's port while that restarts; worse, a check could be given the
/// very port that it connects to, and so meet itself.
fn outside_the_ephemeral_range() -> Range<u16> {
    const FIRST: u16 = 10_000;
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let low = range
        .ok()
        .and_then(|range| range.split_whitespace().next()?.parse().ok());
    FIRST..low.unwrap_or(FIRST)
}
