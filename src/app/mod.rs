//! The whole: binds everything, runs it, changes it, drains it. The only part that knows everyone.

mod cluster;
mod demands;
mod direct;
mod drain;
mod guests;
mod office;
mod operate;
mod rebalance;
mod reload;
mod secrets;
mod service;
mod tls;
mod upgrade;

use std::{collections::BTreeMap, io, net::SocketAddr, path::PathBuf, sync::Arc};

use ahash::HashMap;
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use self::{
    cluster::RunningCluster,
    demands::{Inbox, Next},
    direct::Directs,
    guests::Relayed,
    office::Office,
    operate::Scale,
    secrets::{Signers, Signing},
    service::{PassedSockets, ServiceManager},
    tls::Certificates,
};
pub use self::{
    secrets::SecretsFault,
    tls::TlsFaults,
    upgrade::{NoTakeover, Program, Takeover, check_upgrade},
};
use crate::{
    admin::{self, AdminError, Past},
    config::{self, Bind, Config, Faults, LogOptions, Mode},
    direct::DirectError,
    proxy::{BindError, BoundGroup, DataPlane, Door, Listener, Neighbour, Settings},
    supervisor::{Entrances, Home, Resumption},
};

/// homescar at work.
///
/// It lives on one thread (the control plane's runtime is a current-thread one, on the thread that
/// made it): workers are spawned from here, and they die with the thread that spawned them.
#[derive(Debug)]
pub struct App {
    config: Config,
    file: Option<ConfigFile>,
    home: Arc<Home>,
    plane: Arc<DataPlane>,
    clusters: BTreeMap<Arc<str>, RunningCluster>,
    listeners: BTreeMap<Arc<str>, Arc<Listener>>,
    doors: HashMap<Place, Arc<Door>>,
    directs: Directs,
    certificates: Certificates,
    signers: Signers,
    /// By cluster.
    scales: BTreeMap<Arc<str>, Scale>,
    manager: ServiceManager,
    /// What an upgrade executes; none where that would not be all.
    program: Option<Program>,
    /// What goes on after a reload: old listeners and slots that drain.
    leaving: TaskTracker,
    /// Ends that at shutdown, when everything drains.
    shutdown: CancellationToken,
    office: Office,
}

/// What the configuration is read from again, on SIGHUP.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    /// The file.
    pub path: PathBuf,
    /// What beats it.
    pub log: LogOptions,
}

/// What tells doors apart. The listener's name counts only where the kernel chooses the port: an
/// address that is named leads to the same socket, whoever names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    bind: Bind,
    listener: Option<Arc<str>>,
}

impl Place {
    fn of(listener: &config::Listener) -> impl Iterator<Item = Self> + '_ {
        listener.bind.iter().map(|bind| {
            let chosen = bind.addr.port() == 0;
            Self {
                bind: *bind,
                listener: chosen.then(|| Arc::clone(&listener.name)),
            }
        })
    }
}

/// Why homescar could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address could not be listened on.
    #[error("listener {listener}: {source}")]
    Bind {
        /// Its name in the configuration.
        listener: Arc<str>,
        /// Which address, and why.
        source: BindError,
    },
    /// A listener in direct mode could not be opened.
    #[error("listener {listener}: {source}")]
    Direct {
        /// Its name in the configuration.
        listener: Arc<str>,
        /// Which address, and why.
        source: DirectError,
    },
    /// Workers hold the sockets of a direct listener.
    #[error(
        "listener {listener}: its workers hold its sockets, so a listener in direct mode comes, \
         goes and changes only when homescar is restarted"
    )]
    DirectChange {
        /// Its name in the configuration.
        listener: Arc<str>,
    },
    /// The admin API cannot be offered.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// Certificates or keys cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsFaults),
    /// A file of secrets cannot be used.
    #[error(transparent)]
    Secrets(#[from] SecretsFault),
    /// A thread, the runtime directory or the guard process could not be made.
    #[error("cannot start: {0}")]
    System(#[from] io::Error),
}

/// What is asked of a running homescar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Read the configuration again.
    Reload,
    /// One worker more in every cluster that has workers.
    More,
    /// One worker fewer.
    Fewer,
    /// Become the program that now stands in the place of this one.
    Upgrade,
    /// Drain and end; the second one does not wait for connections, the third not for workers.
    Shutdown,
}

