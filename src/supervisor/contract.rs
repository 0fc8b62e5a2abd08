//! The worker's contract: how it gets its socket, and what its environment says.

mod saved;

use std::{ffi::OsString, fs, io, mem, os::fd::OwnedFd, path::PathBuf, sync::Arc};

use nix::unistd::User;
use socket2::{SockRef, Socket};

pub(super) use self::saved::{SavedBacklog, SavedRoom};
use super::{
    entrance::Entrances,
    exec::{FIRST_FD, Plan},
    home::Home,
    node::{Channel, Setting, SharedSockets},
    notify::{NotifySocket, remove_stale},
    place::Place,
    process::Launch,
    sweep,
};
use crate::{
    cluster::{Backlog, Load},
    config::{Address, Contract, Workers},
};

/// What is in our own environment but not meant for our workers.
const NOT_INHERITED: [&str; 11] = [
    "NODE_CHANNEL_FD",
    "NODE_CHANNEL_SERIALIZATION_MODE",
    "NODE_UNIQUE_ID",
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
    place: Place,
    /// That of a generation beside.
    beside: Option<Place>,
    shared: Arc<SharedSockets>,
    /// The port that the application's server has asked for.
    known: Option<u16>,
    /// The command that does not speak Node's protocol.
    misfit: Option<Vec<String>>,
}

/// A generation that is ready to be started.
#[derive(Debug)]
pub(super) struct Prepared {
    pub launch: Draft,
    /// Where it is going to listen.
    pub address: Address,
    /// Under contracts `fd` and `node`.
    pub backlog: Option<Backlog>,
    pub notify: NotifySocket,
    /// Under contract `node`.
    pub channel: Option<Channel>,
    /// Keeps the port until just before the spawn.
    pub port: Option<Socket>,
    /// The kernel leads clients to it, by sockets that it shares with the slot's other generations.
    pub shares: bool,
    /// Its connections.
    pub load: Arc<Load>,
}

/// How it is going to be started.
#[derive(Debug)]
pub(super) struct Draft {
    plan: Plan,
    env: Vec<(OsString, OsString)>,
    pass: Vec<OwnedFd>,
}

impl Draft {
    pub(super) fn complete(self, home: &Home) -> Launch<'_> {
        Launch {
            exe: home.exe(),
            plan: self.plan,
            env: self.env,
            without: NOT_INHERITED.map(OsString::from).to_vec(),
            pass: self.pass,
        }
    }
}

/// How a generation gets its socket.
#[derive(Debug)]
struct Access {
    address: Address,
    backlog: Option<Backlog>,
    channel: Option<Channel>,
    port: Option<Socket>,
    /// What is passed to it as descriptors 3, 4, …; listening sockets first.
    pass: Vec<OwnedFd>,
    listens: bool,
    env: Vec<(&'static str, OsString)>,
}

impl Access {
    const fn to(address: Address, env: Vec<(&'static str, OsString)>) -> Self {
        Self {
            address,
            backlog: None,
            channel: None,
            port: None,
            pass: Vec::new(),
            listens: false,
            env,
        }
    }
}

impl Room {
    pub(super) fn new(
        home: Arc<Home>,
        slot: Arc<str>,
        shared: Arc<SharedSockets>,
        index: usize,
    ) -> Self {
        Self {
            place: Place::new(Arc::clone(&home)),
            beside: None,
            home,
            slot,
            index,
            dir: None,
            shared,
            known: None,
            misfit: None,
        }
    }

    pub(super) fn slot(&self) -> Arc<str> {
        Arc::clone(&self.slot)
    }

    pub(super) const fn index(&self) -> usize {
        self.index
    }

    /// Everything that the next generation needs before it can be spawned.
    pub(super) fn prepare(
        &mut self,
        workers: &Workers,
        entrances: &Entrances,
        generation: u32,
    ) -> io::Result<Prepared> {
        let prepared = self.prepare_in(false, workers, entrances, generation)?;
        if prepared.launch.plan.listen {
            for socket in &prepared.launch.pass {
                // The flag is shared by all who hold the socket: undo what the last one did.
                SockRef::from(socket).set_nonblocking(false)?;
            }
        }
        Ok(prepared)
    }

    /// The same while another generation lives: in a place of its own, or, where the kernel leads
    /// clients to it, with the same sockets, which that one does not expect to change.
    pub(super) fn prepare_beside(
        &mut self,
        workers: &Workers,
        entrances: &Entrances,
        generation: u32,
    ) -> io::Result<Prepared> {
        let is_led = matches!(self.contract(workers), Contract::Fd | Contract::Node);
        let shares = is_led && entrances.doors.is_some();
        match shares {
            true => self.place.load = Arc::default(),
            false => self.beside = Some(Place::new(Arc::clone(&self.home))),
        }
        self.prepare_in(!shares, workers, entrances, generation)
    }

    /// The generation beside has taken over. Gives the place of the one before, unless they share it.
    pub(super) fn take_over(&mut self) -> Option<Place> {
        let beside = self.beside.take()?;
        Some(mem::replace(&mut self.place, beside))
    }

    /// There is no generation beside any more.
    pub(super) fn clear_beside(&mut self) {
        self.beside = None;
    }

