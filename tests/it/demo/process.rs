//! Processes of these tests: workers, Redis; and a hub, which is a task.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use homescar::demo::{self, hub::Hub};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::{
    net::UnixDatagram,
    process::{Child, Command},
    sync::oneshot,
    task::JoinHandle,
};

use super::within;

/// A command whose process ends with the test.
pub(crate) fn command(program: impl AsRef<Path>) -> Command {
    #[expect(clippy::disallowed_methods, reason = "the tests spawn what they test")]
    let mut command = Command::new(program.as_ref());
    command.kill_on_drop(true).stdin(Stdio::null());
    command
}

/// What joins the workers of a test.
#[derive(Clone, Debug)]
pub(crate) enum Bus {
    Hub(PathBuf),
    Redis(String),
}

/// A worker process that is ready.
pub(crate) struct WorkerProcess {
    child: Child,
    notified: UnixDatagram,
    _dir: TempDir,
    slot: String,
    generation: u64,
    bus: Bus,
    /// Its address as it says itself: `127.0.0.1:4711`, or a path.
    pub(crate) listens: String,
}

impl WorkerProcess {
    /// Starts generation 1 of `slot` on a port that the kernel chooses.
    pub(crate) async fn start(slot: &str, bus: &Bus) -> Self {
        Self::start_at("0", slot, 1, bus).await
    }

    /// Starts a worker that is told `port`.
    pub(crate) async fn start_at(port: &str, slot: &str, generation: u64, bus: &Bus) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let notified = UnixDatagram::bind(&path).unwrap();
        let mut command = command(env!("CARGO_BIN_EXE_homescar"));
        command
            .arg(demo::WORKER_COMMAND)
            .env("PORT", port)
            .env("HOMESCAR_SLOT", slot)
            .env("HOMESCAR_GENERATION", generation.to_string())
            .env("NOTIFY_SOCKET", path)
            .env("WATCHDOG_USEC", "200000")
            .env_remove(demo::HUB_VAR)
            .env_remove(demo::REDIS_VAR);
        match bus {
            Bus::Hub(path) => command.env(demo::HUB_VAR, path),
            Bus::Redis(url) => command.env(demo::REDIS_VAR, url),
        };
        let mut worker = Self {
            child: command.spawn().unwrap(),
            notified,
            _dir: dir,
            slot: slot.to_owned(),
            generation,
            bus: bus.clone(),
            listens: String::new(),
        };
        let ready = worker.notification("READY=1").await;
        let status = ready
            .lines()
            .find_map(|line| line.strip_prefix("STATUS=listening on "));
        worker.listens = status.expect("it says where").to_owned();
        worker
    }

    /// The next generation at the same address, once this one is dead.
    pub(crate) async fn next_generation(mut self) -> Self {
        within("the worker's death", self.child.wait())
            .await
            .unwrap();
        let at = self
            .listens
            .rsplit_once(':')
            .map_or(self.listens.as_str(), |(_, port)| port);
        Self::start_at(at, &self.slot, self.generation + 1, &self.bus).await
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listens.parse().expect("a TCP worker")
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/", self.listens)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("it was not waited for")
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).unwrap();
    }

    /// Waits for the end.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        within("the worker's exit", self.child.wait())
            .await
            .unwrap()
    }

    /// The next notification that contains `wanted`.
    pub(crate) async fn notification(&self, wanted: &str) -> String {
        let mut buffer = [0; 1024];
        within(wanted, async {
            loop {
                let length = self.notified.recv(&mut buffer).await.unwrap();
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                if text.lines().any(|line| line == wanted) {
                    return text;
                }
            }
        })
        .await
    }
}

/// A hub that runs as a task of the test.
pub(crate) struct HubTask {
    end: Option<oneshot::Sender<()>>,
    task: JoinHandle<std::io::Result<()>>,
}

impl HubTask {
    pub(crate) fn start(path: &Path) -> Self {
        let hub = Hub::bind(path).unwrap();
        let (end, ended) = oneshot::channel();
        #[expect(clippy::disallowed_methods, reason = "its handle is kept")]
        let task = tokio::spawn(hub.run(async move { drop(ended.await) }));
        Self {
            end: Some(end),
            task,
        }
    }

    pub(crate) async fn stop(mut self) {
        drop(self.end.take());
        within("the hub's end", self.task).await.unwrap().unwrap();
    }
}

/// A Redis without persistence, on a Unix socket.
pub(crate) struct RedisProcess {
    child: Child,
}

impl RedisProcess {
    /// Starts one that listens at `path`.
    pub(crate) async fn start(path: &Path) -> Self {
        let child = command("/usr/bin/redis-server")
            .args([
                "--port",
                "0",
                "--save",
                "",
                "--appendonly",
                "no",
                "--unixsocket",
            ])
            .arg(path)
            .arg("--dir")
            .arg(path.parent().unwrap())
            .stdout(Stdio::null())
            .spawn()
            .expect("the tests need redis-server");
        within("Redis", async {
            while tokio::net::UnixStream::connect(path).await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        })
        .await;
        Self { child }
    }

    pub(crate) async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}
