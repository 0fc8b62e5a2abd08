//! The system calls of the relay, of which nearly all that it costs is made: none comes to it unnoticed.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
};

use nix::sys::signal::{Signal, kill};
use tempfile::{NamedTempFile, TempDir};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{
    support::homescar::{Homescar, pid},
    tls::pki::{Authority, TlsClient},
};

/// Units one after the other, so that the calls of one do not depend on another's.
const UNITS: u64 = 200;
/// What comes by the clock meanwhile: timers, and checks.
const TOLERANCE: f64 = 0.3;
/// How often it wakes up is the clock's affair, too. And a debug build looks at each descriptor before
/// it closes it.
const NOT_COUNTED: [&str; 2] = ["epoll_wait", "fcntl"];

const ASKED: &[u8] = b"GET / HTTP/1.1\r\nHost: app\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// strace at work.
struct Counting {
    strace: Child,
    table: NamedTempFile,
}

impl Counting {
    fn start(homescar: &Homescar) -> Self {
        let table = NamedTempFile::new().unwrap();
        let mut strace = Command::new("strace")
            .args(["-c", "-f", "-p", &homescar.pid().to_string(), "-o"])
            .arg(table.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stderr = strace.stderr.take().unwrap();
        BufReader::new(stderr).read_line(&mut line).unwrap();
        assert!(line.contains("attached"), "strace does not attach: {line}");
        Self { strace, table }
    }

    /// The calls of a unit, and strace's table.
    fn end(mut self) -> (f64, String) {
        kill(pid(self.strace.id()), Signal::SIGINT).unwrap();
        self.strace.wait().unwrap();
        let table = fs::read_to_string(self.table.path()).unwrap();
        // Lines of `% time, seconds, usecs/call, calls, errors (when any), syscall`.
        let calls = table.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let (name, calls) = (*fields.last()?, fields.get(3)?);
            let is_counted = name != "total" && !NOT_COUNTED.contains(&name);
            is_counted.then(|| calls.parse::<u64>().ok()).flatten()
        });
        let calls: u64 = calls.sum();
        (calls as f64 / UNITS as f64, table)
    }
}

/// Whatever comes, the answer goes back.
async fn backend() -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            connections.spawn(async move {
                let mut bytes = [0; 4096];
                while stream.read(&mut bytes).await.is_ok_and(|came| came > 0) {
                    if stream.write_all(ANSWER).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (address, serving)
}

async fn ask(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    stream.write_all(ASKED).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nok") {
        assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0);
    }
}

/// homescar with one thread and nothing to do but this.
fn serve(mode: &str, listener: &str, backend: SocketAddr) -> Homescar {
    Homescar::serve(&format!(
        r#"
        threads = 1
        [listener.web]
        bind = "127.0.0.1:0"
        mode = "{mode}"
        cluster = "app"
        {listener}
        [cluster.app]
        backends = ["{backend}"]
        [log]
        records = "off"
        "#
    ))
}

/// Fails when a unit makes more calls than it did, each time that it is looked at: where the machine is
/// busy, what a connection waits for is not there at once, and is asked for again.
async fn judge(what: &str, committed: f64, measure: impl AsyncFn() -> (f64, String)) {
    let mut told = String::new();
    for _ in 0..3 {
        let (each, table) = measure().await;
        if each <= committed + TOLERANCE {
            return;
        }
        told = format!("{each:.2} system calls instead of {committed}:\n{table}");
    }
    panic!("{what}: {told}if that is meant, say why and change the figure");
}

async fn count(mode: &str, is_kept: bool, committed: f64) {
    let (backend, _serving) = backend().await;
    let homescar = serve(mode, "", backend);
    let to = homescar.address("web").await;
    let kind = if is_kept { "kept" } else { "short" };
    judge(&format!("{mode}, {kind}"), committed, async || {
        let mut kept = TcpStream::connect(to).await.unwrap();
        ask(&mut kept).await;
        let counting = Counting::start(&homescar);
        for _ in 0..UNITS {
            if is_kept {
                ask(&mut kept).await;
            } else {
                let mut stream = TcpStream::connect(to).await.unwrap();
                ask(&mut stream).await;
                stream.shutdown().await.unwrap();
                // The proxy has ended it, too, when this is at its end.
                assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
            }
        }
        counting.end()
    })
    .await;
}

/// The same over TLS, on a connection that is kept.
async fn count_encrypted(mode: &str, committed: f64) {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new();
    let (cert, key) = authority.pair(&["a.test"]).write(folder.path());
    let tls = format!("tls = {{ cert = {cert:?}, key = {key:?} }}");
    let (backend, _serving) = backend().await;
    let homescar = serve(mode, &tls, backend);
    let to = homescar.address("web").await;
    judge(&format!("{mode} over TLS"), committed, async || {
        let client = TlsClient::connect(to, &authority.client()).await;
        let mut kept = client.unwrap().stream;
        ask(&mut kept).await;
        let counting = Counting::start(&homescar);
        for _ in 0..UNITS {
            ask(&mut kept).await;
        }
        counting.end()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_message_and_its_answer_cost_no_more_system_calls_than_they_did() {
    count("tcp", true, 4.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_connection_costs_no_more_system_calls_than_it_did() {
    // Among them a second connect(2), which saves a wake-up: these are not counted.
    count("tcp", false, 19.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_request_costs_no_more_system_calls_than_it_did() {
    count("http", true, 4.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_connection_with_one_request_costs_no_more_system_calls_than_it_did() {
    count("http", false, 10.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_message_and_its_answer_over_tls_cost_no_more_system_calls_than_they_did() {
    count_encrypted("tcp", 4.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_request_over_tls_costs_no_more_system_calls_than_it_did() {
    count_encrypted("http", 4.0).await;
}
