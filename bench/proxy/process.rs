//! A proxy at work, as a real process, on a CPU of its own.

use std::{
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use super::{
    Outcome,
    client::{self, Door, Tally},
    event, http,
    machine::{Cpus, Usage, pss_kib, tree_of},
    peer::{Blanks, Kind, Mode, Peer},
    tls::{Certificate, Hands, Tls},
};

/// From the start to the first message that came back.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Envoy wants to know by its name what it reads.
const CONFIG: &str = "config.yaml";

/// What a proxy is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job<'a> {
    pub(crate) mode: Mode,
    pub(crate) tls: Option<Tls>,
    pub(crate) backends: &'a [SocketAddr],
    /// There is more to carry at once than a page or two.
    pub(crate) large: bool,
    /// Something will happen to it.
    pub(crate) event: bool,
    /// What the backends run, where they are workers.
    pub(crate) server: Option<&'a str>,
}

/// A running proxy, which ends when this is dropped; or none.
#[derive(Debug)]
pub(crate) struct Proxy {
    child: Option<Child>,
    /// Where clients go.
    pub(crate) door: Door,
    dir: TempDir,
}

impl Proxy {
    /// Starts it on the proxy's CPU, and returns when a message came back through it.
    pub(crate) async fn start(
        peer: &Peer,
        job: Job<'_>,
        certificate: &Certificate,
        cpus: Cpus,
    ) -> Outcome<Self> {
        let Job { tls, backends, .. } = job;
        let dir = tempfile::tempdir()?;
        certificate.write_to(dir.path())?;
        let hands = tls.map(|tls| Hands::new(tls, certificate)).transpose()?;
        let mut proxy = Self {
            child: None,
            door: Door {
                addresses: backends.to_vec(),
                hands,
            },
            dir,
        };
        if peer.kind != Kind::None {
            let listen = free_address()?;
            proxy.door.addresses = vec![listen];
            proxy.configure(peer, job)?;
            cpus.take_proxy()?;
            let spawned = spawn(peer, job, proxy.dir.path());
            cpus.take_load()?;
            proxy.child = Some(spawned?);
        }
        let speaks_http2 = tls.is_some_and(|tls| tls.alpn == Some("h2"));
        proxy.answers(job, speaks_http2).await?;
        Ok(proxy)
    }

    /// Writes its configuration, anew for other backends.
    pub(crate) fn configure(&self, peer: &Peer, job: Job<'_>) -> Outcome {
        let blanks = Blanks {
            mode: job.mode,
            tls: job.tls.is_some(),
            large: job.large,
            listen: self.door.addresses[0],
            backends: job.backends,
            dir: &self.dir.path().to_string_lossy(),
            event: job.event,
            server: job.server,
        };
        fs::write(self.dir.path().join(CONFIG), blanks.fill(peer.kind)?)?;
        Ok(())
    }

    /// Its process and those that it has started.
    pub(crate) fn pids(&self) -> Outcome<Vec<Pid>> {
        match &self.child {
            Some(child) => tree_of(Pid::from_raw(child.id().cast_signed())),
            None => Ok(Vec::new()),
        }
    }

    /// What all its processes have used.
    pub(crate) fn usage(&self) -> Outcome<Usage> {
        let mut usage = Usage::default();
        for pid in self.pids()? {
            usage.add(Usage::of_process(pid)?);
        }
        Ok(usage)
    }

    /// The memory of all its processes.
    pub(crate) fn pss_kib(&self) -> Outcome<u64> {
        self.pids()?.into_iter().map(pss_kib).sum()
    }

    async fn answers(&mut self, job: Job<'_>, speaks_http2: bool) -> Outcome {
        let deadline = Instant::now() + START_TIMEOUT;
        let nobody = Tally::new(0);
        loop {
            let mut door = self.door.of_another();
            let attempt = async {
                match job.mode {
                    // HTTP/2 is spoken by the row; here it is enough that both agree on it.
                    _ if speaks_http2 => door.connect(0).await.map(drop),
                    Mode::Tcp if job.event => event::ask(&mut door, 0).await.map(drop),
                    Mode::Tcp => client::one_round_trip(&mut door, &nobody, 64)
                        .await
                        .map(drop),
                    Mode::Http => http::one_request(&mut door, &nobody, 64).await.map(drop),
                }
            };
            let error = match timeout(Duration::from_secs(1), attempt).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            let ended = match &mut self.child {
                Some(child) => child.try_wait()?,
                None => return Err(error.into()),
            };
            if ended.is_some() || Instant::now() >= deadline {
                let said = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
                let state = ended.map_or_else(|| "runs".to_owned(), |status| status.to_string());
                return Err(
                    format!("it does not answer ({error}; it {state}); it said:\n{said}").into(),
                );
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let pids = self.pids().unwrap_or_default();
        let Some(child) = &mut self.child else { return };
        // The parent first, as it would start others in place of its children. These fail only
        // for a process that is already gone.
        let _gone = child.kill();
        for pid in &pids[1.min(pids.len())..] {
            let _gone = kill(*pid, Signal::SIGKILL);
        }
        let _reaped = child.wait();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a benchmark has no supervisor to spawn with"
)]
fn spawn(peer: &Peer, job: Job<'_>, dir: &Path) -> Outcome<Child> {
    let config = dir.join(CONFIG);
    let log = File::create(dir.join("log"))?;
    Command::new(&peer.program)
        .args(peer.words(&config.to_string_lossy(), job.event))
        .env("HOMESCAR_SOCKET", dir.join("homescar.sock"))
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .map_err(|error| format!("cannot start {}: {error}", peer.program.display()).into())
}

/// haproxy takes no port 0, so a free one is found beforehand.
fn free_address() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
