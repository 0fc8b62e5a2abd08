//! A cluster with its controller, checks and workers, as the application puts them together.

use std::{
    net::SocketAddr,
    num::{NonZeroU32, NonZeroUsize},
    sync::Arc,
    time::Duration,
};

use homescar::{
    cluster::{Cluster, Entry, Event, Snapshot},
    config::{self, Address, Contract, OnDown, ReadyBy, Source, StaticBackend, Workers},
    health::Checker,
    supervisor::{Entrances, Home, Supervisor},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader},
    net::{TcpStream, UnixStream},
    task::JoinSet,
    time::timeout,
};

/// For anything that must happen; generous, as machines are shared.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
/// The program.
const EXE: &str = env!("CARGO_BIN_EXE_homescar");

/// One rude little worker with these options, under contract `port`.
pub(crate) fn workers(options: &[&str]) -> Workers {
    let mut command = vec![env!("CARGO_BIN_EXE_test-worker").to_owned()];
    command.extend(options.iter().map(|&option| option.to_owned()));
    Workers {
        command,
        count: NonZeroUsize::MIN,
        contract: Contract::Port,
        env: [].into(),
        cwd: None,
        user: None,
        ready: ReadyBy::Auto,
        ready_timeout: Duration::from_secs(60),
        stop_timeout: Duration::from_secs(30),
        stable: Duration::from_millis(100),
        max_rss: None,
        watchdog: None,
    }
}

/// A cluster `app` of these workers.
pub(crate) fn cluster_of(workers: Workers) -> config::Cluster {
    config::Cluster {
        on_down: OnDown::Next,
        health: None,
        ..config::Cluster::new("app", Source::Workers(Arc::new(workers)))
    }
}

/// A cluster `app` of one backend `b` that somebody else runs.
pub(crate) fn static_cluster(addr: SocketAddr) -> config::Cluster {
    config::Cluster {
        source: Source::Static(vec![StaticBackend {
            name: "b".into(),
            address: Address::Tcp(addr),
            weight: NonZeroU32::MIN,
        }]),
        ..cluster_of(workers(&[]))
    }
}

pub(crate) struct Rig {
    pub(crate) cluster: Cluster,
    pub(crate) home: Arc<Home>,
    pub(crate) supervisor: Supervisor,
    _tasks: JoinSet<()>,
}

impl Rig {
    /// Everything runs on the present thread.
    pub(crate) fn start(config: &config::Cluster) -> Self {
        Self::start_behind(Entrances::default(), config)
    }

    /// The same behind a listener.
    pub(crate) fn start_behind(entrances: Entrances, config: &config::Cluster) -> Self {
        let Source::Workers(workers) = &config.source else {
            panic!("a cluster of workers");
        };
        let home = Arc::new(Home::new(EXE.into()).unwrap());
        let (cluster, controller) = Cluster::new(config);
        let mut tasks = JoinSet::new();
        tasks.spawn(controller.run());
        tasks.spawn(Checker::new(cluster.clone()).run(std::future::pending()));
        let (shared, workers) = (Arc::clone(&home), Arc::clone(workers));
        let supervisor = Supervisor::new(cluster.clone(), shared, workers, entrances);
        Self {
            cluster,
            home,
            supervisor,
            _tasks: tasks,
        }
    }

    /// Gives both the cluster and the supervisor another configuration, as a reload does.
    pub(crate) async fn configure(&mut self, config: config::Cluster) {
        let Source::Workers(workers) = &config.source else {
            panic!("a cluster of workers");
        };
        let (workers, drain) = (Arc::clone(workers), config.drain.timeout);
        let event = Event::Configure(Arc::new(config));
        self.cluster.report(event).await;
        self.supervisor
            .configure(workers, Entrances::default(), drain);
    }

    /// Waits for a snapshot.
    pub(crate) async fn until(
        &self,
        what: &str,
        condition: impl Fn(&Snapshot) -> bool,
    ) -> Arc<Snapshot> {
        let found = self.cluster.wait_until(DEADLINE, condition).await;
        found.unwrap_or_else(|| panic!("never {what}: {:#?}", self.cluster.load().entries))
    }

    /// Waits until a slot takes clients in at least this generation.
    pub(crate) async fn ready(&self, slot: &str, generation: u32) -> Entry {
        let is_ready = |snapshot: &Snapshot| {
            snapshot.entry(slot).is_some_and(|entry| {
                let backend = entry.backend.as_ref();
                entry.skip.is_none() && backend.is_some_and(|b| b.generation >= generation)
            })
        };
        let what = format!("{slot} ready in generation {generation}");
        let snapshot = self.until(&what, is_ready).await;
        snapshot.entry(slot).unwrap().clone()
    }

    pub(crate) async fn stop(&self) {
        let stopped = timeout(DEADLINE, self.supervisor.stop()).await;
        stopped.expect("stops in time");
    }
}

pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A connection to what stands in a slot.
pub(crate) async fn connect(entry: &Entry) -> BufReader<Box<dyn Stream>> {
    let stream: Box<dyn Stream> = match &entry.backend.as_ref().unwrap().address {
        Address::Tcp(addr) => Box::new(TcpStream::connect(addr).await.unwrap()),
        Address::Unix(path) => Box::new(UnixStream::connect(path).await.unwrap()),
        Address::Probe { .. } => unreachable!("a rig has no direct listener"),
    };
    BufReader::new(stream)
}

/// Sends a line and reads one.
pub(crate) async fn ask(stream: &mut BufReader<Box<dyn Stream>>, line: &str) -> String {
    stream.write_all(line.as_bytes()).await.unwrap();
    stream.write_all(b"\n").await.unwrap();
    let mut answer = String::new();
    let read = timeout(DEADLINE, stream.read_line(&mut answer)).await;
    read.expect("an answer in time").unwrap();
    answer
}

/// What the worker in a slot says of itself.
pub(crate) async fn whoami(entry: &Entry) -> serde_json::Value {
    let answer = ask(&mut connect(entry).await, "whoami").await;
    serde_json::from_str(&answer).unwrap()
}

/// The process of a slot's worker.
pub(crate) fn pid_of(entry: &Entry) -> u32 {
    entry.backend.as_ref().unwrap().pid.unwrap()
}

/// The number after `word` in a line.
pub(crate) fn number_after(line: &str, word: &str) -> u32 {
    let rest = line.split_once(word).unwrap().1.trim_start();
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}
