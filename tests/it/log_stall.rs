//! Nobody waits for the log: while its reader stands still, clients are served as before, and the lines
//! that find no room are counted.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, ChildStderr, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixStream},
    task::JoinSet,
};

use crate::support::homescar::{SOON, message, pid};

/// As many connections at a time as there are lanes.
const LANES: usize = 4;
/// Requests of each while the log is read, and while it is not: more than the queue, the pipe and what
/// is about to be written can hold.
const READ: usize = 1_000;
const STALLED: usize = 6_000;
/// homescar says now and then that lines were dropped, which is a line, too.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// A homescar whose log is read when the test says so.
struct Process {
    child: Child,
    folder: TempDir,
}

impl Process {
    fn start(backend: &TcpListener) -> (Self, BufReader<ChildStderr>) {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("homescar.toml");
        let config = format!(
            r#"
            [listener.web]
            bind = "127.0.0.1:0"
            mode = "http"
            cluster = "app"
            [cluster.app]
            backends = ["{}"]
            "#,
            backend.local_addr().unwrap()
        );
        std::fs::write(&file, config).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_homescar"));
        command
            .args(["serve", "--log-format", "json", "-c"])
            .arg(&file);
        command.env("HOMESCAR_SOCKET", folder.path().join("admin.sock"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        (Self { child, folder }, log)
    }

    /// What a metric without labels says.
    async fn metric(&self, name: &str) -> u64 {
        let socket = self.folder.path().join("admin.sock");
        let mut stream = UnixStream::connect(socket).await.unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).await.unwrap();
        let line = page.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name}: {page}"))
            .trim()
            .parse()
            .unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

async fn serve(backend: TcpListener) {
    loop {
        let (mut stream, _) = backend.accept().await.unwrap();
        tokio::spawn(async move {
            let mut head = Vec::new();
            while stream.read_buf(&mut head).await.is_ok_and(|read| read > 0) {
                if head.ends_with(b"\r\n\r\n") {
                    head.clear();
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                    stream.write_all(answer).await.unwrap();
                }
            }
        });
    }
}

/// So many requests on each of some connections; how long one took in the mean.
async fn ask(to: std::net::SocketAddr, requests: usize) -> Duration {
    let began = Instant::now();
    let mut lanes = JoinSet::new();
    for _ in 0..LANES {
        lanes.spawn(async move {
            let mut stream = TcpStream::connect(to).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut answer = Vec::new();
            for _ in 0..requests {
                let request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
                stream.write_all(request).await.unwrap();
                answer.clear();
                while !answer.ends_with(b"\r\n\r\nok") {
                    let read = tokio::time::timeout(SOON, stream.read_buf(&mut answer));
                    assert!(read.await.expect("an answer in time").unwrap() > 0);
                }
            }
        });
    }
    lanes.join_all().await;
    began.elapsed() / u32::try_from(requests).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_reads_holds_nobody_up() {
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (mut process, mut log) = Process::start(&backend);
    tokio::spawn(serve(backend));
    let listening = loop {
        let mut line = String::new();
        assert!(log.read_line(&mut line).unwrap() > 0, "it has ended");
        let line: Value = serde_json::from_str(&line).unwrap();
        if message(&line) == "listening" && line["listener"] == "web" {
            break line["address"].as_str().unwrap().parse().unwrap();
        }
    };
    // Reads all of the first requests' records, then nothing until it is told to, then all.
    let (go_on, told) = mpsc::channel::<()>();
    let (all_read, first) = tokio::sync::oneshot::channel();
    let reader = std::thread::spawn(move || {
        let is_record = |line: &std::io::Result<String>| {
            let line: Value = serde_json::from_str(line.as_ref().unwrap()).unwrap();
            message(&line) == "request"
        };
        let mut lines = log.lines();
        let found = lines.by_ref().filter(is_record).take(LANES * READ).count();
        all_read.send(found).unwrap();
        told.recv().unwrap();
        found + lines.filter(is_record).count()
    });
    let usual = ask(listening, READ).await;
    assert_eq!(first.await.unwrap(), LANES * READ);
    assert_eq!(process.metric("homescar_log_lines_dropped_total").await, 0);

    let began = Instant::now();
    let stalled = ask(listening, STALLED).await;
    let lasted = began.elapsed();
    let most = 3 * usual + Duration::from_millis(1);
    assert!(
        stalled < most,
        "{stalled:?} a request, and {usual:?} before"
    );
    let dropped = process.metric("homescar_log_lines_dropped_total").await;
    assert!(dropped > 0, "the queue holds more than was thought");

    go_on.send(()).unwrap();
    kill(pid(process.child.id()), Signal::SIGTERM).unwrap();
    let read = tokio::task::spawn_blocking(move || reader.join().unwrap());
    let written = tokio::time::timeout(SOON, read).await.unwrap().unwrap() as u64;
    assert!(process.child.wait().unwrap().success());
    let all = (LANES * (READ + STALLED)) as u64;
    let others = 1 + lasted.div_duration_f64(SAID_EVERY) as u64;
    let told = written + dropped;
    assert!(
        (all..=all + others).contains(&told),
        "{written} written and {dropped} dropped of {all}, in {lasted:?}"
    );
}
