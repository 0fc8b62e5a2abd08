//! The proxies that are measured, as real processes with a configuration that one can read.

use std::{
    fmt::Write as _,
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use super::{
    Arguments, Outcome,
    client::{self, Tally},
    http,
    machine::{Cpus, output_of},
};

/// From the start to the first message that came back.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// A proxy with one of its configurations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Kind {
    /// homescar, without a line per connection.
    Homescar,
    /// homescar with its default log.
    HomescarLog,
    /// haproxy, without a line per connection.
    Haproxy,
    /// haproxy with a line per connection.
    HaproxyLog,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Homescar => "homescar",
            Self::HomescarLog => "homescar-log",
            Self::Haproxy => "haproxy",
            Self::HaproxyLog => "haproxy-log",
        }
    }

    const fn is_haproxy(self) -> bool {
        matches!(self, Self::Haproxy | Self::HaproxyLog)
    }

    const fn template(self) -> &'static str {
        match self {
            Self::Homescar => include_str!("../peers/homescar.toml"),
            Self::HomescarLog => include_str!("../peers/homescar-log.toml"),
            Self::Haproxy => include_str!("../peers/haproxy.cfg"),
            Self::HaproxyLog => include_str!("../peers/haproxy-log.cfg"),
        }
    }

    /// The configuration, with the addresses filled in.
    fn config(self, mode: Mode, listen: SocketAddr, backends: &[SocketAddr]) -> Outcome<String> {
        let (mut servers, mut quoted) = (String::new(), String::new());
        for (index, backend) in backends.iter().enumerate() {
            writeln!(servers, "    server s{index} {backend}")?;
            write!(quoted, "{}\"{backend}\"", if index > 0 { ", " } else { "" })?;
        }
        // The comments on top name the placeholders, and stay as they are.
        let filled = self.template().lines().map(|line| {
            if line.starts_with('#') {
                return line.to_owned();
            }
            line.replace("{listen}", &listen.to_string())
                .replace("{mode}", mode.name())
                .replace("{more}", mode.more_of_haproxy())
                .replace("{servers}", &servers)
                .replace("{backends}", &quoted)
        });
        Ok(filled.map(|line| line + "\n").collect())
    }
}

/// What the proxy is asked to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Tcp,
    Http,
}

impl Mode {
    const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
        }
    }

    /// What haproxy does only when it is told to, and homescar always.
    const fn more_of_haproxy(self) -> &'static str {
        match self {
            Self::Tcp => "",
            Self::Http => "    option forwardfor\n    http-reuse always",
        }
    }
}

/// A proxy that is installed.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) kind: Kind,
    /// What it says when asked for its version.
    pub(crate) version: String,
    program: PathBuf,
}

impl Peer {
    pub(crate) fn find(kind: Kind, arguments: &Arguments) -> Outcome<Self> {
        let (program, ask) = if kind.is_haproxy() {
            (&arguments.haproxy, "-v")
        } else {
            (&arguments.homescar, "--version")
        };
        let version = output_of(&program.to_string_lossy(), &[ask])?;
        Ok(Self {
            kind,
            version,
            program: program.clone(),
        })
    }

    /// Starts it on the proxy's CPU, and returns when a message came back through it.
    pub(crate) async fn start(
        &self,
        mode: Mode,
        cpus: Cpus,
        backends: &[SocketAddr],
    ) -> Outcome<Proxy> {
        let dir = tempfile::tempdir()?;
        let listen = free_address()?;
        let config = dir.path().join("config");
        fs::write(&config, self.kind.config(mode, listen, backends)?)?;
        cpus.take_proxy()?;
        let spawned = self.spawn(&config, &dir.path().join("log"));
        cpus.take_load()?;
        let mut proxy = Proxy {
            child: spawned?,
            listen,
            dir,
        };
        proxy.answers(mode).await?;
        Ok(proxy)
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a benchmark has no supervisor to spawn with"
    )]
    fn spawn(&self, config: &Path, log: &Path) -> Outcome<Child> {
        let log = File::create(log)?;
        let mut command = Command::new(&self.program);
        if self.kind.is_haproxy() {
            command.args(["-db", "-f"]).arg(config);
        } else {
            command.args(["serve", "-c"]).arg(config);
        }
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        command
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", self.program.display()).into())
    }
}

/// A running proxy; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    child: Child,
    /// Where it takes clients.
    pub(crate) listen: SocketAddr,
    dir: TempDir,
}

impl Proxy {
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    async fn answers(&mut self, mode: Mode) -> Outcome {
        let deadline = Instant::now() + START_TIMEOUT;
        let nobody = Tally::new(0);
        loop {
            let attempt = async {
                match mode {
                    Mode::Tcp => client::one_round_trip(self.listen, &nobody).await,
                    Mode::Http => http::one_request(self.listen, &nobody).await.map(drop),
                }
            };
            let error = match timeout(Duration::from_secs(1), attempt).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer".to_owned(),
            };
            let ended = self.child.try_wait()?;
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
        // Both fail only for a process that is already gone.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// haproxy takes no port 0, so a free one is found beforehand.
fn free_address() -> Outcome<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