    fn prepare_in(
        &mut self,
        beside: bool,
        workers: &Workers,
        entrances: &Entrances,
        generation: u32,
    ) -> io::Result<Prepared> {
        let user = workers.user.as_deref().map(find_user).transpose()?;
        let dir = self.dir(user.as_ref())?;
        let notify = NotifySocket::bind(dir.join(format!("notify-{generation}.sock")))?;
        let mut access = match self.contract(workers) {
            Contract::Port => self.port(beside)?,
            Contract::Unix => {
                let path = dir.join(format!("worker-{generation}.sock"));
                remove_stale(&path)?;
                let env = vec![("PORT", path.clone().into())];
                Access::to(Address::Unix(path), env)
            }
            Contract::Fd => self.descriptors(beside, entrances)?,
            Contract::Node => self.channel(beside, workers, entrances)?,
        };
        let shares = entrances.doors.is_some() && access.backlog.is_some();
        let own = &mut access.env;
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
            pass: access.pass.len(),
            listen: access.listens,
            watchdog: workers.watchdog.is_some(),
            command: workers.command.iter().map(OsString::from).collect(),
        };
        Ok(Prepared {
            launch: Draft {
                plan,
                env: environment(workers, self.index, user.as_ref(), access.env),
                pass: access.pass,
            },
            address: access.address,
            backlog: access.backlog,
            notify,
            channel: access.channel,
            port: access.port,
            shares,
            load: self.place(beside).next_load(),
        })
    }

    /// The connections of the generation that is there.
    pub(super) const fn load(&self) -> &Arc<Load> {
        &self.place.load
    }

    fn place(&mut self, beside: bool) -> &mut Place {
        match &mut self.beside {
            Some(place) if beside => place,
            _ => &mut self.place,
        }
    }

    /// The one that the next generation gets.
    fn contract(&self, workers: &Workers) -> Contract {
        match &self.misfit {
            Some(command) if *command == workers.command => Contract::Port,
            _ => workers.contract,
        }
    }

    /// The workers of this command do not speak Node's protocol: `port` from the next generation
    /// on. Gives whether that is news.
    pub(super) fn is_misfit(&mut self, command: &[String]) -> bool {
        let before = self.misfit.replace(command.to_owned());
        before.as_deref() != Some(command)
    }

    /// Perhaps they do: `node` is tried once more.
    pub(super) fn is_perhaps_not_misfit(&mut self) {
        self.misfit = None;
    }

    /// Clients are brought to the port that the application has asked for; `None` when what was
    /// known no longer holds.
    pub(super) const fn knows(&mut self, port: Option<u16>) {
        self.known = port;
    }

    fn port(&mut self, beside: bool) -> io::Result<Access> {
        let (held, addr) = self.place(beside).hold_port()?;
        let env = vec![("PORT", addr.port().to_string().into())];
        Ok(Access {
            port: Some(held),
            ..Access::to(Address::Tcp(addr), env)
        })
    }

    fn descriptors(&mut self, beside: bool, entrances: &Entrances) -> io::Result<Access> {
        let (sockets, address) = match &entrances.doors {
            Some(doors) => {
                let doors = doors.of_slot(self.index)?;
                (doors.sockets, doors.address)
            }
            None => {
                let socket = self.place(beside).listener()?;
                let address = Address::Tcp(socket.local_addr()?);
                (vec![socket], address)
            }
        };
        let mut pass = Vec::<OwnedFd>::new();
        for socket in &sockets {
            pass.push(socket.try_clone()?.into());
        }
        let names = vec![&*self.slot; sockets.len()].join(":");
        let env = vec![
            ("LISTEN_FDS", pass.len().to_string().into()),
            ("LISTEN_FDNAMES", names.into()),
        ];
        Ok(Access {
            backlog: sockets.into_iter().next().map(Backlog::new),
            pass,
            listens: true,
            ..Access::to(address, env)
        })
    }

    fn channel(
        &mut self,
        beside: bool,
        workers: &Workers,
        entrances: &Entrances,
    ) -> io::Result<Access> {
        let Entrances { ports, doors, .. } = entrances;
        let index = self.index;
        let doors = doors
            .as_ref()
            .map(|doors| doors.of_slot(index))
            .transpose()?;
        let sockets = self.place(beside).sockets(index, doors);
        // Most likely the right one; the worker is going to say.
        let socket = sockets.at(self.known.or_else(|| ports.first().copied()).unwrap_or(0))?;
        let address = sockets.address_of(&socket)?;
        let (channel, theirs) = Channel::open(Setting {
            slot: Arc::clone(&self.slot),
            sockets,
            shared: Arc::clone(&self.shared),
            expected: ports,
            known: self.known,
        })?;
        let mut env: Vec<(&str, OsString)> = vec![
            ("NODE_CHANNEL_FD", FIRST_FD.to_string().into()),
            ("NODE_CHANNEL_SERIALIZATION_MODE", "json".into()),
            ("NODE_UNIQUE_ID", (self.index + 1).to_string().into()),
        ];
        if let ([port], false) = (&**ports, workers.env.contains_key("PORT")) {
            env.push(("PORT", port.to_string().into()));
        }
        Ok(Access {
            backlog: Some(Backlog::new(socket)),
            channel: Some(channel),
            pass: vec![theirs],
            ..Access::to(address, env)
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
}

impl Drop for Room {
    fn drop(&mut self) {
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
