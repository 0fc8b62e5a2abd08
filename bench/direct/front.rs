//! What is between clients and workers, as real processes.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    num::NonZeroU32,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use homescar::affinity::{AffinityKey, Table};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    time::{Instant, sleep},
};

use super::{
    Outcome,
    machine::{Cpus, Usage, tree_of},
    peer::{self, Blanks, Mode, Peer, Programs},
};

const SERVER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/bench/direct/server.js");
const WORKERS: usize = 4;
const START_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// `node server.js`, and nothing before it.
    Alone,
    /// Four of them; each client knows its own.
    Four,
    /// `homescar run -- node server.js`.
    Direct,
    /// The same with `--mode tcp`.
    Tcp,
    /// haproxy before four processes.
    Haproxy,
    /// nginx before four processes.
    Nginx,
    /// Envoy before four processes.
    Envoy,
}

impl Kind {
    pub(crate) const ALL: [Self; 7] = [
        Self::Alone,
        Self::Four,
        Self::Direct,
        Self::Tcp,
        Self::Haproxy,
        Self::Nginx,
        Self::Envoy,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Alone => "`node server.js` alone",
            Self::Four => "four, each with a port",
            Self::Direct => "homescar, direct, before four",
            Self::Tcp => "homescar, tcp, before four",
            Self::Haproxy => "haproxy before four",
            Self::Nginx => "nginx before four",
            Self::Envoy => "Envoy before four",
        }
    }
}

/// CPU time of both parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    pub(crate) between: Duration,
    pub(crate) workers: Duration,
}

impl Spent {
    pub(crate) const fn since(self, before: Self) -> Self {
        Self {
            between: self.between.saturating_sub(before.between),
            workers: self.workers.saturating_sub(before.workers),
        }
    }
}

/// One of them at work, on the CPU of proxies.
#[derive(Debug)]
pub(crate) struct Front {
    kind: Kind,
    addresses: Vec<SocketAddr>,
    processes: Vec<Child>,
    _folder: TempDir,
}

impl Front {
    pub(crate) async fn start(kind: Kind, programs: &Programs, cpus: Cpus) -> Outcome<Self> {
        let folder = TempDir::new()?;
        let dir = folder.path();
        let address = free()?;
        let mut addresses = vec![address];
        let mut processes = Vec::new();
        cpus.take_proxy()?;
        let listen = address.to_string();
        let run = |mode| {
            let count = WORKERS.to_string();
            let words = [
                "run",
                "--listen",
                &listen,
                "--workers",
                &count,
                "--mode",
                mode,
                "--",
                "node",
                SERVER,
            ];
            spawn_in(dir, env!("CARGO_BIN_EXE_homescar"), &words, None)
        };
        match kind {
            Kind::Alone => processes.push(spawn("node", &[SERVER], Some(address.port()))?),
            Kind::Four => {
                addresses.clear();
                for _ in 0..WORKERS {
                    let address = free()?;
                    processes.push(spawn("node", &[SERVER], Some(address.port()))?);
                    addresses.push(address);
                }
            }
            Kind::Direct => processes.push(run("direct")?),
            Kind::Tcp => processes.push(run("tcp")?),
            Kind::Haproxy => {
                processes = before_four(peer::Kind::Haproxy, programs, address, dir).await?
            }
            Kind::Nginx => {
                processes = before_four(peer::Kind::Nginx, programs, address, dir).await?
            }
            Kind::Envoy => {
                processes = before_four(peer::Kind::Envoy, programs, address, dir).await?
            }
        }
        cpus.take_load()?;
        Ok(Self {
            kind,
            addresses,
            processes,
            _folder: folder,
        })
    }

    /// Where a client connects to: of several, to the one that it would have behind homescar, as the more
    /// clients one has, the less each costs it.
    pub(crate) fn address(&self, client: Ipv4Addr) -> SocketAddr {
        let names = (0..self.addresses.len()).map(|index| format!("app/{index}"));
        let names: Vec<_> = names.collect();
        let slots = names.iter().map(|name| (&**name, NonZeroU32::MIN));
        let home = Table::new(0, slots).home(AffinityKey::from_bits(client.into()));
        self.addresses[home.unwrap_or(0)]
    }