/// Reads and verifies every file that a configuration names, as a start does.
///
/// # Errors
///
/// All that is wrong; or else what will be, soon or already, a line each.
pub fn check(config: &Config) -> Result<Vec<String>, StartError> {
    Signers::default().read(config)?;
    Ok(tls::check(config)?)
}

impl App {
    /// Binds all listeners, then starts all workers. Nothing is served before [`run`](Self::run).
    ///
    /// `file` is what a reload reads again. `exe` is this very program, which workers are started
    /// through.
    ///
    /// # Errors
    ///
    /// When an address cannot be listened on, or the system has no room for us.
    pub fn start(
        config: Config,
        file: Option<ConfigFile>,
        exe: PathBuf,
        program: Option<Program>,
    ) -> Result<Self, StartError> {
        let mut certificates = Certificates::default();
        let staged = certificates.stage(&config)?;
        let signers = Signers::default();
        let signing = signers.read(&config)?;
        let directs = Directs::bind(&config)?;
        let mut passed = PassedSockets::take();
        let mut groups = bind_new(&config, &HashMap::default(), &mut passed)?;
        passed.finish();
        let home = Arc::new(Home::new(exe)?);
        crate::proxy::write_records(config.log.records);
        let plane = Arc::new(DataPlane::start(config.threads, config.max_connections)?);
        let path = file.as_ref().map(|file| file.path.clone());
        let office = Office::open(&config.admin, path, &home, &plane, Past::none())?;
        certificates.take(staged);
        let mut app = Self {
            file,
            home,
            plane,
            clusters: BTreeMap::new(),
            listeners: BTreeMap::new(),
            doors: HashMap::default(),
            directs,
            certificates,
            signers,
            scales: BTreeMap::new(),
            manager: ServiceManager::greet(),
            program,
            leaving: TaskTracker::new(),
            shutdown: CancellationToken::new(),
            office,
            config,
        };
        app.start_clusters(&groups, &signing, None);
        app.let_in(&mut groups);
        Ok(app)
    }

    /// Starts all clusters, or goes on with them.
    fn start_clusters(
        &mut self,
        groups: &HashMap<Place, BoundGroup>,
        signing: &Signing,
        mut from: Option<&mut Resumption>,
    ) {
        for cluster in &self.config.clusters {
            let entrances = self.entrances(&cluster.name, groups);
            let connector = self.certificates.connector(&cluster.name);
            let from = from.as_deref_mut();
            let running = RunningCluster::start(cluster, connector, entrances, &self.home, from);
            rebalance::watch(&running, &self.plane);
            self.clusters.insert(Arc::clone(&cluster.name), running);
        }
        secrets::hand_out(signing, |name| self.clusters.get(name));
    }

    /// Lets clients in, by all listeners.
    fn let_in(&mut self, groups: &mut HashMap<Place, BoundGroup>) {
        for config in self.config.listeners.clone() {
            if config.mode == Mode::Direct {
                let cluster = &self.clusters[&config.cluster];
                self.directs.run(config, cluster, &self.plane);
                continue;
            }
            let settings = self.settings(config);
            let listener = Listener::new(settings);
            self.listeners
                .insert(Arc::clone(listener.name()), Arc::clone(&listener));
            self.open_doors(&listener, groups);
        }
        self.show();
        self.office.announce();
    }

