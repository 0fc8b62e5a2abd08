//! The worker's contract: how it gets its socket, and what its environment says.

use std::{
    ffi::OsString,
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
};

use nix::unistd::User;
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    exec::Plan,
    home::Home,
    notify::{NotifySocket, remove_stale},
    process::Launch,
    sweep,
};
use crate::{
    cluster::Backlog,
    config::{Address, Contract, Workers},
};

/// Connections that wait for a worker to accept, under contract `fd`.
const BACKLOG: i32 = 1024;

/// What is in our own environment but not meant for our workers.
const NOT_INHERITED: [&str; 8] = [
    "PORT",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
];

/// What a slot keeps from generation to generation.
#[derive(Debug)]
pub(super) struct Room {
    home: Arc<Home>,
    slot: Arc<str>,
    index: usize,
    /// With the user whose it is.
    dir: Option<(Option<String>, PathBuf)>,
    port: Option<u16>,
    listener: Option<Arc<TcpListener>>,
}

/// A generation that is ready to be started.
#[derive(Debug)]
pub(super) struct Prepared {
    pub plan: Plan,
    pub env: Vec<(OsString, OsString)>,
    pub stdin: Option<OwnedFd>,
    /// Where it is going to listen.
    pub address: Address,
    /// Under contract `fd`.
    pub backlog: Option<Backlog>,
    pub notify: NotifySocket,
    /// Keeps the port until just before the spawn.
    port: Option<Socket>,
}

impl Prepared {
    /// The last moment before the spawn: lets the port go.
    pub(super) fn launch(
        self,
        home: &Home,
    ) -> (Launch<'_>, Address, Option<Backlog>, NotifySocket) {
        drop(self.port);
        let launch = Launch {
            exe: home.exe(),
            plan: self.plan,
            env: self.env,
            without: NOT_INHERITED.map(OsString::from).to_vec(),
            stdin: self.stdin,
        };
        (launch, self.address, self.backlog, self.notify)
    }
}

impl Room {
    pub(super) const fn new(home: Arc<Home>, slot: Arc<str>, index: usize) -> Self {
        Self {
            home,
            slot,
            index,
            dir: None,
            port: None,
            listener: None,
        }
    }

    pub(super) fn slot(&self) -> Arc<str> {
        Arc::clone(&self.slot)
    }

    /// Everything that the next generation needs before it can be spawned.
    pub(super) fn prepare(&mut self, workers: &Workers, generation: u32) -> io::Result<Prepared> {
        let user = workers.user.as_deref().map(find_user).transpose()?;
        let dir = self.dir(user.as_ref())?;
        let notify = NotifySocket::bind(dir.join(format!("notify-{generation}.sock")))?;
        let (mut stdin, mut backlog, mut port) = (None, None, None);
        let mut own: Vec<(&str, OsString)> = Vec::new();
        let address = match workers.contract {
            Contract::Port => {
                let (held, addr) = self.home.hold_port(self.port)?;
                self.keep_port(addr.port());
                own.push(("PORT", addr.port().to_string().into()));
                port = Some(held);
                Address::Tcp(addr)
            }
            Contract::Unix => {
                let path = dir.join("worker.sock");
                remove_stale(&path)?;
                own.push(("PORT", path.clone().into()));
                Address::Unix(path)
            }
            Contract::Fd => {
                let listener = self.listener()?;
                own.push(("LISTEN_FDS", "1".into()));
                own.push(("LISTEN_FDNAMES", self.slot.to_string().into()));
                stdin = Some(listener.try_clone()?.into());
                backlog = Some(Backlog::new(Arc::clone(&listener)));
                Address::Tcp(listener.local_addr()?)
            }
        };
        own.push(("NOTIFY_SOCKET", notify.path().into()));
        if let Some(watchdog) = workers.watchdog {
            own.push(("WATCHDOG_USEC", watchdog.as_micros().to_string().into()));
        }
        own.push((sweep::SLOT, self.slot.to_string().into()));
        own.push((sweep::GENERATION, generation.to_string().into()));
        own.push((sweep::INSTANCE, self.home.id().into()));
        let plan = Plan {
            parent: nix::unistd::getpid().as_raw(),
            nofile: Some(self.home.nofile()),
            user: workers.user.clone(),
            cwd: workers.cwd.clone(),
            listen: stdin.is_some(),
            watchdog: workers.watchdog.is_some(),
            command: workers.command.iter().map(OsString::from).collect(),
        };
        Ok(Prepared {
            plan,
            env: environment(workers, self.index, user.as_ref(), own),
            stdin,
            address,
            backlog,
            notify,
            port,
        })
    }

    fn dir(&mut self, user: Option<&User>) -> io::Result<PathBuf> {
        let name = user.map(|user| user.name.clone());
        if let Some((owner, dir)) = &self.dir {
            if *owner == name {
                return Ok(dir.clone());
            }
            let _gone_already = fs::remove_dir_all(dir);
        }
        let dir = self.home.make_room(user)?;
        self.dir = Some((name, dir.clone()));
        Ok(dir)
    }

    fn keep_port(&mut self, port: u16) {
        if let Some(old) = self.port.replace(port)
            && old != port
        {
            self.home.release_port(old);
        }
    }

    fn listener(&mut self) -> io::Result<Arc<TcpListener>> {
        let listener = match &self.listener {
            Some(listener) => Arc::clone(listener),
            None => {
                let listener = Arc::new(listen()?);
                self.listener = Some(Arc::clone(&listener));
                listener
            }
        };
        // The flag is shared by all who hold the socket: undo what the last generation did.
        listener.set_nonblocking(false)?;
        Ok(listener)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(port) = self.port {
            self.home.release_port(port);
        }
        if let Some((_, dir)) = &self.dir {
            let _gone_already = fs::remove_dir_all(dir);
        }
    }
}

/// The environment of a worker beyond what it inherits. Ours is overridden by what is
/// configured, and that by the contract, which must hold.
///
/// `WEB_CONCURRENCY` is 1: gunicorn, uvicorn and puma read it as the number of processes that
/// *they* are to fork, and a slot is one process. Inherited from a platform that sets it for
/// homescar (`--workers` defaults to it), it would multiply.
fn environment(
    workers: &Workers,
    index: usize,
    user: Option<&User>,
    contract: Vec<(&str, OsString)>,
) -> Vec<(OsString, OsString)> {
    let mut env: Vec<(OsString, OsString)> = vec![
        ("WEB_CONCURRENCY".into(), "1".into()),
        ("NODE_APP_INSTANCE".into(), index.to_string().into()),
    ];
    if let Some(user) = user {
        env.push(("USER".into(), (&user.name).into()));
        env.push(("LOGNAME".into(), (&user.name).into()));
        env.push(("HOME".into(), user.dir.clone().into()));
    }
    let configured = workers.env.iter();
    env.extend(configured.map(|(name, value)| (name.into(), value.into())));
    env.extend(
        contract
            .into_iter()
            .map(|(name, value)| (name.into(), value)),
    );
    env
}

fn find_user(name: &str) -> io::Result<User> {
    User::from_name(name)?
        .ok_or_else(|| io::Error::other(format!("no user {name:?} on this machine")))
}

fn listen() -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
