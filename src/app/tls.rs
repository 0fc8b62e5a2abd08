//! Certificates: read before anything changes, given to listeners and clusters, and read again
//! when their files change.

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tracing::{error, info, warn};

use crate::{
    admin::Certificate,
    config::{BackendTls, Config, Mode, Tls},
    tls::{
        Acceptor, ClientMaterial, Connector, Fingerprint, Identity, LoadError, Pool, SavedTickets,
        ServerMaterial, Validity, Watch,
    },
};

/// How often the files are looked at. A change is read at the second look that finds it the same.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Everything that is wrong with the certificates and keys of a configuration; never empty.
///
/// Its `Display` prints one line for each fault, without a newline at the end.
#[derive(Debug)]
pub struct TlsFaults(Vec<(Owner, LoadError)>);

/// Whose files they are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Owner {
    Listener(Arc<str>),
    Cluster(Arc<str>),
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listener(name) => write!(f, "listener {name}"),
            Self::Cluster(name) => write!(f, "cluster {name}"),
        }
    }
}

impl fmt::Display for TlsFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (owner, fault)) in self.0.iter().enumerate() {
            let newline = if index > 0 { "\n" } else { "" };
            write!(f, "{newline}{owner}: tls: {fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for TlsFaults {}

/// All certificates in use.
#[derive(Debug, Default)]
pub(super) struct Certificates {
    /// Made when the first listener needs it.
    pool: Option<Arc<Pool>>,
    in_use: BTreeMap<Owner, InUse>,
}

#[derive(Debug)]
struct InUse {
    read: Read,
    watch: Watch,
    user: User,
}

#[derive(Debug)]
enum User {
    Acceptor(Arc<Acceptor>),
    Connector(Arc<Connector>),
}

/// What was read and can be used: nothing can fail any more.
#[derive(Debug)]
pub(super) struct Staged(BTreeMap<Owner, (Read, Fingerprint)>);

/// What the files held.
#[derive(Debug)]
enum Read {
    Server(Arc<Tls>, Box<ServerMaterial>),
    Client(Arc<BackendTls>, ClientMaterial),
}

impl Read {
    fn server(tls: &Arc<Tls>) -> Result<Self, Vec<LoadError>> {
        let material = Box::new(ServerMaterial::load(tls)?);
        Ok(Self::Server(Arc::clone(tls), material))
    }

    fn client(tls: &Arc<BackendTls>) -> Result<Self, Vec<LoadError>> {
        let material = ClientMaterial::load(tls)?;
        Ok(Self::Client(Arc::clone(tls), material))
    }

    /// The same files again.
    fn again(&self) -> Result<Self, Vec<LoadError>> {
        match self {
            Self::Server(tls, _) => Self::server(tls),
            Self::Client(tls, _) => Self::client(tls),
        }
    }

    fn identities(&self) -> &[Identity] {
        match self {
            Self::Server(_, material) => material.identities(),
            Self::Client(_, material) => material.identity().map_or(&[], std::slice::from_ref),
        }
    }

    fn fingerprint(&self) -> Fingerprint {
        match self {
            Self::Server(tls, _) => Fingerprint::of(files_of_listener(tls)),
            Self::Client(tls, _) => Fingerprint::of(files_of_cluster(tls)),
        }
    }
}

fn files_of_listener(tls: &Tls) -> impl Iterator<Item = &Path> {
    let pairs = tls.certs.iter().flat_map(|pair| [&pair.cert, &pair.key]);
    pairs.chain(&tls.client_ca).map(AsRef::as_ref)
}

fn files_of_cluster(tls: &BackendTls) -> impl Iterator<Item = &Path> {
    let pair = tls.client.iter().flat_map(|pair| [&pair.cert, &pair.key]);
    pair.chain(&tls.ca).map(AsRef::as_ref)
}

impl Certificates {
    /// Reads everything that a configuration names. Nothing that is in use changes.
    pub(super) fn stage(&mut self, config: &Config) -> Result<Staged, super::StartError> {
        let staged = read_all(config)?;
        let needs_pool = staged.0.values().any(|(read, _)| match read {
            Read::Server(..) => true,
            Read::Client(..) => false,
        });
        if needs_pool && self.pool.is_none() {
            self.pool = Some(Pool::start()?);
        }
        Ok(staged)
    }

    /// Uses from now on what was read; whoever used something of the same name uses that.
    pub(super) fn take(&mut self, staged: Staged) {
        let mut old = std::mem::take(&mut self.in_use);
        for (owner, (read, fingerprint)) in staged.0 {
            let before = old.remove(&owner);
            let known = before.as_ref().map_or(&[][..], |b| b.read.identities());
            for identity in read.identities() {
                if !known.iter().any(|known| known.is_same(identity)) {
                    info!("{owner}: certificate {identity}");
                }
            }
            warn_of_time(&owner, &read);
            let user = match (&read, before.map(|before| before.user)) {
                (Read::Server(_, material), Some(User::Acceptor(acceptor))) => {
                    acceptor.replace(material);
                    User::Acceptor(acceptor)
                }
                (Read::Client(_, material), Some(User::Connector(connector))) => {
                    connector.replace(material);
                    User::Connector(connector)
                }
                (Read::Server(_, material), _) => {
                    let Some(pool) = &self.pool else { continue };
                    let acceptor = Acceptor::new(material, Arc::clone(pool));
                    User::Acceptor(Arc::new(acceptor))
                }
                (Read::Client(_, material), _) => {
                    User::Connector(Arc::new(Connector::new(material)))
                }
            };
            let watch = Watch::new(fingerprint);
            self.in_use.insert(owner, InUse { read, watch, user });
        }
    }

    /// What encrypts the connections of a listener.
    pub(super) fn acceptor(&self, listener: &Arc<str>) -> Option<Arc<Acceptor>> {
        match &self
            .in_use
            .get(&Owner::Listener(Arc::clone(listener)))?
            .user
        {
            User::Acceptor(acceptor) => Some(Arc::clone(acceptor)),
            User::Connector(_) => None,
        }
    }

    /// The keys of session tickets, by listener, for another image of the program.
    pub(super) fn tickets(&self) -> BTreeMap<Arc<str>, SavedTickets> {
        let acceptors = self.acceptors();
        let all = acceptors.map(|(name, acceptor)| (Arc::clone(name), acceptor.tickets()));
        all.collect()
    }

    /// Believes the tickets that an earlier image has given.
    pub(super) fn believe(&self, saved: &BTreeMap<Arc<str>, SavedTickets>) {
        for (name, acceptor) in self.acceptors() {
            if let Some(tickets) = saved.get(name) {
                acceptor.believe(tickets);
            }
        }
    }

    fn acceptors(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Acceptor>)> {
        self.in_use
            .iter()
            .filter_map(|(owner, in_use)| match (owner, &in_use.user) {
                (Owner::Listener(name), User::Acceptor(acceptor)) => Some((name, acceptor)),
                _ => None,
            })
    }

    /// What encrypts connections to the backends of a cluster.
    pub(super) fn connector(&self, cluster: &Arc<str>) -> Option<Arc<Connector>> {
        match &self.in_use.get(&Owner::Cluster(Arc::clone(cluster)))?.user {
            User::Connector(connector) => Some(Arc::clone(connector)),
            User::Acceptor(_) => None,
        }
    }

    /// What is in use, for the board.
    pub(super) fn on_show(&self) -> Vec<Certificate> {
        let all = self.in_use.iter().flat_map(|(owner, in_use)| {
            let (kind, name) = match owner {
                Owner::Listener(name) => ("listener", name),
                Owner::Cluster(name) => ("cluster", name),
            };
            in_use
                .read
                .identities()
                .iter()
                .map(move |identity| Certificate {
                    kind,
                    owner: name.to_string(),
                    name: match identity.names().first() {
                        Some(name) => name.clone(),
                        None => identity.file().display().to_string(),
                    },
                    not_after: identity.not_after(),
                })
        });
        all.collect()
    }

    /// Waits until the files are to be looked at.
    pub(super) async fn next_look(&self) {
        match self.in_use.is_empty() {
            true => std::future::pending().await,
            false => tokio::time::sleep(LOOK_EVERY).await,
        }
    }

    /// Reads what has changed. What cannot be used is told, once, and what was in use stays.
    pub(super) fn look(&mut self) {
        for (owner, in_use) in &mut self.in_use {
            if !in_use.watch.look(in_use.read.fingerprint()) {
                continue;
            }
            match in_use.read.again() {
                Ok(read) => {
                    in_use.take(read);
                    info!("{owner}: certificates read again{}", told(&in_use.read));
                    warn_of_time(owner, &in_use.read);
                }
                Err(faults) => {
                    for fault in faults {
                        error!(
                            "{owner}: changed files are not used, all goes on as before: {fault}"
                        );
                    }
                }
            }
        }
    }
}

impl InUse {
    fn take(&mut self, read: Read) {
        match (&read, &self.user) {
            (Read::Server(_, material), User::Acceptor(acceptor)) => acceptor.replace(material),
            (Read::Client(_, material), User::Connector(connector)) => connector.replace(material),
            (Read::Server(..), User::Connector(_)) | (Read::Client(..), User::Acceptor(_)) => {}
        }
        self.read = read;
    }
}

/// Reads everything; see [`check`](super::check).
pub(super) fn check(config: &Config) -> Result<Vec<String>, TlsFaults> {
    let now = SystemTime::now();
    let Staged(all) = read_all(config)?;
    let warnings = all.iter().flat_map(|(owner, (read, _))| {
        let untimely = untimely(read, now);
        untimely.map(move |warning| format!("{owner}: tls: {warning}"))
    });
    Ok(warnings.collect())
}

fn read_all(config: &Config) -> Result<Staged, TlsFaults> {
    let mut read = BTreeMap::new();
    let mut faults = Vec::new();
    // Before they are read: what changes meanwhile is a change.
    for listener in &config.listeners {
        if let (Some(tls), true) = (&listener.tls, listener.mode != Mode::Direct) {
            let owner = Owner::Listener(Arc::clone(&listener.name));
            let fingerprint = Fingerprint::of(files_of_listener(tls));
            read.insert(owner, (Read::server(tls), fingerprint));
        }
    }
    for cluster in &config.clusters {
        if let Some(tls) = &cluster.tls {
            let owner = Owner::Cluster(Arc::clone(&cluster.name));
            let fingerprint = Fingerprint::of(files_of_cluster(tls));
            read.insert(owner, (Read::client(tls), fingerprint));
        }
    }
    let mut staged = BTreeMap::new();
    for (owner, (read, fingerprint)) in read {
        match read {
            Ok(read) => drop(staged.insert(owner, (read, fingerprint))),
            Err(found) => faults.extend(found.into_iter().map(|fault| (owner.clone(), fault))),
        }
    }
    match faults.is_empty() {
        true => Ok(Staged(staged)),
        false => Err(TlsFaults(faults)),
    }
}

/// The certificates behind a colon, where there are any.
fn told(read: &Read) -> String {
    let identities = read.identities().iter().enumerate();
    let mark = |index| if index == 0 { ": " } else { "; " };
    identities
        .map(|(index, identity)| format!("{}{identity}", mark(index)))
        .collect()
}

/// Certificates that clients refuse are served nevertheless: an operator who restarts a machine at
/// night shall find a service with a fault, not none; and the clock may be what is wrong.
fn warn_of_time(owner: &Owner, read: &Read) {
    for warning in untimely(read, SystemTime::now()) {
        warn!("{owner}: {warning}");
    }
}

fn untimely(read: &Read, now: SystemTime) -> impl Iterator<Item = String> + '_ {
    let identities = read.identities().iter();
    identities.filter_map(move |identity| match identity.validity(now) {
        Validity::Valid => None,
        Validity::Expired => Some(format!(
            "certificate {identity}, has expired; it is served nevertheless, and clients that \
             verify it go away: renew it"
        )),
        Validity::NotYet => Some(format!(
            "certificate {identity}, is not valid yet; it is served nevertheless, and clients \
             that verify it go away: is the clock of this machine right?"
        )),
    })
}