    /// Waits until every worker has started, and is there.
    pub(crate) async fn is_there(&self) -> Outcome {
        let deadline = Instant::now() + START_TIMEOUT;
        let wanted = match self.kind {
            Kind::Alone => 1,
            _ => WORKERS,
        };
        loop {
            if self.nodes()?.len() == wanted && self.answers().await {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("{} does not start", self.kind.name()).into());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) fn spent(&self) -> Outcome<Spent> {
        let mut spent = Spent {
            between: Duration::ZERO,
            workers: Duration::ZERO,
        };
        for pid in self.tree()? {
            let cpu = Usage::of_process(pid)?.cpu;
            match is_node(pid) {
                true => spent.workers += cpu,
                false => spent.between += cpu,
            }
        }
        Ok(spent)
    }

    async fn answers(&self) -> bool {
        for address in &self.addresses {
            if TcpStream::connect(address).await.is_err() {
                return false;
            }
        }
        true
    }

    fn nodes(&self) -> Outcome<Vec<Pid>> {
        Ok(self
            .tree()?
            .into_iter()
            .filter(|pid| is_node(*pid))
            .collect())
    }

    /// Its processes, and theirs.
    fn tree(&self) -> Outcome<Vec<Pid>> {
        let mut tree = Vec::new();
        for process in &self.processes {
            tree.extend(tree_of(Pid::from_raw(i32::try_from(process.id())?))?);
        }
        Ok(tree)
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            let pid = Pid::from_raw(process.id().cast_signed());
            let _gone = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            let _gone = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
            let _reaped = process.wait();
        }
    }
}

fn is_node(pid: Pid) -> bool {
    fs::read_link(format!("/proc/{pid}/exe"))
        .is_ok_and(|exe| exe.file_name().is_some_and(|name| name == "node"))
}

/// Four processes, and a proxy of TCP before them.
async fn before_four(
    kind: peer::Kind,
    programs: &Programs,
    listen: SocketAddr,
    dir: &Path,
) -> Outcome<Vec<Child>> {
    let mut processes = Vec::new();
    let mut backends = Vec::new();
    for _ in 0..WORKERS {
        let backend = free()?;
        processes.push(spawn("node", &[SERVER], Some(backend.port()))?);
        backends.push(backend);
    }
    // nginx takes one that it cannot connect to for dead for a while.
    let deadline = Instant::now() + START_TIMEOUT;
    for backend in &backends {
        while TcpStream::connect(backend).await.is_err() {
            if Instant::now() > deadline {
                return Err("node does not start".into());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
    let blanks = Blanks {
        mode: Mode::Tcp,
        tls: false,
        large: false,
        listen,
        backends: &backends,
        dir: &dir.to_string_lossy(),
        event: false,
        server: None,
    };
    let config = dir.join("config.yaml");
    fs::write(&config, blanks.fill(kind)?)?;
    let peer = Peer::find(kind, programs)?;
    let words = peer.words(&config.to_string_lossy(), false);
    let words: Vec<&str> = words.iter().map(|word| &**word).collect();
    processes.push(spawn(&peer.program.to_string_lossy(), &words, None)?);
    Ok(processes)
}

/// A port that nobody has.
fn free() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn spawn(program: &str, words: &[&str], port: Option<u16>) -> Outcome<Child> {
    spawn_in(Path::new("/nonexistent"), program, words, port)
}

/// `dir` is for the admin socket of homescar.
#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark has no supervisor to spawn with"
)]
fn spawn_in(dir: &Path, program: &str, words: &[&str], port: Option<u16>) -> Outcome<Child> {
    let mut command = Command::new(program);
    if let Some(port) = port {
        command.env("PORT", port.to_string());
    }
    command
        .args(words)
        .env("HOMESCAR_SOCKET", dir.join("homescar.sock"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot run {program}: {error}").into())
}
