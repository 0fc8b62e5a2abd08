//! The real program as a process: started, watched through its log, signalled, ended by pid.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use nix::sys::signal::{Signal, kill};
use rustix::process::{Resource, Rlimit};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

pub(crate) use super::process::{is_alive, pid};

/// How long anything may take that should happen at once.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// The test worker's program.
pub(crate) const WORKER: &str = env!("CARGO_BIN_EXE_test-worker");

/// A homescar process.
#[derive(Debug)]
pub(crate) struct Homescar {
    child: Child,
    log: Arc<Mutex<Vec<Value>>>,
    lines: watch::Receiver<usize>,
    folder: TempDir,
    ended: Option<ExitStatus>,
}

impl Homescar {
    /// `homescar serve` with this configuration file.
    pub(crate) fn serve(config: &str) -> Self {
        Self::serve_with(config, &[])
    }

    /// The same with additional environment.
    pub(crate) fn serve_with(config: &str, env: &[(&str, &str)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_homescar"));
        command.envs(env.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Self::serve_by(command, config)
    }

    /// The same, started by another program that takes its command line as arguments; `sockets`
    /// are that program's stdin and stdout.
    pub(crate) fn serve_through(by: &[&str], config: &str, sockets: [OwnedFd; 2]) -> Self {
        let mut command = Command::new(by[0]);
        command.args(&by[1..]).arg(env!("CARGO_BIN_EXE_homescar"));
        let [stdin, stdout] = sockets;
        command.stdin(stdin).stdout(stdout);
        Self::serve_by(command, config)
    }

    /// The same with another program.
    pub(crate) fn serve_by(mut command: Command, config: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("homescar.toml");
        fs::write(&file, config).unwrap();
        command
            .args(["serve", "--log-format", "json", "-c"])
            .arg(file);
        Self::watch(command, folder)
    }

    /// `homescar` with these arguments and additional environment.
    pub(crate) fn command(arguments: &[&str], env: &[(&str, &str)]) -> Self {
        Self::start(arguments, env, TempDir::new().unwrap())
    }

    fn start(arguments: &[&str], env: &[(&str, &str)], folder: TempDir) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_homescar"));
        command.args(arguments);
        command.envs(env.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Self::watch(command, folder)
    }

    fn watch(mut command: Command, folder: TempDir) -> Self {
        // Unless the test chose one.
        if !command
            .get_envs()
            .any(|(name, _)| name == "HOMESCAR_SOCKET")
        {
            command.env("HOMESCAR_SOCKET", folder.path().join("admin.sock"));
        }
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (sender, lines) = watch::channel(0);
        let written = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines() {
                let Ok(line) = line else { return };
                let value = serde_json::from_str(&line).unwrap_or(Value::String(line));
                let mut log = written.lock().unwrap();
                log.push(value);
                sender.send_replace(log.len());
            }
        });
        Self {
            child,
            log,
            lines,
            folder,
            ended: None,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its admin API answers, unless its configuration says otherwise.
    pub(crate) fn admin_socket(&self) -> PathBuf {
        self.folder.path().join("admin.sock")
    }

    pub(crate) fn config_file(&self) -> PathBuf {
        self.folder.path().join("homescar.toml")
    }

    pub(crate) fn log(&self) -> MutexGuard<'_, Vec<Value>> {
        self.log.lock().unwrap()
    }

    /// How many lines there are: to wait for what comes after them.
    pub(crate) fn mark(&self) -> usize {
        self.log().len()
    }

    /// The first line from `from` on that satisfies the condition, as soon as it is there.
    pub(crate) async fn line_after(
        &self,
        from: usize,
        what: &str,
        condition: impl Fn(&Value) -> bool,
    ) -> Value {
        let find = || {
            self.log()
                .iter()
                .skip(from)
                .find(|line| condition(line))
                .cloned()
        };
        let mut lines = self.lines.clone();
        let wait = async {
            loop {
                if let Some(line) = find() {
                    return Some(line);
                }
                if lines.changed().await.is_err() {
                    return find();
                }
            }
        };
        match timeout(SOON, wait).await {
            Ok(Some(line)) => line,
            _ => panic!("no log line: {what}\n{}", self.tail()),
        }
    }

    pub(crate) async fn line(&self, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        self.line_after(0, what, condition).await
    }

    /// A line whose message contains this text.
    pub(crate) async fn message(&self, text: &str) -> Value {
        self.line(text, |line| message(line).contains(text)).await
    }

    /// The address of a listener.
    pub(crate) async fn address(&self, listener: &str) -> SocketAddr {
        self.addresses(listener, 1).await[0]
    }

    /// The addresses of a listener that has so many, in the order of the configuration.
    pub(crate) async fn addresses(&self, listener: &str, count: usize) -> Vec<SocketAddr> {
        let is_one = |line: &Value| message(line) == "listening" && line["listener"] == *listener;
        let mut addresses: Vec<SocketAddr> = Vec::new();
        let mut from = 0;
        while addresses.len() < count {
            let line = self.line_after(from, "listening", is_one).await;
            from = 1 + self.log().iter().rposition(|other| *other == line).unwrap();
            addresses.push(line["address"].as_str().unwrap().parse().unwrap());
        }
        addresses
    }

    /// Waits until a slot takes clients, and gives its pid.
    pub(crate) async fn ready(&self, slot: &str) -> u32 {
        self.ready_after(0, slot).await
    }

    /// The same for lines from `from` on.
    pub(crate) async fn ready_after(&self, from: usize, slot: &str) -> u32 {
        let line = self
            .line_after(from, &format!("{slot} ready"), |line| {
                line["slot"] == *slot && message(line).contains("ready after")
            })
            .await;
        line["pid"].as_u64().unwrap_or_default().try_into().unwrap()
    }

    /// Waits until all slots of a cluster of workers take clients, and gives their pids.
    pub(crate) async fn all_ready(&self, cluster: &str, count: usize) -> Vec<u32> {
        let mut pids = Vec::new();
        for index in 0..count {
            pids.push(self.ready(&format!("{cluster}/{index}")).await);
        }
        pids
    }

    /// All connection records so far.
    pub(crate) fn records(&self) -> Vec<Value> {
        self.log()
            .iter()
            .filter(|line| message(line) == "connection")
            .cloned()
            .collect()
    }

    /// The record of the connection from this client address.
    pub(crate) async fn record_of(&self, client: SocketAddr) -> Value {
        let client = client.to_string();
        self.line(&format!("record of {client}"), |line| {
            message(line) == "connection" && line["client"] == *client
        })
        .await
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(pid(self.child.id()), signal).unwrap();
    }

    /// Writes another configuration, sends HUP, and waits for the answer.
    pub(crate) async fn reload(&self, config: &str) -> Value {
        fs::write(self.config_file(), config).unwrap();
        let mark = self.mark();
        self.signal(Signal::SIGHUP);
        self.line_after(mark, "answer to HUP", |line| {
            message(line).contains("reloaded")
        })
        .await
    }

    /// Waits for its end.
    pub(crate) async fn exit(&mut self) -> ExitStatus {
        self.exit_within(SOON).await
    }

    pub(crate) async fn exit_within(&mut self, within: Duration) -> ExitStatus {
        let deadline = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                self.ended = Some(status);
                // The reader of its log ends with it, and drops the sender.
                let mut lines = self.lines.clone();
                let _ended = timeout(SOON, async { while lines.changed().await.is_ok() {} }).await;
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "homescar does not end\n{}",
                self.tail()
            );
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// The last lines of its log, for messages.
    pub(crate) fn tail(&self) -> String {
        let log = self.log();
        let from = log.len().saturating_sub(60);
        let of = |line: &Value| {
            let (slot, level) = (line["slot"].as_str(), line["level"].as_str());
            let (slot, level) = (slot.unwrap_or("-"), level.unwrap_or("-"));
            format!("{level} {slot} {}\n", message(line))
        };
        let all = log[from..].iter().map(|line| format!("{line}\n"));
        // What is wrong comes first, and briefly: who reads may see no more than the beginning.
        let wrong = log.iter().filter(|line| is_wrong(line)).map(of);
        wrong.chain(all).collect()
    }
}

impl Drop for Homescar {
    fn drop(&mut self) {
        if self.ended.is_none() {
            let _ended = self.child.kill();
            let _reaped = self.child.wait();
        }
    }
}

fn is_wrong(line: &Value) -> bool {
    matches!(line["level"].as_str(), Some("WARN" | "ERROR"))
}

/// The message of a log line; the line itself when it is not JSON.
pub(crate) fn message(line: &Value) -> &str {
    line["message"]
        .as_str()
        .or_else(|| line.as_str())
        .unwrap_or_default()
}

/// Waits for a condition that nothing announces, looking often.
pub(crate) async fn eventually(what: &str, within: Duration, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + within;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// CPU time that a process has used so far, without that of its children.
pub(crate) fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit(") ").next().unwrap().split(' ');
    // User and system time, in hundredths of a second.
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .map(|n| n.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(ticks * 10)
}

/// A port that nobody listens on, where a test must name one: below those that the kernel gives out
/// by itself, so that no other connection takes it meanwhile.
pub(crate) fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(10_000..32_000);
        if std::net::TcpListener::bind(("::", port)).is_ok() {
            return port;
        }
    }
}

/// Resident memory of a process, in KiB.
pub(crate) fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Lets a process open only so many descriptors more than it has open.
pub(crate) fn limit_descriptors(of: u32, more: usize) {
    let limit = Some((descriptors(of) + more) as u64);
    let limit = Rlimit {
        current: limit,
        maximum: limit,
    };
    let of = rustix::process::Pid::from_raw(of.try_into().unwrap());
    rustix::process::prlimit(of, Resource::Nofile, limit).unwrap();
}

/// Open descriptors of a process.
pub(crate) fn descriptors(pid: u32) -> usize {
    fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd"))
        .unwrap()
        .count()
}