    /// The real addresses of all listeners.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let relayed = self.doors.values().map(|door| door.address());
        let mut addresses: Vec<_> = relayed.chain(self.directs.addresses()).collect();
        addresses.sort_unstable();
        addresses
    }

    /// Serves until it is told to end, then drains.
    pub async fn run(mut self, signals: mpsc::Receiver<Signal>) {
        self.manager.ready(&self.status());
        let mut inbox = Inbox::new(signals, self.office.take_demands());
        loop {
            tokio::select! {
                told = inbox.next() => {
                    if self.obey(told, &mut inbox).await == Next::End {
                        break;
                    }
                }
                () = self.certificates.next_look() => {
                    self.certificates.look();
                    self.office.board.show_certificates(self.certificates.on_show());
                }
            }
        }
        self.drain(inbox).await;
    }

    /// One line for whoever asks the service manager.
    fn status(&self) -> String {
        let addresses: Vec<_> = self.addresses().iter().map(SocketAddr::to_string).collect();
        format!("serving {}", addresses.join(", "))
    }

    /// Shows on the board what is at work.
    fn show(&self) {
        let listeners = self.config.listeners.iter();
        let places = listeners.filter_map(|config| {
            let Some(listener) = self.listeners.get(&config.name) else {
                return self.directs.place(config);
            };
            let doors = Place::of(config).filter_map(|place| self.doors.get(&place));
            Some(admin::Place::Relayed {
                addresses: doors.map(|door| door.address()).collect(),
                listener: Arc::clone(listener),
            })
        });
        let clusters = self.clusters.values();
        let clusters = clusters.map(|running| running.cluster().clone());
        self.office.board.show(places.collect(), clusters.collect());
        self.office
            .board
            .show_certificates(self.certificates.on_show());
    }

    /// What leads to the workers of a cluster; `groups` are the addresses that no door has yet.
    fn entrances(&self, cluster: &str, groups: &HashMap<Place, BoundGroup>) -> Entrances {
        let relayed = |place: &Place| {
            let door = self.doors.get(place).map(|door| door.address());
            door.or_else(|| groups.get(place).map(BoundGroup::address))
        };
        let doors = self.directs.doors(cluster);
        let addresses: Vec<SocketAddr> = match self.directs.addresses_of(cluster) {
            Some(addresses) => addresses,
            None => {
                let listeners = self.config.listeners.iter();
                let ours = listeners.filter(|listener| &*listener.cluster == cluster);
                let places = ours.flat_map(Place::of);
                places.filter_map(|place| relayed(&place)).collect()
            }
        };
        let mut ports = Vec::new();
        for port in addresses.iter().map(SocketAddr::port) {
            if !ports.contains(&port) {
                ports.push(port);
            }
        }
        Entrances {
            ports: ports.into(),
            doors,
            guests: Some(Arc::new(Relayed(Arc::clone(&self.plane)))),
        }
    }

    fn settings(&self, config: config::Listener) -> Settings {
        let routed = config.routes.iter();
        let routed = routed.map(|route| self.clusters[&route.cluster].cluster().clone());
        Settings {
            routed: routed.collect(),
            cluster: self.clusters[&config.cluster].cluster().clone(),
            tls: self.certificates.acceptor(&config.name),
            config,
        }
    }

    /// Opens the new addresses of a listener, and leads those that were open before to it.
    fn open_doors(&mut self, listener: &Arc<Listener>, groups: &mut HashMap<Place, BoundGroup>) {
        let settings = listener.settings();
        for place in Place::of(&settings.config) {
            if let Some(group) = groups.remove(&place) {
                let door = self.plane.listen(Arc::clone(listener), group);
                info!(listener = &**listener.name(), address = %door.address(), "listening");
                self.doors.insert(place, door);
            } else if let Some(door) = self.doors.get(&place) {
                door.lead_to(Arc::clone(listener));
            }
        }
    }
}

/// Binds every address of a configuration that is not open yet: all, or none.
fn bind_new(
    config: &Config,
    open: &HashMap<Place, Arc<Door>>,
    passed: &mut PassedSockets,
) -> Result<HashMap<Place, BoundGroup>, StartError> {
    let mut groups = HashMap::default();
    let relayed = |listener: &&config::Listener| listener.mode != Mode::Direct;
    for listener in config.listeners.iter().filter(relayed) {
        for place in Place::of(listener).filter(|place| !open.contains_key(place)) {
            if let Some(group) = passed.group(place.bind, config.threads, listener.backlog) {
                groups.insert(place, group);
                continue;
            }
            let port = place.bind.addr.port();
            let is_ours = open.values().any(|door| door.address().port() == port);
            let neighbour = if is_ours {
                Neighbour::Ours
            } else {
                Neighbour::None
            };
            let group = BoundGroup::bind(place.bind, config.threads, neighbour, listener.backlog);
            let group = group.map_err(|source| StartError::Bind {
                listener: Arc::clone(&listener.name),
                source,
            })?;
            groups.insert(place, group);
        }
    }
    Ok(groups)
}

/// Closes doors, all at once: each takes its time.
async fn close_all(doors: impl Iterator<Item = &Arc<Door>>) {
    let closing = TaskTracker::new();
    for door in doors {
        let door = Arc::clone(door);
        closing.spawn(async move { door.close().await });
    }
    closing.close();
    closing.wait().await;
}

fn log_faults(faults: &Faults) {
    let faults_are = match faults.iter().len() {
        1 => "a fault".to_owned(),
        count => format!("{count} faults"),
    };
    warn!("not reloaded, nothing has changed: the configuration has {faults_are}");
    for line in faults.to_string().lines() {
        warn!("{line}");
    }
}
